"""Operators that move, repeat, average or pad positions between maps of channels, and transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from repcompile.measure import measure
from tests.blocks.cases import NORMS, SIGNALS, TRANSPOSED, VIDEOS, Case, conv_norm, holds, listed, table
from tests.test_hostile import Build, Net, conv, image, made, norm

EVEN = ((image(2, 4, 6, 8),), (image(1, 4, 10, 4, seed=1),))


def chain(*parts: Callable[[], nn.Module]) -> Build:
    """These one after another, built afresh."""
    return lambda: nn.Sequential(*(part() for part in parts))


def point(c_in: int = 4, c_out: int = 4, **options: Any) -> Callable[[], nn.Module]:
    return partial(conv, c_in, c_out, 1, **options)


def valid(c_in: int = 4, c_out: int = 4, **options: Any) -> Callable[[], nn.Module]:
    return partial(conv, c_in, c_out, 3, **{"padding": 0, **options})


class Shuffled(nn.Module):
    """The channels of two groups dealt out in turn (Zhang et al. 2018, ShuffleNet)."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Averaged(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Wrapped(nn.Module):
    """Circular padding by the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="circular")


# -- pointwise maps and positions --------------------------------------------------------------------------------------

upsample = partial(nn.Upsample, scale_factor=2, mode="nearest")
bilinear = partial(nn.Upsample, scale_factor=2, mode="bilinear", align_corners=False)
unpadded = partial(nn.PixelUnshuffle, 2)
pool, head = partial(nn.AdaptiveAvgPool2d, 1), partial(nn.Linear, 4, 5)


def _interpolated(m: Any, x: Tensor) -> Tensor:
    return m.conv(F.interpolate(m.norm(x), scale_factor=2, mode="nearest"))


def _reordered(m: Any, x: Tensor) -> Tensor:
    """Blue, green, red to red, green, blue, and the usual mean and deviation, of three channels for sure."""
    return m.stem((torch.tanh(m.norm(x))[:, [2, 1, 0]] - m.mean) / m.deviation)


def reordered() -> nn.Module:
    return Net(
        _reordered,
        norm=norm(3),
        stem=conv(3, 8, 4, stride=4, padding=0),
        mean=torch.rand(3, 1, 1),
        deviation=torch.rand(3, 1, 1) + 0.5,
    )


TRANSPARENT = {
    "norm, nearest, 1x1": Case(chain(norm, upsample, point()), operators=2),
    "1x1, nearest, 1x1": Case(chain(point(), upsample, point()), operators=2),
    "conv, nearest, norm": Case(chain(conv, upsample, norm), operators=2),
    "norm, interpolate, 1x1": Case(lambda: Net(_interpolated, norm=norm(), conv=conv(size=1)), operators=2),
    "norm, bilinear, 1x1": Case(chain(norm, bilinear, point()), operators=2),
    "conv, pixel shuffle, norm": Case(chain(partial(conv, 4, 16), partial(nn.PixelShuffle, 2), norm), operators=2),
    "norm, pixel unshuffle, 1x1": Case(chain(norm, unpadded, point(16, 4)), EVEN, operators=2),
    "norm, channel shuffle, 1x1": Case(chain(norm, Shuffled, point())),
    "1x1, channel shuffle, norm": Case(chain(point(groups=2), Shuffled, norm)),
    "norm, channel shuffle module, 1x1": Case(chain(norm, partial(nn.ChannelShuffle, 2), point())),
    "norm, flipped channels, conv": Case(
        lambda: Net(lambda m, x: m.conv(m.norm(x).flip(1)), norm=norm(), conv=valid()())
    ),
    "channels in another order": Case(reordered, ((image(2, 3, 8, 12),), (image(1, 3, 13, 9, seed=1),)), operators=3),
    "norm, pool, Linear": Case(chain(norm, pool, nn.Flatten, head), operators=2),
    "norm, mean, Linear": Case(chain(norm, Averaged, head), operators=2),
    "1x1, pool, Linear": Case(chain(point(), pool, nn.Flatten, head), operators=2),
    "1x1, norm, mean, Linear": Case(chain(point(), norm, Averaged, head), operators=2),
    "1x1, pool, 1x1": Case(chain(point(), pool, point()), operators=2),
    "1x1, pool, norm of rows, Linear": Case(
        chain(point(), pool, nn.Flatten, partial(nn.BatchNorm1d, 4), head), operators=2
    ),
    "conv, average pool": Case(chain(valid(), partial(nn.AvgPool2d, 2))),
}

# -- padding -----------------------------------------------------------------------------------------------------------


def mirrored() -> nn.Module:
    """RepVGG with reflecting padding: one padding and one convolution."""
    branches = listed(conv_norm(padding_mode="reflect"), conv_norm(size=1), norm())
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=branches)


PADS = {
    "zeros, conv": Case(chain(partial(nn.ZeroPad2d, 1), valid()), blind=False),
    "zeros of one side, conv, norm": Case(
        chain(partial(nn.ZeroPad2d, (0, 1, 0, 1)), valid(stride=2), norm), operators=2, blind=False
    ),
    "norm, constant, conv": Case(chain(norm, partial(nn.ConstantPad2d, 1, 0.5), valid()), operators=2),
    "constant, conv, norm": Case(chain(partial(nn.ConstantPad2d, 1, 0.5), valid(), norm), operators=2, blind=False),
    "reflect, conv, norm": Case(chain(partial(nn.ReflectionPad2d, 1), valid(), norm), operators=2, blind=False),
    "norm, reflect, conv": Case(chain(norm, partial(nn.ReflectionPad2d, 1), valid()), operators=2),
    "1x1, replicate, conv": Case(chain(point(), partial(nn.ReplicationPad2d, 1), valid()), operators=2),
    "norm, circular, conv": Case(chain(norm, Wrapped, valid()), operators=1),
    "RepVGG, reflect": Case(mirrored, operators=2),
    "conv, crop, norm": Case(lambda: Net(lambda m, x: m.norm(m.conv(x)[:, :, 1:-1, 1:-1]), conv=conv(), norm=norm())),
    "conv, negative pad, norm": Case(
        lambda: Net(lambda m, x: m.norm(F.pad(m.conv(x), (-1, -1, -1, -1))), conv=conv(), norm=norm())
    ),
}

# -- transposed convolutions -------------------------------------------------------------------------------------------


def transposed(dims: int = 2, c_out: int = 4, size: int = 3, **options: Any) -> nn.Module:
    return TRANSPOSED[dims](4, c_out, size, **options)


def grouped_upsampling(dims: int) -> nn.Module:
    """BN(W^T x), grouped, to twice the size."""
    c_out = 6
    layer = transposed(dims, c_out, stride=2, padding=1, output_padding=1, groups=2, bias=False)
    return nn.Sequential(layer, NORMS[dims](c_out))


def branches_of_upsampling() -> nn.Module:
    """BN(W4^T x) + BN(W2^T x), both to exactly twice the size."""
    wide = nn.Sequential(transposed(size=4, stride=2, padding=1, bias=False), norm())
    tight = nn.Sequential(transposed(size=2, stride=2, bias=False), norm())
    return Net(lambda m, x: m.wide(x) + m.tight(x), wide=wide, tight=tight)


def widened(size: int) -> nn.Module:
    """BN(W^T x) of a stride of 1: from one pixel to `size` (Radford et al. 2016, DCGAN)."""
    return nn.Sequential(transposed(size=size, bias=False), norm())


PIXELS = ((image(2, 4, 1, 1),), (image(1, 4, 3, 2, seed=1),))

UPWARDS = {
    "transposed, norm": Case(partial(grouped_upsampling, 2)),
    "transposed, norm, 1-D": Case(partial(grouped_upsampling, 1), SIGNALS),
    "transposed, norm, 3-D": Case(partial(grouped_upsampling, 3), VIDEOS),
    "1x1, transposed, 1x1": Case(chain(point(bias=False), partial(transposed, stride=2), point())),
    "two transposed": Case(branches_of_upsampling),
    "transposed of stride 1, norm": Case(partial(widened, 4), PIXELS),
}


@table(TRANSPARENT)
def test_pointwise_maps_cross_what_only_moves_positions(case: Case) -> None:
    holds(case)


@table(PADS)
def test_padding_joins_its_convolution(case: Case) -> None:
    holds(case)


@table(UPWARDS)
def test_transposed_convolutions(case: Case) -> None:
    holds(case)


@pytest.mark.parametrize("informed", [False, True])
def test_what_works_at_the_positions_of_a_small_image_still_does(informed: bool) -> None:
    model, inputs = made(partial(widened, 4)), PIXELS[0]
    fused = fuse(model, inputs if informed else None)
    assert measure(fused, inputs).macs == 4 * 4 * 4 * 4 * 2
