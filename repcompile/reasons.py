"""Why a forward could not be traced, and where: the user's own line."""

from __future__ import annotations

import linecache
import os
import traceback
from types import CodeType

import torch

KNOWN = {"GuardOnDataDependentSymNode": "it needs the truth or the number of a value that only the run will know"}
OURS = (os.path.dirname(__file__), os.path.dirname(torch.__file__))


def reason_of(error: Exception) -> str:
    """One sentence, with the place in the user's source where it is known."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    known = KNOWN.get(type(error).__name__)
    place = _place(error)
    return (known or f"{type(error).__name__}: {text}") + (f", at {place}" if place else "")


def line_in(error: Exception, code: CodeType) -> int | None:
    """The line of a function's source from which an error came, None if it did not come through there.

    A function that was compiled again has the same lines.
    """
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return next(
        (
            line
            for frame, line in reversed(list(traceback.walk_tb(error.__traceback__)))
            if (frame.f_code.co_filename, frame.f_code.co_name) == (code.co_filename, code.co_name)
            and min(lines) <= line <= max(lines)
        ),
        None,
    )


def _place(error: Exception) -> str:
    """`file.py:12: the line` of the innermost frame that is neither torch's nor ours."""
    theirs = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(OURS)
    ]
    return _shown(*theirs[-1]) if theirs else ""


def _shown(code: CodeType, line: int) -> str:
    source = linecache.getline(code.co_filename, line).strip()
    return f"{os.path.basename(code.co_filename)}:{line}" + (f": {source}" if source else "")
