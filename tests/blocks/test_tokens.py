"""Blocks of Linear layers and tokens, and maps that cross from one layout to another."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import compile_model
from tests.blocks.cases import ROWS, TOKENS, Case, conv_norm, holds, table
from tests.test_hostile import Build, Net, conv, gain, image, made, norm

PICTURES_LAST = ((image(2, 5, 6, 4),), (image(1, 8, 3, 4, seed=1),))

# -- LeViT -------------------------------------------------------------------------------------------------------------


def linear_norm() -> nn.Module:
    """BN(W x), the norm over tokens that are flattened into the batch (Graham et al. 2021, LeViT)."""

    def function(m: Any, x: Tensor) -> Tensor:
        y = m.proj(x)
        return m.norm(y.flatten(0, 1)).reshape_as(y)

    return Net(function, proj=nn.Linear(4, 6, bias=False), norm=nn.BatchNorm1d(6))


def norm_linear() -> nn.Module:
    """W BN(x) + b on rows: LeViT's head."""
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6))


def two_heads() -> nn.Module:
    """(W BN(x) + V BN(x)) / 2: the distilled classifier of LeViT."""
    return Net(lambda m, x: (m.head(x) + m.distilled(x)) / 2, head=norm_linear(), distilled=norm_linear())


def two_heads_pooled() -> nn.Module:
    """The same behind the mean over tokens: a mean and a Linear."""
    return Net(lambda m, x: m.heads(x.mean(1)), heads=two_heads())


# -- convolutions and tokens -------------------------------------------------------------------------------------------


def linear_norm_of_images() -> nn.Module:
    """BN(W x) of a channels-last image."""
    return Net(lambda m, x: m.norm(m.proj(x).permute(0, 3, 1, 2)), proj=nn.Linear(4, 6), norm=norm(6))


def embedded() -> nn.Module:
    """W tokens(BN(W2 x)): a patch embedding with batch norm, and the Linear that reads its tokens."""
    parts = {"patches": conv_norm(4, 8, 2, stride=2, padding=0), "qkv": nn.Linear(8, 24)}
    return Net(lambda m, x: m.qkv(m.patches(x).flatten(2).transpose(1, 2)), **parts)


def normed_tokens() -> nn.Module:
    """W tokens(BN(x)): the batch norm in front of FastViT's attention."""
    return Net(lambda m, x: m.qkv(m.norm(x).flatten(2).transpose(-2, -1)), norm=norm(), qkv=nn.Linear(4, 12))


def named_channels() -> nn.Module:
    """W vec(BN(x)), vec naming the channels that come, which are not those that leave."""
    return Net(
        lambda m, x: m.point(m.norm(x).reshape(x.shape[0], 4, -1)), norm=norm(), point=nn.Conv1d(4, 6, 1, groups=2)
    )


def named_channels_behind() -> nn.Module:
    """The same behind a window, which cannot stand behind vec: two operators."""
    parts = {"window": conv(), "norm": norm(), "point": nn.Conv1d(4, 6, 1)}
    return Net(lambda m, x: m.point(m.norm(m.window(x)).view(x.shape[0], x.shape[1], -1)), **parts)


def named_heads() -> nn.Module:
    """W x in heads, each with its own shift: unflattened by a number, and flattened again."""
    return Net(
        lambda m, x: m.proj(m.norm(x).flatten(2).transpose(1, 2)).unflatten(2, (2, 3)).flatten(2),
        norm=norm(),
        proj=nn.Linear(4, 6),
    )


