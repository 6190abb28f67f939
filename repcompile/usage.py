"""What a module that stays Python does with the modules inside it, read off its source.

The functions that its forward reaches are interpreted; the value of an expression is the set of modules that it may
be, or may hold in a container. Every function is read until nothing is new, whatever the order of its lines.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import nn

from repcompile.classes import CONTAINERS, hooks_of
from repcompile.copies import plain_attributes
from repcompile.sources import Source, source_of

Held = frozenset[tuple[str, int]]  # (path of a module, number of Python containers around it)
NONE: Held = frozenset()
DEPTH = 4  # of containers in containers

PLACES = 4  # of a function's `*args` that are told apart
ITERATING = {list: 1, tuple: 1, set: 1, iter: 1, reversed: 1, sorted: 1, enumerate: 2, zip: 2, next: 0}
HARMLESS = (len, bool, callable, range)
LISTING = {"items": 2, "values": 1, "keys": 1, "children": 1, "named_children": 2}  # of modules
PICKING = {"items": 1, "values": 0, "keys": 0, "copy": 0, "get": -1, "pop": -1}  # of lists and dicts
FILLING = {"append": 1, "insert": 1, "appendleft": 1, "add": 1, "setdefault": 1, "extend": 0, "update": 0}


class Usage:
    """The modules inside `root` that its forward looks into.

    looked: paths of modules that somebody may look into, at any depth.
    entered: paths of modules that are themselves looked at, while what is inside them is used as `Usage` says.
    """

    def __init__(self, root: nn.Module) -> None:
        self.looked: set[str] = set()
        self.entered: set[str] = set()
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._values: dict[tuple[FunctionType, str], Held] = {}
        self._sources: dict[FunctionType, Source] = {}
        self._entries: list[Source] = []
        self._changed = True
        self._enter("")
        while self._changed:
            self._changed = False
            for source in list(self._sources.values()):
                _Reading(self, source).run()
            for source in self._entries:  # what a forward returns, anybody may get
                self.look(self.known(source, "return"))

    # -- modules -----------------------------------------------------------------------------------------------------

    def look(self, value: Held) -> None:
        """Somebody unknown gets hold of these modules."""
        paths = {path for path, _ in value}
        self._changed |= not self.looked.issuperset(paths)
        self.looked.update(paths)

    def enter(self, path: str) -> None:
        """The module itself is looked at, or through."""
        if path not in self.entered:
            self._changed = True
            self._enter(path)

    def _enter(self, path: str) -> None:
        self.entered.add(path)
        module = self._modules[path]
        for name in ("forward", "__call__"):
            if not self._calls_parts_only(module, name):
                self.run_method(path, name)
                source = source_of(inspect.getattr_static(type(module), name))
                self._entries += [source] if source is not None else []
        if "forward" in vars(module) or _own(type(module), "__getattr__", "__getattribute__"):
            self.look(_itself(path))
        for hook in hooks_of(module):
            if self.call(hook, [_itself(path)]) is None:
                self.look(_itself(path))

    def _calls_parts_only(self, module: nn.Module, name: str) -> bool:
        """Whether the method is torch's own, and calls the parts of the module or nothing."""
        function: Any = inspect.getattr_static(type(module), name, None)
        if name == "__call__":
            return function is inspect.getattr_static(nn.Module, name)
        without_parts = not module._modules and _torch(function)
        return without_parts or function in (nn.Sequential.forward, nn.Module.forward)

    def children(self, path: str) -> Held:
        """The modules that `path` holds."""
        self.enter(path)
        named = self._modules[path]._modules.items()
        return frozenset((f"{path}.{name}".lstrip("."), 0) for name, child in named if child is not None)

    def elements(self, value: Held) -> Held:
        """What iterating or indexing gives: what is in a Python container, or the parts of a module."""
        found = {(path, depth - 1) for path, depth in value if depth}
        for path, depth in value:
            module = self._modules[path]
            if depth:
                continue
            if isinstance(module, CONTAINERS) and not _own(type(module), "__iter__", "__getitem__"):
                found |= self.children(path)
            else:
                self.look(_itself(path))
        return frozenset(found)

    def wrapped(self, value: Held, levels: int) -> Held:
        """What a container that holds the value in so many levels holds."""
        self.look(frozenset(pair for pair in value if pair[1] + levels > DEPTH))
        return frozenset((path, depth + levels) for path, depth in value if depth + levels <= DEPTH)

    def attribute(self, path: str, name: str) -> Held:
        """What reading `module.name` gives."""
        module = self._modules[path]
        if module._modules.get(name) is not None:
            self.enter(path)
            return _itself(f"{path}.{name}".lstrip("."))
        if name == "training" or name in plain_attributes(module):
            return NONE
        self.enter(path)
        if name == "_modules":
            return self.wrapped(self.children(path), 1)
        if name in vars(module):
            self.look(self._held_by(vars(module)[name]))
            return NONE
        if name in module._parameters or name in module._buffers or name == "__class__":
            return NONE
        found: Any = inspect.getattr_static(type(module), name, None)
        if isinstance(found, property):
            return self._result(path, found.fget)
        if isinstance(found, FunctionType):
            self.look(self._result(path, found))  # called by nobody knows whom
        elif name in vars(nn.Module) or hasattr(type(found), "__get__"):
            self.look(_itself(path))
        return NONE

    def run_method(self, path: str, name: str, *arguments: Any) -> Held:
        """What calling `module.name(...)` gives.  arguments: as of `call`."""
        self.enter(path)
        module = self._modules[path]
        if name in LISTING and _torch(inspect.getattr_static(type(module), name, None)):
            return self.wrapped(self.children(path), LISTING[name])
        held = vars(module).get(name)
        function: Any = inspect.getattr_static(type(module), name, None) if held is None else held
        if name in ("forward", "__call__") and self._calls_parts_only(module, name):
            return NONE
        if held is None and not isinstance(function, classmethod | staticmethod):
            arguments = ([_itself(path), *(arguments[0] if arguments else ())], *arguments[1:])
        if held is not None and not isinstance(held, FunctionType):
            self.look(self._held_by(held))
            return NONE
        if isinstance(function, BuiltinFunctionType):
            return NONE
        result = None if _torch(function) else self.call(function, *arguments)
        if result is None:
            self.look(_itself(path))
        return result or NONE

    def _result(self, path: str, function: Any) -> Held:
        result = None if _torch(function) else self.call(function, [_itself(path)])
        if result is None:
            self.look(_itself(path))
        return result or NONE

    def is_uniform(self, path: str) -> bool:
        """Whether all tensors in a module have one dtype and one device."""
        tensors = (*self._modules[path].parameters(), *self._modules[path].buffers())
        return len({(tensor.dtype, tensor.device) for tensor in tensors if tensor.is_floating_point()}) == 1

    def _held_by(self, value: Any, depth: int = DEPTH) -> Held:
        """The modules with parts that an object of the user's has hold of, by which it may come by these."""
        if isinstance(value, nn.Module):
            return frozenset((path, 0) for path, module in self._modules.items() if module is value and value._modules)
        inside: list[Any] = [getattr(value, "__self__", None), getattr(value, "func", None)]
        if isinstance(value, dict | list | tuple | set):
            inside += value.values() if isinstance(value, dict) else value
        elif not isinstance(value, type | ModuleType | FunctionType):
            inside += getattr(value, "__dict__", {}).values()
        return _union(self._held_by(part, depth - 1) for part in inside if part is not None and depth)

    def overridden(self, path: str, name: str, source: Source) -> Any:
        """What `super().name` means in a method of the module, None if nobody knows."""
        mro = type(self._modules[path]).__mro__
        for index, cls in enumerate(mro):
            if any(getattr(member, "__func__", member) is source.function for member in vars(cls).values()):
                later = (vars(base)[name] for base in mro[index + 1 :] if name in vars(base))
                return next(later, None)
        return None

    # -- functions ---------------------------------------------------------------------------------------------------

    def call(
        self,
        function: Any,
        args: Sequence[Held] = (),
        kwargs: Iterable[tuple[str | None, Held]] = (),
        starred: Held = NONE,
    ) -> Held | None:
        """What a function returns, once its parameters may be these; None if its source is not known.

        kwargs: (name, value), with None for the name in `**value`.  starred: what `*args` held.
        """
        source = source_of(function)
        if source is None or _torch(function):
            return None
        if source.function not in self._sources:
            self._changed = True
            self._sources[source.function] = source
        names, signature = source.positional, source.tree.args
        many = signature.vararg.arg if signature.vararg else None
        for place, value in enumerate(args):
            if place < len(names):
                self.learn(source, names[place], value)
            else:
                self.learn(source, many, self.wrapped(value, 1))
                self.learn(source, f"*{place - len(names)}", value)
        given = len(args)
        for name in (*names[given:], *(f"*{place}" for place in range(PLACES))):
            self.learn(source, name, starred)
        if many is not None:
            self.learn(source, many, self.wrapped(starred, 1))
        rest = signature.kwarg.arg if signature.kwarg else None
        for name, value in kwargs:
            for parameter in source.keywords[given:] if name is None else {name}.intersection(source.keywords):
                self.learn(source, parameter, value)
            if name not in source.keywords and (name is not None or rest is not None):
                self.learn(source, rest, self.wrapped(value, 1))
        return self.known(source, "return")

    def known(self, source: Source, name: str) -> Held:
        return self._values.get((source.function, name), NONE)

    def learn(self, source: Source, name: str | None, value: Held) -> None:
        """A name in a function may be these modules; "return" is what it returns."""
        if name is None:
            self.look(value)
        elif not value <= self.known(source, name):
            self._changed = True
            self._values[source.function, name] = self.known(source, name) | value


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
            self._usage.look(frozenset((path, depth) for path, depth in self.value(target.value) if not depth))
            if isinstance(target.value, ast.Name):
                self._bind(target.value, self._usage.wrapped(value, 1))
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
            owners = self.value(node.value)
            return _union(self._usage.attribute(path, node.attr) for path, depth in owners if not depth)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self._usage.look(self.value(node.slice))
            found = self._usage.elements(self.value(node.value))
            return self._usage.wrapped(found, 1) if isinstance(node.slice, ast.Slice) else found
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return self._usage.wrapped(_union(map(self.value, node.elts)), 1)
        if isinstance(node, ast.Dict):
            spread = _union(self._usage.elements(self.value(v)) for k, v in self._pairs(node) if k is None)
            named = _union(self.value(part) for pair in self._pairs(node) if pair[0] is not None for part in pair)
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
            return _union(map(self.value, node.values))
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
        return self._usage.wrapped(_union(map(self.value, results)), 1)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Held:
        plain, starred = self._positional(node.args)
        named = [(keyword.arg, self.value(keyword.value)) for keyword in node.keywords]
        named = [(name, value if name is not None else self._usage.elements(value)) for name, value in named]
        everything = _union((*plain, starred, *(value for _, value in named)))
        function = node.func
        if isinstance(function, ast.Attribute):
            return self._call_of_attribute(node, function, plain, named, starred, everything)
        if isinstance(function, ast.Name) and not self._usage.known(self._source, function.id):
            return self._call_of_name(node, function.id, plain, named, starred, everything)
        return self._called(self.value(function), plain, named, starred, everything)

    def _positional(self, args: list[ast.expr]) -> tuple[list[Held], Held]:
        """(values by position, what else may be at any position)"""
        many = self._source.tree.args.vararg
        *front, last = args or [ast.Constant(None)]
        if many is not None and isinstance(last, ast.Starred) and ast.unparse(last.value) == many.arg:
            if not any(isinstance(arg, ast.Starred) for arg in front):
                own = [self._usage.known(self._source, f"*{place}") for place in range(PLACES)]
                rest = self._usage.elements(self._usage.known(self._source, many.arg)) - _union(own)
                return [*map(self.value, front), *own], rest
        plain = [self.value(arg) for arg in args if not isinstance(arg, ast.Starred)]
        return plain, _union(self.value(arg) for arg in args if isinstance(arg, ast.Starred))

    def _call_of_attribute(
        self, node: ast.Call, function: ast.Attribute, plain: list[Held], named: Any, starred: Held, everything: Held
    ) -> Held:
        if _is_super(function.value):
            return self._call_of_super(function.attr, plain, named, starred, everything)
        owners = self.value(function.value)
        held = frozenset(pair for pair in owners if pair[1])
        if function.attr in ("parameters", "buffers") and self._asks_for_kind(node, owners):
            return NONE
        if held or not owners:
            fills = function.attr in FILLING and isinstance(function.value, ast.Name)
            filled = self._usage.wrapped(everything, FILLING[function.attr]) if fills else NONE
            self._bind(function.value, filled) if fills else self._usage.look(everything)
        found = self._picked(held, function.attr)
        modules = [path for path, _ in owners - held]
        return found | _union(self._method(path, function.attr, plain, named, starred, everything) for path in modules)

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

    def _method(self, path: str, name: str, plain: list[Held], named: Any, starred: Held, everything: Held) -> Held:
        module = self._usage._modules[path]
        if module._modules.get(name) is not None:
            return self._called(self._usage.attribute(path, name), plain, named, starred, everything)
        found: Any = inspect.getattr_static(type(module), name, vars(module).get(name))
        if isinstance(found, property) or not (callable(found) or isinstance(found, classmethod | staticmethod)):
            self._usage.attribute(path, name)
            self._usage.look(everything)
            return NONE
        result = self._usage.run_method(path, name, plain, named, starred)
        if path in self._usage.looked:
            self._usage.look(everything)
        return result

    def _called(self, owners: Held, plain: list[Held], named: Any, starred: Held, everything: Held) -> Held:
        """What calling modules gives: nothing that is a module, unless one of them is given some."""
        if not everything:
            return NONE
        return _union(self._usage.run_method(path, "forward", plain, named, starred) for path, _ in owners)

    def _call_of_super(self, name: str, plain: list[Held], named: Any, starred: Held, everything: Held) -> Held:
        own = self._source.positional[:1]
        selves = self._usage.known(self._source, own[0]) if own else NONE
        found = NONE
        for path, _ in selves:
            function = self._usage.overridden(path, name, self._source)
            if function in (nn.Module.__call__, nn.Sequential.forward):
                self._usage.look(everything)
                continue
            result = self._usage.call(function, [_itself(path), *plain], named, starred)
            if result is None:
                self._usage.look(_itself(path) | everything)
            found |= result or NONE
        return found

    def _call_of_name(
        self, node: ast.Call, name: str, plain: list[Held], named: Any, starred: Held, everything: Held
    ) -> Held:
        meaning = None if name in self._inner else self._source.meaning(name)
        if not everything or meaning in HARMLESS:
            return NONE
        if meaning in ITERATING:
            return self._usage.wrapped(self._usage.elements(everything), ITERATING[meaning])
        if meaning is getattr and isinstance(node.args[0], ast.expr):
            wanted = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            return _union(self._named(path, wanted) for path, _ in plain[0]) | _union(plain[1:])
        if meaning in (isinstance, hasattr, type, id):
            self._enter(everything)
            return NONE
        result = self._usage.call(meaning, plain, named, starred)
        if result is None:
            self._usage.look(everything)
        return result or NONE

    def _named(self, path: str, name: Any) -> Held:
        """What `getattr(module, name)` gives; any part, if the name is not known."""
        return self._usage.children(path) if name is None else self._usage.attribute(path, name)


def _itself(path: str) -> Held:
    return frozenset(((path, 0),))


def _union(values: Iterable[Held]) -> Held:
    return frozenset().union(*values)


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _torch(function: Any) -> bool:
    """Whether torch defines it."""
    return str(getattr(function, "__module__", None) or "").partition(".")[0] == "torch"


def _own(cls: type, *names: str) -> bool:
    """Whether the class, and not torch, says what one of these methods does."""
    found = [inspect.getattr_static(cls, name, None) for name in names]
    own = [function for name, function in zip(names, found, strict=True) if function is not vars(object).get(name)]
    return not all(function is None or _torch(function) for function in own)
