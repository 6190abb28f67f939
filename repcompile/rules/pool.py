"""Average pooling is a depthwise convolution with equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.rules.ruleset import Rule, RuleSet, affine_rule
from repcompile.values import filled

Sizes = int | Sequence[int]


@affine_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, late=True)
def average_pool_module(x: Map, m: nn.AvgPool2d) -> Map:
    n_axes = next(n for n, cls in ((1, nn.AvgPool1d), (2, nn.AvgPool2d), (3, nn.AvgPool3d)) if isinstance(m, cls))
    divisor = getattr(m, "divisor_override", None)
    return _averaged(x, n_axes, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)


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

    return affine_rule(function)(average_pool)


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
    if ceil_mode:
        raise Inexact("ceil_mode averages over windows that stick out")
    if any(pads) and not count_include_pad:
        raise Inexact("count_include_pad=False divides by less at the border")
    channels = x.placed(n_axes).c_out if isinstance(x, Uniform) else x.c_out
    weight = filled(1.0 / (divisor or prod(sizes)), channels, (channels, 1, *sizes))
    strides = sizes if stride is None or stride == [] else _tuple(stride, n_axes)
    return Affine.conv(weight, None, strides, pads, 1, channels) @ x


def _tuple(value: Sizes, n_axes: int) -> tuple[int, ...]:
    entries = (value,) if isinstance(value, int) or not isinstance(value, Sequence) else tuple(value)
    return entries * n_axes if len(entries) == 1 else entries


POOL = RuleSet((average_pool_module, *(_pool_function(n) for n in (1, 2, 3))))
