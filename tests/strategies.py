"""What Hypothesis draws: axes, affine maps, images."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from repcompile.affine import Affine, Axis
from repcompile.errors import Inexact


@st.composite
def tensors(draw: st.DrawFn, *shape: int) -> Tensor:
    """Normal numbers in float64 from a drawn seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """An axis of up to four taps; half of them without padding, so that compositions are exact often enough."""
    size = draw(st.sampled_from([1, 1, 2, 3, 4]))
    dilation = draw(st.integers(1, 3)) if size > 1 else 1
    lo, hi = draw(st.sampled_from([(0, 0), (0, 0), (1, 1), (2, 1), (-1, 0), (0, 3), (0, -1)]))
    return Axis(size, draw(st.integers(1, 3)), dilation, lo, hi)


@st.composite
def affines(
    draw: st.DrawFn,
    n_axes: int | None = None,
    c_in: int | None = None,
    c_out: int | None = None,
    like: tuple[Axis, ...] | None = None,
) -> Affine:
    """A leaf, or a pointwise map with a shift in front of a padded one, so that border terms take part."""
    n = draw(st.integers(0, 3)) if n_axes is None else n_axes
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    width_in = draw(st.sampled_from([4, 8])) if c_in is None else c_in
    width_out = draw(st.sampled_from([4, 8])) if c_out is None else c_out
    shape = tuple(draw(axes()) for _ in range(n)) if like is None else like
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "replicate", "circular"])) if n else "zeros"
    weight = draw(tensors(width_out, width_in // groups, *[axis.size for axis in shape]))
    bias = draw(tensors(width_out)) if draw(st.booleans()) else None
    leaf = Affine.conv(
        weight,
        bias,
        stride=[axis.stride for axis in shape],
        padding=[(axis.lo, axis.hi) for axis in shape],
        dilation=[axis.dilation for axis in shape],
        groups=groups,
        mode=mode,
    )
    if not draw(st.booleans()):
        return leaf
    try:
        return leaf @ Affine.diagonal(width_in, n, draw(tensors(width_in)), draw(tensors(width_in)))
    except Inexact:
        return leaf


@st.composite
def images_for(draw: st.DrawFn, x: Affine, channels: int | None = None) -> Tensor:
    """An image that is large enough for a few windows, of a different size along each axis."""
    sizes = [draw(st.integers(14, 19)) for _ in x.axes] if x.axes else [draw(st.integers(1, 4))]
    width = x.c_in if channels is None else channels
    return draw(tensors(2, width, *sizes)) if x.axes else draw(tensors(2, *sizes, width))
