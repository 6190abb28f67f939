"""Modules that a piece of Python reads numbers and texts of, and does nothing else with: their places are taken by
records of just these.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

from torch import nn

from repcompile.copies import plain_attributes
from repcompile.sources import Source, source_of

DEPTH = 8  # of functions that call functions
ALL_NAMES = frozenset(("locals", "eval", "exec"))  # what sees names that are not written there


def records_of(body: ast.AST, function: FunctionType, modules: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """What can stand for modules by name in `body`, a part of `function`; None if it does more than to read them."""
    source = source_of(function)
    made = {name: SimpleNamespace() for name in modules}
    bound = {name: (module, made[name]) for name, module in modules.items()}
    return made if source is not None and _only_reads(body, source, bound, DEPTH) else None


Bound = Mapping[str, tuple[nn.Module, SimpleNamespace]]


def _only_reads(body: ast.AST, source: Source, bound: Bound, depth: int) -> bool:
    parents = {child: node for node in ast.walk(body) for child in ast.iter_child_nodes(node)}
    names = [node for node in ast.walk(body) if isinstance(node, ast.Name)]
    named = [node for node in names if node.id in bound]
    return (
        depth > 0
        and ALL_NAMES.isdisjoint(node.id for node in names)
        and all(_is_read(node, parents, source, bound[node.id], depth) for node in named)
    )


def _is_read(
    node: ast.expr,
    parents: Mapping[ast.AST, ast.AST],
    source: Source,
    known: tuple[nn.Module, SimpleNamespace],
    depth: int,
) -> bool:
    """Whether what becomes of a module is a number, an argument of a function that only reads it, or a part of it."""
    module, record = known
    outer = parents.get(node)
    if not isinstance(getattr(node, "ctx", None), ast.Load):
        return False
    if isinstance(outer, ast.Call) and node in outer.args:
        return _is_read_by(outer, source, node, known, depth)
    if not isinstance(outer, ast.Attribute) or _own_attributes(module):
        return False
    child = module._modules.get(outer.attr)
    if child is not None:
        inside = vars(record).setdefault(outer.attr, SimpleNamespace())
        return _is_read(outer, parents, source, (child, inside), depth)
    plain = plain_attributes(module)
    if outer.attr not in plain or hasattr(inspect.getattr_static(type(module), outer.attr, None), "__set__"):
        return False
    setattr(record, outer.attr, plain[outer.attr])
    return isinstance(outer.ctx, ast.Load)


def _own_attributes(module: nn.Module) -> bool:
    """Whether its class says itself what an attribute is."""
    return any(
        getattr(type(module), name) is not getattr(nn.Module, name) for name in ("__getattr__", "__getattribute__")
    )


def _is_read_by(
    call: ast.Call, source: Source, argument: ast.expr, known: tuple[nn.Module, SimpleNamespace], depth: int
) -> bool:
    """Whether the function that is called by name, with a module among its positional arguments, only reads it."""
    function = source.meaning(call.func.id) if isinstance(call.func, ast.Name) else None
    callee = source_of(function) if isinstance(function, FunctionType) else None
    if callee is None or any(isinstance(arg, ast.Starred) for arg in call.args) or _is_local(call.func, source):
        return False
    place = call.args.index(argument)
    if place >= len(callee.positional) or isinstance(callee.tree, ast.AsyncFunctionDef) or callee.tree.decorator_list:
        return False
    bound = {callee.positional[place]: known}
    return all(_only_reads(statement, callee, bound, depth - 1) for statement in callee.tree.body)


def _is_local(name: Any, source: Source) -> bool:
    return name.id in source.code.co_varnames
