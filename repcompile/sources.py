"""The source of a Python function as a tree, and what the names in it mean."""

from __future__ import annotations

import ast
import builtins
import inspect
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, MethodType
from typing import Any

from repcompile.threads import ONE_AT_A_TIME

Tree = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Source:
    """A function, its tree, and the names of its parameters."""

    function: Any
    tree: Tree

    @property
    def code(self) -> CodeType:
        return self.function.__code__

    @property
    def positional(self) -> list[str]:
        return [argument.arg for argument in (*self.tree.args.posonlyargs, *self.tree.args.args)]

    @property
    def keywords(self) -> list[str]:
        return [*self.positional, *(argument.arg for argument in self.tree.args.kwonlyargs)]

    @property
    def many(self) -> str | None:
        """The name of `*args`."""
        return self.tree.args.vararg.arg if self.tree.args.vararg else None

    def meaning(self, name: str) -> Any:
        """What a name that is not local to the function means now, None if nothing."""
        free = dict(zip(self.code.co_freevars, self.function.__closure__ or (), strict=False))
        if name in free:
            try:
                return free[name].cell_contents
            except ValueError:  # nothing was assigned to it yet
                return None
        return self.function.__globals__.get(name, getattr(builtins, name, None))


def source_of(function: Any) -> Source | None:
    """The source of a function, a method or what a static or class method holds; None if nobody knows it."""
    found: Any = function.__func__ if isinstance(function, MethodType | staticmethod | classmethod) else function
    if not isinstance(found, FunctionType):
        return None
    tree = _tree(found.__code__)
    return None if tree is None else Source(found, tree)


@cache
def _tree(code: CodeType) -> Tree | None:
    """The function alone: a decorated one is found behind its decorators."""
    try:
        with ONE_AT_A_TIME:  # CPython 3.11 counts the depth of a tree for all threads together
            text = inspect.getsource(code)
            tree = ast.parse(f"if True:\n{text}" if text[:1].isspace() else text)  # as it is indented
    except (OSError, TypeError, SyntaxError):
        return None
    (found, *_) = tree.body if not isinstance(tree.body[0], ast.If) else tree.body[0].body
    return found if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == code.co_name else None
