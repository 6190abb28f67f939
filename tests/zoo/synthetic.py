"""Weights and images that depend only on names and shapes, so that two implementations can be compared.

The rule is in tests/data/conformance/README.md. Nothing in it is as in a fresh model: no batch norm is the identity, no
layer scale is small.
"""

import zlib
from math import prod, sqrt
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def synthetic_state(model: nn.Module) -> dict[str, Tensor]:
    """A value for every key of `model.state_dict()`, float64 but for the counters."""
    return {key: synthetic_tensor(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()}


def synthetic_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one key: the first line of the table in the README that applies."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last == "running_mean":
        return torch.from_numpy(0.1 * random.standard_normal(shape))
    if last == "running_var":
        return torch.from_numpy(random.uniform(0.5, 1.5, shape))
    if "layer_scale" in key:
        return torch.from_numpy(random.uniform(0.25, 0.75, shape))
    if last == "bias":
        return torch.from_numpy(0.1 * random.standard_normal(shape))
    if len(shape) == 1:  # the weight of a norm
        return torch.from_numpy(random.uniform(0.5, 1.5, shape))
    return torch.from_numpy(random.standard_normal(shape) / sqrt(prod(shape[1:])))


def synthetic_model(model: Model) -> Model:
    """The model itself in float64 and eval mode, with the synthetic weights."""
    model.double().load_state_dict(synthetic_state(model), strict=True)
    return model.eval()


def synthetic_images(batch: int = 2, height: int = 64, width: int | None = None, seed: int = 0) -> Tensor:
    """Standard normal images, (batch, 3, height, width), float64; square unless a width is given."""
    shape = (batch, 3, height, width or height)
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))
