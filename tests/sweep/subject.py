"""What a library hands to the worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and inputs of different sizes that it might take; those that it refuses are left out."""

    model: nn.Module
    candidates: Sequence[Inputs]


def images(*shape: int, seed: int = 0) -> Tensor:
    """Noise of the given shape, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
