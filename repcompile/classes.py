"""Which module computes what a class of torch.nn computes: judged by what it overrides, not by what it is called."""

from __future__ import annotations

import copy
import dis
from functools import cache
from types import FunctionType, MethodType
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


def unconcerned(module: nn.Module) -> bool:
    """Whether no hook of the module uses the module that it is given, so that another one may stand in its place."""
    return not any(map(_uses_module, hooks_of(module)))


def _uses_module(hook: Any) -> bool:
    place = 1 if isinstance(hook, MethodType) else 0
    function = hook.__func__ if isinstance(hook, MethodType) else hook
    if not isinstance(function, FunctionType) or function.__code__.co_argcount <= place:
        return True
    name = function.__code__.co_varnames[place]
    read = {
        i.argval for i in dis.get_instructions(function.__code__) if i.opname.startswith(("LOAD", "STORE", "DELETE"))
    }
    return any(name in (found if isinstance(found, tuple) else (found,)) for found in read)


def move_hooks(module: nn.Module, other: nn.Module) -> None:
    """Let the hooks of `module` watch `other` too."""
    vars(other).update({name: copy.copy(vars(module)[name]) for name in HOOK_TABLES if name in vars(module)})


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOK_TABLES = (
    *HOOKS,
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    "_is_full_backward_hook",
)
WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
