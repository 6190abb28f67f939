"""Rules that pick, join and overwrite channels, against torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from repcompile.affine import Affine, Map, Uniform
from repcompile.fold import apply
from repcompile.modules import put
from repcompile.rules import channels
from repcompile.shapes import Shape, Size, named
from tests.strategies import assert_equal

ALL = slice(None)
SHAPE = (Size(1, ("x.0",)), Size(5), Size(6), Size(1, ("x.3",)))  # the height is known, the width is not
Rule = Callable[[Map, Shape], Map]


def _put(x: Tensor, index: Any, value: Tensor) -> Tensor:
    return put(x.clone(), index, value)


def _of(part: int, name: str, *args: Any) -> tuple[Rule, Callable[[Tensor], Tensor]]:
    rule: Any = getattr(channels, name)
    return lambda x, shape: rule(x, *args, shape=shape, part=part), lambda x: getattr(x, name)(*args)[part]


def _at(*index: Any) -> tuple[Rule, Callable[[Tensor], Tensor]]:
    return lambda x, shape: channels.getitem(x, index, shape), lambda x: x[index]


PICKS: list[tuple[Rule, Callable[[Tensor], Tensor]]] = [
    *(_at(ALL, entry) for entry in (ALL, slice(0, None), slice(None, None, 1), slice(0, None, 1))),
    *(_at(ALL, entry) for entry in (slice(0, None, 2), slice(1), slice(1, 3), slice(-2, None), slice(None, -1))),
    *(_at(ALL, [2, 0, -1, 2]), _at(ALL, [3])),
    *(
        _at(ALL, ALL, slice(1, 3)),
        _at(ALL, ALL, slice(1, -1)),
        _at(ALL, ALL, slice(0, 6, 2)),
        _at(ALL, ALL, slice(-2, None)),
    ),
    *(
        _at(ALL, ALL, ALL, slice(1, None)),
        _at(..., slice(None, -1)),
        _at(..., slice(1, -1, 2)),
        _at(ALL, slice(2), ..., slice(2, -1)),
    ),
    *(_at(ALL, ALL, slice(0, 99)), _at(ALL, ..., slice(2, 5), ALL)),
    *(_of(part, "chunk", 2, 1) for part in (0, 1, -1, -2)),
    *(_of(part, "chunk", 3, -3) for part in (0, 1, 2)),
    *(_of(part, "split", 2, 1) for part in (0, 1, 2, -3)),
    *(_of(part, "split", [1, 3, 1], 1) for part in (0, 1, 2, -1, -3)),
    *(_of(part, "split", 4, 2) for part in (0, 1)),
    (lambda x, shape: channels.split(x, Size(2), 1, shape, 2), lambda x: x.split(2, 1)[2]),
    (lambda x, shape: channels.narrow(x, 1, 1, 3, shape), lambda x: x.narrow(1, 1, 3)),
    (lambda x, shape: channels.narrow(x, -3, 0, 2, shape), lambda x: x.narrow(-3, 0, 2)),
    (lambda x, shape: channels.narrow(x, 2, 2, 4, shape), lambda x: x.narrow(2, 2, 4)),
    (lambda x, shape: channels.narrow(x, 1, -2, 2, shape), lambda x: x.narrow(1, -2, 2)),
    (lambda x, shape: channels.narrow(x, 2, -3, 3, shape), lambda x: x.narrow(2, -3, 3)),
    (lambda x, shape: channels.narrow(x, 2, -3, 2, shape), lambda x: x.narrow(2, -3, 2)),
    (lambda x, shape: channels.flip(x, 1, shape), lambda x: x.flip(1)),
    (lambda x, shape: channels.flip(x, [-3], shape), lambda x: x.flip(-3)),
    (lambda x, shape: channels.cat([x, x * 2.0], 1, shape), lambda x: torch.cat([x, 2 * x], 1)),
    (lambda x, shape: channels.cat([x * 2.0, x, x], -3, shape), lambda x: torch.cat([2 * x, x, x], -3)),
]
PUTS: list[tuple[slice, Callable[[Tensor], Tensor]]] = [
    (slice(0, 2), lambda x: x[:, :2]),
    (slice(3, None), lambda x: x[:, :2]),
    (slice(1, 3), lambda x: x[:, :2]),
    (slice(-3, -1), lambda x: x[:, :2]),
    (slice(0, 5), lambda x: x),
]


STARTS = (Affine.identity(5, 2), Uniform(sizes=(None, 5, 6, None)))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("rule", "function"), PICKS)
def test_what_a_rule_picks(rule: Rule, function: Callable[[Tensor], Tensor], start: Map) -> None:
    image, found = torch.randn(2, 5, 6, 7, dtype=torch.float64), rule(start, SHAPE)
    assert_equal(apply(found if isinstance(found, Affine) else found.placed(2, 5), image), function(image))


@pytest.mark.parametrize("n_axes", [0, 1, 2, 3])
def test_channels_in_front_of_as_many_axes(n_axes: int) -> None:
    image = torch.randn(2, 5, *[3] * n_axes, dtype=torch.float64)
    for start in (Affine.identity(5, n_axes), Uniform(sizes=(None, 5, *[None] * n_axes))):
        found = channels.getitem(start, (ALL, [3, 0]), (Size(1, ("x.0",)), Size(5), *[Size(3)] * n_axes))
        assert isinstance(found, Affine)
        assert_equal(apply(found, image), image[:, [3, 0]])


@pytest.mark.parametrize("entry", [ALL, slice(0, None), slice(None, None, 1), slice(0, None, 1)])
def test_all_of_what_nobody_knows(entry: slice) -> None:
    assert channels.getitem(Uniform(), (ALL, entry), None).is_identity


def test_all_of_what_is_known() -> None:
    assert channels.getitem(Affine.identity(5, 2), (ALL, ALL, slice(0, 6)), SHAPE).pointwise


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("place", "value"), PUTS)
def test_what_a_rule_overwrites(place: slice, value: Callable[[Tensor], Tensor], start: Map) -> None:
    image = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    other = 3.0 * image
    width = value(image).shape[1]
    x = Affine.select(5, range(width), 2) * 3.0 if width < 5 else Affine.identity(5, 2) * 3.0
    for index in ((ALL, place), (..., place, ALL, ALL)):
        found = channels.overwrite(start, index, x, SHAPE)
        assert_equal(apply(found, image), _put(image, index, value(other)))


@pytest.mark.parametrize(
    ("shapes", "dim", "expected"),
    [
        ((SHAPE, SHAPE), 1, (SHAPE[0], Size(10), *SHAPE[2:])),
        ((SHAPE, SHAPE, SHAPE), -3, (SHAPE[0], Size(15), *SHAPE[2:])),
        ((SHAPE, SHAPE), -2, (*SHAPE[:2], Size(12), SHAPE[3])),
        ((SHAPE, SHAPE), 3, (*SHAPE[:3], Size(1, ("y.3",)))),
        ((SHAPE, named("z", 4)), 1, (SHAPE[0], Size(1, ("y.1",)), *SHAPE[2:])),
        ((SHAPE, None), 1, None),
        ((None, SHAPE), 1, None),
        ((None, None), 1, None),
        ((SHAPE, SHAPE[:3]), 1, None),
    ],
)
def test_the_shape_of_what_is_joined(shapes: Any, dim: int, expected: Shape | None) -> None:
    assert channels.cat_shape(shapes[0], dim, shapes=shapes, owner="y") == expected


def test_joined_along_the_first_axis_unless_told() -> None:
    assert channels.cat_shape((Size(2), Size(3)), shapes=[(Size(2), Size(3))] * 2) == (Size(4), Size(3))
