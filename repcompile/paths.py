"""A fact, and the operators that only move positions on its way.

A pointwise map commutes with what moves positions, so it may stand at any place of the path where the channels are on
one axis. A map with a window stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import fx

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.shapes import Layout, Shape
from repcompile.tracks import Track, along, drawn_from, exchanged, is_neutral, place_of, spread_over, together, whole

MOST_AXES = 4  # of the layouts that a pointwise map is tried in


@dataclass(frozen=True, slots=True)
class Step:
    """One operator on a path.  before: the shape that it gets.  key: equal for steps that do the same."""

    node: fx.Node
    layout: Layout
    before: Shape

    @property
    def rank(self) -> int:
        return len(self.before)

    @property
    def key(self) -> Any:
        return self.before, self.layout


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """value = path[at:] . map . path[:at] (source)

    map: with as many axes as the layout at `at` has behind the channels.
    at: where the map stands; a pointwise map goes along to the end of the path for as long as it can.
    home: where the operator that weighs most stood.
    """

    source: fx.Node
    map: Map
    path: tuple[Step, ...] = ()
    at: int = 0
    home: int = 0

    @property
    def ends(self) -> bool:
        """Whether nothing is left of the path behind the map."""
        return self.at == len(self.path)


def track_of(steps: Sequence[Step]) -> Track:
    """What became of the image in front of `steps`, which are not empty."""
    return along(steps[0].before, [step.layout for step in steps])


def stepped(fact: Fact, step: Step) -> Fact:
    """The fact behind one more step."""
    further = replace(fact, path=(*fact.path, step))
    shorter = _shortened(further)
    if shorter is not further:
        return shorter
    if fact.ends and isinstance(fact.map, Uniform):
        return _shortened(replace(further, at=len(further.path)))
    carried = _carried(fact.map, (step,)) if fact.ends and isinstance(fact.map, Affine) else None
    if carried is not None:
        return _shortened(replace(further, at=len(further.path), map=carried))
    return further


def behind(outer: Map, fact: Fact) -> Affine:
    """A pointwise map behind the path of `fact`, brought to where the map of `fact` stands and put behind that."""
    assert isinstance(fact.map, Affine)
    if isinstance(outer, Uniform):
        return outer.placed(len(fact.map.axes), fact.map.c_out) @ fact.map
    return _pulled(outer, fact.path[fact.at :], len(fact.map.axes)) @ fact.map


def aligned(facts: Sequence[Fact]) -> tuple[Fact, list[Map]]:
    """(fact, maps): the maps of all facts, brought to where the map of that one stands.

    Raises Inexact where the layouts differ, or two maps with a window stand at different places.
    """
    leader = max(facts, key=lambda fact: (not fact.ends, not fact.map.pointwise, len(fact.path)))
    return leader, [fact.map if fact is leader else _beside(fact, leader) for fact in facts]


def places(fact: Fact) -> list[Fact]:
    """The same fact with its map at every place of the path where it can stand; at `home` first."""
    if not fact.path or isinstance(fact.map, Uniform):
        return [fact]
    others = range(len(fact.path) + 1) if fact.map.pointwise else ()
    found = [moved for place in others if (moved := _standing_at(fact, place)) is not None] or [fact]
    return sorted(filter(_fits, found), key=lambda moved: abs(moved.at - fact.home))


def _fits(fact: Fact) -> bool:
    """Whether every step of the path gets as many channels as it names, if it names a number."""
    assert isinstance(fact.map, Affine)
    before, behind = fact.path[: fact.at], fact.path[fact.at :]
    shape = behind[0].before if behind else before[-1].layout.shape
    place: int | None = len(shape) - 1 - len(fact.map.axes)
    axis = place
    for step in behind:
        axis = None if axis is None else place_of(track_of((step,)), axis)
        if axis is not None and not _takes(step, axis, fact.map.c_out):
            return False
    axis = place
    for step in reversed(before):
        if axis is None or not _takes(step, axis, fact.map.c_in):
            return axis is None
        track = track_of((step,))
        axis = next((start for start in range(step.rank) if place_of(track, start) == axis), None)
    return True


def _takes(step: Step, axis: int, channels: int) -> bool:
    """Whether a step can make an image of so many channels, on one axis of its result."""
    return axis not in step.layout.fixed or step.layout.shape[axis].known in (None, channels)


# -- moving maps -------------------------------------------------------------------------------------------------------


def _carried(x: Affine, steps: Sequence[Step]) -> Affine | None:
    """A pointwise map in front of `steps` as one behind them, None if that is not one."""
    if not x.pointwise:
        return None
    track, axis = track_of(steps), steps[0].rank - 1 - len(x.axes)
    place = place_of(track, axis) if axis >= 0 else None
    if place is not None:
        return x.spread(len(track) - 1 - place)
    spread = spread_over(track, axis) if x.is_diagonal and axis >= 0 else None
    return None if spread is None else x.gathered(spread[1], len(track) - 1 - spread[0])


def _pulled(outer: Affine, steps: Sequence[Step], n_axes: int) -> Affine:
    """A pointwise map behind `steps` as one in front of them, where the layout has `n_axes` behind the channels."""
    if not outer.pointwise:
        raise Inexact("two operators with a window, and a change of layout in between")
    if not steps:
        return outer.spread(n_axes)
    track, axis = track_of(steps), steps[0].rank - 1 - n_axes
    place = len(track) - 1 - len(outer.axes)
    if place_of(track, axis) == place:
        return outer.spread(n_axes)
    index = drawn_from(track, place, axis) if place >= 0 and outer.is_diagonal else None
    if index is None:
        raise Inexact("the channels are on another axis, or mixed up with positions")
    return outer.gathered(index, n_axes)


def _beside(fact: Fact, leader: Fact) -> Map:
    """The map of `fact` at the place of the leader's map."""
    if [step.key for step in fact.path] == [step.key for step in leader.path] and fact.at == leader.at:
        return fact.map
    if not fact.map.pointwise or not _same_layout(fact.path, leader.path):
        return _unrolled(fact, leader)
    if isinstance(fact.map, Uniform):
        return fact.map
    at_end = fact.map if fact.ends else _carried(fact.map, fact.path[fact.at :])
    if at_end is None:
        raise Inexact("the operands are laid out differently")
    n_axes = len(leader.map.axes) if isinstance(leader.map, Affine) else len(at_end.axes)
    return _pulled(at_end, leader.path[leader.at :], n_axes)


