"""Everything that the sweep asks of one model."""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from tests.sweep.subject import Inputs, Subject, in_float64, run, sizes_of

SIZES = 2  # input sizes compared
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)  # the model's own


@dataclass(frozen=True, slots=True)
class Prepared:
    """The model in float32, which is never run, a copy in float64, and the inputs that it takes."""

    model: nn.Module
    double: nn.Module
    inputs: tuple[Inputs, ...]


def examine(name: str, build: Callable[[], Subject]) -> Result:
    """Build the model, fuse it in float32 without inputs and in float64 with them, compare, and count."""
    torch.manual_seed(0)
    subject = build()
    subject.model.eval()
    inputs, complaint = _accepted(subject)
    if not inputs:
        return Result(name, skipped=f"the model itself does not run: {complaint}")
    return _examined(name, _prepared(subject.model, inputs))


def _examined(name: str, prepared: Prepared) -> Result:
    model, double, inputs = prepared.model, prepared.double, prepared.inputs
    before = fingerprint(model)
    plain, seconds = _timed(lambda: compile_model(model))
    touched = differences(before, fingerprint(model))
    informed, complaint = _informed(double, in_float64(inputs[0]))
    expected = [run(double, in_float64(each)) for each in inputs]
    rounded = _error(expected, copy.deepcopy(plain.module).double(), inputs)
    exact = None if informed is None else _error(expected, informed.module, inputs)
    result = Result(
        name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sizes=tuple(map(sizes_of, inputs)),
        rounded=rounded,
        exact=exact,
        explained=None if usual(rounded, exact) else _error(expected, disturbed(double), inputs),
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


def _accepted(subject: Subject) -> tuple[tuple[Inputs, ...], str]:
    """(the first inputs that the model takes in float64, what it said to others)"""
    accepted, complaint = list[Inputs](), ""
    for inputs in subject.candidates:
        try:
            run(copy.deepcopy(subject.model).double(), in_float64(inputs))
        except REFUSALS as error:
            complaint = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            accepted.append(inputs)
        if len(accepted) == SIZES:
            break
    return tuple(accepted), complaint


def _prepared(model: nn.Module, inputs: tuple[Inputs, ...]) -> Prepared:
    model = calibrated(model, copy.deepcopy(model), inputs[0])
    return Prepared(model, copy.deepcopy(model).double(), inputs)


# -- compiling and comparing -------------------------------------------------------------------------------------------


def _timed(function: Callable[[], Compilation]) -> tuple[Compilation, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _informed(double: nn.Module, inputs: Inputs) -> tuple[Compilation | None, str]:
    """The compilation with example inputs, or what it says is wrong."""
    try:
        return compile_model(double, inputs), ""
    except RepcompileError as error:
        return None, f"{type(error).__name__}: {error}"


def _error(expected: Sequence[Any], fused: nn.Module, inputs: Sequence[Inputs]) -> float:
    """The largest relative error over all inputs, infinite where the results differ in structure."""
    try:
        return max(
            compare_outputs(want, run(fused, in_float64(each))).relative
            for want, each in zip(expected, inputs, strict=True)
        )
    except VerificationError:
        return float("inf")


# -- reading the report ------------------------------------------------------------------------------------------------


def _reasons(report: Report) -> dict[str, int]:
    """Reason -> places, without the numbers and names that tell places apart."""
    return dict(Counter(_general(item.reason) for item in report.left).most_common())


def _general(reason: str) -> str:
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d+(\.\d+)?", "N", reason))
