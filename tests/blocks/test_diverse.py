"""Blocks whose kernel is a sum of unlike parts: DBB, OREPA, edge masks, standardized weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.blocks.cases import Case, bordered, conv_norm, holds, listed, table, weights
from tests.test_hostile import Net, check, conv, gain, images, made, norm

# -- DBB ---------------------------------------------------------------------------------------------------------------


class NormAndPad(nn.Module):
    """BN, then a border of what BN makes of zero, which is what the folded bias puts there (Ding et al. 2021, DBB)."""

    def __init__(self, channels: int = 4, width: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.bn: Any = norm(channels, affine=affine)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        root = torch.sqrt(self.bn.running_var + self.bn.eps)
        if self.bn.affine:
            value = self.bn.bias.detach() - self.bn.running_mean * self.bn.weight.detach() / root
        else:
            value = -self.bn.running_mean / root
        return bordered(y, value, self.width)


class IdentityBased(nn.Module):
    """(W + I) x: the 1x1 convolution that DBB starts from the identity."""

    identity: Tensor

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.weight = weights(channels, channels, 1, 1)
        self.register_buffer("identity", torch.eye(channels).view(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.identity)


def true_padding(c_out: int = 4, size: int = 3, stride: int = 1, affine: bool = True) -> nn.Module:
    """BN W1 x + BN Wk x + BN Wk pad(BN (W1 + I) x) + BN avg pad(BN W1 x), pads of BN(0) (DBB)."""
    wide, bare = {"stride": stride}, {"stride": stride, "padding": 0}
    deep = nn.Sequential(IdentityBased(), NormAndPad(4, size // 2, affine), conv_norm(4, c_out, size, **bare))
    pooled = nn.Sequential(
        conv(4, c_out, 1, bias=False), NormAndPad(c_out, size // 2, affine), nn.AvgPool2d(size, stride), norm(c_out)
    )
    branches = listed(conv_norm(4, c_out, 1, **wide), conv_norm(4, c_out, size, **wide), deep, pooled)
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=branches)


def one_branch(branch: int, size: int = 3) -> nn.Module:
    """One of the two deep branches of DBB alone."""
    return true_padding(size=size).branches[branch]  # type: ignore[index, union-attr]


def zero_padding(stride: int = 1) -> nn.Module:
    """DBB with biases and torch's own zero padding: the inner biases end at the border."""
    deep = nn.Sequential(conv(size=1), norm(), conv(stride=stride), norm())
    pooled = nn.Sequential(conv(size=1), norm(), nn.AvgPool2d(3, stride, 1), norm())
    branches = listed(conv_norm(size=1, stride=stride), conv_norm(stride=stride), deep, pooled)
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=branches)


# -- OREPA -------------------------------------------------------------------------------------------------------------


def frequencies(channels: int, size: int = 3) -> Tensor:
    """The fixed cosine basis of OREPA's frequency prior: (channels, size, size)."""
    half = channels // 2
    places = (torch.arange(size) + 0.5) / size * torch.pi
    rows = [torch.cos((i + 1) * places).view(-1, 1).expand(size, size) for i in range(half)]
    columns = [torch.cos((i + 1 - half) * places).view(1, -1).expand(size, size) for i in range(half, channels)]
    return torch.stack([*rows, *columns])