def _same_layout(left: Sequence[Step], right: Sequence[Step]) -> bool:
    """Whether both paths take an image to the same place in the end."""
    if not left and not right:
        return True
    shape = (*left, *right)[0].before
    tracks = [along(shape, [step.layout for step in path]) for path in (left, right)]
    return tracks[0] == tracks[1]


def _unrolled(fact: Fact, leader: Fact) -> Map:
    """A map of small images of one size as the matrix on the leader's axis of all their entries."""
    apart = Inexact("the operands are laid out differently")
    if not fact.ends or not leader.at or not isinstance(leader.map, Affine) or not isinstance(fact.map, Affine):
        raise apart
    n_axes = len(fact.map.axes)
    shape = fact.path[-1].layout.shape if fact.path else leader.path[0].before
    place = _place_of_entries(fact, leader, n_axes)
    sizes = _window(fact.map, leader, shape[len(shape) - n_axes :])
    if place is None or sizes is None:
        raise apart
    after = [axis.output_size(size) for axis, size in zip(fact.map.axes, sizes, strict=True)]
    if not _deals_out(leader.path[leader.at :], place, [fact.map.c_out, *after]):
        raise apart
    return fact.map.unrolled(sizes).spread(len(leader.map.axes))


def _place_of_entries(fact: Fact, leader: Fact, n_axes: int) -> int | None:
    """The leader's axis that holds channels and positions of the fact's images in order, all else being equal."""
    assert isinstance(leader.map, Affine)
    start = leader.path[0].before
    images = along(start, [step.layout for step in fact.path])
    rows = along(start, [step.layout for step in leader.path[: leader.at]])
    place = len(rows) - 1 - len(leader.map.axes)
    if place < 0 or len(images) <= n_axes:
        return None
    entries, others = images[len(images) - 1 - n_axes :], images[: len(images) - 1 - n_axes]
    same = together(entries) == together([rows[place]]) and together(others) == together(
        [*rows[:place], *rows[place + 1 :]]
    )
    return place if same else None


