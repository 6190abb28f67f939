"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.values import Weight


@affine_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, late=True, strict=True)
def conv_module(x: Map, m: nn.Conv2d) -> Map:
    """The weight is read through the module, so that a parametrized one is evaluated."""
    return Affine.conv(m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups, m.padding_mode) @ x


@affine_rule(F.conv1d, F.conv2d, F.conv3d, strict=True, dtype="common")
def conv(
    x: Map,
    weight: Weight,
    bias: Weight | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Map:
    """y[o, p] = sum_ij weight[o, i, j] x[i, stride p + dilation j - padding] + bias[o]"""
    return Affine.conv(weight, bias, stride, padding, dilation, groups) @ x


@affine_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, late=True, strict=True, transposed=True)
def conv_transpose_module(x: Map, m: nn.ConvTranspose2d) -> Map:
    """Called without an output size, which the rule does not take."""
    return conv_transpose(x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


@affine_rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, strict=True, transposed=True, dtype="common")
def conv_transpose(
    x: Map,
    weight: Weight,
    bias: Weight | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Map:
    """x[i, q] goes to y[o, stride q + dilation j - padding], times weight[i, o, j]."""
    return Affine.conv_transpose(weight, bias, stride, padding, output_padding, groups, dilation) @ x


CONV = RuleSet((conv_module, conv, conv_transpose_module, conv_transpose)).trusting()
