"""The modules that repcompile itself emits, so that a fused model can be fused again."""

from __future__ import annotations

from typing import Any

from repcompile.affine import Affine, Map
from repcompile.errors import Inexact
from repcompile.modules import BorderConv, ChannelAffine, ValuePad, of_rank
from repcompile.rules.ruleset import RuleSet, affine_rule


@affine_rule(ChannelAffine, late=True)
def channel_affine(x: Map, m: ChannelAffine) -> Map:
    """y = weight x + bias"""
    return Affine.diagonal(m.weight.shape[0], m.weight.dim() - 1, m.weight, m.bias) @ x


@affine_rule(BorderConv, late=True)
def border_conv(x: Map, m: BorderConv) -> Map:
    """y = conv(x) + border * 1~"""
    conv: Any = m.conv
    if conv.transposed:
        raise Inexact("a transposed convolution with a border map")
    padding = list(zip(m.pads[::2], m.pads[1::2], strict=True))[::-1] if m.pads else conv.padding
    return Affine.conv(conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups, border=m.border) @ x


@affine_rule(ValuePad, late=True, copies=True, dtype="promoted", word="pad")
def value_pad(x: Map, m: ValuePad) -> Map:
    """x, and one value for each channel around it."""
    pads = list(zip(m.pads[::2], m.pads[1::2], strict=True))[::-1]
    return Affine.pad(m.value.shape[0], pads, value=m.value) @ x


@affine_rule(of_rank, dtype="same")
def checked(x: Map, rank: int) -> Map:
    return x


EMITTED = RuleSet((channel_affine, border_conv, value_pad, checked)).trusting()
