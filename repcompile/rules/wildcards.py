"""What a pattern leaves open: any module of a class, any constant, any value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class AnyModule:
    """Modules of some classes whose attributes are, or pass, what is asked for."""

    classes: tuple[type[nn.Module], ...]
    attributes: Mapping[str, Any]

    def accepts(self, module: nn.Module) -> bool:
        """Whether the attributes of `module` are as asked for."""
        return all(
            hasattr(module, name) and _passes(getattr(module, name), wanted) for name, wanted in self.attributes.items()
        )


@dataclass(frozen=True, slots=True)
class AnyConstant:
    """A number, or a tensor that depends on no input."""


@dataclass(frozen=True, slots=True)
class Built:
    """A module that is made for each match."""

    function: Callable[[Any], nn.Module]


def any_module(*classes: type[nn.Module], **attributes: Any) -> Any:
    """A wildcard for a module: `conv=any_module(nn.Conv2d, kernel_size=1)` as a parameter's default.

    classes: of torch.nn, whatever the module's own class is called that computes the same; or classes of one's own,
    which tracing then keeps whole.
    attributes: what they have to be, or a function that says whether they pass; a number stands for a tuple of that
    number too.
    """
    return AnyModule(classes, attributes)


def any_constant() -> Any:
    """A wildcard for a number, a parameter, a buffer, or what is computed from them."""
    return AnyConstant()


def build(function: Callable[[Any], nn.Module]) -> Any:
    """In a replacement: a module made from the match, as a parameter's default: `merged=build(lambda match: ...)`."""
    return Built(function)


def _passes(value: Any, wanted: Any) -> bool:
    if callable(wanted) and not isinstance(wanted, type):
        return bool(wanted(value))
    many = isinstance(value, tuple | list) and not isinstance(wanted, tuple | list)
    return all(entry == wanted for entry in value) if many else bool(value == wanted)
