"""Rules that installed packages offer, by the entry point group `repcompile.rules`; loaded when they are named."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points

from repcompile.errors import RuleError
from repcompile.rules.ruleset import RuleSet

GROUP = "repcompile.rules"


def load_rules(name: str) -> RuleSet:
    """The rules that an installed package offers under `name`.

    The package says in its pyproject.toml where they are: a `RuleSet`, or any iterable of rules.

        [project.entry-points."repcompile.rules"]
        name = "package.module:RULES"

    Raises RuleError if nobody offers that name, or if what is there cannot be loaded or holds no rules.
    """
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in offered:
        others = ", ".join(sorted(offered)) or "nothing"
        raise RuleError(f"no installed package offers rules called {name!r}; offered: {others}")
    try:
        rules = offered[name].load()
    except Exception as error:  # the package's own code
        raise RuleError(f"the rules {name!r} ({offered[name].value}) cannot be loaded: {error}") from error
    if not isinstance(rules, Iterable):
        raise RuleError(f"the rules {name!r} ({offered[name].value}) are a {type(rules).__name__}, not rules")
    return RuleSet() + rules
