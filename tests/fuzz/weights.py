"""The numbers in drawn programs: each step has a seed of its own, so that dropping a step leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def weight(*shape: int, seed: int, kind: str = "usual", dtype: str = "") -> nn.Parameter:
    """A parameter of noise.  kind: "usual", "zero", "one", "huge", "tiny" or "positive"."""
    return nn.Parameter(buffer(*shape, seed=seed, kind=kind, dtype=dtype))


def buffer(*shape: int, seed: int, kind: str = "usual", dtype: str = "") -> Tensor:
    """The same numbers without a gradient."""
    noise = torch.empty(shape, dtype=torch.float64).normal_(generator=_generator(seed))
    terms = prod(shape[1:]) if len(shape) > 1 else 1
    return KINDS[kind](noise / max(terms, 1) ** 0.5).to(getattr(torch, dtype or "float64"))


def drawn(module: M, seed: int, kind: str = "usual", dtype: str = "") -> M:
    """The module with noise in every parameter and buffer.  kind: of the statistics, if it is a batch norm."""
    generator = _generator(seed)
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_floating_point():
                terms = prod(tensor.shape[1:]) if tensor.dim() > 1 else 1
                tensor.data = tensor.data.double().normal_(generator=generator) / max(terms, 1) ** 0.5
        if isinstance(part, _BatchNorm) and part.running_var is not None and part.running_mean is not None:
            part.running_mean.copy_(STATISTICS[kind][0](part.running_mean))
            part.running_var.copy_(STATISTICS[kind][1](part.running_var))
    return module.to(getattr(torch, dtype or "float64")).eval()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _first(value: float) -> Callable[[Tensor], Tensor]:
    """The same, with another number in front."""

    def change(x: Tensor) -> Tensor:
        x = x.abs() + 0.1
        x.flatten()[:1] = value
        return x

    return change


def _same(x: Tensor) -> Tensor:
    return x


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": _same,
    "zero": torch.zeros_like,
    "one": torch.ones_like,
    "huge": lambda x: x * 1e3,
    "tiny": lambda x: x * 1e-6,
    "positive": lambda x: x.abs() + 0.1,
}
# (mean, variance) of batch norms
STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "usual": (_same, lambda x: x.abs() + 0.1),
    "tiny": (_same, _first(1e-12)),
    "zero": (_same, _first(0.0)),
    "huge": (lambda x: x * 1e3, _first(1e6)),
    "fresh": (torch.zeros_like, torch.ones_like),
}
NAMES: dict[str, Any] = {"weight": weight, "buffer": buffer, "drawn": drawn}
