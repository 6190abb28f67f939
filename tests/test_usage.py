"""What a module that stays Python does with the modules in it, and which of them are compiled on their own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

from repcompile import fuse
from repcompile.opaque import exchangeable_children
from tests.test_hostile import assert_close, assert_untouched, conv, image, made, norm, state_of

Build = Callable[[], nn.Module]


def unit() -> nn.Sequential:
    return nn.Sequential(conv(), norm(), nn.ReLU())


class Block(nn.Module):
    """With an attribute that others read, and a method that others call."""

    index = 1

    def __init__(self, source: int = -1) -> None:
        super().__init__()
        self.body = unit()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x

    def halved(self, x: Tensor) -> Tensor:
        return self.body(x) / 2


class Parts(nn.Module):
    """Calls with a list are what no tracing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList([unit(), unit()])
        self.named = nn.ModuleDict({"a": unit(), "b": unit()})
        self.block = Block()
        self.single = unit()
        self.limit = 3


class Iterates(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for layer in self.units:
            xs = [layer(x) for x in xs]
        return xs


class Zips(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for i, (first, second) in enumerate(zip(self.units, self.named.values(), strict=True)):
            xs = [second(first(x)) + i for x in xs]
        return xs


class Names(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for name, layer in self.named.items():
            xs = [layer(x) if name in self.named else x for x in xs]
        return [self.units[-1](self.units[i](x)) for i, x in enumerate(xs)]


class Keeps(Parts):
    def heads(self) -> dict[str, Any]:
        return {"first": self.units, "second": self.named}

    @property
    def pair(self) -> tuple[nn.Module, nn.Module]:
        return self.units[0], self.single

    def run(self, xs: list[Tensor], first: nn.ModuleList, second: nn.ModuleDict) -> list[Tensor]:
        return [first[0](x) + second["b"](x) for x in xs]

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        todo: list[nn.Module] = []
        todo.append(self.pair[1])
        xs = self.run(xs, **self.heads())
        return [layer(x) for x in xs for layer in reversed(todo)]


class Reads(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        source = self.block.source
        return [self.block(x) + self.block.halved(x) * self.block.index * source for x in xs]


class Asks(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.block(x) if self.block.source == -1 and self.block is not None else x for x in xs]


class Looks(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        units: Any = self.units
        scale = units[0][0].weight.abs().mean()
        return [self.units[0](x) * scale + self.units[1](x) for x in xs]


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


class Passes(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [apply(self.single, x) + sum(map(self.units[0], [x])) for x in xs]


def announced(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs) if self.limit > 0 else None

    return wrapper


class Decorated(Parts):
    @announced
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) for x in xs]


class Activated(Parts):
    """With functions for attributes: of torch, of the user's, and one that knows the module."""

    act: Any
    doubled: Any

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.act = F.silu
        self.doubled = lambda x: x * 2
        if knows:
            self.doubled = lambda x: x * self.block.body[1].weight.sum()  # pyright: ignore[reportCallIssue]

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [checkpoint.checkpoint(self.single, self.doubled(self.act(x)), use_reentrant=False) for x in xs]


def later(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return functools.partial(function, self, **kwargs)(*args)

    return wrapper


class Later(Parts):
    @later
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) for x in xs]


class Above(Looks):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        above = super().forward
        return [self.single(x) for x in above(xs)]


class Getters(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        weight = operator.attrgetter("block.body")(self)[0].weight
        return [self.single(x) * weight.sum() for x in xs]


class Container(nn.ModuleDict):
    def forward(self, xs: list[Tensor]) -> dict[str, list[Tensor]]:
        found = {}
        for name, layer in self.items():
            found[name] = xs = [layer(x) for x in xs]
        return found


class Everything(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        total = sum(p.abs().sum() for p in self.parameters())
        return [self.single(x) * total for x in xs]


class Device(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        dtype = next(p.dtype for p in self.parameters())
        return [self.single(x).to(dtype).to(next(self.parameters()).device) for x in xs]


class Iterable(nn.Module):
    """Iterates in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = unit()

    def __iter__(self) -> Iterator[Any]:
        return iter([self.first[0].weight])


class Custom(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.own = Iterable()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) * sum(weight.sum() for weight in self.own) for x in xs]


class Registry(dict[str, Any]):
    """By the class of a module; or it keeps the module itself."""

    def get(self, module: nn.Module) -> Any:  # type: ignore[override]
        return super().get(str(module.__class__)) or 1

    def remember(self, module: nn.Module) -> None:
        self["last"] = module


REGISTRY = Registry()


class AsksARegistry(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) * REGISTRY.get(self) for x in xs]


class TellsARegistry(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        REGISTRY.remember(self.single)
        return [self.single(x) for x in xs]


class KeysByAModule(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        REGISTRY[self.single] = 1  # type: ignore[index]
        return [self.single(x) for x in xs]


class Deletes(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        first, other = self.units[0], self.single
        ys = [first(x) + other(x) for x in xs]
        del first, other
        return ys


class Nests(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        def both(x: Tensor) -> Tensor:
            y = self.single(x)
            return y + self.units[0](x)

        return [both(x) for x in xs]


class NestsAGetter(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        def part() -> nn.Module:
            return self.block

        return [part()(x) for x in xs]


class Negates(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return xs if not self.limit else [self.single(x) for x in xs]


class Filters(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for x in xs if (layer := self.single) is not None]


class Falls(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        layer = getattr(self, "extra", self.single)
        return [layer(x) for x in xs]


class FindsByName(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for name in ("single", "block"):
            xs = [getattr(self, name)(x) for x in xs]
        return xs


class Head(Parts):
    @property
    def head(self) -> Any:
        return self.single

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.head(x) for x in xs]


class Runner(nn.Module):
    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)


class Hands(Parts):
    """Gives one part to another."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = Runner()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.runner(self.single, x) for x in xs]


class Opens(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        modules: Any = self.units._modules
        for layer in modules.values():
            xs = [layer(x) for x in xs]
        return xs


class Binds(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        halved = self.block.halved
        return [halved(x) for x in xs]


class Caches(Parts):
    @functools.cached_property
    def scale(self) -> Any:
        return self.get_parameter("single.0.weight").abs().mean()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) * self.scale for x in xs]


class Forwards(Parts):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single.forward(x) for x in xs]


class HeadInC(Parts):
    """Its property is written in C."""

    head: Any = property(operator.attrgetter("single"))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        head: Any = self.head
        return [head(x) * head[0].weight.sum() for x in xs]


class Inherits(Above):
    """Its `super()` is written in the class above."""


class AboveADecorator(Looks):
    @announced
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.single(x) for x in super().forward(xs)]


class Collects(Parts):
    def run(self, xs: list[Tensor], **parts: nn.Module) -> list[Tensor]:
        return [parts["layer"](x) for x in xs]

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return self.run(xs, layer=self.single)


UNTOUCHED = ["block", "named", "single"]
CASES: dict[str, tuple[Build, list[str]]] = {
    "iterated": (Iterates, ["units.0", "units.1", *UNTOUCHED]),
    "zipped and counted": (Zips, ["units.0", "units.1", "named.a", "named.b", "block", "single"]),
    "by name and by index": (Names, ["units.0", "units.1", "named.a", "named.b", "block", "single"]),
    "kept in dicts, lists and arguments": (Keeps, ["units.0", "units.1", "named.a", "named.b", "block", "single"]),
    "a method of it is called": (Reads, ["units", "named", "block.body", "single"]),
    "a number of it is read": (Asks, ["units", *UNTOUCHED]),
    "weights of a part are read": (Looks, ["units.0.1", "units.0.2", "units.1", *UNTOUCHED]),
    "passed to functions": (Passes, ["units.1", "block", "named", "single"]),
    "behind a decorator": (Decorated, ["units", *UNTOUCHED]),
    "with functions for attributes": (lambda: Activated(False), ["units", *UNTOUCHED]),
    "with a function that knows it": (lambda: Activated(True), []),
    "called later": (Later, ["units", *UNTOUCHED]),
    "by way of a method above": (Above, ["units.0.1", "units.0.2", "units.1", *UNTOUCHED]),
    "asked by a getter": (Getters, []),
    "a container of its own": (lambda: Container({"a": unit(), "b": unit()}), ["a", "b"]),
    "all parameters are read": (Everything, []),
    "dtype and device of parameters are asked": (Device, ["units", *UNTOUCHED]),
    "an object that looks at its class": (AsksARegistry, ["units", *UNTOUCHED]),
    "an object that keeps a part": (TellsARegistry, ["units", "block", "named"]),
    "a part as a key": (KeysByAModule, ["units", "block", "named"]),
    "iterated in a way of its own": (Custom, ["units", *UNTOUCHED]),
    "deleted in the end": (Deletes, ["units.0", "units.1", *UNTOUCHED]),
    "called by a function inside": (Nests, ["units.0", "units.1", *UNTOUCHED]),
    "returned by a function inside": (NestsAGetter, ["units", "named", "single"]),
    "behind a `not`": (Negates, ["units", *UNTOUCHED]),
    "named in a condition": (Filters, ["units", *UNTOUCHED]),
    "where there is no other one": (Falls, ["units", *UNTOUCHED]),
    "found by a name": (FindsByName, ["units", *UNTOUCHED]),
    "a property that is called": (Head, ["units", *UNTOUCHED]),
    "given to another part": (Hands, ["units", *UNTOUCHED]),
    "in the table of torch": (Opens, ["units.0", "units.1", *UNTOUCHED]),
    "a method of it is passed on": (Binds, ["units", "named", "block.body", "single"]),
    "what a property remembers": (Caches, []),
    "its forward is called": (Forwards, ["units", "block", "named", "single.0", "single.1", "single.2"]),
    "a property nobody can read": (HeadInC, []),
    "by way of a method above that is inherited": (Inherits, ["units.0.1", "units.0.2", "units.1", *UNTOUCHED]),
    "by way of a method above, behind a decorator": (AboveADecorator, []),
    "collected by name": (Collects, ["units", *UNTOUCHED]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_only_called_is_exchanged(name: str) -> None:
    build, expected = CASES[name]
    assert sorted(path for path, _ in exchangeable_children(made(build))) == sorted(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_stays_python_computes_what_it_did(name: str) -> None:
    model = made(CASES[name][0])
    before = state_of(model)
    fused = fuse(model)
    assert_untouched(model, before)
    for seed, size in ((0, 7), (1, 10)):
        xs = [image(2, 4, size, size + 1, seed=seed), image(1, 4, size, 5, seed=seed + 2)]
        assert_close(fused(list(xs)), model(list(xs)))
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) or not CASES[name][1]
    assert isinstance(fused, type(model))


def test_a_part_that_is_exchanged_keeps_its_numbers() -> None:
    fused: Any = fuse(made(Asks))
    assert type(fused.block) is not Block
    assert fused.block.source == -1


def test_a_hook_that_looks_into_the_module_counts() -> None:
    def watch(module: Any, args: Any, output: Any) -> None:
        assert module.units[0][0].weight.dim() == 4

    model = made(Iterates)
    model.register_forward_hook(watch)
    fused = fuse(model)
    x = image(1, 4, 6, 6)
    assert_close(fused([x]), model([x]))


def test_a_shared_part_stays() -> None:
    class Shares(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.again = self.single

        def forward(self, xs: list[Tensor]) -> list[Tensor]:
            return [self.single(x) + self.again(x) for x in xs]

    assert {"single", "again"}.isdisjoint(path for path, _ in exchangeable_children(Shares()))


def test_an_object_that_knows_the_module_may_look_into_it() -> None:
    class Helper:
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def scale(self) -> Tensor:
            return torch.stack([p.sum() for p in self.model.parameters()]).sum()

    class Helped(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.helper = Helper(self)

        def forward(self, xs: list[Tensor]) -> list[Tensor]:
            return [self.single(x) * self.helper.scale() for x in xs]

    assert not list(exchangeable_children(Helped()))
