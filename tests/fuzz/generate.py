"""Programs from seeds. Every step is run as it is drawn, in both calls: what torch refuses is drawn again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz import motifs
from tests.fuzz.build import NAMESPACE, constructors, inputs_of, statements
from tests.fuzz.operators.operator import Draw, NotHere, Value
from tests.fuzz.operators.table import OPERATORS
from tests.fuzz.program import Program, Step, without

LENGTH = (1, 10)  # steps
ATTEMPTS = 4  # for each step
MOTIF = 0.12  # how often several steps are drawn together
DEAD = 0.1  # programs that keep the steps that nobody reads
LARGEST = {"float64": 1e30, "float32": 1e8, "bfloat16": 1e6, "float16": 1e3}
MOST = 20_000  # numbers in a value
DTYPES = ("float64",) * 14 + ("float32",) * 3 + ("bfloat16", "float16")
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError, KeyError)
WRITING = ("in_place", "sum", "module", "activation_layer", "again")
NOTHING = Step("identity", (0,), {"form": "{x} + 0"})


def generate(seed: int) -> Program:
    """The program of a seed: the same on every machine."""
    random = Random(seed)
    running = Running(_beginning(random, seed))
    names, chances = list(OPERATORS), [operator.weight for operator in OPERATORS.values()]
    wanted = random.randint(*LENGTH)
    for _ in range(wanted * ATTEMPTS):
        if len(running.steps) >= wanted:
            break
        (name,) = random.choices(names, chances)
        draw = Draw(random, running.readable, running.steps)
        if random.random() < MOTIF:
            motifs.drawn(draw, running.take)
            continue
        try:
            running.take(OPERATORS[name].draw(draw))
        except NotHere:
            continue
    return _finished(running, random)


def _beginning(random: Random, seed: int) -> Program:
    """The inputs alone."""
    n = random.choice([1, 2, 2, 2, 2, 3])
    most = {1: 12, 2: 9, 3: 6}[n]
    c = random.choice([1, 2, 3, 4, 4, 6, 8])
    fixed = random.random() < 0.15
    first = [random.randint(4, most) for _ in range(n)]
    second = first if fixed else [random.randint(4, most) for _ in range(n)]
    shapes = [(random.randint(1, 3), c, *sizes) for sizes in (first, second)]
    if random.random() < 0.15:  # tokens
        shapes = [(batch, *sizes, c) for batch, c, *sizes in shapes]
    batched = random.random() < 0.97
    shapes = shapes if batched else [shape[1:] for shape in shapes]
    others = random.choice([0, 0, 0, 0, 1])
    kind = random.choice(["tensor", "tensor", "tensor", "tuple", "list", "dict"])
    return Program(
        shapes=(shapes[0], shapes[1]), steps=(), returns=(), kind=kind, dtype=random.choice(DTYPES), others=others,
        optional=bool(others) and random.random() < 0.3, seed=seed, batched=batched,
    )  # fmt: skip


def _finished(running: Running, random: Random) -> Program:
    """What was drawn, with results, without what they do not depend on, and with modules around some steps."""
    begun = running.program
    made = [value.index for value in running.values if value.tensors and value.index >= begun.inputs]
    if not made:
        running.take(NOTHING)
        made = [len(running.values) - 1]
    read = {value for step in running.steps for value in step.reads}
    ends = [value for value in made if value not in read] or made[-1:]
    returns = ends[-1:]
    if begun.kind != "tensor":
        returns = ends[-3:] if random.random() < 0.7 else [*ends[-2:], made[0]]
    program = replace(begun, steps=tuple(running.steps), returns=tuple(dict.fromkeys(returns)))
    program = program if random.random() < DEAD else _alive(program)
    return replace(program, blocks=_blocks(program, random))


def _alive(program: Program) -> Program:
    """Without the steps that no result depends on."""
    needed = {*program.returns}
    for index in reversed(range(len(program.steps))):
        step = program.steps[index]
        if program.inputs + index in needed or step.op == "in_place":
            needed.update(step.reads)
    for index in reversed(range(len(program.steps))):
        if program.inputs + index not in needed and program.steps[index].op != "in_place":
            program = without(program, index) or program
    return program


def _blocks(program: Program, random: Random) -> tuple[tuple[int, int], ...]:
    """Runs of steps that become modules; what is called twice stays outside."""
    shared = {step.params["of"] for step in program.steps if step.op == "again"}
    blocks: list[tuple[int, int]] = []
    start = 0
    while start < len(program.steps):
        stop = start + random.randint(1, 4)
        steps = program.steps[start:stop]
        alone = all(step.op not in ("again", "given") for step in steps) and shared.isdisjoint(range(start, stop))
        if alone and stop <= len(program.steps) and random.random() < 0.4:
            blocks.append((start, stop))
        start = stop
    return tuple(blocks)


class Running:
    """A program that is run while it is drawn."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self._owner = nn.Module().eval()
        self._tuples: dict[int, list[Any]] = {}
        calls = [inputs_of(program, call) for call in (0, 1)]
        given = [[call[i] if i < len(call) else call[0] for call in calls] for i in range(program.inputs)]
        self.values = [Value(i, tuple(tensors)) for i, tensors in enumerate(given)]
        if program.optional:  # nothing else reads the argument that may be missing
            self.take(Step("given", (0, program.inputs - 1)))

    @property
    def readable(self) -> list[Value]:
        missing = self.program.inputs - 1 if self.program.optional else None
        return [value for value in self.values if value.index != missing]

    def take(self, step: Step) -> Value | None:
        """Run the step; its value, or None if it was not taken."""
        index = len(self.steps)
        namespace = {**NAMESPACE, "self": self._owner}
        reads = [f"a{i}" for i in range(len(step.reads))]
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec("\n".join(constructors(step, index)), namespace)
                lines = compile("\n".join(statements(step, reads, "out", index)), "<step>", "exec")
                results = [self._run(lines, step, call, namespace) for call in (0, 1)]
        except REFUSALS:
            return None
        value = self._value(results)
        if value is not None:
            self.steps.append(step)
            self.values.append(value)
        return value

    def _run(self, lines: Any, step: Step, call: int, namespace: dict[str, Any]) -> Any:
        reads = [self._read(value, call) for value in step.reads]
        if step.op in WRITING:  # a copy, laid out in the same way
            reads = [value.clone() if isinstance(value, Tensor) else value for value in reads]
        local = {**namespace, **{f"a{i}": value for i, value in enumerate(reads)}}
        exec(lines, local)
        return local["out"]

    def _read(self, index: int, call: int) -> Any:
        value = self.values[index]
        return value.tensors[call] if value.tensors else self._tuples[index][call]

    def _value(self, results: list[Any]) -> Value | None:
        """The value, unless there is nothing in it, too much, or what is no number."""
        index = len(self.values)
        if all(isinstance(result, tuple | list) for result in results):
            tensors = [tensor for result in results for tensor in result]
            if len(results[0]) != len(results[1]) or not all(map(self._is_usable, tensors)):
                return None
            self._tuples[index] = results
            return Value(index, (), len(results[0]))
        if not all(isinstance(result, Tensor) and self._is_usable(result) for result in results):
            return None
        return Value(index, tuple(results)) if results[0].dim() == results[1].dim() else None

    def _is_usable(self, tensor: Tensor) -> bool:
        if not 0 < tensor.numel() <= MOST or tensor.dim() < 1 or not tensor.is_floating_point():
            return False
        return bool(tensor.isfinite().all()) and tensor.abs().max().item() < LARGEST[self.program.dtype]
