"""What a library hands to the worker, and how it is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and inputs of different sizes that it might take; those that it refuses are left out."""

    model: nn.Module
    candidates: Sequence[Inputs]


def images(*shape: int, seed: int = 0) -> Tensor:
    """Noise of the given shape, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, inputs: Inputs) -> Any:
    """The result for a copy of `inputs`; the model draws the same noise every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model(*mapped(torch.clone, inputs))


def in_dtype(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    return mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def sizes_of(inputs: Inputs) -> str:
    """The shape of the first tensor."""
    return "x".join(map(str, next(x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)).shape))


def mapped(function: Any, inputs: Inputs) -> Inputs:
    """The same structure, with every tensor changed."""
    return pytree.tree_map(lambda value: function(value) if isinstance(value, Tensor) else value, inputs)
