"""What tests of a fusion need: models in which an error shows."""

from __future__ import annotations

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw batch-norm statistics, gains, shifts and layer scales in place, and return the model.

    Fresh ones (mean 0, variance 1, scale 1e-5) hide every error. A parameter of a module of the user's own that varies
    along one axis counts as a layer scale.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _draw_norm(module, generator)
            elif not type(module).__module__.startswith("torch.nn"):
                _draw_scales(module, generator)
    return model


def _draw_norm(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0.0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
    if norm.affine:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0.0, 0.3, generator=generator)


def _draw_scales(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point() and sum(size > 1 for size in parameter.shape) == 1:
            parameter.uniform_(0.25, 0.75, generator=generator)
