"""Zero padding and cropping: an identity with a window that starts early or late."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.shapes import Shape
from repcompile.values import filled


@affine_rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, late=True)
def zero_pad_module(x: Map, m: nn.ZeroPad2d) -> Map:
    return _padded(x, tuple(m.padding), len(m.padding) // 2)


@affine_rule(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, late=True)
def constant_pad_module(x: Map, m: nn.ConstantPad2d) -> Map:
    _require_zero(m.value)
    return _padded(x, tuple(m.padding), len(m.padding) // 2)


@affine_rule(F.pad)
def pad(
    x: Map, pad: Sequence[int], mode: str = "constant", value: float | None = None, shape: Shape | None = None
) -> Map:
    """Zeros around the image; the list starts with the last axis, as torch's does."""
    if mode != "constant":
        raise Inexact(f"padding mode {mode!r} on its own")
    _require_zero(value)
    n_axes = len(x.axes) if isinstance(x, Affine) else None if shape is None else len(shape) - 2
    if n_axes is None:
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    return _padded(x, tuple(pad), n_axes)


def _padded(x: Map, pads: tuple[int, ...], n_axes: int) -> Map:
    if not all(isinstance(entry, int) for entry in pads):
        raise Inexact("padding that depends on the input's size")
    if not 0 < n_axes <= 3 or any(pads[2 * n_axes :]):
        raise Inexact("padding along the channels or the batch")
    pairs = [(lo, hi) for lo, hi in zip(pads[::2], pads[1::2], strict=True)][:n_axes]
    axes = [(0, 0)] * (n_axes - len(pairs)) + pairs[::-1]
    channels = x.placed(n_axes).c_out if isinstance(x, Uniform) else x.c_out
    one = filled(1.0, channels, (channels, 1, *[1] * n_axes))
    return Affine.conv(one, None, padding=axes, groups=channels) @ x


def _require_zero(value: float | None) -> None:
    if value not in (None, 0):
        raise Inexact(f"padding with {value} is not zero padding")


PAD = RuleSet((zero_pad_module, constant_pad_module, pad))
