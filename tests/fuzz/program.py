"""Programs as values: what the fuzzer draws, shrinks, prints, and keeps as a regression test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator.

    reads: values, counted from the inputs on.  params: plain numbers and texts.  seed: of its weights.
    dtype: of its weights, "" for the program's.
    """

    op: str
    reads: tuple[int, ...]
    params: Params = field(default_factory=dict[str, Any])
    seed: int = 0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A model, and the shapes of two inputs for it.

    shapes: of the first input, in two calls.  others: how many inputs of the same shape follow.  optional: whether the
    last of these is left out, with a default.  returns: values.  kind: what they are returned as: "tensor", "tuple",
    "list" or "dict".  blocks: (start, stop) of steps that are a module of their own.  batched: whether the first axis
    of the inputs is a batch.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    steps: tuple[Step, ...]
    returns: tuple[int, ...]
    kind: str = "tensor"
    dtype: str = "float64"
    others: int = 0
    optional: bool = False
    blocks: tuple[tuple[int, int], ...] = ()
    seed: int = 0
    batched: bool = True

    @property
    def inputs(self) -> int:
        """How many values the steps find."""
        return 1 + self.others

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """(operator, operator that reads its result)"""
        ops = ["input"] * self.inputs + [step.op for step in self.steps]
        return {(ops[value], step.op) for step in self.steps for value in step.reads}

    @property
    def dtypes(self) -> set[str]:
        """Every floating-point type that occurs."""
        casts = {str(step.params["dtype"]) for step in self.steps if step.op == "cast"}
        return {self.dtype} | casts


def to_json(program: Program) -> str:
    """One line for each step."""
    record = asdict(program)
    steps = ",\n    ".join(json.dumps(step) for step in record.pop("steps"))
    return json.dumps(record, indent=1)[:-2] + f',\n "steps": [\n    {steps}\n ]\n}}\n'


def from_json(text: str) -> Program:
    """The inverse of `to_json`."""
    record: dict[str, Any] = json.loads(text)
    steps = tuple(Step(reads=tuple(step.pop("reads")), **step) for step in record.pop("steps"))
    first, second = (tuple(shape) for shape in record.pop("shapes"))
    blocks = tuple((start, stop) for start, stop in record.pop("blocks"))
    return Program(shapes=(first, second), steps=steps, blocks=blocks, returns=tuple(record.pop("returns")), **record)


def without(program: Program, index: int) -> Program | None:
    """The program without one step: whoever read it reads what it read first.  None if another step needs it."""
    place = program.inputs + index
    stands_in = program.steps[index].reads[0]

    def moved(value: int) -> int:
        value = stands_in if value == place else value
        return value - (value > place)

    steps: list[Step] = []
    for step in program.steps[:index] + program.steps[index + 1 :]:
        shared = step.params.get("of")
        if shared == index:
            return None
        params = step.params if shared is None else {**step.params, "of": shared - (shared > index)}
        steps.append(replace(step, reads=tuple(map(moved, step.reads)), params=params))
    blocks = [(a - (a > index), b - (b > index)) for a, b in program.blocks]
    return replace(
        program,
        steps=tuple(steps),
        returns=_once(map(moved, program.returns)),
        blocks=tuple((a, b) for a, b in blocks if b > a),
    )


def _once(values: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(values))


def readers(steps: Sequence[Step], value: int) -> list[int]:
    """The places of the steps that read a value."""
    return [place for place, step in enumerate(steps) if value in step.reads]