def _attention(m: Any, x: Tensor) -> Tensor:
    x = m.patches(x)
    b, c, h, w = x.shape
    q, k, v = m.qkv(m.norm(x).flatten(2).transpose(-2, -1)).reshape(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    y = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    return x + m.scale * m.proj(y.transpose(1, 2).reshape(b, h * w, c)).transpose(-2, -1).reshape(b, c, h, w)


def attention() -> nn.Module:
    """x + g proj(softmax(q k / 2) v), q, k, v of BN(x), x = BN(W4 image) (FastViT).

    Conv, qkv, half of q, two products, softmax, proj, sum.
    """
    return Net(
        _attention,
        patches=conv_norm(4, 8, 4, stride=4, padding=0),
        norm=norm(8),
        qkv=nn.Linear(8, 24),
        proj=nn.Linear(8, 8),
        scale=gain(8, 1, 1),
    )


def conv_beside_linear(size: int) -> nn.Module:
    """W x + (Wk x^T)^T on tokens: one 1-D convolution, or one Linear if k is 1."""
    parts = {"proj": nn.Linear(4, 6), "conv": nn.Conv1d(4, 6, size, padding=size // 2)}
    return Net(lambda m, x: m.proj(x) + m.conv(x.transpose(1, 2)).transpose(1, 2), **parts)


def shifted_and_scaled() -> nn.Module:
    """g (W (x + a) + b), of a known width: one channel would be broadcast."""
    return Net(
        lambda m, x: m.conv(torch.tanh(m.norm(x)) + m.shift) * m.scale,
        norm=norm(),
        conv=conv(size=1),
        shift=gain(4, 1, 1),
        scale=gain(4, 1, 1),
    )


def shifted_linear() -> nn.Module:
    """W (x + a) + b, of a known width: one channel would be broadcast."""
    return Net(
        lambda m, x: m.proj(torch.tanh(m.first(x)) + m.shift),
        first=nn.Linear(4, 5),
        proj=nn.Linear(5, 6),
        shift=gain(5),
    )


# -- RepMLP ------------------------------------------------------------------------------------------------------------


def whole_window() -> nn.Module:
    """W vec(x) + BN(W3 x) + BN(W1 x) on images of 4 x 4 (Ding et al. 2022, RepMLP)."""
    return Net(
        lambda m, x: m.full(x.flatten(1)).view(-1, 6, 4, 4) + m.square(x) + m.point(x),
        full=nn.Linear(64, 96),
        square=conv_norm(4, 6),
        point=conv_norm(4, 6, 1),
    )


def _partitioned(m: Any, x: Tensor) -> Tensor:
    x = torch.tanh(m.first(x))  # of a known width: pairs of channels may not straddle images
    n, c, height, width = x.shape
    rows, columns = height // 4, width // 4
    windows = x.reshape(n, c, rows, 4, columns, 4).permute(0, 2, 4, 1, 3, 5)
    full = m.norm(m.full(windows.reshape(-1, 2 * 4 * 4, 1, 1))).reshape(-1, 2, 4, 4)
    local = windows.reshape(-1, 2, 4, 4)
    y = full + (m.square(local) + m.point(local))
    return y.reshape(n, rows, columns, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)


def partitioned() -> nn.Module:
    """The same on every window of 4 x 4 and every pair of channels, grouped (RepMLPNet)."""
    return Net(
        _partitioned,
        first=norm(),
        full=nn.Conv2d(32, 32, 1, bias=False, groups=2),
        norm=norm(32),
        square=conv_norm(2, 2, groups=2),
        point=conv_norm(2, 2, 1, groups=2),
    )


WINDOW = ((image(2, 4, 4, 4),), (image(5, 4, 4, 4, seed=1),))
WINDOWS = ((image(2, 4, 8, 4),), (image(1, 4, 12, 16, seed=1),))

CASES = {
    "Linear, norm": Case(linear_norm, TOKENS, blind=False),
    "norm, Linear": Case(norm_linear, ROWS, blind=False),
    "mean of two heads": Case(two_heads, ROWS, blind=False),
    "mean of two heads of the mean": Case(two_heads_pooled, TOKENS, operators=2, blind=False),
    "Linear, permute, norm": Case(linear_norm_of_images, PICTURES_LAST),
    "patch embedding and qkv": Case(embedded, ((image(2, 4, 8, 12),), (image(1, 4, 13, 18, seed=1),))),
    "norm, tokens, qkv": Case(normed_tokens),
    "norm, named channels, 1x1": Case(named_channels),
    "conv, norm, named channels, 1x1": Case(named_channels_behind, operators=2),
    "norm, Linear, heads": Case(named_heads),
    "attention": Case(attention, ((image(2, 4, 8, 12),), (image(1, 4, 13, 18, seed=1),)), operators=8),
    "Conv1d beside Linear": Case(partial(conv_beside_linear, 3), TOKENS),
    "Conv1d of one tap beside Linear": Case(partial(conv_beside_linear, 1), TOKENS),
    "shift, 1x1, scale": Case(shifted_and_scaled, operators=3),
    "shift, Linear": Case(shifted_linear, TOKENS, operators=3, blind=False),
    "RepMLP": Case(whole_window, WINDOW, blind=False),
    "RepMLP of windows": Case(partitioned, WINDOWS, operators=3, blind=False),
}


@table(CASES)
def test_tokens_need_one_operator(case: Case) -> None:
    holds(case)


@pytest.mark.parametrize("build", [named_channels, named_channels_behind, named_heads])
def test_what_names_its_channels_is_not_moved_in_vain(build: Build) -> None:
    model = made(build)
    for inputs in (None, (image(2, 4, 5, 6),)):
        assert not compile_model(model, inputs).rollbacks
