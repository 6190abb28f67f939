"""Counting what a model runs, and timing it against another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

EMPTY = frozenset("empty empty_like empty_strided new_empty new_empty_strided".split())  # nothing is written to them
MOVES = EMPTY.union(
    "alias clone contiguous copy_ detach expand lift_fresh _reshape_alias _to_copy _unsafe_view".split()
)


@dataclass(frozen=True, slots=True)
class Measure:
    """What one forward runs.

    operators: ATen operators that compute; views, reshapes and copies are not counted.
    norms: batch norms among them, by running statistics: instance norm runs the same operator, by those of its input.
    macs: multiply-accumulates of convolutions and matrix products.  parameters: numbers that the model holds.
    """

    operators: int
    norms: int
    macs: int
    parameters: int


def measure(model: nn.Module, inputs: Sequence[Any]) -> Measure:
    """Run `model` once on `inputs` and count."""
    operators = _Operators()
    with torch.no_grad(), operators:
        model(*inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Measure(len(operators.names), operators.norms, operators.macs, parameters)


def macs_of(operator: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Multiply-accumulates of one call of an ATen operator: of convolutions, matrix products and attention."""
    flops = flop_registry.get(operator.overloadpacket)
    return 0 if flops is None else flops(*args, **kwargs, out_val=result) // 2


def latencies(models: Sequence[nn.Module], inputs: Sequence[Any], rounds: int = 15) -> list[float]:
    """Median seconds a forward of each model, the models taking turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for model, seen in zip(models, times, strict=True):
                start = time.perf_counter()
                model(*inputs)
                if turn >= 2:  # the first ones warm up
                    seen.append(time.perf_counter() - start)
    return [median(seen) for seen in times]


class _Operators(TorchDispatchMode):
    """Names of the ATen operators that compute, in the order in which they run, and their multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.macs, self.norms = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not func.is_view and name not in MOVES:
            self.names.append(name)
            self.norms += "batch_norm" in name and not _by_own_statistics(func, args, kwargs)
        self.macs += macs_of(func, args, kwargs, result)
        return result


def _by_own_statistics(operator: Any, args: Any, kwargs: Any) -> bool:
    """Whether a batch norm is told that it is training."""
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return bool(given.get("training", False)) or "with_update" in operator.overloadpacket.__name__
