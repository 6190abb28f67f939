"""From a program to a module: its source as a person would have written it, and what that makes."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz import parts, weights
from tests.fuzz.operators.operator import Code
from tests.fuzz.operators.table import OPERATORS
from tests.fuzz.program import Program, Step

NAMESPACE: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, **parts.NAMES, **weights.NAMES}
APART = 1_000_003  # between the seeds of one step's weights
NUMBERS = count()


def inputs_of(program: Program, call: int) -> tuple[Tensor, ...]:
    """The arguments of one of the two calls; one that may be left out is left out in the first."""
    generator = torch.Generator().manual_seed(program.seed + call)
    dtype = getattr(torch, program.dtype)
    given = program.inputs - (program.optional and call == 0)
    shape = program.shapes[call]
    return tuple(torch.empty(shape, dtype=torch.float64).normal_(generator=generator).to(dtype) for _ in range(given))


def build(program: Program) -> nn.Module:
    """The model, in eval mode."""
    text = source(program)
    filename = f"<program {next(NUMBERS)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {**NAMESPACE, "__name__": __name__}
    exec(compile(text, filename, "exec"), namespace)
    return namespace["Model"]().eval()


def source(program: Program) -> str:
    """The module's Python, one line a step."""
    names = names_of(program)
    inside = {index: block for block in program.blocks for index in range(*block)}
    classes, made, lines = list[str](), list[str](), list[str]()
    done = set[tuple[int, int]]()
    for index, step in enumerate(program.steps):
        if index in inside:
            if inside[index] not in done:
                done.add(inside[index])
                text, maker, call = _block(program, inside[index], names)
                classes += text
                made.append(maker)
                lines.append(call)
            continue
        made += constructors(step, index)
        lines += statements(step, [names[value] for value in step.reads], names[program.inputs + index], index)
    arguments = names[: program.inputs]
    if program.optional:
        arguments = [*arguments[:-1], f"{arguments[-1]}=None"]
    lines.append(f"return {_returned(program, names)}")
    return "\n\n\n".join([*classes, _class("Model", made, arguments, lines)]) + "\n"


def names_of(program: Program) -> list[str]:
    """What the values are called."""
    return ["x", "y", "z"][: program.inputs] + [f"v{index}" for index in range(len(program.steps))]


def code_of(step: Step, reads: Sequence[str]) -> Code:
    return OPERATORS[step.op].write(step.params, reads, f"seed=SEED, dtype='{step.dtype}'")


def constructors(step: Step, index: int) -> list[str]:
    """Assignments to `self`."""
    made: list[str] = []
    for place, (suffix, text) in enumerate(code_of(step, ["x"] * len(step.reads)).attributes.items()):
        text, name = text.replace("SEED", str(step.seed + APART * place)), f"s{index}{suffix}"
        made.append(
            f"self.register_buffer('{name}', {text})" if text.startswith("buffer(") else f"self.{name} = {text}"
        )
    return made


def statements(step: Step, reads: Sequence[str], out: str, index: int) -> list[str]:
    """Assignments to `out`."""
    text = code_of(step, reads).lines.replace("$", f"self.s{index}")
    return text.replace("{out}", out).split("\n") if "{out}" in text else [f"{out} = {text}"]


def _block(program: Program, block: tuple[int, int], names: Sequence[str]) -> tuple[list[str], str, str]:
    """(its class, its constructor, its call) of steps that are a module of their own."""
    start, stop = block
    first, last = program.inputs + start, program.inputs + stop
    steps = program.steps[start:stop]
    reads = list(dict.fromkeys(v for step in steps for v in step.reads if v < first))
    read_later = {v for step in program.steps[stop:] for v in step.reads} | {*program.returns}
    outputs = [v for v in range(first, last) if v in read_later] or [last - 1]
    arguments, results = (", ".join(names[v] for v in values) for values in (reads, outputs))
    call = f"{results} = self.b{start}({arguments})"
    if outputs == [last - 1] and _is_chain(steps, first):
        layers = [next(iter(code_of(step, ["x"]).attributes.values())) for step in steps]
        text = ", ".join(layer.replace("SEED", str(step.seed)) for layer, step in zip(layers, steps, strict=True))
        return [], f"self.b{start} = nn.Sequential({text})", call
    made = [line for i, step in enumerate(steps, start) for line in constructors(step, i)]
    lines = [
        line
        for i, step in enumerate(steps, start)
        for line in statements(step, [names[v] for v in step.reads], names[program.inputs + i], i)
    ]
    text = _class(f"Block{start}", made, [names[v] for v in reads], [*lines, f"return {results}"])
    return [text], f"self.b{start} = Block{start}()", call


def _is_chain(steps: Sequence[Step], first: int) -> bool:
    """Whether each is a module that reads what the one before it made."""
    alone = all(code_of(step, ["x"]).lines == "$(x)" for step in steps if len(step.reads) == 1)
    return (
        alone
        and all(step.reads == (first + i - 1,) for i, step in enumerate(steps) if i)
        and all(len(step.reads) == 1 for step in steps)
    )


def _class(name: str, made: Iterable[str], arguments: Sequence[str], lines: Iterable[str]) -> str:
    made = "".join(f"        {line}\n" for line in made)
    body = "".join(f"        {line}\n" for line in lines)
    head = f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{made}"
    return f"{head}\n    def forward(self, {', '.join(arguments)}):\n{body}".rstrip()


def _returned(program: Program, names: Sequence[str]) -> str:
    values = [names[value] for value in program.returns]
    if program.kind == "tensor":
        return values[0]
    if program.kind == "dict":
        return "{" + ", ".join(f"'{name}': {name}" for name in values) + "}"
    return f"[{', '.join(values)}]" if program.kind == "list" else f"({', '.join(values)},)"
