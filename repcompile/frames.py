"""What a running line of Python is doing, read off its bytecode: what it unpacks, and whom it calls."""

from __future__ import annotations

import dis
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from types import CodeType, FrameType

NEUTRAL = ("CACHE", "KW_NAMES", "RESUME", "EXTENDED_ARG", "NOP")


def unpacked(frame: FrameType) -> int | None:
    """Number of names that the running instruction of `frame` unpacks to, None if it does something else."""
    code, last = frame.f_code.co_code, frame.f_lasti
    return code[last + 1] if dis.opname[code[last]] == "UNPACK_SEQUENCE" else None


def reads(frame: FrameType, name: str) -> bool:
    """Whether the running instruction of `frame` is `x.name`, which is no call, where nobody would catch an error."""
    if getattr(frame.f_code, "co_exceptiontable", b""):
        return False
    instructions, places = _instructions(frame.f_code)
    if any(instruction.opname.startswith("SETUP_") for instruction in instructions):  # Python 3.10, without a table
        return False
    place = places.get(frame.f_lasti)
    return place is not None and (instructions[place].opname, instructions[place].argrepr) == ("LOAD_ATTR", name)


def callee(frame: FrameType) -> str | None:
    """The last name of what the running instruction of `frame` calls: "" if it calls nothing, None if nobody knows.

    It is "isinstance" for every name of that function.
    """
    instructions, places = _instructions(frame.f_code)
    place = places.get(frame.f_lasti)
    if place is None or not instructions[place].opname.startswith(("CALL", "PRECALL")):
        return "" if place is not None else None
    name = _callable_of(instructions, place)
    spaces = (frame.f_locals, frame.f_globals, frame.f_builtins)
    meaning = next((space[name] for space in spaces if name in space), None)
    return "isinstance" if meaning is isinstance else name


def told(frame: FrameType) -> str | None:
    """The last name of what is called with the text that the running instruction of `frame` formats, "raise" if it is
    raised; None if it becomes something else, or if nobody knows.
    """
    instructions, places = _instructions(frame.f_code)
    depth = 0
    for place in range(places[frame.f_lasti] + 1, len(instructions)):
        instruction = instructions[place]
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            return None
        depth += dis.stack_effect(instruction.opcode, instruction.arg)
        if depth >= 0 or instruction.opname == "PRECALL":
            continue
        if instruction.opname in ("BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC"):
            depth = 0
            continue
        if instruction.opname.startswith("CALL"):
            return _callable_of(instructions, place)
        return "raise" if instruction.opname == "RAISE_VARARGS" else None
    return None


def _callable_of(instructions: Sequence[dis.Instruction], place: int) -> str | None:
    """Walk back over the arguments of a call, to what put the callable on the stack."""
    pushed, arguments = 0, instructions[place].arg or 0
    if instructions[place].opname == "CALL_FUNCTION_EX":  # `f(*args)` or `f(*args, **kwargs)`
        arguments = 1 + (arguments & 1)
    if instructions[place].opname == "CALL_KW":  # and the names
        arguments += 1
    start = place - (instructions[place - 1].opname == "PRECALL")  # which belongs to this call
    for index in reversed(range(start)):
        instruction = instructions[index]
        if instruction.opname in NEUTRAL or (instruction.opname == "PUSH_NULL" and pushed == arguments):
            continue
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:  # as in `f(a if b else c)`
            return None
        pushed += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        if pushed > arguments:
            attributes = takewhile(lambda i: i.opname in ("LOAD_ATTR", *NEUTRAL), instructions[index + 1 : start])
            names = [i.argval for i in attributes if i.opname == "LOAD_ATTR"]
            return str([instruction.argval, *names][-1])
    return None


@cache
def _instructions(code: CodeType) -> tuple[Sequence[dis.Instruction], dict[int, int]]:
    """(instructions, offset -> index)"""
    instructions = list(dis.get_instructions(code))
    return instructions, {instruction.offset: index for index, instruction in enumerate(instructions)}
