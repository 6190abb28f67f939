"""Models of any size."""

from __future__ import annotations

import torch
from torch import nn

from repcompile.testing import randomize


def layers(nodes: int, channels: int = 4, size: int = 1) -> nn.Module:
    """Convolution, batch norm and activation, again and again, each with weights of its own, in float32.

    size: of the kernels.
    """

    def block() -> tuple[nn.Module, ...]:
        conv = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        return conv, nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)  # a signal that never dies

    return nn.Sequential(*(layer for _ in range(nodes // 3) for layer in block())).eval()


def randomized(nodes: int, seed: int = 0) -> nn.Module:
    """The same in float64, with statistics that a training leaves behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomize(layers(nodes).double())


def bytes_of(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
