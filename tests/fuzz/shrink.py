"""The smallest program that still fails in the same way: fewer steps, then simpler ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

from tests.fuzz.check import EVERYTHING, EXPORTED, check
from tests.fuzz.program import Program, Step, without

PATIENCE = 90.0  # seconds
SIMPLER = {"spelling": "module", "mode": "zeros", "statistics": "usual", "kind": "usual", "holder": "weight"}
FORMS = {"sum": "{a} + {b}", "activation": "F.relu({x})", "gain": "x * g", "number": "{x} * 0.5"}


def kind_of(failure: str) -> str:
    """What went wrong, without the details."""
    return ": ".join(failure.split(": ")[:2]) if failure.startswith("raised") else failure.split(":")[0]


def shrunk(program: Program, failure: str, patience: float = PATIENCE) -> tuple[Program, str]:
    """(program, its failure): no single simplification of it fails in the same way."""
    end = time.monotonic() + patience
    found: tuple[Program, str] | None = (program, failure)
    while found is not None:
        program, failure = found
        found = next(_failing(program, kind_of(failure), end), None)
    return program, failure


def _failing(program: Program, kind: str, end: float) -> Iterator[tuple[Program, str]]:
    shares = {EXPORTED} if EXPORTED in kind else EVERYTHING
    for simpler in simplifications(program):
        if time.monotonic() > end:
            return
        failure = _failure(simpler, shares)
        if failure and kind_of(failure) == kind:
            yield simpler, failure


def _failure(program: Program, shares: Set[str]) -> str:
    try:
        return check(program, shares).failure
    except Exception:  # noqa: BLE001 - it cannot even be written down: no simplification
        return ""


def simplifications(program: Program) -> Iterator[Program]:
    """Programs with one thing less, the largest first."""
    for index in reversed(range(len(program.steps))):
        smaller = without(program, index)
        if smaller is not None and smaller.steps:
            yield smaller
    if len(program.returns) > 1:
        yield from (replace(program, returns=(value,)) for value in program.returns)
    if program.kind != "tensor" and len(program.returns) == 1:
        yield replace(program, kind="tensor")
    for block in program.blocks:
        yield replace(program, blocks=tuple(other for other in program.blocks if other != block))
    if (
        program.others
        and not program.optional
        and all(v < 1 or v > program.others for s in program.steps for v in s.reads)
    ):
        yield _alone(program)
    if program.dtype != "float64":
        yield replace(program, dtype="float64", steps=tuple(replace(s, dtype="float64") for s in program.steps))
    for index, step in enumerate(program.steps):
        for simpler in _simpler_steps(step):
            yield replace(program, steps=(*program.steps[:index], simpler, *program.steps[index + 1 :]))


def _alone(program: Program) -> Program:
    """With the first input only."""

    def moved(value: int) -> int:
        return value - program.others if value else 0

    steps = tuple(replace(step, reads=tuple(map(moved, step.reads))) for step in program.steps)
    return replace(program, others=0, steps=steps, returns=tuple(map(moved, program.returns)))


def _simpler_steps(step: Step) -> Iterator[Step]:
    for name, value in step.params.items():
        for simpler in _simpler(name, value):
            yield replace(step, params={**step.params, name: simpler})
    form = FORMS.get(step.op)
    if form is not None and step.params.get("form") != form:
        yield replace(step, params={**step.params, "form": form})


def _simpler(name: str, value: Any) -> Iterator[Any]:
    if name in SIMPLER and value != SIMPLER[name]:
        yield SIMPLER[name]
    if value is True:
        yield False
    elif isinstance(value, list) and all(isinstance(entry, int) for entry in value):
        smallest = {"kernel": 1, "stride": 1}.get(name, 0)
        yield from ([*value[:i], smallest, *value[i + 1 :]] for i, entry in enumerate(value) if entry > smallest)
    elif isinstance(value, int) and not isinstance(value, bool) and name in ("dilation", "stride", "padding", "groups"):
        smallest = 0 if name == "padding" else 1
        if value > smallest:
            yield smallest