class Orepa(nn.Module):
    """BN(W x), W = sum_k s_k W_k computed from parameters in forward (Hu et al. 2022, OREPA)."""

    mean: Tensor
    prior: Tensor
    identity: Tensor

    def __init__(self, c_in: int = 4, c_out: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.scales = nn.Parameter(torch.rand(6, c_out) + 0.5)
        self.origin, self.point = weights(c_out, c_in, 3, 3), weights(c_out, c_in, 1, 1)
        self.pool, self.frequency = weights(c_out, c_in), weights(c_out, c_in)
        self.first, self.second = weights(c_in, c_in, 1, 1), weights(c_out, c_in, 3, 3)
        self.depthwise, self.pointwise = weights(c_in, 8, 3, 3), weights(c_out, c_in, 8)
        self.register_buffer("mean", torch.full((3, 3), 1 / 9))
        self.register_buffer("prior", frequencies(c_in))
        self.register_buffer("identity", torch.eye(c_in).view(c_in, c_in, 1, 1))
        self.bn = norm(c_out)

    def kernel(self) -> Tensor:
        """(c_out, c_in, 3, 3)"""
        mixed = (self.first + self.identity).squeeze(3).squeeze(2)
        kernels = (
            self.origin,
            F.pad(self.point, (1, 1, 1, 1)),
            torch.einsum("oi,hw->oihw", self.pool, self.mean),
            torch.einsum("oi,ihw->oihw", self.frequency, self.prior),
            torch.einsum("ti,othw->oihw", mixed, self.second),
            torch.einsum("imhw,oim->oihw", self.depthwise, self.pointwise),
        )
        scaled = [torch.einsum("oihw,o->oihw", kernel, self.scales[k, :]) for k, kernel in enumerate(kernels)]
        return sum(scaled[1:], scaled[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, weight=self.kernel(), bias=None, stride=self.stride, padding=1))


def standardized() -> nn.Module:
    """BN((W - mean W) / sqrt(var W + eps) x), mean and variance per output channel (Qiao et al. 2019)."""

    def function(m: Any, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(m.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return m.norm(F.conv2d(x, (m.weight - mean) / torch.sqrt(variance + 1e-10), m.bias, padding=1))

    return Net(function, weight=weights(4, 4, 3, 3), bias=weights(4), norm=norm())


def standardized_by_norm() -> nn.Module:
    """The same, with a batch norm over the kernel and a gain, as timm writes it (Brock et al. 2021, NF-Nets)."""

    def function(m: Any, x: Tensor) -> Tensor:
        flat = m.weight.reshape(1, 4, -1)
        weight = F.batch_norm(flat, None, None, weight=(m.gain * 0.2).view(-1), training=True, momentum=0.0, eps=1e-6)
        return m.norm(F.conv2d(x, weight.reshape_as(m.weight), m.bias, padding=1))

    return Net(function, weight=weights(4, 4, 3, 3), gain=gain(4, 1, 1, 1), bias=weights(4), norm=norm())


# -- super-resolution --------------------------------------------------------------------------------------------------

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class EdgeBranch(nn.Module):
    """(s * mask) pad(W1 x + b1) + b, the padding being b1 (Zhang et al. 2021, ECBSR)."""

    mask: Tensor

    def __init__(self, mask: tuple[tuple[float, ...], ...], true_border: bool = True) -> None:
        super().__init__()
        self.point: Any = conv(size=1)
        self.scale, self.bias = gain(4, 1, 1, 1), weights(4)
        self.register_buffer("mask", torch.tensor(mask).expand(4, 1, 3, 3).clone())
        self.true_border = true_border

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(x)
        y = bordered(y, self.point.bias) if self.true_border else F.pad(y, (1, 1, 1, 1))
        return F.conv2d(input=y, weight=self.scale * self.mask, bias=self.bias, stride=1, groups=4)


class DeepBranch(nn.Module):
    """W3 pad(W1 x + b1) + b3, the padding being b1; W1 widens (ECBSR)."""

    def __init__(self) -> None:
        super().__init__()
        self.point: Any = conv(4, 8, 1)
        self.square = conv(8, 4, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(bordered(self.point(x), self.point.bias))


def ecbsr(identity: bool = True) -> nn.Module:
    """W3 x + deep(x) + Sobel-x(x) + Sobel-y(x) + Laplacian(x) [+ x] (ECBSR)."""
    branches = listed(conv(), DeepBranch(), EdgeBranch(SOBEL_X), EdgeBranch(SOBEL_Y), EdgeBranch(LAPLACIAN))

    def function(m: Any, x: Tensor) -> Tensor:
        y = m.branches[0](x) + m.branches[1](x) + m.branches[2](x) + m.branches[3](x) + m.branches[4](x)
        if identity:
            y += x
        return y

    return Net(function, branches=branches)


def edges_in_zeros() -> nn.Module:
    """W3 x + the edge branches with torch's zero padding."""
    branches = listed(conv(), *(EdgeBranch(mask, False) for mask in (SOBEL_X, SOBEL_Y, LAPLACIAN)))
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=branches)


CASES = {
    "DBB": Case(true_padding),
    "DBB, stride 2": Case(partial(true_padding, 6, 3, 2)),
    "DBB, 5x5": Case(partial(true_padding, 4, 5)),
    "DBB, norms without gain": Case(partial(true_padding, affine=False)),
    "DBB, 1x1 in front of 3x3": Case(partial(one_branch, 2)),
    "DBB, 1x1 in front of average pool": Case(partial(one_branch, 3)),
    "DBB, biases and zero padding": Case(zero_padding, operators=2),
    "DBB, biases and zero padding, stride 2": Case(partial(zero_padding, 2), operators=2),
    "OREPA": Case(Orepa),
    "OREPA, stride 2": Case(partial(Orepa, 4, 6, 2)),
    "weight standardization": Case(standardized),
    "weight standardization by batch norm": Case(standardized_by_norm),
    "weight norm": Case(lambda: nn.Sequential(weight_norm(conv()), norm())),
    "spectral norm": Case(lambda: nn.Sequential(spectral_norm(conv()), norm())),
    "ECBSR": Case(ecbsr),
    "ECBSR without identity": Case(partial(ecbsr, False)),
    "ECBSR, deep branch": Case(DeepBranch),
    "ECBSR, Sobel branch": Case(partial(EdgeBranch, SOBEL_X)),
    "edge branches in zeros": Case(edges_in_zeros, operators=2),
}


@table(CASES)
def test_unlike_parts_are_one_convolution(case: Case) -> None:
    holds(case)


# -- what is no border of one value for each channel -------------------------------------------------------------------


def overwritten(pads: tuple[int, ...], *places: Any) -> nn.Module:
    """The norm's output with zeros around it, some of them overwritten, in front of a convolution."""

    def function(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.norm(x), pads)
        for place in places:
            y[place] = m.value
        return m.conv(y)

    channels = 4 + sum(pads[4:])
    return Net(function, norm=norm(), value=torch.rand(1, 1, 1, 1), conv=conv(channels, 4, padding=0))


ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)
ROWS, COLUMNS = ((ALL, ALL, FIRST, ALL), (ALL, ALL, LAST, ALL)), ((ALL, ALL, ALL, FIRST), (ALL, ALL, ALL, LAST))
OVERWRITTEN: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "one number for all channels": ((1, 1, 1, 1), (*ROWS, *COLUMNS)),
    "columns alone": ((1, 1, 0, 0), COLUMNS),
    "rows where columns were added": ((1, 1), ((ALL, ALL, FIRST), (ALL, ALL, LAST))),
    "a row in place of a column": ((1, 1, 1, 1), (*ROWS, COLUMNS[0], (ALL, ALL, LAST))),
    "channels": ((0, 0, 0, 0, 1, 1), ((ALL, FIRST, ALL, ALL), (ALL, LAST, ALL, ALL))),
    "a row by its number": ((1, 1, 1, 1), ((ALL, ALL, 0), ROWS[1], *COLUMNS)),
    "a row by its step": ((1, 1, 1, 1), ((ALL, ALL, slice(0, 1, 2), ALL), ROWS[1], *COLUMNS)),
    "a row inside": ((1, 1, 1, 1), ((ALL, ALL, slice(1, 2), ALL), ROWS[1], *COLUMNS)),
    "corners": ((1, 1, 1, 1), ((ALL, ALL, FIRST, FIRST), ROWS[1], *COLUMNS)),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_is_overwritten_stays_where_it_is(name: str) -> None:
    pads, places = OVERWRITTEN[name]
    check(made(lambda: overwritten(pads, *places)), *images())
