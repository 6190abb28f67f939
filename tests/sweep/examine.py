"""Everything that the sweep asks of one model."""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from repcompile import Compilation, RepcompileError, Report, VerificationError, compile_model
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
    """The model in float32, which is never run, a copy in `dtype`, and the inputs that this one takes.

    dtype: float64, or float32 where the model runs in nothing else.
    """

    model: nn.Module
    exact: nn.Module
    dtype: torch.dtype
    inputs: tuple[Inputs, ...]


def examine(name: str, build: Callable[[], Subject]) -> Result:
    """Build the model, fuse it in float32 without inputs and in float64 with them, compare, and count."""
    torch.manual_seed(0)
    subject = build()
    subject.model.eval()
    inputs, complaint = _accepted(subject, torch.float64)
    if inputs:
        return _examined(name, _prepared(subject.model, torch.float64, inputs))
    inputs, complaint = _accepted(subject, torch.float32)
    if inputs:
        return _examined(name, _prepared(subject.model, torch.float32, inputs))
    return Result(name, skipped=f"the model itself does not run: {complaint}")


def _examined(name: str, prepared: Prepared) -> Result:
    model, inputs = prepared.model, prepared.inputs
    before = fingerprint(model)
    plain, seconds = _timed(lambda: compile_model(model))
    touched = differences(before, fingerprint(model))
    informed, complaint = _informed(prepared)
    rounded, exact, explained = _errors(prepared, plain, informed)
    result = Result(
        name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sizes=tuple(map(sizes_of, inputs)),
        float64=prepared.dtype == torch.float64,
        rounded=rounded,
        exact=exact,
        explained=explained,
        before=counts_of(model, inputs[0]),
        plain=counts_of(plain.module, inputs[0]),
        informed=None if informed is None else counts_of(informed.module.float(), inputs[0]),
        seconds=seconds,
        left=_reasons(plain.report),
        silent=norms_without_reason(plain.module, plain.report),
        touched=tuple(touched),
    )
    return problems_of(result, complaint)


# -- preparing ---------------------------------------------------------------------------------------------------------


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


def _prepared(model: nn.Module, dtype: torch.dtype, inputs: tuple[Inputs, ...]) -> Prepared:
    model = calibrated(model, copy.deepcopy(model), inputs[0])
    return Prepared(model, copy.deepcopy(model).to(dtype), dtype, inputs)


# -- compiling and comparing -------------------------------------------------------------------------------------------


def _timed(function: Callable[[], Compilation]) -> tuple[Compilation, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _informed(prepared: Prepared) -> tuple[Compilation | None, str]:
    """The compilation with example inputs, or what it says is wrong."""
    try:
        return compile_model(prepared.exact, in_dtype(prepared.dtype, prepared.inputs[0])), ""
    except RepcompileError as error:
        return None, f"{type(error).__name__}: {error}"


def _errors(
    prepared: Prepared, plain: Compilation, informed: Compilation | None
) -> tuple[float, float | None, float | None]:
    """(rounded, exact, explained) of `Result`."""
    expected = [run(prepared.exact, in_dtype(prepared.dtype, each)) for each in prepared.inputs]
    rounded = _error(expected, copy.deepcopy(plain.module), prepared)
    exact = None if informed is None else _exact_error(expected, informed, prepared)
    if usual(rounded, exact):
        return rounded, exact, None
    return rounded, exact, _error(expected, disturbed(prepared.exact), prepared)


def _exact_error(expected: Sequence[Any], informed: Compilation, prepared: Prepared) -> float:
    """Of the compilation with the first inputs, which has compared these itself."""
    assert informed.checks is not None
    others = replace(prepared, inputs=prepared.inputs[1:])
    module = copy.deepcopy(informed.module)
    return max(informed.checks[0].relative, _error(expected[1:], module, others) if others.inputs else 0.0)


def _error(expected: Sequence[Any], fused: nn.Module, prepared: Prepared) -> float:
    """The largest relative error over all inputs, infinite where the results differ in structure."""
    fused, inputs = fused.to(prepared.dtype), prepared.inputs
    try:
        return max(
            compare_outputs(want, run(fused, in_dtype(prepared.dtype, each))).relative
            for want, each in zip(expected, inputs, strict=True)
        )
    except VerificationError:
        return float("inf")


# -- reading the report ------------------------------------------------------------------------------------------------


def _reasons(report: Report) -> dict[str, int]:
    """Reason -> places, without the numbers and names that tell places apart."""
    return dict(Counter(_general(item.reason) for item in report.left).most_common())


def _general(reason: str) -> str:
    """Every number is N, but for those in the names of classes."""
    without_names = re.sub(r"'[^']*'", "'...'", reason)
    return re.sub(r"\b(?![A-Z])\w*\d\w*", lambda word: re.sub(r"\d+", "N", word[0]), without_names)
