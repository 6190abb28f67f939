"""Average pooling is a depthwise convolution with equal weights; any mean lets a pointwise map pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.rules.ruleset import Rule, RuleSet, affine_rule, layout_rule
from repcompile.shapes import Layout, Shape, Size, unknown
from repcompile.values import filled

Sizes = int | Sequence[int]
POOLS = {  # spatial axes -> modules
    1: (nn.AvgPool1d, nn.AdaptiveAvgPool1d),
    2: (nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    3: (nn.AvgPool3d, nn.AdaptiveAvgPool3d),
}


@affine_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, late=True, dtype="same", word="pool")
def average_pool_module(x: Map, m: nn.AvgPool2d) -> Map:
    divisor = getattr(m, "divisor_override", None)
    return _averaged(x, _axes_of(m), m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)


def _pool_function(n_axes: int) -> Rule:
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n_axes - 1]

    def average_pool(
        x: Map,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Map:
        return _averaged(x, n_axes, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    return affine_rule(function, dtype="same", word="pool")(average_pool)


def _averaged(
    x: Map,
    n_axes: int,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Map:
    """y[c, p] = mean of x[c] over the window at p."""
    sizes = _tuple(kernel_size, n_axes)
    pads = _tuple(padding, n_axes)
    if not all(isinstance(size, int) for size in (*sizes, *pads)):
        raise Inexact("a pooling window that depends on the input's size")
    strides = sizes if stride is None or stride == [] else _tuple(stride, n_axes)
    if ceil_mode and any(step != 1 for step in strides):
        raise Inexact("ceil_mode averages over windows that stick out")
    if any(pads) and not count_include_pad and divisor is None:
        raise Inexact("count_include_pad=False divides by less at the border")
    channels = x.placed(n_axes).c_out if isinstance(x, Uniform) else x.c_out
    weight = filled(1.0 / (divisor or prod(sizes)), channels, (channels, 1, *sizes))
    return Affine.conv(weight, None, strides, pads, 1, channels) @ x


def _axes_of(m: nn.Module) -> int:
    """The number of spatial axes that a pooling module works on."""
    return next(n for n, classes in POOLS.items() if isinstance(m, classes))


def _tuple(value: Sizes, n_axes: int) -> tuple[int, ...]:
    entries = (value,) if isinstance(value, int) or not isinstance(value, Sequence) else tuple(value)
    return entries * n_axes if len(entries) == 1 else entries


# -- means that are no convolution, but of weights that sum to one: a pointwise map may cross them --------------------


@layout_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def mean_of_windows_module(shape: Shape | None, m: Any, owner: str = "") -> Layout:
    options = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
    return _mean_of_windows(shape, _axes_of(m), owner, *options, divisor_override=getattr(m, "divisor_override", None))


def _mean_function(n_axes: int) -> Rule:
    def mean_of_windows(shape: Shape | None, *options: Any, owner: str = "", **named: Any) -> Layout:
        return _mean_of_windows(shape, n_axes, owner, *options, **named)

    return layout_rule((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n_axes - 1])(mean_of_windows)


def _mean_of_windows(
    shape: Shape | None,
    n_axes: int,
    owner: str,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Layout:
    """Every window is divided by what it holds, unless zeros around the image are counted, or the divisor is given."""
    if divisor_override is not None or (count_include_pad and any(_tuple(padding, n_axes))):
        raise Inexact("zeros around the image are averaged too")
    name = f"mean of {kernel_size} by {stride}, {padding}, {ceil_mode}, {count_include_pad}"
    steps = _tuple(kernel_size if stride is None or stride == [] else stride, n_axes)
    numbers = [step for step in steps if isinstance(step, int)]
    return resampled(shape, n_axes, None, owner, name, 1.0 / prod(numbers))


@layout_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, dtype="floating")
def adaptive_mean_module(shape: Shape | None, m: nn.AdaptiveAvgPool2d, owner: str = "") -> Layout:
    return _adaptive_mean(shape, _axes_of(m), m.output_size, owner)


def _adaptive_function(n_axes: int) -> Rule:
    def adaptive_mean(shape: Shape | None, output_size: Any, owner: str = "") -> Layout:
        return _adaptive_mean(shape, n_axes, output_size, owner)

    functions: Sequence[Any] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return layout_rule(functions[n_axes - 1], dtype="floating")(adaptive_mean)


def _adaptive_mean(shape: Shape | None, n_axes: int, output_size: Any, owner: str) -> Layout:
    sizes = _tuple(output_size, n_axes)
    if sizes == (1,) * n_axes:
        return mean(shape, tuple(range(-n_axes, 0)), keepdim=True)
    return resampled(shape, n_axes, sizes, owner, f"mean of {sizes} windows", 1.0)


@layout_rule(torch.mean, "mean", dtype="promoted")
def mean(shape: Shape | None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Layout:
    """The mean over some axes."""
    if shape is None or dim in (None, (), []) or dtype is not None:
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    dims = {axis % len(shape) for axis in ((dim,) if isinstance(dim, int) else dim)}
    kept = [axis for axis in range(len(shape)) if axis not in dims]
    name, scale = f"mean over {sorted(dims)} of {len(shape)}", 1.0 / POSITIONS if len(dims) > 1 else 1.0 / 16
    if keepdim:
        result = tuple(Size(1) if axis in dims else size for axis, size in enumerate(shape))
        return Layout(
            result, tuple(None if axis in dims else axis for axis in range(len(shape))), name=name, scale=scale
        )
    carry = tuple(kept.index(axis) if axis in kept else None for axis in range(len(shape)))
    return Layout(tuple(shape[axis] for axis in kept), carry, name=name, scale=scale)


def resampled(
    shape: Shape | None, n_axes: int, sizes: Sequence[int | None] | None, owner: str, name: str, scale: float
) -> Layout:
    """The last `n_axes` axes made anew.  sizes: of these, where they are known; None keeps the size."""
    if shape is None or len(shape) not in (n_axes + 1, n_axes + 2):
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    first = len(shape) - n_axes
    given = [unknown(owner, first + i) for i in range(n_axes)] if sizes is None else _filled_in(sizes, shape[first:])
    carry = (*range(first), *[None] * n_axes)
    return Layout((*shape[:first], *given), carry, name=name, scale=scale)


def _filled_in(sizes: Sequence[int | None], before: Shape) -> list[Size]:
    return [size if given is None else Size(given) for given, size in zip(sizes, before, strict=True)]


POSITIONS = 64  # over so many a global mean is taken to go, as far as a price is concerned

POOL = RuleSet(
    (
        *(average_pool_module, *(_pool_function(n) for n in (1, 2, 3))),
        *(mean_of_windows_module, *(_mean_function(n) for n in (1, 2, 3))),
        *(adaptive_mean_module, *(_adaptive_function(n) for n in (1, 2, 3)), mean),
    )
).trusting()
