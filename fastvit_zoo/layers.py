"""The convolutional parts that every stage is built from. Shapes: B batch, C channels, H, W image."""

from collections import OrderedDict
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias and its batch norm, called `conv` and `bn`."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_channels)))


class SEBlock(nn.Module):
    """Squeeze and excite: x * sigmoid(expand(relu(reduce(mean(x))))), one gate per image and channel.

    Source: Hu et al. 2018; `ratio` is the share of the channels that the bottleneck keeps.
    """

    def __init__(self, channels: int, ratio: float = 0.0625) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)  # (B, C, 1, 1)
        gate = self.expand(F.relu(self.reduce(gate)))
        return x * torch.sigmoid(gate)


class MobileOneBlock(nn.Module):
    """act(se(sum of the branches)): identity with a norm, 1x1 with a norm, and kernel x kernel with a norm.

    The identity branch is there when it can be, in_channels == out_channels and stride == 1; the 1x1 branch when asked
    for and kernel > 1. All are affine in x, and so is their sum.
    x: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    Source: Vasu et al. 2022 (arXiv 2206.04040).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        use_se: bool = False,
        use_act: bool = True,
        use_scale_branch: bool = True,
        num_conv_branches: int = 1,
    ) -> None:
        super().__init__()
        has_skip = in_channels == out_channels and stride == 1
        has_scale = kernel > 1 and use_scale_branch
        self.se = SEBlock(out_channels) if use_se else nn.Identity()
        self.activation = nn.GELU() if use_act else nn.Identity()
        self.rbr_skip = nn.BatchNorm2d(out_channels) if has_skip else None
        self.rbr_conv = nn.ModuleList(
            conv_bn(in_channels, out_channels, kernel, stride, padding, groups) for _ in range(num_conv_branches)
        )
        self.rbr_scale = conv_bn(in_channels, out_channels, 1, stride, groups=groups) if has_scale else None

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.rbr_skip, self.rbr_scale, *self.rbr_conv)
        total = reduce(add, (branch(x) for branch in branches if branch is not None))
        return self.activation(self.se(total))


class LargeKernelConv(nn.Module):
    """lkb_origin(x) + small_conv(x): a large depthwise kernel trained beside a 3x3 one, both with a norm.

    No activation follows. x: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    Source: Ding et al. 2022 (RepLKNet, arXiv 2203.06717).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        groups = in_channels
        self.lkb_origin = conv_bn(in_channels, out_channels, kernel, stride, kernel // 2, groups)
        self.small_conv = conv_bn(in_channels, out_channels, 3, stride, 1, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)


class PatchEmbed(nn.Module):
    """Halve the image and widen it: a strided large kernel, then a 1x1 MobileOne block.

    x: (B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernelConv(in_channels, out_channels, kernel=7, stride=2),
            MobileOneBlock(out_channels, out_channels, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PositionalEncoding(nn.Module):
    """pe(x) + x, where pe is a depthwise 7x7 convolution: the position is read off the zero border.

    Source: Chu et al. 2021 (CPE, arXiv 2102.10882).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pe = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pe(x) + x
