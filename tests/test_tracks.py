"""Tracks against what torch does to numbered entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from repcompile.rules import layout as rules
from repcompile.shapes import Layout, Shape, Size, named, permuted, reshaped
from repcompile.tracks import along, drawn_from, exchanged, is_neutral, place_of, spread_over

SIZES = (2, 6, 4, 3)  # batch, channels, height, width


@st.composite
def walks(draw: st.DrawFn) -> tuple[Shape, list[Layout], Tensor]:
    """A few reshapes and permutations of an image, and where every entry of the result came from."""
    before = tuple(map(Size, SIZES))
    shape, layouts, image = before, list[Layout](), torch.arange(2 * 6 * 4 * 3).reshape(SIZES)
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(image.dim())))
            layout, image = permuted(shape, order), image.permute(order)
        else:
            sizes = draw(st.sampled_from(_regroupings(list(image.shape))))
            layout, image = reshaped(shape, [Size(size) for size in sizes], "reshape"), image.reshape(sizes)
        shape = layout.shape
        layouts.append(layout)
    return before, layouts, image


def _regroupings(sizes: list[int]) -> list[list[int]]:
    joined = [[*sizes[:i], sizes[i] * sizes[i + 1], *sizes[i + 2 :]] for i in range(len(sizes) - 1)]
    cut = [[*s[:i], k, s[i] // k, *s[i + 1 :]] for s in [sizes] for i in range(len(s)) for k in (2, 3) if s[i] % k == 0]
    return [*joined, *cut, list(SIZES), sizes]


@given(drawn=walks())
def test_a_track_says_where_the_entries_of_an_axis_went(drawn: tuple[Shape, list[Layout], Tensor]) -> None:
    before, layouts, image = drawn
    track = along(before, layouts)
    origin = torch.unravel_index(image, SIZES)
    assert len(track) == image.dim()
    for axis in range(4):
        place, whole = place_of(track, axis), spread_over(track, axis)
        if place is not None:
            assert torch.equal(origin[axis], _index(image, place, torch.arange(SIZES[axis])))
        if whole is not None:
            event("spread over an axis")
            assert torch.equal(origin[axis], _index(image, whole[0], torch.tensor(whole[1])))
        for other in range(image.dim()):
            index = drawn_from(track, other, axis)
            if index is not None:
                event("drawn from an axis")
                assert torch.equal(torch.tensor(index)[origin[axis]], _index(image, other, torch.arange(image.shape[other])))
    if is_neutral(track, before):
        event("neutral")
        assert torch.equal(image, torch.arange(2 * 6 * 4 * 3).reshape(SIZES))
    if (swap := exchanged(track, before)) is not None:
        event("exchanged")
        assert torch.equal(image, torch.arange(2 * 6 * 4 * 3).reshape(SIZES).index_select(swap[0], torch.tensor(swap[1])))


def _index(image: Tensor, axis: int, numbers: Tensor) -> Tensor:
    return numbers.reshape(-1, *[1] * (image.dim() - 1 - axis)).expand_as(image)


def test_a_shuffle_exchanges_channels() -> None:
    b, _, h, w = named("x", 4)
    shape = (b, Size(6), h, w)
    split = reshaped(shape, [b, Size(2), Size(3), h, w], "split")
    swapped = permuted(split.shape, (0, 2, 1, 3, 4))
    back = reshaped(swapped.shape, [b, Size(6), h, w], "back")
    assert exchanged(along(shape, [split, swapped, back]), shape) == (1, [0, 3, 1, 4, 2, 5])
    assert exchanged(along(shape, [split, swapped]), shape) is None
    assert place_of(along(shape, [split, swapped]), 1) is None


@pytest.mark.parametrize("tokens", [lambda s: rules.flatten(s, 2), lambda s: rules.reshape(s, *s[:2], -1)])
def test_tokens_and_back_are_neutral(tokens: Callable[[Shape], Layout]) -> None:
    shape = named("x", 4)
    flat = tokens(shape)
    there = permuted(flat.shape, (0, 2, 1))
    back = permuted(there.shape, (0, 2, 1))
    image = rules.reshape(back.shape, *shape)
    assert is_neutral(along(shape, [flat, there, back, image]), shape)
    assert not is_neutral(along(shape, [flat, there]), shape)
    wrong = rules.reshape(there.shape, *shape)
    assert not is_neutral(along(shape, [flat, there, wrong]), shape)


def test_a_mean_makes_a_new_piece() -> None:
    shape = named("x", 4)
    pooled = Layout((*shape[:2], Size(1), Size(1)), (0, 1, None, None), name="mean")
    track = along(shape, [pooled])
    assert place_of(track, 1) == 1
    assert place_of(track, 2) is None
    assert track == along(shape, [pooled])
    assert track != along(shape, [Layout(pooled.shape, pooled.carry, name="median")])
