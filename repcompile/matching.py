"""Where a pattern stands in a graph.

Given: a traced pattern and a node.  Result: the first way in which the node is what the pattern computes, up to the
order and nesting of sums and products, or why there is none. A sum or product may have terms that the pattern does not
name: they are left over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import torch
from torch import fx

from repcompile.capture import Captured
from repcompile.constants import Constants
from repcompile.operators import Flat, flat, operation_of
from repcompile.rules.rewriting import RewriteRule, Side
from repcompile.rules.wildcards import AnyModule


@dataclass(frozen=True, slots=True)
class Found:
    """How a pattern matches.

    values: name of a parameter -> the node, or the number.  modules: name -> path.  nodes: of the pattern -> of the
    graph.  covered: the nodes that the pattern computes.
    rest: terms of the root's sum or product that are left over, and the number.
    """

    values: Mapping[str, Any]
    modules: Mapping[str, str]
    nodes: Mapping[fx.Node, fx.Node]
    covered: frozenset[fx.Node] = frozenset()
    rest: Flat | None = None


@dataclass(frozen=True, slots=True)
class Matcher:
    """Looks for one rule's pattern.  numbers: nodes that are sizes and the like, and no tensors."""

    rule: RewriteRule
    captured: Captured
    constants: Constants
    numbers: frozenset[fx.Node]

    def at(self, root: fx.Node) -> Found | None:
        """The first way in which `root` is what the pattern computes, with no reader from outside if there is one."""
        if root in self.constants or root in self.numbers or self.captured.stays(root):
            return None
        first: Found | None = None
        for found in self._node(self._side.root, root, Found({}, {}, {}), top=True):
            if not self.readers(found, root):
                return found
            first = first or found
        return first

    def readers(self, found: Found, root: fx.Node) -> list[fx.Node]:
        """The values inside that others read, too."""
        inner = found.covered - {root}
        return [node for node in inner if not found.covered.issuperset(node.users)]

    @property
    def _side(self) -> Side:
        return self.rule.pattern

    def _any(self, pattern: Any, target: Any, found: Found) -> Iterator[Found]:
        if isinstance(pattern, fx.Node):
            yield from self._value(pattern, target, found)
        elif isinstance(pattern, tuple | list) and isinstance(target, tuple | list):
            yield from self._all(pattern, target, found) if len(pattern) == len(target) else ()
        elif _equal(pattern, target):
            yield found

    def _all(self, patterns: Sequence[Any], targets: Sequence[Any], found: Found) -> Iterator[Found]:
        if not patterns:
            yield found
            return
        for more in self._any(patterns[0], targets[0], found):
            yield from self._all(patterns[1:], targets[1:], more)

    def _value(self, pattern: fx.Node, target: Any, found: Found) -> Iterator[Found]:
        if pattern.op == "placeholder":
            if isinstance(target, fx.Node) and target not in self.constants and target not in self.numbers:
                yield from self._bound(str(pattern.target), target, found)
        elif pattern.op == "get_attr":
            yield from self._constant(str(pattern.target), target, found)
        elif isinstance(target, fx.Node) and target not in self.constants and not self.captured.stays(target):
            yield from self._node(pattern, target, found)

    def _bound(self, name: str, target: Any, found: Found) -> Iterator[Found]:
        if name not in found.values:
            yield replace(found, values={**found.values, name: target})
        elif found.values[name] is target or (not isinstance(target, fx.Node) and _equal(found.values[name], target)):
            yield found

    def _constant(self, name: str, target: Any, found: Found) -> Iterator[Found]:
        if name in self._side.constants:
            if type(target) in (int, float) or (isinstance(target, fx.Node) and target in self.constants):
                yield from self._bound(name, target, found)
        elif isinstance(target, fx.Node) and target.op == "get_attr":
            own, other = self._side.captured.constants[name], self.captured.constants[str(target.target)]
            if own.shape == other.shape and torch.equal(own, other.to(own)):
                yield found

    def _node(self, pattern: fx.Node, target: fx.Node, found: Found, top: bool = False) -> Iterator[Found]:
        if pattern in found.nodes:
            if found.nodes[pattern] is target:
                yield found
            return
        summed = flat(pattern, self._side.captured)
        if summed is not None:
            other = flat(target, self.captured)
            if other is not None and other.name == summed.name:
                yield from self._flat(pattern, summed, target, other, found, top)
            return
        for more in self._call(pattern, target, found):
            nodes = {**more.nodes, pattern: target}
            yield replace(more, nodes=nodes, covered=more.covered | {target})

    def _call(self, pattern: fx.Node, target: fx.Node, found: Found) -> Iterator[Found]:
        if pattern.op == "call_module":
            yield from self._module(pattern, target, found)
            return
        wanted, given = operation_of(pattern, self._side.captured), operation_of(target, self.captured)
        if wanted is None or given is None or wanted.name != given.name or wanted.kwargs.keys() != given.kwargs.keys():
            return
        if len(wanted.args) == len(given.args):
            mine, theirs = (*wanted.args, *wanted.kwargs.values()), [given.kwargs[key] for key in wanted.kwargs]
            yield from self._all(mine, (*given.args, *theirs), found)

    def _module(self, pattern: fx.Node, target: fx.Node, found: Found) -> Iterator[Found]:
        name = str(pattern.target)
        wild = self._side.modules[name]
        if target.op != "call_module" or not isinstance(wild, AnyModule) or target.kwargs or pattern.kwargs:
            return
        path = str(target.target)
        if (
            found.modules.get(name, path) != path
            or not self._fits(target, wild)
            or len(pattern.args) != len(target.args)
        ):
            return
        for more in self._all(pattern.args, target.args, found):
            yield replace(more, modules={**more.modules, name: path})

    def _fits(self, target: fx.Node, wild: AnyModule) -> bool:
        module, cls = self.captured.module(target), self.captured.torch_class(target)
        own = type(module) in wild.classes and str(target.target) not in self.captured.opaque
        return (own or issubclass(cls, wild.classes)) and wild.accepts(module)

    # -- sums and products -------------------------------------------------------------------------------------------

    def _flat(
        self, pattern: fx.Node, mine: Flat, target: fx.Node, theirs: Flat, found: Found, top: bool
    ) -> Iterator[Found]:
        """Each of the pattern's terms is another one of the target's; at the root some may be left over."""
        first = sorted(mine.terms, key=lambda term: _vague(term[0]))
        for more, left, number in self._terms(first, theirs.terms, theirs.number, mine, found):
            exact = _close(number, mine.number)
            if ((left or not exact) and not top) or (not exact and mine.number == 0 and mine.name == "product"):
                continue
            rest = Flat(mine.name, _apart(number, mine), left, ()) if left or not exact else None
            nodes = {**more.nodes, pattern: target}
            yield replace(more, nodes=nodes, covered=more.covered | set(theirs.inner), rest=rest)

    def _terms(
        self,
        mine: Sequence[tuple[fx.Node, int]],
        theirs: tuple[tuple[fx.Node, int], ...],
        number: float,
        whole: Flat,
        found: Found,
    ) -> Iterator[tuple[Found, tuple[tuple[fx.Node, int], ...], float]]:
        """(found, the terms that are left over, their number)"""
        if not mine:
            yield found, theirs, number
            return
        (pattern, sign), *others = mine
        for index, (target, other) in enumerate(theirs):
            if other == sign:
                rest = (*theirs[:index], *theirs[index + 1 :])
                for more in self._value(pattern, target, found):
                    yield from self._terms(others, rest, number, whole, more)
        if pattern.op == "get_attr" and not _close(number, whole.number):  # the constant is their number
            value = _apart(number, whole)
            bound = value * sign if whole.name == "sum" else value**sign
            for more in self._constant(str(pattern.target), bound, found):
                yield from self._terms(others, theirs, whole.number, whole, more)


def _apart(number: float, mine: Flat) -> float:
    """What the target's number is beside the pattern's."""
    return number - mine.number if mine.name == "sum" else number / mine.number


def _vague(pattern: fx.Node) -> int:
    """Operators first: they decide at once."""
    return {"placeholder": 2, "get_attr": 1}.get(pattern.op, 0)


def _equal(pattern: Any, target: Any) -> bool:
    if type(pattern) in (int, float) and type(target) in (int, float):
        return _close(pattern, target)
    return not isinstance(target, fx.Node) and type(pattern) is type(target) and bool(pattern == target)


def _close(left: float, right: float) -> bool:
    """Equal but for the rounding of a few operations on Python numbers."""
    return left == right or isclose(left, right, rel_tol=1e-12, abs_tol=0.0)
