"""What tests of a fusion, and of rules of one's own, need.

`affines()`, `blocks()` and `graphs()` are strategies of Hypothesis, which is imported when one of them is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repcompile.testing.checks import check_affine_rule, check_rewrite_rule
from repcompile.testing.models import randomize

if TYPE_CHECKING:
    from repcompile.testing.strategies import affines, blocks, graphs, images_for

STRATEGIES = ("affines", "blocks", "graphs", "images_for")

__all__ = ["affines", "blocks", "check_affine_rule", "check_rewrite_rule", "graphs", "images_for", "randomize"]


def __getattr__(name: str) -> Any:
    if name not in STRATEGIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("repcompile.testing.strategies"), name)
