"""Whether a value must have as many axes as the facts take it to have.

`nn.Conv1d` reads (batch, c, length) and (c, length) alike, and facts take it to read batches. Where an operator behind
would act along another axis of a single image, the fused model checks what it gets: another number of axes is an error
and never another result. No check is needed where the model itself fails: `nn.BatchNorm2d`, `B, C, H, W = x.shape`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.errors import Inexact
from repcompile.facts import Facts
from repcompile.inquiries import question_of
from repcompile.modules import of_rank
from repcompile.readers import letters_of
from repcompile.regions import Region
from repcompile.regroup import PARTICULAR
from repcompile.spelling import name_of

JOINING = (
    *("add", "sub", "mul", "div", "addcmul"),
    "truediv",
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "cat",
    "concat",
    "concatenate",
)  # operators


def ranks_to_check(regions: Sequence[Region], captured: Captured, facts: Facts) -> Mapping[Region, int]:
    """The regions that are exact for one number of axes of their source only, and that number."""
    leaning = [region for region in regions if any(_leans(node, facts) for node in region.nodes)]
    if not leaning:
        return {}
    classes = _classes(captured, facts)
    checks: dict[Region, int] = {}
    for region in leaning:
        rank = _rank_of_source(region, facts)
        if rank is not None and not classes.is_sure(region.source):
            checks[region] = rank
            classes.sure(region.source)
    return checks


def _rank_of_source(region: Region, facts: Facts) -> int | None:
    fact, shape = region.fact, facts.shapes.get(region.source)
    if shape is not None or fact.path:
        return len(shape or fact.path[0].before)
    return len(fact.map.axes) + 2 if isinstance(fact.map, Affine) and fact.map.axes else None


def _leans(node: fx.Node, facts: Facts) -> bool:
    """Whether the rule of `node` says something else for another number of axes."""
    rule = facts.rules.get(node)
    if rule is None or node in facts.steps:
        return node in facts.steps
    if node.target is of_rank:
        return True
    return _widens(node, facts) if rule.elementwise else rule.wants("shape")


def _widens(node: fx.Node, facts: Facts) -> bool:
    """Whether a constant has an axis for the batch, which an image alone would get from it."""
    try:
        constants = [facts.constants.value(o).shape for o in node.all_input_nodes if o in facts.constants]
    except Inexact:  # not of floating-point numbers
        return True
    rank = _rank_of(node, facts)
    return any(len(sizes) >= (2 if rank is None else rank) for sizes in constants)


def _rank_of(node: fx.Node, facts: Facts) -> int | None:
    shape = facts.shapes.get(node)
    axes = [len(fact.map.axes) for fact in facts.maps.get(node, ()) if isinstance(fact.map, Affine) and not fact.path]
    return len(shape) if shape is not None else axes[0] + 2 if axes and axes[0] else None


class _Classes:
    """Values with as many axes as each other (union-find), and the classes whose number is sure."""

    def __init__(self) -> None:
        self._leader: dict[fx.Node, fx.Node] = {}
        self._sure: set[fx.Node] = set()

    def of(self, node: fx.Node) -> fx.Node:
        while (leader := self._leader.get(node, node)) is not node:
            self._leader[node] = self._leader.get(leader, leader)
            node = leader
        return node

    def same(self, left: fx.Node, right: fx.Node) -> None:
        left, right = self.of(left), self.of(right)
        self._leader[left] = right
        if left in self._sure:
            self._sure.add(right)

    def sure(self, node: fx.Node) -> None:
        self._sure.add(self.of(node))

    def is_sure(self, node: fx.Node) -> bool:
        return self.of(node) in self._sure


def _classes(captured: Captured, facts: Facts) -> _Classes:
    classes = _Classes()
    for node in captured.graph.nodes:
        if "rank" in node.meta and len(facts.shapes.get(node) or ()) == node.meta["rank"]:
            classes.sure(node)  # whoever calls the graph has compared it
        asserted = _asserted(node)
        if asserted is not None:
            classes.sure(asserted)
        values = [o for o in node.all_input_nodes if o not in facts.constants and o not in facts.numbers]
        if not values or node.op == "output":
            continue
        for value in _sure_by(node, values[0], captured):
            classes.sure(value)
        if len({classes.of(value) for value in values}) == 1 and _keeps_rank(node, values[0], facts):
            classes.same(node, values[0])
        elif _is_told(node, facts) and all(map(classes.is_sure, values)):
            classes.sure(node)
    return classes


def _sure_by(node: fx.Node, value: fx.Node, captured: Captured) -> Iterable[fx.Node]:
    """The values that `node` would fail for if they had another number of axes, or makes with so many."""
    name = name_of(node)
    if question_of(node) is not None:
        return (value,) if "unpacked" in node.meta else ()
    if node.op == "call_module":
        return (value,) if issubclass(captured.torch_class(node), PARTICULAR) else ()
    if (name == "permute" and _is_listed(node.args[1:])) or value in letters_of(node):
        return value, node
    return (node,) if name in ("reshape", "view") and _is_listed(node.args[1:]) else (node,) * (name == "of_rank")


def _is_told(node: fx.Node, facts: Facts) -> bool:
    """Whether the operands' numbers of axes tell that of `node`."""
    return node in facts.rules or name_of(node) in JOINING


def _asserted(node: fx.Node) -> fx.Node | None:
    """The value of which `node` asserts how many axes it has: `torch._assert(x.ndim == 4, ...)`."""
    equal: Any = node.args[0] if node.target is torch._assert else None
    question: Any = equal.args[0] if isinstance(equal, fx.Node) and equal.target is operator.eq else None
    asks = isinstance(question, fx.Node) and question_of(question) in ("ndim", "dim")
    return question.all_input_nodes[0] if asks and isinstance(equal.args[1], int) else None


def _is_listed(sizes: Sequence[Any]) -> bool:
    """Whether there is an entry for every axis, not one value for all of them."""
    return len(sizes) > 1 or (len(sizes) == 1 and isinstance(sizes[0], list | tuple))


def _keeps_rank(node: fx.Node, value: fx.Node, facts: Facts) -> bool:
    if node in facts.alike:
        return True
    rule = facts.rules.get(node)
    if rule is None or node.target is of_rank:
        return False
    near = any(fact.source is value and not fact.path for fact in facts.maps.get(node, ()))
    return near and not (rule.elementwise and _widens(node, facts))
