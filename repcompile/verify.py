"""Whether two models compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile.compare import Check, compare, largest_finite
from repcompile.errors import VerificationError
from repcompile.execute import run, run_copy
from repcompile.lending import Change, Convert, as_it_is, lent_copy, unchanged, whole_copy

Run = Callable[..., Any]  # (model, inputs, convert, change, around) -> what a copy of the model returns

EPS = torch.finfo(torch.float64).eps
ESTIMATES = 8  # how many times the estimate two models may differ: 1.8 is the most that was seen (docs/math.md, 10)
OPERATORS = 64  # and where no finer dtype tells what rounding costs, so that it is tried out
SEEDS = (0, 1)  # of disturbances; the first where there is another estimate
DISTURBANCE = 2.0**-24  # at most, so that float64 can show it


def verify(model: nn.Module, fused: nn.Module, example_inputs: Sequence[Any]) -> tuple[Check, Check]:
    """Compare a model with its fused form: (in float64, in the model's own dtype).

    In float64 both run with float64 copies of their weights; what remains is the rounding of the folded weights. A
    model that runs in its own dtype only, because its forward makes tensors of that dtype, is compared in that alone.
    What they may differ by is estimated: by what the model's own rounding costs it, and by what one more rounding of
    every weight does to it, in the coarsest dtype that occurs on the way. The model that runs in its own dtype only may
    lose half of its digits.
    Neither model is changed.  Raises VerificationError if the outputs differ in structure, or the fused model fails.
    """
    checks = _compared(model, fused, example_inputs, _run_sparingly)
    return checks if all(check.passed for check in checks) else _compared(model, fused, example_inputs, _run_whole)


def _compared(model: nn.Module, fused: nn.Module, example_inputs: Sequence[Any], result_of: Run) -> tuple[Check, Check]:
    with _Coarsest() as coarsest:
        expected = result_of(model, example_inputs)
    try:
        got = result_of(fused, example_inputs)
    except Exception as error:
        raise VerificationError(f"the fused model fails where the model runs: {error}") from error
    eps, inputs = max(_eps_of(model), coarsest.eps), _in_float64(example_inputs)
    if all(dtype == torch.float64 for dtype in _dtypes(model, fused, example_inputs)):
        noises = _disturbed(model, inputs, expected, eps, SEEDS, result_of, _ResultsOff)
        noises += _disturbed(model, inputs, expected, eps, SEEDS[:1], result_of, _ResultsOff, least=EPS)
        bounds = _bounds(expected, noises, eps, OPERATORS)
        native = compare_outputs(expected, got, bounds)
        return native, native
    try:
        exact, rounded = (result_of(each, inputs, nn.Module.double) for each in (model, fused))
    except RuntimeError:  # the user's forward
        native = compare_outputs(expected, got, eps**0.5)
        return native, native
    noises = [_errors(exact, expected), *_disturbed(model, inputs, exact, eps, SEEDS[:1], result_of)]
    checks = _both(exact, rounded, expected, got, _bounds(exact, noises, eps, ESTIMATES))
    if not all(check.passed for check in checks):  # where a ReLU lets little pass, one disturbance may not show
        noises += _disturbed(model, inputs, exact, eps, SEEDS, result_of, _ResultsOff)
        checks = _both(exact, rounded, expected, got, _bounds(exact, noises, eps, ESTIMATES))
    return checks


def _both(exact: Any, rounded: Any, expected: Any, got: Any, bounds: Sequence[float]) -> tuple[Check, Check]:
    return compare_outputs(exact, rounded, bounds), compare_outputs(expected, got, bounds)


def compare_run(model: nn.Module, inputs: Sequence[Any], output: Any) -> Check:
    """What `model` returns, and what its operators, run one by one, returned: their images may lie otherwise in memory.

    torch has kernels that round differently then; what may come of it in a coarse dtype is estimated as in `verify`.
    """
    expected = run_copy(model, inputs)
    check = compare_outputs(expected, output)
    if check.passed or all(dtype == torch.float64 for dtype in _dtypes(model, model, inputs)):
        return check
    eps = _eps_of(model)
    try:
        exact = _run_sparingly(model, _in_float64(inputs), nn.Module.double)
    except RuntimeError:  # the user's forward
        return compare_outputs(expected, output, eps**0.5)
    return compare_outputs(expected, output, _bounds(exact, [_errors(exact, expected)], eps, ESTIMATES))


def _run_whole(
    model: nn.Module,
    inputs: Sequence[Any],
    convert: Convert = as_it_is,
    change: Change = unchanged,
    around: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it has no state
    copied: Callable[[nn.Module, Convert, Change], nn.Module] = whole_copy,
) -> Any:
    """What a copy of `model` returns, in another dtype, and with other weights.  around: what it runs in."""
    copy = copied(model, convert, change)
    with around:
        return run(copy, inputs)


def _run_sparingly(model: nn.Module, inputs: Sequence[Any], *how: Any) -> Any:
    """The same, with one operator's weights in memory at a time, where the model lets itself be run so."""
    try:
        return _run_whole(model, inputs, *how, copied=lent_copy)
    except Exception:  # noqa: BLE001 - the user's forward, which may want to know more of its weights
        return _run_whole(model, inputs, *how)


def _bounds(expected: Any, noises: Sequence[Sequence[float]], eps: float, times: int) -> list[float]:
    """The difference that passes in each tensor: some times the noise, as long as half of the digits are right.

    noises: estimates of what rounding costs, for each tensor.  eps: of the dtype.
    """
    bounds: list[float] = []
    for place, tensor in enumerate(_tensors(expected)):
        scale = largest_finite(tensor)
        noise = max((errors[place] for errors in noises if place < len(errors)), default=0.0)
        bounds.append(max(min(times * max(noise, eps * scale), eps**0.5 * scale), noise * ESTIMATES / 2))
    return bounds


def _disturbed(
    model: nn.Module,
    inputs: Sequence[Any],
    exact: Any,
    eps: float,
    seeds: Sequence[int],
    result_of: Run,
    around: Callable[[float, int], AbstractContextManager[Any]] = lambda _, __: nullcontext(),
    least: float = DISTURBANCE,
) -> list[list[float]]:
    """What one rounding of every weight does to the outputs, to first order; nothing where the model objects.

    inputs, exact: of the model in float64.  eps: of its own dtype.  around: what it runs in, of (step, seed).
    least: disturbance, relative. The smaller it is, the more of what shows is rounding inside of operators.
    """
    step = max(eps / 2, least)
    others: list[Any] = []
    try:
        for seed in seeds:
            change = partial(_put_off, step=step, seed=seed)
            others.append(result_of(model, inputs, nn.Module.double, change, around(step, seed)))
    except (RuntimeError, ValueError, AssertionError):  # the user's forward
        return []
    return [[error * eps / 2 / step for error in _errors(exact, other)] for other in others]


def _put_off(weight: Tensor, number: int, step: float, seed: int) -> None:
    """Change a weight by up to `step`, relative; each weight and each seed by something else."""
    if weight.is_floating_point():
        generator = torch.Generator().manual_seed(len(SEEDS) * number + seed)
        noise = torch.empty(weight.shape).uniform_(-step, step, generator=generator)
        weight.addcmul_(weight, noise.to(weight))


def _errors(exact: Any, other: Any) -> list[float]:
    """The largest difference in each tensor, 0 where that is not finite."""
    pairs = zip(_tensors(exact), _tensors(other), strict=False)
    found = (compare(b, a, 0.0).error for a, b in pairs)
    return [error if isfinite(error) else 0.0 for error in found]


def compare_outputs(expected: Any, got: Any, tolerance: float | Sequence[float] = 1e-6) -> Check:
    """The worst of the tensors in two results of the same structure.

    tolerance: largest relative error that passes, or the largest absolute one for each tensor.
    """
    structures = [pytree.tree_structure(result) for result in (expected, got)]
    if structures[0] != structures[1]:
        raise VerificationError(f"the model returns {structures[0]}, the other one {structures[1]}")
    pairs = list(zip(_tensors(expected), _tensors(got), strict=True))
    if not isinstance(tolerance, Sequence):
        tolerance = [tolerance * largest_finite(a) for a, _ in pairs]
    floating = [value.is_floating_point() or value.is_complex() for value in _tensor_leaves(expected)]
    limits = [bound if known else 0.0 for bound, known in zip(tolerance, floating, strict=True)]
    checks = [compare(b, a, limit) for (a, b), limit in zip(pairs, limits, strict=True)]
    return max(checks, key=lambda check: (not check.passed, check.relative), default=Check(0.0, 0.0, 0.0))


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, in float64."""
    found = _tensor_leaves(result)
    return [torch.view_as_real(t).double() if t.is_complex() else t.double() for t in found]


def _tensor_leaves(result: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(result) if isinstance(value, Tensor)]


def same_results(expected: Any, got: Any, model: nn.Module) -> bool:
    """Whether two results are the same for whoever called `model`: structure, kinds, and numbers up to rounding."""
    leaves, structure = pytree.tree_flatten(expected)
    others, other = pytree.tree_flatten(got)
    if structure != other or not all(map(_alike, leaves, others)):
        return False
    return compare_outputs(expected, got, _eps_of(model) ** 0.5).passed


def _alike(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
    return type(value) is type(other) and bool(value == other)


def _eps_of(model: nn.Module) -> float:
    """Of the coarsest dtype among the weights."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=EPS)


def _dtypes(model: nn.Module, fused: nn.Module, inputs: Sequence[Any]) -> set[torch.dtype]:
    """The floating-point types of weights and inputs."""
    modules = (tensor for module in (model, fused) for tensor in (*module.parameters(), *module.buffers()))
    given = _tensor_leaves(list(inputs))
    return {tensor.dtype for tensor in (*modules, *given) if tensor.is_floating_point()}


class _Coarsest(TorchDispatchMode):
    """The largest eps among the floating-point types that operators return: a model may cast on the way."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.eps = EPS

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else (result,)
        floating = [value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        self.eps = max([self.eps, *(torch.finfo(dtype).eps for dtype in floating)])
        return result


class _ResultsOff(TorchDispatchMode):
    """Every result of an operator is off by up to `step`, relative: a norm may magnify that, and hide the weights."""

    supports_higher_order_operators = True

    def __init__(self, step: float, seed: int) -> None:
        super().__init__()
        self._step, self._generator = step, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            for tensor in _tensor_leaves(result):
                if tensor.dtype == torch.float64 and tensor.device.type == "cpu" and tensor.numel():
                    noise = torch.empty(tensor.shape, dtype=torch.float64)
                    tensor.mul_(noise.uniform_(1 - self._step, 1 + self._step, generator=self._generator))
        return result


def _in_float64(inputs: Sequence[Any]) -> list[Any]:
    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, list(inputs))
