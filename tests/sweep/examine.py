"""Everything that the sweep asks of one model."""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from repcompile import RepcompileError, Report, VerificationError, compile_model
from repcompile.verify import compare_outputs
from tests.sweep.calibrate import calibrated, disturbed
from tests.sweep.fingerprint import differences, fingerprint
from tests.sweep.judge import problems_of, usual
from tests.sweep.price import counts_of
from tests.sweep.remaining import norms_without_reason
from tests.sweep.result import Result
from tests.sweep.subject import Inputs, Subject, in_dtype, mapped, run, sizes_of

SIZES = 2  # input sizes compared
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)  # the model's own


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model in float32, which nothing but copies of it run, the inputs that it takes in `dtype`, and its results.

    dtype: float64, or float32 where the model runs in nothing else.  expected: of each of the inputs, in `dtype`.
    """

    model: nn.Module
    dtype: torch.dtype
    inputs: tuple[Inputs, ...]
    expected: tuple[Any, ...]


def examine(name: str, build: Callable[[], Subject]) -> Result:
    """Build the model, fuse it in float32 without inputs and in `dtype` with them, compare, and count.

    The largest networks fill the memory: no more than the model and one fused module are there at any time.
    """
    torch.manual_seed(0)
    prepared, complaint = _prepared(build())
    if prepared is None:
        return Result(name, skipped=f"the model itself does not run: {complaint}")
    result = Result(
        name,
        parameters=sum(parameter.numel() for parameter in prepared.model.parameters()),
        sizes=tuple(map(sizes_of, prepared.inputs)),
        float64=prepared.dtype == torch.float64,
        before=counts_of(copy.deepcopy(prepared.model), prepared.inputs[0]),
    )
    result = _blind(result, prepared)
    prepared.model.to(prepared.dtype)
    result, complaint = _informed(result, prepared)
    if not usual(result.rounded, result.exact):
        result = replace(result, explained=_error(disturbed(prepared.model), prepared))
    return problems_of(result, complaint)


# -- preparing ---------------------------------------------------------------------------------------------------------


def _prepared(subject: Subject) -> tuple[Prepared | None, str]:
    """(the model and inputs that it takes, in float64 if it does; what it said to others)"""
    model, complaint = subject.model.eval(), ""
    for dtype in (torch.float64, torch.float32):
        inputs, complaint = _accepted(subject, dtype)
        if inputs:
            model = calibrated(model, copy.deepcopy(model), inputs[0])
            exact = copy.deepcopy(model).to(dtype)
            expected = tuple(run(exact, in_dtype(dtype, each)) for each in inputs)
            return Prepared(model, dtype, inputs, expected), complaint
    return None, complaint


def _accepted(subject: Subject, dtype: torch.dtype) -> tuple[tuple[Inputs, ...], str]:
    """(the first inputs that the model takes in this dtype, what it said to others)"""
    accepted, complaint = list[Inputs](), ""
    for inputs in subject.candidates:
        given = in_dtype(dtype, inputs)
        surely = accepted and not _refused(subject.model, given, dtype, "meta")
        error = "" if surely else _refused(subject.model, given, dtype)
        complaint = error or complaint
        accepted += [] if error else [inputs]
        if len(accepted) == SIZES:
            break
    return tuple(accepted), complaint


def _refused(model: nn.Module, inputs: Inputs, dtype: torch.dtype, device: str = "cpu") -> str:
    """What a copy of the model says to these inputs, "" if it takes them.

    device: on "meta", where nothing is computed, a size is refused as anywhere; but not every model runs there.
    """
    try:
        run(copy.deepcopy(model).to(device, dtype), mapped(lambda tensor: tensor.to(device), inputs))
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}".split("\n")[0]
    return ""


# -- compiling and comparing -------------------------------------------------------------------------------------------


def _blind(result: Result, prepared: Prepared) -> Result:
    """The result with the figures of `fuse(model)`."""
    before = fingerprint(prepared.model)
    start = time.perf_counter()
    compilation = compile_model(prepared.model)
    seconds = time.perf_counter() - start
    module, report = compilation.module, compilation.report
    return replace(
        result,
        seconds=seconds,
        touched=tuple(differences(before, fingerprint(prepared.model))),
        left=_reasons(report),
        silent=norms_without_reason(module, report),
        plain=counts_of(copy.deepcopy(module), prepared.inputs[0]),
        rounded=_error(module, prepared),
    )


def _informed(result: Result, prepared: Prepared) -> tuple[Result, str]:
    """(the result with the figures of `fuse(model, inputs)` in `dtype`, what that says is wrong)"""
    before = fingerprint(prepared.model)
    try:
        compilation = compile_model(prepared.model, in_dtype(prepared.dtype, prepared.inputs[0]))
    except RepcompileError as error:
        return result, f"{type(error).__name__}: {error}"
    module, checks = compilation.module, compilation.checks
    assert checks is not None
    others = replace(prepared, inputs=prepared.inputs[1:], expected=prepared.expected[1:])  # it has compared the first
    return replace(
        result,
        touched=(*result.touched, *differences(before, fingerprint(prepared.model))),
        exact=max(checks[0].relative, _error(module, others)),
        informed=counts_of(module.float(), prepared.inputs[0]),
    ), ""


def _error(fused: nn.Module, prepared: Prepared) -> float:
    """The largest relative error over all inputs, infinite where the results differ in structure."""
    fused = fused.to(prepared.dtype)
    try:
        errors = [
            compare_outputs(want, run(fused, in_dtype(prepared.dtype, each))).relative
            for want, each in zip(prepared.expected, prepared.inputs, strict=True)
        ]
    except VerificationError:
        return float("inf")
    return max(errors, default=0.0)


# -- reading the report ------------------------------------------------------------------------------------------------


def _reasons(report: Report) -> dict[str, int]:
    """Reason -> places, without the numbers and names that tell places apart."""
    return dict(Counter(_general(item.reason) for item in report.left).most_common())


def _general(reason: str) -> str:
    """Every number is N, but for those in the names of classes."""
    without_names = re.sub(r"'[^']*'", "'...'", reason)
    return re.sub(r"\b(?![A-Z])\w*\d\w*", lambda word: re.sub(r"\d+", "N", word[0]), without_names)
