"""What Hypothesis draws: affine maps and images for them, blocks and whole models, in float64.

Weights of maps and images for them are small whole numbers: every sum of products is exact, so that laws hold with
`==`. Weights of models are normal, with random statistics of batch norms.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile.affine import Affine, Compose, Concat, Linear, Sum
from repcompile.axis import Axis
from repcompile.errors import Inexact
from repcompile.testing.models import randomize

MODES = ("zeros", "reflect", "replicate", "circular")


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


def or_else(step: Callable[[Affine], Affine], x: Affine) -> Affine:
    """`step(x)`, or `x` itself if the algebra refuses."""
    try:
        return step(x)
    except Inexact:
        return x


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


# -- models ------------------------------------------------------------------------------------------------------------


@st.composite
def blocks(draw: st.DrawFn, channels: int = 4, depth: int = 2) -> nn.Module:
    """A block from `channels` channels of an image to as many, of its size, in eval mode.

    Layers in a row, parallel branches, residuals, scales and activations, one inside the other.
    """
    with _seeded(draw):
        block = _block(draw, channels, depth)
    return randomize(block, draw(st.integers(0, 999))).eval().double()


@st.composite
def graphs(draw: st.DrawFn, channels: int = 4, most: int = 8) -> nn.Module:
    """A model of images with `channels` channels, in eval mode: any graph of up to `most` operators that keep the size.

    Each operator reads one or two of the values before it: values have several readers, and sums several sources.
    """
    steps: list[tuple[str, int, int]] = []
    layers: list[nn.Module] = []
    with _seeded(draw):
        for place in range(draw(st.integers(1, most))):
            kind = draw(st.sampled_from(["layer", "layer", "layer", "add", "sub", "mul", "act"]))
            first, second = (draw(st.integers(0, place)) for _ in range(2))
            steps.append((kind, first, second))
            layers.append(_layer(draw, channels) if kind == "layer" else nn.Identity())
    return randomize(Graph(steps, layers), draw(st.integers(0, 999))).eval().double()


@contextmanager
def _seeded(draw: st.DrawFn) -> Generator[None]:
    """Weights are drawn from a drawn seed, and the global generator is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
        yield


class Graph(nn.Module):
    """steps: (kind, operand, other operand), by the number of the value; the input is value 0."""

    def __init__(self, steps: Sequence[tuple[str, int, int]], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (kind, first, second), layer in zip(self.steps, self.layers, strict=True):
            a, b = values[first], values[second]
            made = {"add": a + b, "sub": a - b, "mul": a * 0.5, "act": torch.tanh(a)}
            values.append(layer(a) if kind == "layer" else made[kind])
        total = values[-1]
        for value in values[-3:-1]:
            total = total + value
        return total


class Scaled(nn.Module):
    """gamma x, one number per channel"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Branches(nn.Module):
    """The sum of several branches, and perhaps of the input."""

    def __init__(self, branches: Sequence[nn.Module], skip: bool) -> None:
        super().__init__()
        self.branches, self.skip = nn.ModuleList(branches), skip

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total + x if self.skip else total


def _block(draw: st.DrawFn, channels: int, depth: int) -> nn.Module:
    kind = draw(st.sampled_from(["layer", "row", "branches"])) if depth else "layer"
    if kind == "layer":
        return _layer(draw, channels)
    parts = [_block(draw, channels, depth - 1) for _ in range(draw(st.integers(1, 3)))]
    if kind == "row":
        return nn.Sequential(*parts, *([nn.GELU()] if draw(st.booleans()) else []))
    return Branches(parts, draw(st.booleans()))


def _layer(draw: st.DrawFn, channels: int) -> nn.Module:
    size = draw(st.sampled_from([1, 3, 5]))
    groups = draw(st.sampled_from([1, channels]))
    conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups, bias=draw(st.booleans()))
    return draw(
        st.sampled_from(
            [
                conv,
                nn.BatchNorm2d(channels),
                nn.Sequential(conv, nn.BatchNorm2d(channels)),
                nn.Sequential(nn.BatchNorm2d(channels), conv),
                Scaled(channels),
                nn.Sequential(conv, nn.ReLU()),
            ]
        )
    )
