"""How large the image is on which a region is checked.

Given: a region.  Result: integers for the sizes that only a run would tell: enough positions for a border and an
inside, different along each axis, and what a change of layout on the way takes for granted.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from torch import fx

from repcompile.affine import Affine, Map
from repcompile.axis import Axis
from repcompile.facts import Facts
from repcompile.interpret import DEFAULT_SIZE, evaluated_shape
from repcompile.regions import Region
from repcompile.shapes import Shape, Size, product

RESAMPLED = 12  # positions along each axis in front of a pool, an interpolation or a shuffle of two, three, four or six


def probe_sizes(region: Region, facts: Facts, larger: int = 0) -> tuple[dict[str, int], tuple[int, ...]]:
    """(integers for the unknown sizes, the shape of the image).

    larger: positions more along each axis; then there are two images, too.
    """
    assigned = _assigned(region, facts, larger)
    shape, x = _source_shape(region, facts), region.fact.map
    if shape is not None:
        return assigned, evaluated_shape(shape, assigned)
    if not isinstance(x, Affine):
        return assigned, (2, DEFAULT_SIZE, *_wanted(x, 2, larger))
    batch = 2 if larger else 1
    if x.axes:
        return assigned, (batch, x.c_in, *_wanted(x, len(x.axes), larger))
    ranks = [len(shape) for node in region.nodes if (shape := facts.shapes.get(node)) is not None]
    return assigned, (batch, *[DEFAULT_SIZE] * (max(ranks, default=3) - 2), x.c_in)


def _assigned(region: Region, facts: Facts, larger: int) -> dict[str, int]:
    """What a reshape on the way takes for granted comes first."""
    shape, fact, x = _source_shape(region, facts), region.fact, region.fact.map
    fixed = _taken_for_granted(region, facts)
    if shape is None:
        return fixed
    batch = 2 if fact.path or larger else 1  # rearranging may mix up batches
    resampled = any(not step.layout.is_view for step in fact.path[: fact.at])  # by windows that have to fit
    assigned = {
        name: RESAMPLED if axis and resampled else batch for axis, size in enumerate(shape) for name in size.names
    }
    assigned |= fixed
    layout = fact.path[fact.at - 1].layout.shape if fact.at else shape  # as the map sees it
    for place, (size, needed) in enumerate(zip(*_needed(x, layout, larger), strict=True)):
        free = [name for name in size.names if name not in fixed]
        if free:
            rest = prod(assigned.get(name, 1) for name in size.names if name != free[0]) * size.number
            least = -(-needed // rest)
            channels = isinstance(x, Affine) and place == 0
            assigned[free[0]] = least if channels else max(assigned.get(free[0], 1), least)
    return assigned


def _needed(x: Map, layout: Shape, larger: int) -> tuple[Shape, list[int]]:
    """(the axes on which the map acts, how long each should be)"""
    if isinstance(x, Affine):
        return layout[len(layout) - len(x.axes) - 1 :], [x.c_in, *_wanted(x, len(x.axes), larger)]
    return layout[1:], _wanted(x, len(layout) - 1, larger)


def _taken_for_granted(region: Region, facts: Facts) -> dict[str, int]:
    """Channels that an operator inside the region expects, and sizes that a change of layout there needs."""
    fixed = _channels_read(region, facts) | _sizes_added(region, facts)
    steps = [facts.steps[node] for node in region.nodes if node in facts.steps]
    for step in steps:
        before, after = product(step.before), product(step.layout.shape)
        if not step.layout.regroups or before == after:
            continue
        mine, theirs = Counter(before.names), Counter(after.names)
        left, right = [(mine - theirs).elements(), (theirs - mine).elements()]
        _solve(fixed, before.number, list(left), after.number, list(right))
    return fixed


def _sizes_added(region: Region, facts: Facts) -> dict[str, int]:
    """Sizes of one summand that the other one tells."""
    fixed: dict[str, int] = {}
    for node in region.nodes:
        shapes = [shape for value in node.all_input_nodes if (shape := facts.shapes.get(value)) is not None]
        if not facts.rules[node].elementwise or len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
            continue
        for pair in zip(*shapes, strict=True):
            for size, other in (pair, pair[::-1]):
                if size.known not in (None, 1) and other.number == 1 and len(other.names) == 1:
                    fixed[other.names[0]] = size.known or 1
    return fixed


def _channels_read(region: Region, facts: Facts) -> dict[str, int]:
    """What operators inside the region that read the source as it is take for its channels."""
    shape, fixed = facts.shapes.get(region.source), dict[str, int]()
    for node in region.nodes if shape is not None else ():
        x = next((f.map for f in facts.maps.get(node, ()) if f.source is region.source and not f.path), None)
        if shape is None or not isinstance(x, Affine) or len(x.axes) >= len(shape):
            continue
        size = shape[-1 - len(x.axes)]
        if len(size.names) == 1 and x.c_in % size.number == 0:
            fixed[size.names[0]] = x.c_in // size.number
    return fixed


def _solve(fixed: dict[str, int], number: int, names: list[str], other: int, others: list[str]) -> None:
    """Assign `names` or `others` so that number * names = other * others, if one side has nothing left to assign."""
    for name in (*names, *others):
        if name in fixed:
            number, other = (number * fixed[name], other) if name in names else (number, other * fixed[name])
    free, frees = [n for n in names if n not in fixed], [n for n in others if n not in fixed]
    if free and not frees and other % number == 0:
        fixed.update(dict.fromkeys(free[:-1], 1), **{free[-1]: other // number})
    elif frees and not free and number % other == 0:
        fixed.update(dict.fromkeys(frees[:-1], 1), **{frees[-1]: number // other})


def _wanted(x: Map, n_axes: int, larger: int) -> list[int]:
    """Positions along each axis so that some windows touch the border and some do not."""
    axes = x.axes if isinstance(x, Affine) else (Axis(),) * n_axes
    copied = isinstance(x, Affine) and x.mode != "zeros"
    return [_covered(axis, _least(axis, copied) + place) + larger for place, axis in enumerate(axes)]


def _least(axis: Axis, copied: bool) -> int:
    """Positions for every kind of window.  copied: whether what is padded with comes from the image."""
    inside = axis.span + 2 * axis.stride - min(axis.lo, 0) - min(axis.hi, 0)
    return max(inside, 2, *((axis.lo + 1, axis.hi + 1) if copied else ()))


def _covered(axis: Axis, least: int) -> int:
    """The first size from `least` on at which the last window ends where the padding does, and reads all of it."""
    return next(
        size for size in range(least, least + axis.stride) if (axis.up * (size - 1) + axis.growth) % axis.stride == 0
    )


def _source_shape(region: Region, facts: Facts) -> Shape | None:
    """The shape of the source; where nothing tells it, that of the value in front of the first change of layout."""
    shape, path = facts.shapes.get(region.source), region.fact.path
    if shape is not None or not path:
        return shape
    operand = path[0].node.args[0]
    known = facts.shapes.get(operand) if isinstance(operand, fx.Node) else None
    inner = next((f.map for f in facts.maps.get(operand, ()) if f.source is region.source and not f.path), None)  # type: ignore[arg-type]
    if known is None or not isinstance(inner, Affine):
        return known
    channels = len(known) - 1 - len(inner.axes)
    return (*known[:channels], Size(inner.c_in), *known[channels + 1 :])
