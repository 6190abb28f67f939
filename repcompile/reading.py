"""Reading what a module that stays Python does: its functions are interpreted, with sets of modules for values.

The value of an expression is the set of modules that it may be, or may hold in a container. Every function is read
until nothing is new, whatever the order of its lines.
"""

from __future__ import annotations

import ast
import inspect
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from repcompile.held import NONE, Held, Passed, itself, union
from repcompile.sources import Source
from repcompile.usage import PLACES, Usage

ITERATING: dict[Any, int] = {list: 1, tuple: 1, set: 1, iter: 1, reversed: 1, sorted: 1, enumerate: 2, zip: 2, next: 0}
HARMLESS = (len, bool, callable, range)
PICKING = {"items": 1, "values": 0, "keys": 0, "copy": 0, "get": -1, "pop": -1}  # of lists and dicts
FILLING = {"append": 1, "insert": 1, "appendleft": 1, "add": 1, "setdefault": 1, "extend": 0, "update": 0}


def usage_of(root: nn.Module) -> Usage:
    """What the forward of `root`, and what that calls, does with the modules inside."""
    usage = Usage(root)
    while True:
        for source in usage.sources:
            _Reading(usage, source).run()
        if usage.settled():
            return usage


class _Reading:
    """One pass over a function."""

    def __init__(self, usage: Usage, source: Source) -> None:
        self._usage, self._source = usage, source
        self._parents = {child: node for node in ast.walk(source.tree) for child in ast.iter_child_nodes(node)}
        self._inner = {node.name for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef)}
        self._inner.discard(source.tree.name)
        self._outside = {
            name for node in ast.walk(source.tree) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names
        }

    def run(self) -> None:
        for statement in self._source.tree.body:
            self._statement(statement)

    # -- statements --------------------------------------------------------------------------------------------------

    def _statement(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self._bind(target, value)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            self._bind(node.target, self.value(node.value) if node.value else NONE)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self._iterate(node.target, node.iter)
            self._inside(node, node.target, node.iter)
        elif isinstance(node, ast.Return):
            self._usage.learn(self._source, "return", self.value(node.value) if node.value else NONE)
        elif isinstance(node, ast.Expr | ast.If | ast.While):
            self.value(node.value if isinstance(node, ast.Expr) else node.test)
            self._inside(node, node.value if isinstance(node, ast.Expr) else node.test)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                self._bind(target, NONE)
        elif isinstance(node, ast.FunctionDef):
            self._nested(node)
        else:
            self._inside(node)

    def _inside(self, node: ast.AST, *done: ast.AST) -> None:
        """The statements in a statement; expressions there that nobody knows get to see everything."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and child not in done:
                self._usage.look(self.value(child))
            elif child not in done:
                self._statement(child)

    def _nested(self, node: ast.FunctionDef) -> None:
        """A function inside the function: its names are taken for those around it; what it returns, anybody may get."""
        for statement in ast.walk(node):
            if isinstance(statement, ast.Return) and statement.value is not None:
                self._usage.look(self.value(statement.value))
        for statement in node.body:
            if not isinstance(statement, ast.Return):
                self._statement(statement)

    def _bind(self, target: ast.AST, value: Held) -> None:
        if isinstance(target, ast.Name):
            self._usage.learn(self._source, None if target.id in self._outside else target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self._bind(element, self._usage.elements(value))
        elif isinstance(target, ast.Starred):
            self._bind(target.value, value)
        elif isinstance(target, ast.Attribute):
            self._usage.look(value)
            self._enter(self.value(target.value))
        elif isinstance(target, ast.Subscript):
            self._usage.look(self.value(target.slice))
            self._usage.look(frozenset((path, depth) for path, depth in self.value(target.value) if not depth))
            self._fill(target.value, value, 1)

    def _fill(self, container: ast.expr, value: Held, levels: int) -> None:
        """Put modules into a container; one that somebody else has hold of shows them to nobody knows whom."""
        if isinstance(container, ast.Name) and container.id not in self._source.keywords:
            self._bind(container, self._usage.wrapped(value, levels))
        else:
            self._usage.look(value)

    def _iterate(self, target: ast.AST, over: ast.expr) -> None:
        """Bind what iterating gives; indices and names are no modules."""
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else []
        named = isinstance(over, ast.Call) and isinstance(over.func, ast.Name)
        function = self._source.meaning(over.func.id) if named else None  # type: ignore[attr-defined]
        args: Any = over.args if isinstance(over, ast.Call) else []
        if function is enumerate and len(parts) == 2:
            self._iterate(parts[1], args[0])
        elif function is zip and len(parts) == len(args) and not any(isinstance(arg, ast.Starred) for arg in args):
            for part, arg in zip(parts, args, strict=True):
                self._iterate(part, arg)
        elif not args and len(parts) == 2 and ast.unparse(over).endswith((".items()", ".named_children()")):
            self._bind(parts[1], self._usage.elements(self._usage.elements(self.value(over))))
        else:
            self._bind(target, self._usage.elements(self.value(over)))

    def _enter(self, value: Held) -> None:
        for path, _ in value:
            self._usage.enter(path)

    # -- expressions -------------------------------------------------------------------------------------------------

    def value(self, node: ast.AST) -> Held:
        """The modules that the expression may be, or hold."""
        if isinstance(node, ast.Name):
            return self._usage.known(self._source, node.id)
        if isinstance(node, ast.Constant):
            return NONE
        if isinstance(node, ast.Attribute):
            if _is_super(node.value):  # called by nobody knows whom
                self._usage.look(self._call_of_super(node.attr, Passed()))
            owners = self.value(node.value)
            return union(self._usage.attribute(path, node.attr) for path, depth in owners if not depth)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self._usage.look(self.value(node.slice))
            found = self._usage.elements(self.value(node.value), _number(node.slice))
            return self._usage.wrapped(found, 1) if isinstance(node.slice, ast.Slice) else found
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return self._usage.wrapped(union(map(self.value, node.elts)), 1)
        if isinstance(node, ast.Dict):
            spread = union(self._usage.elements(self.value(v)) for k, v in self._pairs(node) if k is None)
            named = union(self.value(part) for pair in self._pairs(node) if pair[0] is not None for part in pair)
            return self._usage.wrapped(spread | named, 1)
        if isinstance(node, ast.Starred):
            return self._usage.elements(self.value(node.value))
        return self._choice(node)

    def _pairs(self, node: ast.Dict) -> list[tuple[Any, ast.expr]]:
        return list(zip(node.keys, node.values, strict=True))

    def _choice(self, node: ast.AST) -> Held:
        if isinstance(node, ast.IfExp):
            self.value(node.test)
            return self.value(node.body) | self.value(node.orelse)
        if isinstance(node, ast.BoolOp):
            return union(map(self.value, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.value(node.operand)
            return NONE
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.value(node.left) | self.value(node.right)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self._bind(node.target, value)
            return value
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._usage.look(self.value(child))
        return NONE

    def _comparison(self, node: ast.Compare) -> Held:
        """`x is None` and `name in modules` look at nothing else."""
        first, *others = map(self.value, (node.left, *node.comparators))
        for operation, other, right in zip(node.ops, others, node.comparators, strict=True):
            if isinstance(operation, ast.In | ast.NotIn):
                self._usage.elements(other)
            elif not (isinstance(operation, ast.Is | ast.IsNot) and isinstance(right, ast.Constant)):
                self._enter(first | other)
        return NONE

    def _comprehension(self, node: Any) -> Held:
        for generator in node.generators:
            self._iterate(generator.target, generator.iter)
            for condition in generator.ifs:
                self.value(condition)
        results = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        return self._usage.wrapped(union(map(self.value, results)), 1)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Held:
        plain, starred = self._positional(node.args)
        named = [(keyword.arg, self.value(keyword.value)) for keyword in node.keywords]
        named = [(name, value if name is not None else self._usage.elements(value)) for name, value in named]
        function, passed = node.func, Passed(plain, named, starred)
        if isinstance(function, ast.Attribute):
            return self._call_of_attribute(node, function, passed)
        if isinstance(function, ast.Name) and not self._usage.known(self._source, function.id):
            meaning = None if function.id in self._inner else self._source.meaning(function.id)
            return self._call_of_known(meaning, node, passed)
        return self._called(self.value(function), passed)

    def _positional(self, args: list[ast.expr]) -> tuple[list[Held], Held]:
        """(values by position, what else may be at any position)"""
        many = self._source.many
        *front, last = args or [ast.Constant(None)]
        passed_on = many is not None and isinstance(last, ast.Starred) and ast.unparse(last.value) == many
        if many is not None and passed_on and not any(isinstance(arg, ast.Starred) for arg in front):
            own = [self._usage.known(self._source, f"*{place}") for place in range(PLACES)]
            rest = self._usage.elements(self._usage.known(self._source, many)) - union(own)
            return [*map(self.value, front), *own], rest
        plain = [self.value(arg) for arg in args if not isinstance(arg, ast.Starred)]
        return plain, union(self.value(arg) for arg in args if isinstance(arg, ast.Starred))

    def _call_of_attribute(self, node: ast.Call, function: ast.Attribute, passed: Passed) -> Held:
        if _is_super(function.value):
            return self._call_of_super(function.attr, passed)
        owners = self.value(function.value)
        held = frozenset(pair for pair in owners if pair[1])
        meaning = self._global(function)
        if meaning is not None:
            return self._call_of_known(meaning, node, passed)
        method = self._method_of_global(function)
        if method is not None and passed.all:
            result = self._usage.call(method, passed.behind(NONE))
            self._usage.look(passed.all if result is None else NONE)
            return result or NONE
        if function.attr in ("parameters", "buffers") and self._asks_for_kind(node, owners):
            return NONE
        if held or not owners:
            if function.attr in FILLING:
                self._fill(function.value, passed.all, FILLING[function.attr])
            else:
                self._usage.look(passed.all)
        found = self._picked(held, function.attr)
        modules = [path for path, _ in owners - held]
        return found | union(self._method(path, function.attr, passed) for path in modules)

    def _asks_for_kind(self, node: ast.Call, owners: Held) -> bool:
        """Whether it is `next(module.parameters()).dtype`, or the device, and all of them have the same."""
        outer = self._parents[node]
        if isinstance(outer, ast.comprehension):
            asked: Any = getattr(self._parents[outer], "elt", None)
        else:
            asked = self._parents[outer] if isinstance(outer, ast.Call) and ast.unparse(outer.func) == "next" else None
        kind = isinstance(asked, ast.Attribute) and asked.attr in ("dtype", "device")
        return kind and all(self._usage.is_uniform(path) for path, _ in owners)

    def _picked(self, held: Held, name: str) -> Held:
        """What a method of the list or dict around some modules gives."""
        if name not in PICKING:
            self._usage.look(held if name not in FILLING else NONE)
            return NONE
        return self._usage.elements(held) if PICKING[name] < 0 else self._usage.wrapped(held, PICKING[name])

    def _method(self, path: str, name: str, passed: Passed) -> Held:
        module = self._usage.modules[path]
        if module._modules.get(name) is not None:
            return self._called(self._usage.attribute(path, name), passed)
        found: Any = inspect.getattr_static(type(module), name, vars(module).get(name))
        if isinstance(found, property) or not (callable(found) or isinstance(found, classmethod | staticmethod)):
            self._usage.attribute(path, name)
            self._usage.look(passed.all)
            return NONE
        result = self._usage.run_method(path, name, passed)
        if path in self._usage.looked:
            self._usage.look(passed.all)
        return result

    def _called(self, owners: Held, passed: Passed) -> Held:
        """What calling modules gives: nothing that is a module, unless one of them is given some."""
        if not passed.all:
            return NONE
        if not owners:
            self._usage.look(passed.all)
        return union(self._usage.run_method(path, "forward", passed) for path, _ in owners)

    def _call_of_super(self, name: str, passed: Passed) -> Held:
        own = self._source.positional[:1]
        selves = self._usage.known(self._source, own[0]) if own else NONE
        if not selves:
            self._usage.look(passed.all)
        found = NONE
        for path, _ in selves:
            function = self._usage.overridden(path, name, self._source)
            if function in (nn.Module.__call__, nn.Sequential.forward):
                self._usage.look(passed.all)
                continue
            result = self._usage.call(function, passed.behind(itself(path)))
            if result is None:
                self._usage.look(itself(path) | passed.all)
            found |= result or NONE
        return found

    def _global(self, node: ast.AST) -> Any:
        """What `package.module.name` means, None if it is no name in a Python module."""
        if isinstance(node, ast.Name):
            return None if self._usage.known(self._source, node.id) else self._source.meaning(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        owner = self._global(node.value)
        return getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None

    def _method_of_global(self, node: ast.Attribute) -> Any:
        """The function that `name.method` calls, where the name means an object of a class written in Python."""
        owner = self._global(node.value)
        if (
            owner is None
            or isinstance(owner, type | ModuleType | nn.Module)
            or node.attr in getattr(owner, "__dict__", {})
        ):
            return None
        found, lookup = (inspect.getattr_static(type(owner), name, None) for name in (node.attr, "__getattribute__"))
        return found if isinstance(found, FunctionType) and not isinstance(lookup, FunctionType) else None

    def _call_of_known(self, meaning: Any, node: ast.Call, passed: Passed) -> Held:
        if not passed.all or any(meaning is function for function in HARMLESS):
            return NONE
        levels = next((levels for function, levels in ITERATING.items() if function is meaning), None)
        if levels is not None:
            return self._usage.wrapped(self._usage.elements(passed.all), levels)
        if meaning is checkpoint and passed.plain:  # calls its first argument with the others
            return self._called(passed.plain[0], passed.rest)
        if meaning is partial and isinstance(node.args[0], ast.Name):
            result = self._usage.call(self._global(node.args[0]), passed.rest)  # later, by nobody knows whom
            self._usage.look(passed.all if result is None else result)
            return NONE
        if meaning is getattr and isinstance(node.args[0], ast.expr):
            wanted = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            return union(self._named(path, wanted) for path, _ in passed.plain[0]) | union(passed.plain[1:])
        if any(meaning is function for function in (isinstance, hasattr, type, id)):
            self._enter(passed.all)
            return NONE
        result = self._usage.call(meaning, passed)
        if result is None:
            self._usage.look(passed.all)
        return result or NONE

    def _named(self, path: str, name: Any) -> Held:
        """What `getattr(module, name)` gives; any part, if the name is not known."""
        return self._usage.children(path) if name is None else self._usage.attribute(path, name)


def _number(node: ast.AST) -> Any:
    """The number or text that is written there, None if there is something else."""
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]
    except ValueError:
        return None


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
