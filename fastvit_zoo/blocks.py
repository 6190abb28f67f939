"""The blocks of a stage: one part mixes positions, one mixes channels, both added to what came in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvit_zoo.layers import MobileOneBlock, conv_bn

HEAD_DIM = 32


class DropPath(nn.Module):
    """In training, zero a whole image's branch with probability `rate` and scale the others by 1 / (1 - rate).

    The expectation is x; in eval mode it is x itself. x: (B, C, H, W), 0 <= rate < 1.
    Source: Huang et al. 2016 (stochastic depth).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.bernoulli(torch.full_like(x[:, :1, :1, :1], 1 - self.rate))  # (B, 1, 1, 1)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ConvFFN(nn.Module):
    """fc2(gelu(fc1(bn(conv7x7(x))))): a depthwise look around, then a two-layer perceptron at each position.

    x: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels, 7, padding=3, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop = nn.Dropout(dropout)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(self.conv(x)))  # (B, hidden, H, W)
        return self.drop(self.fc2(x))


class RepMixer(nn.Module):
    """x + layer_scale * (mixer(x) - norm(x)): depthwise mixing of positions that is affine in x.

    x: (B, C, H, W) -> (B, C, H, W).  layer_scale: (C, 1, 1).
    Source: arXiv 2303.14189.
    """

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = MobileOneBlock(
            channels, channels, 3, 1, 1, channels, use_act=False, use_scale_branch=False, num_conv_branches=0
        )
        self.mixer = MobileOneBlock(channels, channels, 3, 1, 1, channels, use_act=False)
        self.layer_scale = scale_parameter(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class Attention(nn.Module):
    """proj(softmax(q k^T / sqrt(d)) v), multi-head self-attention over the H W positions, d = 32.

    x: (B, C, H, W) -> (B, C, H, W), C a multiple of 32.
    Source: Vaswani et al. 2017.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = channels // HEAD_DIM
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.dropout = dropout
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = x.flatten(2).transpose(-2, -1)  # (B, N, C), N = H W
        qkv = self.qkv(tokens).reshape(B, H * W, 3, self.heads, HEAD_DIM)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, 32)
        q, k, v = qkv[0], qkv[1], qkv[2]  # (B, heads, N, 32)
        dropout = self.dropout if self.training else 0.0
        tokens = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # scaled by 1 / sqrt(32)
        tokens = tokens.transpose(1, 2).reshape(B, H * W, C)
        tokens = self.proj_drop(self.proj(tokens))
        return tokens.transpose(-2, -1).reshape(B, C, H, W)


class RepMixerBlock(nn.Module):
    """x = token_mixer(x); x + drop_path(layer_scale * convffn(x)).

    RepMixer brings its own residual. x: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, hidden: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, layer_scale)
        self.convffn = ConvFFN(channels, hidden)
        self.drop_path = drop_path_module(drop_path)
        self.layer_scale = scale_parameter(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale * self.convffn(x))


class AttentionBlock(nn.Module):
    """x = x + drop_path(layer_scale_1 * token_mixer(norm(x))); x + drop_path(layer_scale_2 * convffn(x)).

    x: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, hidden: int, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = Attention(channels)
        self.convffn = ConvFFN(channels, hidden)
        self.drop_path = drop_path_module(drop_path)
        self.layer_scale_1 = scale_parameter(channels, layer_scale)
        self.layer_scale_2 = scale_parameter(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(self.norm(x)))
        return x + self.drop_path(self.layer_scale_2 * self.convffn(x))


def init_weights(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for the weights of convolutions and linear layers, zero for their biases."""
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def drop_path_module(rate: float) -> nn.Module:
    """DropPath, or nothing at rate 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def scale_parameter(channels: int, value: float) -> nn.Parameter:
    """A layer scale, (C, 1, 1): one factor per channel, small at first so that a deep network starts near identity."""
    return nn.Parameter(torch.full((channels, 1, 1), value))
