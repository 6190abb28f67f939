"""Symbolic sizes against numbers, and layouts against what torch does to a real tensor."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from repcompile.errors import Inexact
from repcompile.rules import layout as rules
from repcompile.shapes import Layout, Shape, Size, broadcast, known_sizes, named, permuted, product, reshaped, unknown

NAMES = {"B": 2, "C": 3, "H": 2, "W": 5}


def value(size: Size) -> int:
    """The integer that a size stands for."""
    return size.number * prod(NAMES.get(name, 1) for name in size.names)


sizes = st.builds(
    lambda number, names: Size(number, tuple(sorted(names))),
    st.integers(1, 6),
    st.lists(st.sampled_from(sorted(NAMES)), max_size=2),
)
shapes = st.lists(st.sampled_from([Size(1), Size(2), Size(3), *(Size(1, (name,)) for name in NAMES)]), max_size=4)


# -- sizes -------------------------------------------------------------------------------------------------------------


@given(a=sizes, b=sizes, c=sizes)
def test_sizes_multiply_like_numbers(a: Size, b: Size, c: Size) -> None:
    assert value(a * b) == value(a) * value(b)
    assert a * b == b * a
    assert (a * b) * c == a * (b * c)
    assert a * Size() == a
    assert value(product([a, b, c])) == value(a) * value(b) * value(c)


@given(a=sizes, b=sizes)
def test_a_quotient_times_the_divisor_is_the_dividend(a: Size, b: Size) -> None:
    assert (a * b).over(b) == a
    quotient = a.over(b)
    event("whole" if quotient is not None else "not known to be whole")
    assert quotient is None or quotient * b == a


def test_quotients_that_are_not_known_to_be_whole() -> None:
    assert Size(6).over(Size(4)) is None
    assert Size(6).over(Size(1, ("C",))) is None
    assert Size(6, ("C", "C")).over(Size(2, ("C",))) == Size(3, ("C",))


def test_what_is_known() -> None:
    assert Size(6).known == 6
    assert Size(6, ("C",)).known is None
    assert known_sizes(None) is None
    assert known_sizes((Size(2), unknown("x", 1))) == (2, None)
    assert len(set(named("x", 3))) == 3


@given(data=st.data())
def test_broadcasting_agrees_with_torch(data: st.DataObject) -> None:
    left = tuple(data.draw(shapes))
    right = tuple(data.draw(st.sampled_from([size, Size(1)])) for size in left[data.draw(st.integers(0, len(left))) :])
    result = broadcast(left, right, "sum")
    expected = torch.broadcast_shapes(tuple(map(value, left)), tuple(map(value, right)))
    assert result is not None
    assert tuple(map(value, result)) == tuple(expected)
    assert broadcast(right, left, "sum") == result


def test_where_two_unknowns_meet_nobody_knows() -> None:
    a, b = unknown("a", 0), unknown("b", 0)
    assert broadcast((a,), (b,), "sum") == (unknown("sum", 0),)
    assert broadcast((a,), (Size(4),), "sum") == (Size(4),)
    assert broadcast(None, (a,), "sum") is None


# -- layouts -----------------------------------------------------------------------------------------------------------


def assert_carried(layout: Layout, before: Shape, move: Tensor, after: tuple[int, ...]) -> None:
    """`move` holds the place in `before` that each position of the result came from."""
    assert tuple(map(value, layout.shape)) == tuple(move.shape) == after
    assert len(layout.carry) == len(before)
    places = torch.unravel_index(move, tuple(map(value, before)))
    for axis, target in enumerate(layout.carry):
        if target is not None:
            index = torch.arange(move.shape[target]).reshape(-1, *[1] * (move.dim() - 1 - target))
            assert torch.equal(places[axis], index.expand_as(move))


def positions(shape: Shape) -> Tensor:
    concrete = tuple(map(value, shape))
    return torch.arange(prod(concrete)).reshape(concrete)


def carried(layout: Layout) -> int:
    return sum(place is not None for place in layout.carry)


@st.composite
def regroupings(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """A shape, and another one with as many elements: some axes flattened, some split, some of size 1 put in."""
    factors = draw(st.lists(st.sampled_from([Size(1), Size(2), *(Size(1, (name,)) for name in NAMES)]), max_size=5))
    return _grouped(draw, factors), _grouped(draw, factors)


def _grouped(draw: st.DrawFn, factors: list[Size]) -> Shape:
    groups: list[Size] = [Size()]
    for factor in factors:
        if draw(st.booleans()):
            groups.append(factor)
        else:
            groups[-1] *= factor
    return tuple(groups)


@given(shapes=regroupings(), hidden=st.booleans(), place=st.integers(0, 5))
def test_reshape_carries_what_it_says(shapes: tuple[Shape, Shape], hidden: bool, place: int) -> None:
    before, after = shapes
    asked = [None if hidden and i == place % len(after) else size for i, size in enumerate(after)]
    layout = reshaped(before, asked, "reshape")
    event(f"{carried(layout)} axes carried")
    assert layout.shape == after  # the -1 is worked out
    assert_carried(layout, before, positions(before).reshape(tuple(map(value, after))), tuple(map(value, after)))


@given(data=st.data(), shape=shapes)
def test_permute_carries_every_axis(data: st.DataObject, shape: list[Size]) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    spelled = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in order]
    layout = permuted(tuple(shape), spelled)
    moved = positions(tuple(shape)).permute(spelled)
    assert carried(layout) == len(shape)
    assert_carried(layout, tuple(shape), moved, tuple(moved.shape))


@given(data=st.data(), shape=shapes.filter(bool))
def test_flatten_and_transpose_carry_what_they_say(data: st.DataObject, shape: list[Size]) -> None:
    before, image = tuple(shape), positions(tuple(shape))
    first, second = (data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2))
    moved = image.transpose(first, second)
    assert_carried(rules.transpose(before, first, second), before, moved, tuple(moved.shape))
    start, end = sorted((first % len(shape), second % len(shape)))
    flat = image.flatten(start, end)
    assert_carried(rules.flatten(before, start, end - len(shape)), before, flat, tuple(flat.shape))


def test_channels_survive_tokens_and_come_back() -> None:
    b, c, h, w = named("x", 4)
    tokens = rules.flatten((b, c, h, w), 2)
    assert tokens.carry == (0, 1, None, None)
    assert rules.transpose(tokens.shape, 1, 2).shape == (b, h * w, c)
    back = rules.reshape((b, c, h * w), b, c, h, w)
    assert back.carry == (0, 1, None)
    assert rules.reshape((b, c, h, w), b, -1).shape == (b, c * h * w)


def test_heads_are_not_channels() -> None:
    b, n = unknown("x", 0), unknown("x", 1)
    split = rules.reshape((b, n, Size(12)), b, n, 3, 4)
    assert split.carry == (0, 1, None)
    assert rules.reshape((Size(4), Size(6)), 6, 4).carry == (None, None)
    assert rules.reshape((Size(4), Size(4)), 4, 4).carry == (0, 1)


def test_a_shape_that_is_not_known() -> None:
    assert rules.reshape(None, 2, -1, owner="y") == Layout((Size(2), unknown("y", 1)), ())
    for ask in (lambda: rules.flatten(None, 1), lambda: rules.permute(None, 1, 0), lambda: rules.transpose(None, 0, 1)):
        with pytest.raises(Inexact, match="the input's rank is not known here"):
            ask()
    with pytest.raises(Inexact, match="a size that is not known here"):
        rules.reshape((Size(4),), 2.5)
