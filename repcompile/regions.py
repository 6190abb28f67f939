"""Candidates: parts of the graph that one operator could replace.

Given: facts.  Result: every region with a source, a sink and an interior whose sink is one affine map of its source,
with what it costs as it stands and as one operator. All of them are legal; `plan` decides which ones pay.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

import torch
from torch import fx

from repcompile.affine import Affine, Map, Uniform
from repcompile.capture import Captured
from repcompile.cost import (
    ELEMENT,
    POSITIONS,
    Cost,
    cost_of_elementwise,
    cost_of_map,
    cost_of_padding,
    cost_of_resampling,
    seams_of,
    total,
)
from repcompile.facts import Facts
from repcompile.inquiries import about_batch, other_subject, question_of
from repcompile.paths import Fact, Step, places
from repcompile.spelling import target_of

UNKNOWN_CHANNELS = 64
VIEW = Cost()  # an operator, but no kernel


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
    def owned(self) -> tuple[fx.Node, ...]:
        """What the one operator makes superfluous: the dying nodes and the sink, in graph order."""
        return (*self.dying, self.sink)

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
    segments = captured.segments(facts.numbers)
    pricing = _Pricing(facts, known or {})
    return [
        region
        for sink, candidates in facts.maps.items()
        if sink in facts.rules
        for fact in candidates
        if facts.rules[sink].kind == "affine" or _came_back(fact, sink)
        for region in _regions(fact, sink, order, captured, pricing)
        if segments[region.nodes[0]] == segments[sink]
    ]


def _regions(
    fact: Fact, sink: fx.Node, order: Mapping[fx.Node, int], captured: Captured, pricing: _Pricing
) -> list[Region]:
    """The region of one fact, once for each place of its path where the map can stand and costs something else."""
    if not _has_operator(fact):
        return []
    interior = tuple(sorted(_interior(fact.source, sink, pricing.facts.maps), key=order.__getitem__))
    dying = _dying(interior, sink, fact, pricing.facts)
    kernels = [pricing.of_node(node, fact) for node in (*dying, sink)]
    if sum(map(bool, kernels)) < (1 if isinstance(fact.map, Uniform) else 2):
        return []
    if fact.source not in pricing.facts.floating:  # what arithmetic turns into floating point, and no convolution takes
        return []
    before = tuple(chain(*kernels))
    priced: dict[tuple[Cost, ...], Fact] = {}
    for place in places(fact):
        after = pricing.of_region(place, fact, sink)
        sure = not fact.path and (pricing.known or not _widens(place.map))
        if sure or _clearly_different(before, after, place.at != fact.home):
            priced.setdefault(after, place)
    return [Region(place, sink, interior, dying, before, after) for after, place in priced.items()]


def _has_operator(fact: Fact) -> bool:
    """Whether one operator computes it; of the maps that know no channels, the identity alone does without."""
    return fact.map.is_identity and not fact.path if isinstance(fact.map, Uniform) else fact.map.has_operator


def _clearly_different(before: Sequence[Cost], after: Sequence[Cost], moved: bool) -> bool:
    """Whether a price can tell: more arithmetic in as many kernels, against fewer bytes, is too close to call.

    moved: whether the map stands elsewhere than before; as many kernels that stand where they stood are the same ones.
    """
    old, new = total(before), total(after)
    return new.launches < old.launches or (moved and new.macs <= old.macs)


def _widens(x: Map) -> bool:
    """Whether it runs on more positions than come in, on how many more only the image's size tells."""
    return isinstance(x, Affine) and any(axis.growth > 0 for axis in x.axes)


def _came_back(fact: Fact, sink: fx.Node) -> bool:
    """Whether a sink that moves positions undoes what the path did before, so that it is no part of the path."""
    return not any(step.node is sink for step in fact.path) and not isinstance(fact.map, Uniform)


def interior_of(source: fx.Node, sink: fx.Node, graph: fx.Graph, facts: Facts) -> tuple[fx.Node, ...]:
    """The values between source and sink, in graph order."""
    found = _interior(source, sink, facts.maps)
    return tuple(node for node in graph.nodes if node in found) if found else ()


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


def _dying(interior: tuple[fx.Node, ...], sink: fx.Node, fact: Fact, facts: Facts) -> tuple[fx.Node, ...]:
    """The interior values that nobody else reads; a question about one may find its answer elsewhere, or be idle."""
    gone, moving = set[fx.Node](), {step.node for step in fact.path}
    for node in reversed(interior):
        others = [user for user in node.users if user is not sink and user not in gone]
        idle = {*gone, sink} - moving
        if all(answered(u, node, fact.source, facts, gone) is not None or _serves(u, idle, facts) for u in others):
            gone.add(node)
    return tuple(node for node in interior if node in gone)


