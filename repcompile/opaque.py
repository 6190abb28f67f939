"""Inside a module that stays Python: which of its children may be compiled on their own.

A compiled child is another object than the one that the forward was written for, so only a child that is called, and
never looked into, can be exchanged. The class's source says so: every `self.child` in it stands in front of a call.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

from repcompile.threads import ONE_AT_A_TIME

LOOKS_INSIDE = frozenset(name for name in vars(nn.Module) if name not in ("__init__", "training"))


def exchangeable_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, child) of the children that `module` only ever calls."""
    looked_at = _looked_at(type(module))
    if looked_at is None:
        return
    objects = [child for _, child in module.named_modules(remove_duplicate=False)]
    for name, child in module.named_children():
        once = sum(other is child for other in objects) == 1
        if name not in looked_at and once:
            yield name, child


def _looked_at(cls: type[nn.Module]) -> set[str] | None:
    """Attributes of `self` that the class uses other than by calling them; None if its source does not tell."""
    names: set[str] = set()
    own = cls.__mro__[: cls.__mro__.index(nn.Module)]
    if len(own) + 2 != len(cls.__mro__):  # something stands behind nn.Module
        return None
    for base in own:
        try:
            with ONE_AT_A_TIME:  # CPython 3.11 counts the depth of a tree for all threads together
                tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        found = _uses(tree)
        if found is None:
            return None
        names |= found
    return names


def _uses(tree: ast.AST) -> set[str] | None:
    """Names after `self.` that are read without being called, None if `self` itself is passed around."""
    if any(not function.args.args or function.args.args[0].arg != "self" for function in _methods(tree)):
        return None
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    names: set[str] = set()
    for node in (node for method in _methods(tree) for node in ast.walk(method)):
        if not (isinstance(node, ast.Name) and node.id == "self"):
            continue
        attribute = parents[node]
        if not isinstance(attribute, ast.Attribute):
            return None
        if attribute.attr in LOOKS_INSIDE:
            return None
        if not isinstance(attribute.ctx, ast.Load):
            continue
        call = parents[attribute]
        if not (isinstance(call, ast.Call) and call.func is attribute):
            names.add(attribute.attr)
    return names


def _methods(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """What runs with a `self` once the module is built."""
    classes = [node for node in ast.iter_child_nodes(tree) if isinstance(node, ast.ClassDef)]
    functions = [f for cls in classes for f in cls.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f for f in functions if f.name != "__init__" and not _without_self(f)]


def _without_self(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
    return not decorators.isdisjoint(("staticmethod", "classmethod"))