def _window(x: Affine, leader: Fact, positions: Shape) -> list[int] | None:
    """The size of the images that `x` reads.

    Where nothing tells it, it is that of the leader's result, to which they are added: no other size would fit both,
    unless one of them is 1, which is broadcast.
    """
    sizes = [size.known for size in positions]
    if None not in sizes:
        return [size or 0 for size in sizes]
    result = [size.known for size in leader.path[-1].layout.shape[-len(x.axes) :]]
    keeps = all(axis.stride == axis.up == 1 and axis.growth == 0 for axis in x.axes)
    found = [size or 0 for size in result]
    fits = isinstance(leader.map, Affine) and x.c_in * prod(found) == leader.map.c_in
    alone = len(found) == 1 or 1 not in found
    return found if keeps and fits and alone and None not in result else None


def _deals_out(steps: Sequence[Step], axis: int, sizes: Sequence[int]) -> bool:
    """Whether `steps` make the last axes, of these sizes, of the entries of one axis in order."""
    if not steps or [size.known for size in steps[-1].layout.shape[-len(sizes) :]] != list(sizes):
        return False
    track = track_of(steps)
    return whole([piece for pieces in track[-len(sizes) :] for piece in pieces], axis)


def _standing_at(fact: Fact, place: int) -> Fact | None:
    assert isinstance(fact.map, Affine)
    if place == fact.at:
        return fact
    if place > fact.at:
        carried = _carried(fact.map, fact.path[fact.at : place])
        return None if carried is None else replace(fact, at=place, map=carried)
    steps = fact.path[place : fact.at]
    for n_axes in range(MOST_AXES):
        axis = steps[0].rank - 1 - n_axes
        if axis >= 0 and place_of(track_of(steps), axis) == len(steps[-1].layout.shape) - 1 - len(fact.map.axes):
            return replace(fact, at=place, map=fact.map.spread(n_axes))
    return None


# -- paths that lead nowhere -------------------------------------------------------------------------------------------


def _shortened(fact: Fact) -> Fact:
    """Without the end of the path where that does nothing, or as a selection where it only exchanges channels."""
    for start in range(fact.at, len(fact.path)) if not fact.ends else range(len(fact.path)):
        steps = fact.path[start:]
        shape, track = steps[0].before, track_of(steps)
        if is_neutral(track, shape) and (start >= fact.at or _is_free(fact, start)):
            return _cut(fact, start)
        swap = exchanged(track, shape) if start == fact.at or isinstance(fact.map, Uniform) else None
        if swap is not None:
            return _exchanged(fact, start, *swap, len(shape))
    return fact


def _is_free(fact: Fact, start: int) -> bool:
    """Whether the map, which stands at the end, can stand at `start` as well."""
    return isinstance(fact.map, Uniform) or _standing_at(fact, start) is not None


def _cut(fact: Fact, start: int) -> Fact:
    at = min(fact.at, start)
    if at == fact.at or isinstance(fact.map, Uniform):
        return replace(fact, path=fact.path[:start], at=at, home=min(fact.home, start))
    moved = _standing_at(fact, start)
    assert moved is not None
    return replace(moved, path=fact.path[:start], home=min(fact.home, start))


def _exchanged(fact: Fact, start: int, axis: int, index: list[int], rank: int) -> Fact:
    n_axes = rank - 1 - axis
    selection = Affine.select(len(index), index, n_axes)
    if isinstance(fact.map, Affine) and len(fact.map.axes) != n_axes:
        return fact
    try:
        x = selection @ fact.map
    except Inexact:
        return fact
    return replace(fact, map=x, path=fact.path[:start], at=start, home=start)
