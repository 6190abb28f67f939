"""What a module that stays Python does with the modules inside it, as far as its source tells.

`reading` interprets the functions that its forward reaches; here is what the names in them may be, and what becomes of
the modules.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import nn

from repcompile.classes import CONTAINERS, hooks_of
from repcompile.copies import plain_attributes
from repcompile.held import NONE, Held, Passed, itself, union
from repcompile.sources import Source, source_of

DEPTH = 4  # of containers in containers
PLACES = 4  # of a function's `*args` that are told apart
LISTING = {"items": 2, "values": 1, "keys": 1, "children": 1, "named_children": 2}  # of modules


class Usage:
    """The modules inside `root` that its forward looks into.

    looked: paths of modules that somebody may look into, at any depth.
    entered: paths of modules that are themselves looked at, while what is inside them is used as `Usage` says.
    """

    def __init__(self, root: nn.Module) -> None:
        self.looked: set[str] = set()
        self.entered: set[str] = set()
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self._values: dict[tuple[FunctionType, str], Held] = {}
        self._sources: dict[FunctionType, Source] = {}
        self._entries: list[Source] = []
        self._changed = False
        self._enter("")

    @property
    def sources(self) -> list[Source]:
        """The functions that are known to be called."""
        return list(self._sources.values())

    def settled(self) -> bool:
        """Whether nothing is new since the last time; what a forward returns, anybody may get."""
        for source in self._entries:
            self.look(self.known(source, "return"))
        changed, self._changed = self._changed, False
        return not changed

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
        module = self.modules[path]
        for name in ("forward", "__call__"):
            if not self._calls_parts_only(module, name):
                self.run_method(path, name)
                source = source_of(inspect.getattr_static(type(module), name))
                self._entries += [source] if source is not None else []
        if "forward" in vars(module) or _own(type(module), "__getattr__", "__getattribute__"):
            self.look(itself(path))
        for hook in hooks_of(module):
            if self.call(hook, Passed([itself(path)])) is None:
                self.look(itself(path))

    def _calls_parts_only(self, module: nn.Module, name: str) -> bool:
        """Whether the method is torch's own, and calls the parts of the module or nothing."""
        function: Any = inspect.getattr_static(type(module), name, None)
        if name == "__call__":
            return function is inspect.getattr_static(nn.Module, name)
        without_parts = not module._modules and _from_torch(function)
        return without_parts or function in (nn.Sequential.forward, nn.Module.forward)

    def children(self, path: str) -> Held:
        """The modules that `path` holds."""
        self.enter(path)
        named = self.modules[path]._modules.items()
        return frozenset((f"{path}.{name}".lstrip("."), 0) for name, child in named if child is not None)

    def elements(self, value: Held, key: Any = None) -> Held:
        """What iterating or indexing gives: what is in a Python container, or the parts of a module.

        key: the index, where it is known.
        """
        found = {(path, depth - 1) for path, depth in value if depth}
        for path, depth in value:
            module = self.modules[path]
            if depth:
                continue
            if isinstance(module, CONTAINERS) and not _own(type(module), "__iter__", "__getitem__"):
                found |= self._picked(path, key)
            else:
                self.look(itself(path))
        return frozenset(found)

    def _picked(self, path: str, key: Any) -> Held:
        names = list(self.modules[path]._modules)
        if type(key) is int and -len(names) <= key < len(names):
            key = names[key]
        found = self.children(path)
        return found & itself(f"{path}.{key}".lstrip(".")) if key in names else found

    def wrapped(self, value: Held, levels: int) -> Held:
        """What a container that holds the value in so many levels holds."""
        self.look(frozenset(pair for pair in value if pair[1] + levels > DEPTH))
        return frozenset((path, depth + levels) for path, depth in value if depth + levels <= DEPTH)

    def attribute(self, path: str, name: str) -> Held:
        """What reading `module.name` gives."""
        module = self.modules[path]
        if module._modules.get(name) is not None:
            self.enter(path)
            return itself(f"{path}.{name}".lstrip("."))
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
            self.look(itself(path))
        return NONE

    def run_method(self, path: str, name: str, passed: Passed | None = None) -> Held:
        """What calling `module.name(...)` gives."""
        self.enter(path)
        module = self.modules[path]
        if name in LISTING and _from_torch(inspect.getattr_static(type(module), name, None)):
            return self.wrapped(self.children(path), LISTING[name])
        held, passed = vars(module).get(name), passed or Passed()
        function: Any = inspect.getattr_static(type(module), name, None) if held is None else held
        if name in ("forward", "__call__") and self._calls_parts_only(module, name):
            return NONE
        if held is None and not isinstance(function, classmethod | staticmethod):
            passed = passed.behind(itself(path))
        result = None if _from_torch(function) else self.call(function, passed)
        if result is None:
            known = held is not None or isinstance(function, BuiltinFunctionType)
            self.look(self._held_by(held) | passed.all if known else itself(path))
        return result or NONE

    def _result(self, path: str, function: Any) -> Held:
        result = None if _from_torch(function) else self.call(function, Passed([itself(path)]))
        if result is None:
            self.look(itself(path))
        return result or NONE

    def is_uniform(self, path: str) -> bool:
        """Whether all tensors in a module have one dtype and one device."""
        tensors = (*self.modules[path].parameters(), *self.modules[path].buffers())
        return len({(tensor.dtype, tensor.device) for tensor in tensors if tensor.is_floating_point()}) == 1

    def _held_by(self, value: Any, depth: int = DEPTH) -> Held:
        """The modules with parts that an object of the user's has hold of, by which it may come by these."""
        if isinstance(value, nn.Module):
            return frozenset((path, 0) for path, module in self.modules.items() if module is value and value._modules)
        inside: list[Any] = [getattr(value, "__self__", None), getattr(value, "func", None)]
        if isinstance(value, FunctionType):
            inside += [*_contents(value), *(value.__defaults__ or ())]
        if isinstance(value, dict | list | tuple | set):
            inside += value.values() if isinstance(value, dict) else value
        elif not isinstance(value, type | ModuleType | FunctionType):
            inside += getattr(value, "__dict__", {}).values()
        return union(self._held_by(part, depth - 1) for part in inside if part is not None and depth)

    def overridden(self, path: str, name: str, source: Source) -> Any:
        """What `super().name` means in a method of the module, None if nobody knows."""
        mro = type(self.modules[path]).__mro__
        for index, cls in enumerate(mro):
            if any(getattr(member, "__func__", member) is source.function for member in vars(cls).values()):
                later = (vars(base)[name] for base in mro[index + 1 :] if name in vars(base))
                return next(later, None)
        return None

    # -- functions ---------------------------------------------------------------------------------------------------

    def call(self, function: Any, passed: Passed) -> Held | None:
        """What a function returns, once its parameters may be these; None if its source is not known."""
        source = source_of(function)
        if source is None or _from_torch(function):
            return None
        if source.function not in self._sources:
            self._changed = True
            self._sources[source.function] = source
        self._learn_positional(source, passed)
        self._learn_named(source, passed)
        return self.known(source, "return")

    def _learn_positional(self, source: Source, passed: Passed) -> None:
        names, many = source.positional, source.many
        for place, value in enumerate(passed.plain):
            if place < len(names):
                self.learn(source, names[place], value)
            else:
                self.learn(source, many, self.wrapped(value, 1))
                self.learn(source, f"*{place - len(names)}", value)
        for name in (*names[len(passed.plain) :], *(f"*{place}" for place in range(PLACES))):
            self.learn(source, name, passed.starred)
        if many is not None:
            self.learn(source, many, self.wrapped(passed.starred, 1))

    def _learn_named(self, source: Source, passed: Passed) -> None:
        rest = source.tree.args.kwarg.arg if source.tree.args.kwarg else None
        for name, value in passed.named:
            unnamed = source.keywords[len(passed.plain) :]
            for parameter in unnamed if name is None else {name}.intersection(source.keywords):
                self.learn(source, parameter, value)
            if name not in source.keywords and (name is not None or rest is not None):
                self.learn(source, rest, self.wrapped(value, 1))

    def known(self, source: Source, name: str) -> Held:
        return self._values.get((source.function, name), NONE)

    def learn(self, source: Source, name: str | None, value: Held) -> None:
        """A name in a function may be these modules; "return" is what it returns."""
        if name is None:
            self.look(value)
        elif not value <= self.known(source, name):
            self._changed = True
            self._values[source.function, name] = self.known(source, name) | value


def _contents(function: FunctionType) -> Iterator[Any]:
    """What the names from around a function mean."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing was assigned to it yet
            yield cell.cell_contents


def _from_torch(function: Any) -> bool:
    """Whether torch defines it."""
    return str(getattr(function, "__module__", None) or "").partition(".")[0] == "torch"


def _own(cls: type, *names: str) -> bool:
    """Whether the class, and not torch, says what one of these methods does."""
    found = [inspect.getattr_static(cls, name, None) for name in names]
    own = [function for name, function in zip(names, found, strict=True) if function is not vars(object).get(name)]
    return not all(function is None or _from_torch(function) for function in own)
