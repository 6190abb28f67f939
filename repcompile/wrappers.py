"""Modules around a module: a `__call__` of its own, and the wrappers that compute what they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from repcompile.classes import hooked
from repcompile.defaults import Specialized

CALLED_ELSEWHERE = (fx.GraphModule, torch.jit.ScriptModule, OptimizedModule)  # their own __call__ ends in nn.Module's


def own_call(module: nn.Module) -> bool:
    """Whether calling the module is more than its forward and its hooks."""
    if isinstance(module, CALLED_ELSEWHERE) and not isinstance(module, Specialized):
        return False
    return type(module).__call__ is not nn.Module.__call__


def wrapped(module: nn.Module) -> Callable[..., Any] | None:
    """The module whose result `module` returns as it is, None if it is no such wrapper."""
    if isinstance(module, OptimizedModule):
        return module._orig_mod
    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return module.module if parallel else None


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside the wrappers around `module`, if nothing watches them."""
    inner = wrapped(module)
    if not isinstance(inner, nn.Module) or hooked(module):
        return module
    return unwrapped(inner)
