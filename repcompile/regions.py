"""Candidates: parts of the graph that one operator could replace.

Given: facts.  Result: every region with a source, a sink and an interior whose sink is one affine map of its source,
with what it costs as it stands and as one operator. All of them are legal; `plan` decides which ones pay.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

from torch import fx

from repcompile.affine import Affine, Uniform
from repcompile.capture import Captured
from repcompile.cost import POSITIONS, Cost, cost_of_elementwise, cost_of_map
from repcompile.facts import Fact, Facts

UNKNOWN_CHANNELS = 64
ARITHMETIC = ("add", "sub", "mul", "div", "neg", "same_values", "pad")  # rules of operators that take integers too


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """sink = fact(source), by way of the interior.

    interior: between source and sink, in graph order.  dying: the interior nodes that nobody else reads.
    before: what the kernels of the dying nodes and the sink cost.  after: what those of the one operator cost.
    """

    fact: Fact
    sink: fx.Node
    interior: tuple[fx.Node, ...]
    dying: tuple[fx.Node, ...]
    before: tuple[Cost, ...]
    after: tuple[Cost, ...]

    @property
    def source(self) -> fx.Node:
        return self.fact.source

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Interior and sink, in graph order."""
        return (*self.interior, self.sink)


def candidate_regions(
    captured: Captured, facts: Facts, known: Mapping[fx.Node, tuple[int, ...]] | None = None
) -> list[Region]:
    """Every region of two operators or more, in graph order of the sinks.

    A region moves its reads to where its sink is, so that none may reach across an opaque module, which might write.
    known: shapes from a run on example inputs, for exact costs.
    """
    order = {node: index for index, node in enumerate(captured.graph.nodes)}
    opaque = [order[node] for node in order if node.op == "call_module" and node.target in captured.opaque]
    pricing = _Pricing(facts, known or {})
    return [
        region
        for sink, candidates in facts.maps.items()
        if sink in facts.rules and facts.rules[sink].kind == "affine"
        for fact in candidates
        if (region := _region(fact, sink, order, pricing)) is not None
        and bisect(opaque, order[region.nodes[0]]) == bisect(opaque, order[sink])
    ]


def _region(fact: Fact, sink: fx.Node, order: Mapping[fx.Node, int], pricing: _Pricing) -> Region | None:
    if isinstance(fact.map, Uniform) and not fact.map.is_identity:
        return None
    interior = tuple(sorted(_interior(fact.source, sink, pricing.facts.maps), key=order.__getitem__))
    dying = _dying(interior, sink)
    kernels = [pricing.of_node(node, fact) for node in (*dying, sink)]
    if sum(map(bool, kernels)) < (1 if isinstance(fact.map, Uniform) else 2):
        return None
    if _may_read_integers(fact.source, (*interior, sink), pricing.facts):
        return None
    return Region(fact, sink, interior, dying, tuple(chain(*kernels)), pricing.of_region(fact, sink))


def _may_read_integers(source: fx.Node, nodes: Sequence[fx.Node], facts: Facts) -> bool:
    """Whether the source may hold integers, which arithmetic turns into floating point and no convolution takes."""
    if source in facts.rules or source.op == "call_module":
        return False
    readers = [node for node in nodes if source in node.all_input_nodes]
    return all(facts.rules[node].name in ARITHMETIC or facts.rules[node].kind == "layout" for node in readers)


def _interior(source: fx.Node, sink: fx.Node, values: Container[fx.Node]) -> set[fx.Node]:
    """Every value on a way from source to sink: what the sink is computed from, down to the source."""
    found: set[fx.Node] = set()
    stack = [sink]
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand is not source and operand in values and operand not in found:
                found.add(operand)
                stack.append(operand)
    return found


def _dying(interior: tuple[fx.Node, ...], sink: fx.Node) -> tuple[fx.Node, ...]:
    gone = {sink}
    for node in reversed(interior):
        if all(user in gone for user in node.users):
            gone.add(node)
    return tuple(node for node in interior if node in gone)


@dataclass(frozen=True, slots=True)
class _Pricing:
    facts: Facts
    known: Mapping[fx.Node, tuple[int, ...]]

    def of_region(self, fact: Fact, sink: fx.Node) -> tuple[Cost, ...]:
        if isinstance(fact.map, Uniform):  # a copy: nobody may write to the source by way of the sink
            return (cost_of_elementwise(1, self._channels(sink), self._positions(sink, fact)),)
        before, after = self._positions(fact.source, fact), self._positions(sink, fact)
        return cost_of_map(fact.map, self._channels(sink), before, after)

    def of_node(self, node: fx.Node, whole: Fact) -> tuple[Cost, ...]:
        """What `node` itself costs inside the region of `whole`."""
        if self.facts.rules[node].kind == "layout":
            return ()
        operands = [value for value in node.all_input_nodes if value is whole.source or value in self.facts.maps]
        after = self._positions(node, whole)
        if len(operands) > 1:
            return (cost_of_elementwise(len(operands), self._channels(node), after),)
        step = self._about(node, operands[0])
        return cost_of_map(step.map, self._channels(node), self._positions(operands[0], whole), after)

    def _about(self, node: fx.Node, source: fx.Node) -> Fact:
        return next(fact for fact in self.facts.maps[node] if fact.source is source)

    def _positions(self, node: fx.Node, whole: Fact) -> float:
        """Positions of `node`, batch included: measured, or scaled by the strides so that the sink has `POSITIONS`."""
        if node in self.known:
            return prod(self.known[node]) / self._channels(node)
        return POSITIONS * _strides(whole) / (1 if node is whole.source else _strides(self._about(node, whole.source)))

    def _channels(self, node: fx.Node) -> int:
        for fact in self.facts.maps.get(node, ()):
            if isinstance(fact.map, Affine):
                return fact.map.c_out
        shape = self.facts.shapes.get(node)
        return (shape[1].known if shape is not None and len(shape) > 1 else None) or UNKNOWN_CHANNELS


def _strides(fact: Fact) -> int:
    return prod(axis.stride for axis in fact.map.axes) if isinstance(fact.map, Affine) else 1
