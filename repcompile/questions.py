"""Forwards that ask what nobody can answer for them, as their bytecode, and that of what they call by name, shows.

`type(x) is Tensor` looks past `__class__`, so that no stand-in for a tensor can answer. What `is_autocast_enabled()`
says now is not what it will say.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

NEUTRAL = ("PUSH_NULL", "PRECALL", "CACHE", "NOP", "EXTENDED_ARG")
METHODS = ("forward", "__call__", "__func__", "__class__")
ANSWERS = ("shape", "dtype", "device")  # new objects every time, or the same one
COMPARISONS = ("IS_OP", "COMPARE_OP", "CONTAINS_OP")
REACH = 4  # instructions between the call of `type` and the comparison: the other operand is loaded in between


RUNNING = frozenset(
    "get_autocast_dtype get_autocast_gpu_dtype get_default_dtype is_autocast_cpu_enabled is_autocast_enabled".split()
)


def asks_for_type(module: nn.Module) -> bool:
    """Whether the forward of `module` compares the type of something, as far as its functions can be found by name."""
    return any(map(_compares_type, _code_of(module)))


def asks_for_identity(module: nn.Module) -> bool:
    """Whether the forward of `module` asks whether two values are one object, as far as its functions can be found."""
    return any(map(_compares_identity, _code_of(module)))


def asks_for_none(module: nn.Module) -> bool:
    """Whether the forward of `module` asks whether a variable is None, as far as its functions can be found."""
    return any(map(_compares_none, _code_of(module)))


def asks_how_it_runs(module: nn.Module) -> bool:
    """Whether the forward of `module` names a function that tells under which settings it runs."""
    return any(not RUNNING.isdisjoint(_names(code)) for code in _code_of(module))


def _code_of(module: nn.Module) -> Iterator[CodeType]:
    """The code of the forward and of the functions that it can be seen to call, torch's own left out."""
    found: set[CodeType] = set()
    stack = [_plain(module.forward)]
    while stack:
        function = stack.pop()
        if function is None or function.__code__ in found or _torch(function):
            continue
        found.add(function.__code__)
        yield function.__code__
        stack.extend(_called(function, module))


def _plain(value: Any) -> FunctionType | None:
    value = value.__func__ if isinstance(value, MethodType | staticmethod | classmethod) else value
    return value if isinstance(value, FunctionType) else None


def _torch(function: FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] == "torch"


def _called(function: FunctionType, module: nn.Module) -> Iterator[FunctionType | None]:
    """Functions that the names in a function may mean: globals, methods of the module, functions that it holds."""
    for name in _names(function.__code__):
        yield _plain(function.__globals__.get(name))
        yield _plain(vars(module).get(name))
        yield _plain(next((vars(cls)[name] for cls in type(module).__mro__ if name in vars(cls)), None))
    for cell in function.__closure__ or ():
        yield _plain(_content(cell))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned to it yet
        return None


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return (*code.co_names, *(name for names in inner for name in names))


@cache
def _compares_type(code: CodeType) -> bool:
    if any(_compares_type(constant) for constant in code.co_consts if isinstance(constant, CodeType)):
        return True
    return "type" in code.co_names and any(_comparison_at(list(dis.get_instructions(code))))


@cache
def _compares_identity(code: CodeType) -> bool:
    if any(_compares_identity(constant) for constant in code.co_consts if isinstance(constant, CodeType)):
        return True
    instructions = [i for i in dis.get_instructions(code) if i.opname not in NEUTRAL]
    asked = any(i.opname == "LOAD_GLOBAL" and i.argval == "id" for i in instructions)
    places = [place for place, i in enumerate(instructions) if i.opname == "IS_OP" and place]
    return asked or any(map(_may_be_tensor, (instructions[:place] for place in places)))


def _may_be_tensor(before: list[dis.Instruction]) -> bool:
    """Whether what is compared may be a tensor, or what a tensor is asked for.  before: the comparison."""
    method = len(before) > 1 and before[-2].opname == "LOAD_ATTR" and before[-2].argval in METHODS
    return (_varies(before[-1]) and not method) or _picks_size(before)


def _picks_size(before: list[dis.Instruction]) -> bool:
    """Whether the last thing that happened is `x.shape[number]`."""
    return len(before) > 2 and before[-1].opname == "BINARY_SUBSCR" and before[-3].argval in ANSWERS


def _varies(operand: dis.Instruction) -> bool:
    """Whether what an instruction loads is computed, and no class, no module, no constant of somebody's."""
    if operand.opname == "LOAD_ATTR":
        return operand.argval in ANSWERS or isinstance(getattr(torch, str(operand.argval), None), torch.dtype)
    return _is_variable(operand)


@cache
def _compares_none(code: CodeType) -> bool:
    if any(_compares_none(constant) for constant in code.co_consts if isinstance(constant, CodeType)):
        return True
    instructions = [i for i in dis.get_instructions(code) if i.opname not in NEUTRAL]
    jumps = [a for a, b in pairwise(instructions) if b.opname.endswith("_NONE")]
    triples = zip(instructions, instructions[1:], instructions[2:], strict=False)
    compared = [a for a, b, c in triples if (b.opname, b.argval, c.opname) == ("LOAD_CONST", None, "IS_OP")]
    return any(_is_variable(operand) for operand in (*jumps, *compared))


def _is_variable(operand: dis.Instruction) -> bool:
    return operand.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and operand.argval not in ("self", "cls")


def _comparison_at(instructions: list[dis.Instruction]) -> Iterator[bool]:
    """For each `type(x)`: whether the result is compared.  `type(self)` is nobody's tensor."""
    for place, instruction in enumerate(instructions):
        if instruction.opname != "LOAD_GLOBAL" or instruction.argval != "type":
            continue
        rest = [i for i in instructions[place + 1 :] if i.opname not in NEUTRAL]
        call = next((index for index, i in enumerate(rest) if i.opname.startswith("CALL")), None)
        if call is not None and rest[0].argval not in ("self", "cls"):
            yield any(i.opname in COMPARISONS for i in rest[call + 1 : call + 1 + REACH])
