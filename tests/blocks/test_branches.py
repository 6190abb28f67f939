"""Blocks of parallel convolutions with batch norms: each is one convolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.cases import NORMS, SIGNALS, VIDEOS, Case, conv_norm, holds, listed, table
from tests.test_hostile import Net, conv, gain, image, norm

# -- RepVGG and its kin ------------------------------------------------------------------------------------------------


def repvgg(c_out: int = 4, identity: bool = True, dims: int = 2, size: int = 3, **options: Any) -> nn.Module:
    """BN(W3 x) + BN(W1 x) [+ BN(x)] (Ding et al. 2021, RepVGG)."""
    branches = [conv_norm(4, c_out, size, dims, **options), conv_norm(4, c_out, 1, dims, **options)]
    skip = [NORMS[dims](4)] if identity else []
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=listed(*branches, *skip))


def qarepvgg() -> nn.Module:
    """BN(BN(W3 x) + W1 x + x) (Chu et al. 2024, QARepVGG)."""
    parts = {"square": conv_norm(), "point": conv(size=1, bias=False), "norm": norm()}
    return Net(lambda m, x: m.norm(m.square(x) + m.point(x) + x), **parts)


def qarepvgg_with_pool() -> nn.Module:
    """BN(BN(W3 x) + W1 x + avg3(x) + x) (YOLOv6 3.0, QARepVGGBlockV2)."""
    parts = {"square": conv_norm(), "point": conv(size=1, bias=False), "pool": nn.AvgPool2d(3, 1, 1), "norm": norm()}
    return Net(lambda m, x: m.norm(m.square(x) + m.point(x) + x + m.pool(x)), **parts)


def _mobileone(m: Any, x: Tensor) -> Any:
    identity = m.skip(x) if m.skip is not None else 0
    scale = m.scale(x) if m.scale is not None else 0
    out = scale + identity
    for branch in m.branches:
        out += branch(x)
    return out


def mobileone(k: int, size: int, groups: int, stride: int = 1, c_out: int = 4) -> nn.Module:
    """sum_k BN(Wk x) [+ BN(W1 x)] [+ BN(x)] (Vasu et al. 2023, MobileOne)."""
    branches = listed(*(conv_norm(4, c_out, size, groups=groups, stride=stride) for _ in range(k)))
    scale = conv_norm(4, c_out, 1, groups=groups, stride=stride) if size > 1 else None
    skip = norm() if stride == 1 and c_out == 4 else None
    return Net(_mobileone, branches=branches, scale=scale, skip=skip)


# -- other windows -----------------------------------------------------------------------------------------------------


def acnet() -> nn.Module:
    """BN(W33 x) + BN(W31 x) + BN(W13 x) (Ding et al. 2019, ACNet)."""
    branches = listed(conv_norm(), conv_norm(size=(3, 1)), conv_norm(size=(1, 3)))
    return Net(lambda m, x: sum(branch(x) for branch in m.branches), branches=branches)


def acnet_cropped(size: int, stride: int = 1) -> nn.Module:
    """The same without padding: the thin kernels read the image without its outer columns or rows (ACNet's code)."""
    edge = size // 2
    return Net(
        lambda m, x: m.square(x) + m.vertical(x[:, :, :, edge:-edge]) + m.horizontal(x[:, :, edge:-edge, :]),
        square=conv_norm(size=size, padding=0, stride=stride),
        vertical=conv_norm(size=(size, 1), padding=0, stride=stride),
        horizontal=conv_norm(size=(1, size), padding=0, stride=stride),
    )


def large_kernel(large: int, small: int, dims: int = 2) -> nn.Module:
    """BN(dw_large x) + BN(dw_small x) (Ding et al. 2022, RepLKNet; Luo & Wang 2024, ModernTCN)."""
    parts = {"large": conv_norm(4, 4, large, dims, groups=4), "small": conv_norm(4, 4, small, dims, groups=4)}
    return Net(lambda m, x: m.large(x) + m.small(x), **parts)


def variables_times_features() -> nn.Module:
    """ModernTCN on (batch, variables, features, time): the depthwise pair on variables x features channels."""
    parts = {"large": conv_norm(6, 6, 13, 1, groups=6), "small": conv_norm(6, 6, 5, 1, groups=6)}
    return Net(
        lambda m, x: m.large(y := x.reshape(x.shape[0], 6, x.shape[3])) + m.small(y),
        **parts,
    )


def unireplknet() -> nn.Module:
    """BN(dw13 x) + sum_i BN(dw_k x, dilated by r), r (k - 1) < 13 (Ding et al. 2024, UniRepLKNet)."""
    dilated = [
        conv_norm(4, 4, k, groups=4, dilation=r, padding=r * (k - 1) // 2)
        for k, r in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
    ]
    return Net(
        lambda m, x: sum((branch(x) for branch in m.dilated), m.origin(x)),
        origin=conv_norm(4, 4, 13, groups=4),
        dilated=listed(*dilated),
    )


# -- mixers ------------------------------------------------------------------------------------------------------------


def _over_parameterized_mixer() -> nn.Module:
    return mobileone(1, 3, 4)


def repmixer_scaled() -> nn.Module:
    """x + g (mixer(x) - BN(x)), mixer = BN(dw3 x) + BN(dw1 x) + BN(x) (Vasu et al. 2023, FastViT)."""
    parts = {"mixer": _over_parameterized_mixer(), "norm": norm(), "scale": gain(4, 1, 1)}
    return Net(lambda m, x: x + m.scale * (m.mixer(x) - m.norm(x)), **parts)


def repmixer_plain() -> nn.Module:
    """x + mixer(x) - BN(x): without layer scale (FastViT)."""
    parts = {"mixer": _over_parameterized_mixer(), "norm": norm()}
    return Net(lambda m, x: x + m.mixer(x) - m.norm(x), **parts)


def positional_encoding() -> nn.Module:
    """x + dw7(x) (Chu et al. 2023, CPE)."""
    return Net(lambda m, x: m.conv(x) + x, conv=conv(size=7, groups=4))


def positional_encoding_of_tokens() -> nn.Module:
    """The same on tokens: to an image, dw3(y) + y, and back (Chu et al. 2021, PEG in Twins)."""

    def function(m: Any, x: Tensor, height: int = 2) -> Tensor:
        y = x.transpose(1, 2).view(x.shape[0], 4, height, -1)
        return (m.conv(y) + y).flatten(2).transpose(1, 2)

    return Net(function, conv=conv(groups=4))


def repghost() -> nn.Module:
    """BN(dw3 x) + BN(x) in front of its ReLU (Chen et al. 2022, RepGhost)."""
    return Net(lambda m, x: m.cheap(x) + m.fusion(x), cheap=conv_norm(groups=4), fusion=norm())


def repghost_module() -> nn.Module:
    """ReLU(BN(dw3 y) + BN(y)), y = ReLU(BN(W1 x)): two convolutions and two ReLUs."""
    parts = {"primary": conv_norm(size=1), "cheap": conv_norm(groups=4), "fusion": norm(), "relu": nn.ReLU()}
    return Net(lambda m, x: m.relu(m.cheap(y := m.relu(m.primary(x))) + m.fusion(y)), **parts)


def repvit_mixer() -> nn.Module:
    """BN(BN(dw3 x) + dw1 x + x) (Wang et al. 2024, RepViT)."""
    parts = {"conv": conv_norm(groups=4), "conv1": conv(size=1, groups=4), "norm": norm()}
    return Net(lambda m, x: m.norm((m.conv(x) + m.conv1(x)) + x), **parts)


# -- YOLO --------------------------------------------------------------------------------------------------------------


def repconv(identity: bool = True) -> nn.Module:
    """SiLU(BN(W3 x) + BN(W1 x) [+ BN(x)]) (Wang et al. 2023, YOLOv7); YOLOv9's has no identity."""
    skip = norm() if identity else None
    return Net(
        lambda m, x: F.silu(m.conv1(x) + m.conv2(x) + (0 if m.skip is None else m.skip(x))),
        conv1=conv_norm(),
        conv2=conv_norm(size=1),
        skip=skip,
    )


def rep_bottleneck() -> nn.Module:
    """x + SiLU(BN(W3 RepConv(x))) (Wang et al. 2024, RepNBottleneck of YOLOv9): conv, SiLU, conv, SiLU, sum."""
    return Net(lambda m, x: x + F.silu(m.cv2(m.cv1(x))), cv1=repconv(identity=False), cv2=conv_norm())


def rep_csp() -> nn.Module:
    """cv3([bottleneck(cv1(x)), cv2(x)]) (YOLOv9, RepNCSP): the bottleneck, three convs, three SiLUs, one cat."""
    return Net(
        lambda m, x: F.silu(m.cv3(m.cat((m.inner(F.silu(m.cv1(x))), F.silu(m.cv2(x)))))),
        cv1=conv_norm(size=1),
        cv2=conv_norm(size=1),
        cv3=conv_norm(8, 4, 1),
        inner=rep_bottleneck(),
        cat=Concatenated(),
    )


class Concatenated(nn.Module):
    """YOLO's module for a concatenation along the channels."""

    def forward(self, parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat(parts, 1)


CASES = {
    "RepVGG": Case(repvgg),
    "RepVGG without identity": Case(partial(repvgg, 6, False)),
    "RepVGG, stride 2": Case(partial(repvgg, 6, False, stride=2)),
    "RepVGG, groups": Case(partial(repvgg, groups=2)),
    "RepVGG, 1-D": Case(partial(repvgg, dims=1), SIGNALS),
    "RepVGG, 1-D, stride 2, 5 taps": Case(partial(repvgg, 6, False, dims=1, size=5, stride=2), SIGNALS),
    "RepVGG, 3-D": Case(partial(repvgg, dims=3), VIDEOS),
    "RepVGG, 3-D, stride 2": Case(partial(repvgg, 6, False, dims=3, stride=(1, 2, 2)), VIDEOS),
    "QARepVGG": Case(qarepvgg),
    "QARepVGG with average pool": Case(qarepvgg_with_pool, blind=False),
    **{f"MobileOne, depthwise, k={k}": Case(partial(mobileone, k, 3, 4)) for k in (1, 2, 3, 4)},
    **{f"MobileOne, pointwise, k={k}": Case(partial(mobileone, k, 1, 1)) for k in (1, 2, 3, 4)},
    "MobileOne, depthwise, stride 2": Case(partial(mobileone, 2, 3, 4, 2)),
    "MobileOne, pointwise, wider": Case(partial(mobileone, 2, 1, 1, 1, 6)),
    "ACNet": Case(acnet),
    "ACNet, cropped": Case(partial(acnet_cropped, 3), blind=False),
    "ACNet, 5x5, cropped, stride 2": Case(partial(acnet_cropped, 5, 2), blind=False),
    "RepLKNet": Case(partial(large_kernel, 13, 5)),
    "UniRepLKNet": Case(unireplknet),
    "ModernTCN": Case(partial(large_kernel, 51, 5, 1), SIGNALS),
    "ModernTCN of variables": Case(variables_times_features, ((image(2, 2, 3, 24),), (image(1, 2, 3, 31),))),
    "RepMixer": Case(repmixer_scaled),
    "RepMixer without layer scale": Case(repmixer_plain),
    "CPE": Case(positional_encoding),
    "CPE of tokens": Case(positional_encoding_of_tokens, ((image(2, 6, 4),), (image(1, 10, 4, seed=1),))),
    "RepGhost": Case(repghost),
    "RepGhost module": Case(repghost_module, operators=4),
    "RepViT token mixer": Case(repvit_mixer),
    "RepConv": Case(repconv, operators=2),
    "RepConv without identity": Case(partial(repconv, False), operators=2),
    "RepNBottleneck": Case(rep_bottleneck, operators=5),
    "RepNCSP": Case(rep_csp, operators=12),
}


@table(CASES)
def test_branches_are_one_convolution(case: Case) -> None:
    holds(case)
