"""Which parts of a model stay as they are, because the caller said so.

Given: a model, and globs of module paths or a predicate.  Result: the paths of the modules that are kept. A kept module
whose children are kept too stays one node, with its class, its weights and its place; where some of its children are
compiled, its own operators stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from repcompile.errors import ModelError

Choice = str | Sequence[str] | Callable[[str, nn.Module], bool]
SKIPPED = "skipped by the caller"


@dataclass(frozen=True, slots=True)
class Selection:
    """kept: paths of modules whose own operators stay.  whole: those of them with nothing else inside."""

    kept: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()

    def inside(self, path: str) -> Selection:
        """The selection in the module at `path`, with paths from there."""
        return Selection(_below(self.kept, path), _below(self.whole, path)) if path else self

    def renamed(self, name: Callable[[str], str]) -> Selection:
        """The selection in a model whose modules have other names."""
        return Selection(frozenset(map(name, self.kept)), frozenset(map(name, self.whole)))


NOTHING = Selection()


def selected(model: nn.Module, only: Choice | None, skip: Choice | None) -> Selection:
    """What stays of `model`.

    only: the modules that are compiled, with all that is in them.  skip: the modules that are not.
    Each is a glob of module paths, several of them, or a function of a path and its module. In a glob `*` stands for
    one name or a part of it, `**` for any number of names: "stages.*.norm", "**.norm".
    Raises ModelError if a glob names no module.
    """
    if (only is None and skip is None) or not isinstance(model, nn.Module):  # what is none is told of later
        return NOTHING
    modules = dict(model.named_modules(remove_duplicate=False))
    compiled = set(modules) if only is None else _chosen(modules, only, "only")
    skipped = set() if skip is None else _chosen(modules, skip, "skip")
    objects = {id(modules[path]) for path in modules if path not in compiled or path in skipped}
    kept = frozenset(path for path, module in modules.items() if id(module) in objects)
    mixed = {above for path in modules if path not in kept for above in _above(path)}
    return Selection(kept, kept - mixed)


def _chosen(modules: dict[str, nn.Module], choice: Choice, name: str) -> set[str]:
    """The paths that are chosen, and those below them."""
    if callable(choice):
        found = {path for path, module in modules.items() if choice(path, module)}
    else:
        found = {path for glob in _globs(choice, name) for path in _matching(modules, glob, name)}
    return {path for path in modules if path in found or not found.isdisjoint(_above(path))}


def _globs(choice: str | Sequence[str], name: str) -> Sequence[str]:
    globs = [choice] if isinstance(choice, str) else list(choice)
    if not all(isinstance(glob, str) for glob in globs):
        raise ModelError(f"{name} is a glob of module paths, several of them, or a function of (path, module)")
    return globs


def _matching(modules: Iterable[str], glob: str, name: str) -> list[str]:
    expression = re.compile(_expression(glob))
    found = [path for path in modules if path and expression.fullmatch(path)]
    if not found:
        top = ", ".join(path for path in modules if path and "." not in path)
        raise ModelError(f"{name}: {glob!r} names no module of the model, which has {top or 'none'}")
    return found


def _expression(glob: str) -> str:
    """A regular expression for the paths that a glob means."""
    parts = (SPECIAL.get(part) or re.escape(part) for part in re.split(r"(\*\*\.|\.\*\*|\*\*|\*)", glob))
    return "".join(parts)


SPECIAL = {"**.": r"(.*\.)?", ".**": r"(\..*)?", "**": ".*", "*": "[^.]*"}


def _above(path: str) -> list[str]:
    """The paths of the modules around the one at `path`, the root's included."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))] if path else []


def _below(paths: frozenset[str], path: str) -> frozenset[str]:
    inner = {other.removeprefix(f"{path}.") for other in paths if other.startswith(f"{path}.")}
    return frozenset(inner | {""} if path in paths else inner)
