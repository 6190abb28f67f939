"""Modules that a piece of Python reads numbers and texts of, and does nothing else with: their places are taken by
records of just these.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from repcompile.copies import is_plain
from repcompile.sources import Source, source_of

DEPTH = 8  # of functions that call functions
ALL_NAMES = frozenset(("locals", "eval", "exec"))  # what sees names that are not written there


def records_of(body: ast.AST, function: FunctionType, modules: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """What can stand for modules by name in `body`, a part of `function`; None if it does more than to read them."""
    source = source_of(function)
    made = {name: SimpleNamespace() for name in modules}
    if source is None:
        return None
    reading = _Reading(source, {name: (module, made[name]) for name, module in modules.items()})
    return made if reading.only_reads(body) else None


Known = tuple[Any, SimpleNamespace]  # an object, and what stands for it


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a function does with objects that it knows by name."""

    source: Source
    bound: Mapping[str, Known]
    depth: int = DEPTH

    def only_reads(self, *bodies: ast.AST) -> bool:
        parents = {child: node for body in bodies for node in ast.walk(body) for child in ast.iter_child_nodes(node)}
        names = [node for body in bodies for node in ast.walk(body) if isinstance(node, ast.Name)]
        read = (self._is_read(node, parents, self.bound[node.id]) for node in names if node.id in self.bound)
        return self.depth > 0 and ALL_NAMES.isdisjoint(node.id for node in names) and all(read)

    def _is_read(self, node: ast.expr, parents: Mapping[ast.AST, ast.AST], known: Known) -> bool:
        """Whether what becomes of an object is a number, an argument of a function that only reads it, or a part."""
        outer = parents.get(node)
        if not isinstance(getattr(node, "ctx", None), ast.Load):
            return False
        if isinstance(outer, ast.Call) and node in outer.args:
            return self._is_read_by(outer, node, known)
        if not isinstance(outer, ast.Attribute) or not isinstance(outer.ctx, ast.Load):
            return False
        value, record = _attribute(known[0], outer.attr), known[1]
        if isinstance(value, FunctionType | staticmethod):
            return _is_called(outer, parents) and self._is_read_by_method(outer.attr, value, known)
        if value is _UNKNOWN:
            return False
        if is_plain(value):
            setattr(record, outer.attr, value)
            return True
        if isinstance(value, list) and all(map(is_plain, value)) and _is_iterated(outer, parents):
            setattr(record, outer.attr, tuple(value))
            return True
        if isinstance(value, Tensor | list | dict | set | tuple) or _is_function(value):
            return False
        return self._is_read(outer, parents, (value, vars(record).setdefault(outer.attr, SimpleNamespace())))

    def _is_read_by(self, call: ast.Call, argument: ast.expr, known: Known) -> bool:
        """Whether the function that is called by name, with an object among its arguments, only reads it."""
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        callee = _plain_source(None if name in self.source.code.co_varnames else self.source.meaning(name))
        place = call.args.index(argument)
        if callee is None or any(isinstance(arg, ast.Starred) for arg in call.args):
            return False
        return place < len(callee.positional) and self._of(callee, {callee.positional[place]: known})

    def _is_read_by_method(self, name: str, method: FunctionType | staticmethod[Any, Any], known: Known) -> bool:
        """Whether a method only reads its object; a static one does not know it."""
        record = known[1]
        if isinstance(method, staticmethod):
            setattr(record, name, method.__func__)
            return True
        callee = _plain_source(method)
        if callee is None or not callee.positional:
            return False
        if not hasattr(record, name):  # or it calls itself
            setattr(record, name, partial(method, record))
            return self._of(callee, {callee.positional[0]: known})
        return True

    def _of(self, callee: Source, bound: Mapping[str, Known]) -> bool:
        inside = replace(self, source=callee, bound=bound, depth=self.depth - 1)
        return inside.only_reads(*callee.tree.body)


_UNKNOWN = Ellipsis


def _attribute(owner: Any, name: str) -> Any:
    """What reading the attribute gives; a function of its class as that class has it; `_UNKNOWN` if nobody knows."""
    static = inspect.getattr_static(type(owner), name, _UNKNOWN)
    if name not in getattr(owner, "__dict__", {}) and isinstance(static, FunctionType | staticmethod):
        return static
    if not isinstance(owner, nn.Module):
        return getattr(owner, name, _UNKNOWN)
    own = any(
        getattr(type(owner), each) is not getattr(nn.Module, each) for each in ("__getattr__", "__getattribute__")
    )
    if own or name == "training" or hasattr(static, "__set__"):
        return _UNKNOWN
    child = owner._modules.get(name)
    return vars(owner).get(name, static if is_plain(static) else _UNKNOWN) if child is None else child


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _plain_source(function: Any) -> Source | None:
    """The source of a function without decorators, None if nobody knows it."""
    source = source_of(function) if isinstance(function, FunctionType) else None
    plain = source is not None and isinstance(source.tree, ast.FunctionDef) and not source.tree.decorator_list
    return source if plain else None


def _is_called(node: ast.expr, parents: Mapping[ast.AST, ast.AST]) -> bool:
    outer = parents.get(node)
    return isinstance(outer, ast.Call) and outer.func is node


def _is_iterated(node: ast.expr, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether its items are taken one by one, so that nobody can tell a list from a tuple."""
    outer = parents.get(node)
    if isinstance(outer, ast.For | ast.comprehension):
        return outer.iter is node
    return isinstance(outer, ast.Subscript) and outer.value is node and isinstance(outer.slice, ast.Constant)
