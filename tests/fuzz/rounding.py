"""How far two programs may differ that compute the same: what rounding does to this one, measured.

The model is run with every weight, and every result on the way, changed by a relative `delta`; a fused model differs
by a few roundings of the same numbers, so that its error is a small multiple of eps / delta of that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fuzz.program import Program

RUNS, SCALES = 32, 4
ROUNDINGS = {"float64": 2.0**13, "float32": 2.0**6, "bfloat16": 2.0**3, "float16": 2.0**3}  # delta / eps
SUBNORMAL = 2.0**-23  # twice the smallest number of float16
EXACT = 1e-13  # relative: nothing else is asked of results as close as this


class Expected:
    """What the model returns in each call, and how far others may be from that."""

    def __init__(self, program: Program, model: nn.Module, calls: Sequence[tuple[Tensor, ...]]) -> None:
        coarsest = max(program.dtypes, key=lambda name: torch.finfo(getattr(torch, name)).eps)
        self._delta = ROUNDINGS[coarsest] * torch.finfo(getattr(torch, coarsest)).eps
        self._program, self._model, self._calls = program, model, calls
        self._results = [_run(model, inputs) for inputs in calls]
        self._bounds: dict[int, list[Tensor]] = {}
        self._runs: dict[int, int] = {}

    def difference(self, call: int, got: Any, given: Sequence[Tensor] | None) -> str:
        """What is different, "" if nothing is.  given: the inputs after the call, which a model may write to."""
        expected, inputs = self._results[call]
        (leaves, structure), (others, other) = pytree.tree_flatten(expected), pytree.tree_flatten(got)
        if structure != other or type(expected) is not type(got):
            return f"{structure} became {other}, {type(expected).__name__} {type(got).__name__}"
        if given is not None:
            leaves, others = [*leaves, *inputs], [*others, *given]
        for place, (a, b) in enumerate(zip(leaves, others, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"result {place}: {a.dtype} {tuple(a.shape)} became {b.dtype} {tuple(b.shape)}"
        close = all(map(_close, leaves, others))
        return "" if close else self._beyond(call, leaves, others)

    def _beyond(self, call: int, leaves: Sequence[Tensor], others: Sequence[Tensor]) -> str:
        """What no run explains; the bound only grows, so that one run is enough where that explains it."""
        while True:
            if call in self._bounds:
                text = _difference(leaves, others, self._bounds[call])
                if not text or self._runs[call] == RUNS:
                    return text
            self._measure(call)

    def _measure(self, call: int) -> None:
        """One run more: what rounding explains of each result, the largest change of a channel.

        By turns with smaller steps: a large one jumps over the dip of a GELU.
        """
        seed = self._runs.get(call, 0)
        delta = self._delta * 2.0 ** -(seed % SCALES)
        expected, inputs = self._results[call]
        leaves = [leaf.double() for leaf in (*pytree.tree_leaves(expected), *inputs)]
        with Roundings(delta, seed):
            result, changed = _run(_disturbed(self._model, delta, seed), self._calls[call])
        others = [leaf.double() for leaf in (*pytree.tree_leaves(result), *changed)]
        found = [
            _widest((a - b).abs()).nan_to_num(nan=float("inf")) + EXACT * _largest(a)
            for a, b in zip(leaves, others, strict=True)
        ]
        before = self._bounds.get(call, found)
        self._bounds[call] = [torch.maximum(a, b) for a, b in zip(before, found, strict=True)]
        self._runs[call] = seed + 1


def _difference(leaves: Sequence[Tensor], others: Sequence[Tensor], bounds: Sequence[Tensor]) -> str:
    for place, (a, b, bound) in enumerate(zip(leaves, others, bounds, strict=False)):
        a, b = a.double(), b.double()
        wrong = ((a - b).abs() > bound) & a.isfinite() | (a.isfinite() & ~b.isfinite())
        if bool(wrong.any()):
            error, explained = (a - b).abs()[wrong].max().item(), bound[wrong].max().item()
            return f"result {place} by {error:.2e} of {a.abs().max().item():.2e}; rounding explains {explained:.1e}"
    return ""


def expected_of(program: Program, model: nn.Module, calls: Sequence[tuple[Tensor, ...]]) -> Expected:
    return Expected(program, model, calls)


class Roundings(TorchDispatchMode):
    """Every result of an operator is changed by at most `delta` of itself."""

    def __init__(self, delta: float, seed: int) -> None:
        super().__init__()
        self._delta, self._generator = delta, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in pytree.tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    _disturb(tensor, self._delta, self._generator)
        return result


def _disturbed(model: nn.Module, delta: float, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            _disturb(tensor.data, delta, generator)
    return model


def _disturb(tensor: Tensor, delta: float, generator: torch.Generator) -> None:
    if not tensor.numel():
        return
    noise = torch.empty(tensor.shape, dtype=torch.float64).uniform_(-delta, delta, generator=generator)
    torch.mul(tensor, (1.0 + noise).to(tensor.dtype), out=tensor)
    if tensor.dtype == torch.float16:  # its smallest numbers are apart by as much as they are large
        tensor.add_(noise.sign() * SUBNORMAL * (tensor.abs() < torch.finfo(torch.float16).tiny))


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, tuple[Tensor, ...]]:
    """(result, the inputs afterwards)"""
    given = tuple(map(torch.clone, inputs))
    with torch.no_grad():
        return model(*given), given


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.numel() or torch.equal(a, b):
        return True
    return (a - b).abs().max().item() <= EXACT * a.abs().max().item()


def _widest(bound: Tensor) -> Tensor:
    """The largest of each channel, at every place of it."""
    if bound.dim() < 2:
        return bound.max().expand_as(bound)
    return bound.amax(dim=[i for i in range(bound.dim()) if i != 1], keepdim=True).expand_as(bound)


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0
