"""Tensors that a forward makes out of nothing: constants, tensors of the run's size, and noise."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from repcompile.proxies import tracer_of


class Factories(TorchFunctionMode):
    """Noise that a forward draws stays in the graph, drawn anew at each run; other tensors of its own are constant."""

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._tracer.settled(sys._getframe(1))
        if func in _DRAWS or (func in FILLS and tracer_of((args, kwargs)) is not None):
            return self._tracer.create_proxy("call_function", func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name.removesuffix("_") in _NOISE and tracer_of((args, kwargs)) is None:
            raise self._tracer.refusal(f"draws random numbers by {name}")
        return func(*args, **kwargs)


_DRAWS = frozenset(
    getattr(torch, name)
    for name in "bernoulli empty empty_like multinomial normal poisson rand rand_like randint randint_like randn "
    "randn_like randperm".split()
)
FILLS = frozenset(
    getattr(torch, name)
    for name in "arange eye full full_like linspace logspace ones ones_like tensor zeros zeros_like".split()
)
MAKING = _DRAWS | FILLS  # what makes tensors, of sizes too
SILENT = FILLS | {torch.empty, torch.empty_like}  # and draws nothing
_NOISE = frozenset(
    "alpha_dropout bernoulli binomial cauchy dropout dropout1d dropout2d dropout3d empty_strided exponential "
    "feature_alpha_dropout geometric gumbel_softmax log_normal multinomial new_empty normal poisson rand_like "
    "randint_like randn_like random rrelu uniform".split()
)
