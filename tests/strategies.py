"""What Hypothesis draws: axes, affine maps, images; what a map is by definition; and laws that count their cases.

Weights and images are small whole numbers in float64: every sum of products is exact, so that laws hold with `==`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
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

MODES = ("zeros", "reflect", "replicate", "circular")


# -- laws --------------------------------------------------------------------------------------------------------------


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
            every_case()
            share = tally[True] / max(tally.total(), 1)
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


# -- tensors -----------------------------------------------------------------------------------------------------------


@st.composite
def whole(draw: st.DrawFn, *shape: int) -> Tensor:
    """Whole numbers from -3 to 3, in float64, from a drawn seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return torch.randint(-3, 4, shape, generator=generator).double()


@st.composite
def normal(draw: st.DrawFn, *shape: int) -> Tensor:
    """Normal numbers in float64 from a drawn seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# -- maps --------------------------------------------------------------------------------------------------------------


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Up to three taps; half of them without padding, so that compositions are exact often enough."""
    size = draw(st.sampled_from([1, 1, 2, 3]))
    dilation = draw(st.integers(1, 2)) if size > 1 else 1
    lo, hi = draw(st.sampled_from([(0, 0), (0, 0), (0, 0), (1, 1), (2, 1), (-1, 0), (0, 2), (1, -1)]))
    return Axis(size, draw(st.sampled_from([1, 1, 2, 3])), dilation, lo, hi)


@st.composite
def upward_axes(draw: st.DrawFn) -> Axis:
    """Those of transposed convolutions."""
    size, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    lo, hi = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    return Axis(size, 1, dilation if size > 1 else 1, lo, hi, draw(st.integers(2, 3)))


@st.composite
def leaves(
    draw: st.DrawFn,
    n_axes: int | None = None,
    c_in: int | None = None,
    c_out: int | None = None,
    like: Sequence[Axis] | None = None,
    linear: bool = False,
) -> Affine:
    """A convolution, or a matrix where there are no axes.  like: its axes.  linear: without bias and border term."""
    n = draw(st.integers(0, 3)) if n_axes is None else n_axes
    kind = upward_axes() if draw(st.integers(0, 19)) == 0 else axes()
    geometry = [draw(kind) for _ in range(n)] if like is None else like
    width_in = draw(st.sampled_from([1, 2, 4, 6])) if c_in is None else c_in
    width_out = draw(st.sampled_from([1, 2, 4, 6])) if c_out is None else c_out
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 6) if width_in % g == width_out % g == 0]))
    plain = all(axis.up == 1 for axis in geometry)
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", *MODES])) if n and plain else "zeros"
    bordered = n > 0 and mode == "zeros" and not linear and draw(st.integers(0, 5)) == 0
    x = Affine.conv(
        draw(whole(width_out, width_in // groups, *[axis.size for axis in geometry])),
        None if linear else draw(st.none() | whole(width_out)),
        groups=groups,
        mode=mode,
        border=draw(whole(width_out, 1, *[axis.size for axis in geometry])) if bordered else None,
    )
    return replace(x, axes=tuple(geometry))


@st.composite
def diagonals(draw: st.DrawFn, channels: int, n_axes: int) -> Affine:
    """A gain and perhaps a shift for each channel."""
    return Affine.diagonal(channels, n_axes, draw(whole(channels)), draw(st.none() | whole(channels)))


@st.composite
def selections(draw: st.DrawFn, channels: int, n_axes: int, count: int | None = None) -> Affine:
    """Some channels, in any order, some of them more than once."""
    size = draw(st.integers(1, 6)) if count is None else count
    index = draw(st.lists(st.integers(0, channels - 1), min_size=size, max_size=size))
    return Affine.select(channels, index, n_axes)


@st.composite
def affines(
    draw: st.DrawFn,
    n_axes: int | None = None,
    c_in: int | None = None,
    c_out: int | None = None,
    like: Sequence[Axis] | None = None,
) -> Affine:
    """A leaf, or one behind a shift, so that border terms take part."""
    leaf = draw(leaves(n_axes, c_in, c_out, like))
    return or_else(lambda x: x @ draw(diagonals(x.c_in, len(x.axes))), leaf) if draw(st.booleans()) else leaf


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


def or_else(step: Callable[[Affine], Affine], x: Affine) -> Affine:
    """`step(x)`, or `x` itself if the algebra refuses."""
    try:
        return step(x)
    except Inexact:
        return x


def window(channels: int, pads: Sequence[tuple[int, int]], mode: str = "zeros") -> Affine:
    """Padding, or a crop where it is negative."""
    ones = torch.ones(channels, 1, *[1] * len(pads), dtype=torch.float64)
    return Affine.conv(ones, None, padding=list(pads), groups=channels, mode=mode)


# -- images ------------------------------------------------------------------------------------------------------------


@st.composite
def images_for(draw: st.DrawFn, *chain: Affine) -> Tensor:
    """An image for the first map, whose output the next one reads: from the smallest legal size to some positions more.

    Even and odd sizes, another one along each axis.
    """
    first = chain[0]
    if not first.axes:
        return draw(whole(2, *[draw(st.integers(1, 3))] * draw(st.integers(0, 1)), first.c_in))
    sizes: list[int] = []
    for axis in range(len(first.axes)):
        wanted = draw(st.integers(1, 4))
        for x in reversed(chain):
            wanted = _least_size(x, axis, wanted)
        sizes.append(wanted + draw(st.integers(0, 3)))
    return draw(whole(2, first.c_in, *sizes))


def _least_size(x: Affine, axis: int, wanted: int) -> int:
    """The smallest input from which every part of `x` yields an output, and in the end `wanted` positions."""
    match x.parts:
        case Compose(outer, inner):
            return _least_size(inner, axis, _least_size(outer, axis, wanted))
        case Sum(left, right):
            return max(_least_size(left, axis, wanted), _least_size(right, axis, wanted))
        case Concat(maps):
            return max(_least_size(part, axis, wanted) for part in maps)
        case Linear(inner):
            return _least_size(inner, axis, wanted)
        case _:
            a = x.axes[axis]
            return max(a.input_size(wanted), a.lo + 1, a.hi + 1, 1 - min(a.lo, 0) - min(a.hi, 0))


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
