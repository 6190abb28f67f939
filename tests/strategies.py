"""What Hypothesis draws: axes, affine maps, images; what a map is by definition; and laws that count their cases.

Weights and images are small whole numbers in float64: every sum of products is exact, so that laws hold with `==`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import product
from types import FrameType
from typing import Any

import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from repcompile.affine import Affine, Compose, Concat, Gather, Leaf, Linear, Select, Spread, Sum, Unrolled
from repcompile.axis import Axis
from repcompile.errors import Inexact
from repcompile.fold import apply
from repcompile.testing.strategies import affines, diagonals, leaves, or_else, selections

# -- laws --------------------------------------------------------------------------------------------------------------


ROUNDS = 3  # Hypothesis varies what it has drawn, so that most of a round may be refused for one reason


def law(least: float, **drawn: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A test over drawn arguments that an `Inexact` may excuse, but not too often.

    least: the share of drawn cases that must reach the end of the test.
    """

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        tally: Counter[bool] = Counter()

        @wraps(test)
        def counted(**arguments: Any) -> None:
            try:
                test(**arguments)
            except Inexact:
                event("refused")
                tally[False] += 1
            else:
                event("exercised")
                tally[True] += 1

        every_case = given(**drawn)(counted)

        def run() -> None:
            tally.clear()
            share = 0.0
            for _ in range(ROUNDS):
                every_case()
                share = tally[True] / max(tally.total(), 1)
                if share >= least:
                    break
            assert share >= least, f"exercised in {tally[True]} of {tally.total()} cases"

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run

    return decorate


