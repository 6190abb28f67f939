"""Everything that the sweep asks of one model."""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repcompile import Compilation, RepcompileError, Report, VerificationError, compile_model
from repcompile.testing import randomize
from repcompile.verify import compare_outputs
from tests.sweep.fingerprint import differences, fingerprint
from tests.sweep.price import counts_of
from tests.sweep.remaining import norms_without_reason
from tests.sweep.result import Counts, Result
from tests.sweep.subject import Inputs, Subject

EXACT = 1e-10  # largest relative error of a model with float64 weights
ROUNDED = 1e-6  # and of one whose folded weights were rounded to float32
SIZES = 2
UNUSABLE = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)  # from the model


def examine(name: str, build: Callable[[], Subject]) -> Result:
    """Build the model, fuse it in float32 without inputs and in float64 with them, compare, and count."""
    torch.manual_seed(0)
    subject = build()
    model = randomize(subject.model, seed=1).eval()
    double, inputs, complaint = _accepted(model, subject.candidates)
    if not inputs:
        return Result(name, skipped=f"the model itself does not run in float64: {complaint}")
    before = fingerprint(model)
    plain, seconds = _timed(lambda: compile_model(model))
    informed, problem = _informed(double, in_float64(inputs[0]))
    expected = [_run(double, in_float64(each)) for each in inputs]
    rounded = _error(expected, copy.deepcopy(plain.module).double(), inputs)
    exact = None if informed is None else _error(expected, informed.module, inputs)
    counts = _counts(inputs[0], model, plain, informed)
    silent = norms_without_reason(plain.module, plain.report)
    problems = (
        *_touched(differences(before, fingerprint(model))),
        *problem,
        *_wrong("float32", rounded, ROUNDED),
        *_wrong("float64", exact, EXACT),
        *_worse("fuse(model)", counts[0], counts[1]),
        *_worse("fuse(model, inputs)", counts[0], counts[2]),
        *(f"batch norm {path} is left without a reason" for path in silent[:1]),
    )
    return Result(
        name,
        problems,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sizes=tuple(_size(each) for each in inputs),
        before=counts[0],
        plain=counts[1],
        informed=counts[2],
        exact=exact,
        rounded=rounded,
        seconds=seconds,
        left=_reasons(plain.report),
        silent=silent,
    )


# -- running -----------------------------------------------------------------------------------------------------------


def in_float64(inputs: Any) -> Any:
    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, inputs)


def _accepted(model: nn.Module, candidates: Sequence[Inputs]) -> tuple[nn.Module, list[Inputs], str]:
    """(model in float64, the first inputs that it takes, its last complaint).  `model` itself is not run."""
    double, accepted, complaint = copy.deepcopy(model).double(), list[Inputs](), ""
    for inputs in candidates:
        try:
            _run(copy.deepcopy(double), in_float64(inputs))
        except UNUSABLE as error:
            complaint = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            accepted.append(inputs)
        if len(accepted) == SIZES:
            break
    return double, accepted, complaint


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """The same noise every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model(*_copied(inputs))


def _copied(inputs: Inputs) -> Inputs:
    return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def _timed(function: Callable[[], Compilation]) -> tuple[Compilation, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _informed(double: nn.Module, inputs: Inputs) -> tuple[Compilation | None, list[str]]:
    """The compilation with example inputs, or what it says is wrong."""
    try:
        return compile_model(double, inputs), []
    except RepcompileError as error:
        return None, [f"with inputs, {type(error).__name__}: {error}"]


# -- judging -----------------------------------------------------------------------------------------------------------


def _error(expected: Sequence[Any], fused: nn.Module, inputs: Sequence[Inputs]) -> float:
    """The largest relative error over all inputs, infinite where the results differ in structure."""
    try:
        return max(
            compare_outputs(want, _run(fused, in_float64(each))).relative
            for want, each in zip(expected, inputs, strict=True)
        )
    except VerificationError:
        return float("inf")


def _counts(
    inputs: Inputs, model: nn.Module, plain: Compilation, informed: Compilation | None
) -> tuple[Counts, Counts, Counts | None]:
    single = None if informed is None else counts_of(informed.module.float(), inputs)
    return counts_of(copy.deepcopy(model), inputs), counts_of(copy.deepcopy(plain.module), inputs), single


def _touched(names: Sequence[str]) -> Iterable[str]:
    return [f"the user's model was touched: {', '.join(names[:3])}"] if names else []


def _wrong(what: str, error: float | None, most: float) -> Iterable[str]:
    return [] if error is None or error <= most else [f"{what} model: relative error {error:.1e}"]


def _worse(what: str, before: Counts, after: Counts | None) -> Iterable[str]:
    if after is None:
        return
    if after.operators > before.operators:
        yield f"{what}: {before.operators} operators became {after.operators}"
    if after.price > before.price:
        yield f"{what}: the estimated cost rose by {after.price / before.price - 1:.2%}"


def _reasons(report: Report) -> dict[str, int]:
    """Reason -> places; what tells places apart (numbers, names) is left out."""
    return dict(Counter(_general(item.reason) for item in report.left).most_common())


def _general(reason: str) -> str:
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d+(\.\d+)?", "N", reason))


def _size(inputs: Inputs) -> str:
    tensors = [value for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
    return "x".join(map(str, tensors[0].shape))
