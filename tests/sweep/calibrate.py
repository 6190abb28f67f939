"""Batch-norm statistics as training leaves them: near what the layer sees, and no two alike.

Statistics out of nothing make some networks explode and others ignore their input. Shifts around 1 keep most values
out of the flat side of a ReLU: with shifts around 0 deep networks are chaotic (Yang et al. 2019, "A mean field theory
of batch normalization"), and a last bit in one weight moves the output by per cents.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repcompile.testing import randomize
from tests.sweep.subject import Inputs, run


def calibrated(model: nn.Module, runnable: nn.Module, inputs: Inputs, seed: int = 1) -> nn.Module:
    """`model` with random gains, shifts and layer scales, and statistics measured on `inputs`, then disturbed.

    runnable: a copy of `model` that may be run and changed.
    """
    randomize(runnable, seed)
    norms = [module for module in runnable.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                norm.bias.add_(1.0)
    _measure_all(norms, runnable, inputs, seed)
    model.load_state_dict(runnable.state_dict())
    return model


def disturbed(model: nn.Module, seed: int = 2) -> nn.Module:
    """A copy of a model whose weights are off by what rounding them to float32 may cost."""
    result = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.is_floating_point():
                noise = torch.empty(parameter.shape).uniform_(-1, 1, generator=generator).to(parameter.dtype)
                parameter.mul_(1 + _step(parameter.dtype) * noise)
    return result


def _step(dtype: torch.dtype) -> float:
    """Half a unit in float32's last place, or what float32 itself can show of it."""
    return torch.finfo(torch.float32).eps * (0.5 if dtype == torch.float64 else 2.0)


def _measure_all(norms: Sequence[_BatchNorm], runnable: nn.Module, inputs: Inputs, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def measure(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        _measure(norm, arguments[0], generator)

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    run(runnable, inputs)
    for hook in hooks:
        hook.remove()


def _measure(norm: _BatchNorm, x: Tensor, generator: torch.Generator) -> None:
    """A mean off by 0.3 standard deviations, a variance off by up to a half."""
    if norm.running_mean is None or norm.running_var is None:
        return
    values = x.transpose(0, 1).flatten(1)  # (channels, the rest)
    mean, variance = values.mean(1), values.var(1, correction=0)
    deviation = variance.sqrt()
    variance = variance + 0.01 * variance.mean() + 1e-3  # a channel that never varies is not blown up
    norm.running_mean.copy_(mean + 0.3 * deviation * torch.randn(mean.shape, generator=generator))
    norm.running_var.copy_(variance * torch.empty(mean.shape).uniform_(0.5, 1.5, generator=generator))