def counting_calls(function: Callable[[], Any]) -> tuple[Any, int]:
    """(what `function` returns, how many Python functions were called): work that a busy machine cannot blur."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return result, count


def assert_close(got: Tensor, expected: Tensor, terms: int = 1000) -> None:
    """Equal up to the rounding of `terms` operations in a row (Higham 2002, sec. 3.1)."""
    assert got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, rtol=0.0, atol=terms * torch.finfo(torch.float64).eps * scale)


def assert_equal(got: Tensor, expected: Tensor) -> None:
    """Equal to the last bit: for whole numbers."""
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)


# -- maps --------------------------------------------------------------------------------------------------------------


@st.composite
def summands(draw: st.DrawFn, x: Affine) -> Affine:
    """A map with the channels, strides and output size of `x`: other taps, on a shifted or on another window."""
    like = [draw(_beside(axis)) for axis in x.axes]
    return draw(affines(len(x.axes), x.c_in, x.c_out, like))


@st.composite
def _beside(draw: st.DrawFn, axis: Axis) -> Axis:
    """An axis of the same stride and growth."""
    size, dilation = draw(st.sampled_from([(axis.size, axis.dilation), (1, 1), (2, 1), (3, 1), (2, 2)]))
    window = Axis(size, axis.stride, dilation)
    lo = draw(st.integers(-1, 2))
    return Axis(size, axis.stride, dilation, lo, axis.growth + window.span - lo, axis.up)


@st.composite
def expressions(draw: st.DrawFn) -> Affine:
    """A few combinations in a row, of what the algebra allows."""
    x = draw(affines())
    for _ in range(draw(st.integers(0, 4))):
        x = or_else(draw(st.sampled_from(STEPS))(draw), x)
    return x


def _compose(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: draw(leaves(len(x.axes), c_in=x.c_out)) @ x


def _prepend(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: x @ draw(leaves(len(x.axes), c_out=x.c_in))


def _add(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: x + draw(summands(x))


def _shift(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: draw(diagonals(x.c_out, len(x.axes))) @ x


def _prescale(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: x @ draw(diagonals(x.c_in, len(x.axes)))


def _crop(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: window(x.c_out, [draw(st.sampled_from([(0, 0), (-1, 0), (-1, -1)])) for _ in x.axes]) @ x


def _pick(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: draw(selections(x.c_out, len(x.axes))) @ x


def _prepick(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: x @ draw(selections(draw(st.integers(1, 6)), len(x.axes), x.c_in))


def _concatenate(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: Affine.cat([x, draw(summands(x)), x])


def _difference(draw: st.DrawFn) -> Callable[[Affine], Affine]:
    return lambda x: x.linear_part


STEPS = (_compose, _prepend, _add, _shift, _prescale, _crop, _pick, _prepick, _concatenate, _difference)


def window(channels: int, pads: Sequence[tuple[int, int]], mode: str = "zeros") -> Affine:
    """Padding, or a crop where it is negative."""
    ones = torch.ones(channels, 1, *[1] * len(pads), dtype=torch.float64)
    return Affine.conv(ones, None, padding=list(pads), groups=channels, mode=mode)


# -- the definition ----------------------------------------------------------------------------------------------------


def direct(x: Affine, image: Tensor) -> Tensor:
    """`x(image)` operator by operator, each straight from its definition: nothing composed, added or folded."""
    match x.parts:
        case Compose(outer, inner):
            return direct(outer, direct(inner, image))
        case Sum(left, right):
            return direct(left, image) + direct(right, image)
        case Spread(inner):
            channels = image.dim() - 1 - len(x.axes)
            last = image.movedim(channels, -1).flatten(0, -2)
            y = direct(inner, last.reshape(*last.shape, *[1] * len(inner.axes)))
            shape = (*image.shape[:channels], *image.shape[channels + 1 :], x.c_out)
            return y.reshape(shape).movedim(-1, channels)
        case Select(index):
            return image.index_select(image.dim() - 1 - len(x.axes), torch.tensor(index))
        case Concat(maps):
            return torch.cat([direct(part, image) for part in maps], image.dim() - 1 - len(x.axes))
        case Gather():
            return apply(x, image)
        case Linear(inner):
            return direct(inner, image) - direct(inner, torch.zeros_like(image))
        case Unrolled(inner, sizes):
            images = image.reshape(*image.shape[:-1], inner.c_in, *sizes)
            return direct(inner, images).flatten(-1 - len(sizes))
        case Leaf(kernel, bias, border):
            y = _taps(x, image, kernel.exact(), x.groups)
            if border is not None:
                y = y + _taps(x, torch.ones_like(image[:1, :1]), border.exact(), 1)
            return y if bias is None else y + bias.exact().reshape(-1, *[1] * len(x.axes))


def _taps(x: Affine, image: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """sum_ij kernel[o, i, j] x~[i, stride p + dilation j - lo]"""
    channels = image.dim() - 1 - len(x.axes)
    shape = (*image.shape[:channels], groups, -1, *image.shape[channels + 1 :])
    grouped = image.reshape(shape).movedim((channels, channels + 1), (-2, -1))  # (..., *spatial, groups, c_in / groups)
    weights = kernel.unflatten(0, (groups, -1))
    total: Tensor | int = 0
    for taps in product(*(range(axis.size) for axis in x.axes)):
        seen = grouped
        for place, (axis, tap) in enumerate(zip(x.axes, taps, strict=True), start=channels):
            seen = _read(seen, place, axis, tap, x.mode)
        total = total + torch.einsum("...gi,goi->...go", seen, weights[(..., *taps)])
    assert isinstance(total, Tensor)
    return total.flatten(-2).movedim(-1, channels)


def _read(image: Tensor, place: int, axis: Axis, tap: int, mode: str) -> Tensor:
    """The value under one tap for every output position, along one axis."""
    size = image.shape[place]
    spread = axis.up * (size - 1) + 1
    count = (spread + axis.lo + axis.hi - axis.dilation * (axis.size - 1) - 1) // axis.stride + 1
    position = torch.arange(count) * axis.stride + axis.dilation * tap - axis.lo
    inside = (position >= 0) & (position < spread) & (position % axis.up == 0)
    position = position.div(axis.up, rounding_mode="floor")
    source = {
        "zeros": position.clamp(0, size - 1),
        "replicate": position.clamp(0, size - 1),
        "circular": position % size,
        "reflect": (size - 1) - ((size - 1) - position.abs()).abs(),
    }[mode]
    seen = image.index_select(place, source)
    if mode == "zeros":
        seen = seen * inside.reshape(-1, *[1] * (image.dim() - 1 - place))
    return seen