def _serves(question: fx.Node, readers: Container[fx.Node], facts: Facts) -> bool:
    """Whether a question about sizes, and what is computed from its answer, is there for `readers` alone."""
    if question_of(question) is None:
        return False
    stack = [question]
    while stack:
        for user in stack.pop().users:
            if user in facts.numbers:
                stack.append(user)
            elif user not in readers:
                return False
    return True


def answered(
    question: fx.Node, subject: fx.Node, source: fx.Node, facts: Facts, gone: Container[fx.Node]
) -> fx.Node | None:
    """Who answers a question about an interior value once that is gone; None if it is no question, or nobody does.

    Behind operators that keep the rank and the batch, the source knows these.
    """
    if question_of(question) is None:
        return None
    other = other_subject(question, gone)
    if other is not None:
        return other
    kept = any(fact.source is source and not fact.path for fact in facts.maps.get(subject, ()))
    return source if kept and about_batch(question) else None


@dataclass(frozen=True, slots=True)
class _Pricing:
    facts: Facts
    known: Mapping[fx.Node, tuple[int, ...]]

    def of_region(self, fact: Fact, whole: Fact, sink: fx.Node) -> tuple[Cost, ...]:
        """The one operator, and what is left of the path.  whole: the fact as the facts have it."""
        if isinstance(fact.map, Uniform):  # a copy: nobody may write to the source by way of the sink
            return (cost_of_elementwise(1, self._channels(sink), self._positions(sink, fact)),)
        start = self._positions(fact.source, whole)
        at = start * self._scale(fact.path[: fact.at])
        behind, padded, widest, single, seams = at * _ratio(fact.map), None, None, 0.0, 0.0
        if self.known:
            at, behind, padded, widest, seams = self._measured(fact, at, sink)
            single = behind / max(self.known.get(sink, (1,))[0], 1) if fact.ends else 0.0
        steps = [self._of_step(step, index, fact, start) for index, step in enumerate(fact.path)]
        dense = not fact.map.axes and not fact.map.is_diagonal  # torch has no Linear with groups
        x = replace(fact.map, groups=1) if dense else fact.map
        return (*cost_of_map(x, fact.map.c_out, at, behind, padded, widest, single, seams=seams), *chain(*steps))

    def _measured(self, fact: Fact, at: float, sink: fx.Node) -> tuple[float, float, float | None, float | None, float]:
        """Positions in front of the map, behind it, of its padded and cropped input or uncropped output, of its padded
        input, and of the sides of that, measured.
        """
        assert isinstance(fact.map, Affine)
        before = self.known.get(fact.path[fact.at - 1].node if fact.at else fact.source, ())
        after = self.known.get(sink, ()) if fact.ends else ()
        n_axes, padded, widest, seams = len(fact.map.axes), None, None, 0.0
        if len(before) > n_axes:
            at = _positions_of(before, before[-1 - n_axes])
            first = len(before) - n_axes
            places, images = list(zip(before[first:], fact.map.axes, strict=True)), float(prod(before[: first - 1]))
            if all(axis.up == 1 for axis in fact.map.axes):
                padded = images * prod(size + axis.lo + axis.hi for size, axis in places)
                wide = [size + max(axis.lo, 0) + max(axis.hi, 0) for size, axis in places]
                widest = images * prod(wide)
                seams = seams_of(fact.map, wide, widest)
        if len(after) > n_axes and fact.map.spreads:
            crops = (2 * max(axis.lo, axis.hi) - axis.lo - axis.hi for axis in fact.map.axes)
            sizes = (size + crop for size, crop in zip(after[len(after) - n_axes :], crops, strict=True))
            padded = float(prod(after[: len(after) - n_axes - 1]) * prod(sizes))
        behind = _positions_of(after, after[-1 - n_axes]) if len(after) > n_axes else at * _ratio(fact.map)
        return at, behind, padded, widest, seams

    def _of_step(self, step: Step, index: int, fact: Fact, start: float) -> tuple[Cost, ...]:
        """An operator that makes positions anew runs over the image that it gets."""
        assert isinstance(fact.map, Affine)
        if step.layout.is_view:
            return ()
        channels = fact.map.c_in if index < fact.at else fact.map.c_out
        before = start * self._scale(fact.path[:index]) * (_ratio(fact.map) if index >= fact.at else 1.0)
        operand = step.node.all_input_nodes[0]
        if operand in self.known:  # with as many channels as it had there
            then = None if operand is fact.source else self._about(operand, fact.source)
            own = then.map.c_out if then is not None and isinstance(then.map, Affine) else fact.map.c_in
            before = _positions_of(self.known[operand], own)
        return (cost_of_resampling(channels, before, before * self._scale((step,))),)

    def of_node(self, node: fx.Node, whole: Fact) -> tuple[Cost, ...]:
        """What `node` itself costs inside the region of `whole`."""
        operands = [value for value in _values(node, self.facts) if value is whole.source or value in self.facts.maps]
        if self.facts.is_split(node):
            return ()  # a tuple of views
        if is_slice(node):
            return (VIEW,)
        if node in self.facts.steps:  # of another value it reads the shape at most
            operands = operands[:1]
        if len(operands) > 1:  # a concatenation reads as much as it writes
            read, written = sum(self._entries(operand, whole) for operand in operands), self._entries(node, whole)
            return (Cost(written, ELEMENT * (read + written), 1),)
        step = self._about(node, operands[0])
        if step is None:  # known only together with what is in front of it
            return (cost_of_resampling(1, self._entries(operands[0], whole), self._entries(node, whole)),)
        if step.path and isinstance(step.map, Uniform):
            return self._of_moving(node, operands[0], step.path[-1], whole)
        if self.facts.rules[node].copies:
            before, after = self._entries(operands[0], whole), self._entries(node, whole)
            return cost_of_padding(step.map, before, after, seams_of(step.map, self.known.get(node, ()), after))
        before, after = self._positions(operands[0], whole), self._positions(node, whole)
        if isinstance(step.map, Affine):
            before = self._measured_positions(operands[0], step.map.c_in) or before
            after = self._measured_positions(node, step.map.c_out) or after
        single = after / max(self.known[node][0], 1) if self.known.get(node) else 0.0
        transposed = self.facts.rules[node].transposed
        stored = 0  # what a norm reads is no reason to fold it
        if isinstance(step.map, Affine) and not step.map.is_diagonal:
            stored = step.map.stored
        channels = self._channels(node)
        return cost_of_map(step.map, channels, before, after, single=single, transposed=transposed, stored=stored)

    def _of_moving(self, node: fx.Node, operand: fx.Node, step: Step, whole: Fact) -> tuple[Cost, ...]:
        """What makes positions anew reads its image once; what only moves them is a view."""
        if step.layout.is_view:
            return ()
        place = next((index for index, other in enumerate(whole.path) if other.node is node), None)
        if place is not None and isinstance(whole.map, Affine):  # as it is priced where it stays
            return self._of_step(whole.path[place], place, whole, self._positions(whole.source, whole))
        before = self._entries(operand, whole)
        return (cost_of_resampling(1, before, self._measured_positions(node, 1) or before * step.layout.scale),)

    def _entries(self, node: fx.Node, whole: Fact) -> float:
        measured = self._measured_positions(node, 1)
        return self._channels(node) * self._positions(node, whole) if measured is None else measured

    def _measured_positions(self, node: fx.Node, channels: int) -> float | None:
        return _positions_of(self.known[node], channels) if node in self.known else None

    def _about(self, node: fx.Node, source: fx.Node) -> Fact | None:
        return next((fact for fact in self.facts.maps[node] if fact.source is source), None)

    def _positions(self, node: fx.Node, whole: Fact) -> float:
        """Positions of `node`, batch included: measured, or scaled so that the sink of `whole` has `POSITIONS`."""
        if node in self.known:
            return _positions_of(self.known[node], self._channels(node))
        start = POSITIONS / (self._scale(whole.path) * _ratio(whole.map))
        fact = None if node is whole.source else self._about(node, whole.source)
        return start if fact is None else start * self._scale(fact.path) * _ratio(fact.map)

    def _scale(self, steps: Sequence[Step]) -> float:
        """Positions behind `steps` for each one in front: measured, or as the layouts have it."""
        return prod(self._measured_scale(step) or step.layout.scale for step in steps)

    def _measured_scale(self, step: Step) -> float:
        before, after = (prod(self.known.get(node, (0,))) for node in (step.node.all_input_nodes[0], step.node))
        return after / before if before else 0.0

    def _channels(self, node: fx.Node) -> int:
        for fact in self.facts.maps.get(node, ()):
            if isinstance(fact.map, Affine) and fact.ends:
                return fact.map.c_out
        shape = self.facts.shapes.get(node)
        measured = self.known.get(node, ())
        if len(measured) > 1:
            return measured[1]
        return (shape[1].known if shape is not None and len(shape) > 1 else None) or UNKNOWN_CHANNELS


def is_slice(node: fx.Node) -> bool:
    """Whether it is a view of some entries; a list of indices copies them."""
    if node.target is not operator.getitem:
        return target_of(node) in (torch.narrow, "narrow")
    entries = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(entry in (None, ...) or isinstance(entry, int | slice) for entry in entries)


def _values(node: fx.Node, facts: Facts) -> list[fx.Node]:
    """What `node` reads; of a part of a tuple, what the tuple was made of."""
    read = ((o.all_input_nodes if facts.is_split(o) else [o]) for o in node.all_input_nodes)
    return list(chain(*read))


def _positions_of(shape: Sequence[int], channels: int) -> float:
    """Positions of a tensor with so many channels, batch included; there may be none of either."""
    return prod(shape) / max(channels, 1)


def _ratio(x: Map) -> float:
    """Positions of the output for each one of the input."""
    return prod(axis.up / axis.stride for axis in x.axes) if isinstance(x, Affine) else 1.0
