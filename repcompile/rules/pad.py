"""Padding and cropping: an identity with a window that starts early or late."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.modules import surrounded
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.shapes import Shape
from repcompile.values import Weight

MODES = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@affine_rule(
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    late=True,
    copies=True,
    dtype="same",
    word="pad",
)
def constant_pad_module(x: Map, m: nn.ConstantPad2d, shape: Shape | None = None) -> Map:
    return pad(x, m.padding, "constant", m.value, shape)


@affine_rule(
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, late=True, copies=True, dtype="same", word="pad"
)
def reflection_pad_module(x: Map, m: nn.ReflectionPad2d, shape: Shape | None = None) -> Map:
    return pad(x, m.padding, "reflect", None, shape)


@affine_rule(
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, late=True, copies=True, dtype="same", word="pad"
)
def replication_pad_module(x: Map, m: nn.ReplicationPad2d, shape: Shape | None = None) -> Map:
    return pad(x, m.padding, "replicate", None, shape)


@affine_rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, late=True, copies=True, dtype="same", word="pad")
def circular_pad_module(x: Map, m: nn.CircularPad2d, shape: Shape | None = None) -> Map:
    return pad(x, m.padding, "circular", None, shape)


@affine_rule(F.pad, copies=True, dtype="same", word="pad")
def pad(
    x: Map, pad: Sequence[int], mode: str = "constant", value: float | None = None, shape: Shape | None = None
) -> Map:
    """More around the image, or less; the list starts with the last axis, as torch's does."""
    if not all(isinstance(entry, int) for entry in pad):
        raise Inexact("padding that depends on the input's size")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    n_axes = len(x.axes) if isinstance(x, Affine) else len(pairs) if shape is None else len(shape) - 2
    if not 0 < n_axes <= 3 or any(map(any, pairs[n_axes:])):
        raise Inexact("padding along the channels or the batch")
    if mode != "constant" and any(min(pair) < 0 for pair in pairs):
        raise Inexact(f"a negative padding of mode {mode!r}")
    axes = [(0, 0)] * (n_axes - len(pairs)) + pairs[:n_axes][::-1]
    channels = x.placed(n_axes).c_out if isinstance(x, Uniform) else x.c_out
    return Affine.pad(channels, axes, MODES[mode], value or 0) @ x


@affine_rule(surrounded, copies=True, dtype="same", word="pad")
def surround(x: Map, pads: Sequence[int], value: Weight, rank: int, shape: Shape | None = None) -> Map:
    """More around the image: another number for each channel."""
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    n_axes = rank - 2
    if (shape is not None and len(shape) != rank) or (isinstance(x, Affine) and len(x.axes) != n_axes):
        raise Inexact("sides of another axis are overwritten")
    if not 0 < n_axes <= 3 or any(map(any, pairs[n_axes:])):
        raise Inexact("padding along the channels or the batch")
    x = x.placed(n_axes) if isinstance(x, Uniform) else x
    if tuple(value.shape) not in ((1, x.c_out, *[1] * n_axes), (x.c_out, *[1] * n_axes)):
        raise Inexact(f"a value of shape {tuple(value.shape)} around {x.c_out} channels")
    axes = [(0, 0)] * (n_axes - len(pairs)) + pairs[:n_axes][::-1]
    return Affine.pad(x.c_out, axes, value=value) @ x


PAD = RuleSet(
    (constant_pad_module, reflection_pad_module, replication_pad_module, circular_pad_module, pad, surround)
).trusting()
