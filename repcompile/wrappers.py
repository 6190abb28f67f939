"""Modules around a module: a `__call__` of its own, and the wrappers that compute what they hold."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from repcompile.classes import hooked
from repcompile.defaults import Specialized

AROUND_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
CALLED_ELSEWHERE = (fx.GraphModule, torch.jit.ScriptModule)  # their own __call__ ends in nn.Module's


def own_call(module: nn.Module) -> bool:
    """Whether calling the module is more than its forward and its hooks."""
    if _compiled(module) or (isinstance(module, CALLED_ELSEWHERE) and not isinstance(module, Specialized)):
        return False
    return type(module).__call__ is not nn.Module.__call__


def entry(module: nn.Module) -> Callable[..., Any]:
    """What runs when the module is called, hooks aside."""
    return module.__call__ if own_call(module) else module.forward


def wrapped(module: nn.Module) -> Callable[..., Any] | None:
    """The module whose result `module` returns as it is, None if it is no such wrapper."""
    if _compiled(module):
        inner: Any = module._orig_mod
        return inner
    held: Any = module.module if isinstance(module, AROUND_MODULE) else None
    return held


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside the wrappers around `module`, if nothing watches them."""
    inner = wrapped(module)
    if not isinstance(inner, nn.Module) or hooked(module):
        return module
    return unwrapped(inner)


def _compiled(module: nn.Module) -> bool:
    """Whether it is what torch.compile returned; whoever has such a module has imported Dynamo, which takes seconds."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)
