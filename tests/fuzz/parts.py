"""Modules that users write and torch.fx cannot follow, or follows only with care."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Branch(nn.Module):
    """One of two parts, by what is in the tensor; what was centred is not on the edge."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1:
            return self.one(x)
        return self.two(x)


class BySize(nn.Module):
    """One of two parts, by the size of the input."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 7:
            return self.one(x)
        return self.two(x)


class Repeat(nn.Module):
    """The same part several times: one module, several calls."""

    def __init__(self, part: nn.Module, times: int) -> None:
        super().__init__()
        self.part, self.times = part, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.part(x)
        return x


class Residual(nn.Module):
    """x + scale part(x), in place on the branch."""

    def __init__(self, part: nn.Module, scale: float) -> None:
        super().__init__()
        self.part, self.scale = part, scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        y *= self.scale
        y += x
        return y


class Remembers(nn.Module):
    """Keeps the last result, as models with hooks for features do."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        self.last = y
        return y


class Rows(nn.Module):
    """Iterates over the batch."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.part(row[None])[0] for row in x])


class Optional(nn.Module):
    """A part that may be missing, and an argument that may be."""

    def __init__(self, part: nn.Module | None = None) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = x if self.part is None else self.part(x)
        return y if shift is None else y + shift


class Attention(nn.Module):
    """Softmax attention over the last axis but one (Vaswani et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1) @ v)


class Own(nn.Conv2d):
    """A convolution's subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


NAMES: dict[str, Any] = {
    kind.__name__: kind for kind in (Branch, BySize, Repeat, Residual, Remembers, Rows, Optional, Attention, Own)
}
