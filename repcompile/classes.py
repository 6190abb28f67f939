"""Which module computes what a class of torch.nn computes: judged by what it overrides, not by what it is called."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The torch.nn class whose computation `module` has: its own, or one that it inherits and overrides nothing of."""
    if is_parametrized(module) or weight_hooks(module):
        return None  # its tensors are computed, so that its forward has to be looked at
    for index, cls in enumerate(type(module).__mro__):
        if cls.__module__.startswith("torch.nn.modules"):
            mine = {name for sub in type(module).__mro__[:index] for name in vars(sub)}.union(vars(module))
            return cls if mine.isdisjoint(_behaviour(cls)) else None
    return None


@cache
def _behaviour(cls: type[nn.Module]) -> frozenset[str]:
    """Names that decide what a torch.nn class computes."""
    return frozenset(name for base in cls.__mro__ if base is not object for name in vars(base)) - _NEUTRAL


_NEUTRAL = frozenset(
    "__annotate__ __annotate_func__ __annotations__ __annotations_cache__ __constants__ __deepcopy__ __dict__ __doc__ "
    "__firstlineno__ __getstate__ __init__ __module__ __orig_bases__ __parameters__ __qualname__ __repr__ __setstate__ "
    "__static_attributes__ __weakref__ _compiled_call_impl _load_from_state_dict _version extra_repr reset_parameters "
    "reset_running_stats".split()
)


def hooks_of(module: nn.Module) -> list[Any]:
    """Everything that watches what goes in and out."""
    return [hook for name in HOOKS for hook in (vars(module).get(name) or {}).values()]


def weight_hooks(module: nn.Module) -> list[Any]:
    """The hooks that compute a weight from other tensors before each forward, if the module has no others.

    torch.nn.utils.weight_norm, spectral_norm and prune, from before there were parametrizations.
    """
    hooks = hooks_of(module)
    return hooks if all(isinstance(hook, WEIGHT_HOOKS) for hook in hooks) else []


def hooked(module: nn.Module) -> bool:
    """Whether something watches, or changes, what goes in and out."""
    return bool(hooks_of(module)) and not weight_hooks(module)


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
