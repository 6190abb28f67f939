"""When a program that torch.export made is the answer to a call: its structure, its kinds, and its guards.

torch.export follows one run. What the run took for granted of sizes it tells (its guards); everything else that Python
could have asked is compared here: which arguments are given, their ranks, what is no tensor, which are one tensor.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.utils import _pytree as pytree

from repcompile.arguments import same_value

Sizes = Sequence[Sequence[int]]
Kind = tuple[torch.dtype, torch.device]
SIZE = re.compile(r"n\[(\d+)\]\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Signature:
    """How arguments are matched to parameters.

    positions, keywords: names of the parameters that may, and may not, be given by position.
    defaults: of those that have one.  starred, rest: names of `*args` and `**kwargs`, where there are some.
    """

    positions: tuple[str, ...]
    keywords: tuple[str, ...]
    defaults: Mapping[str, Any]
    starred: str | None
    rest: str | None

    def arranged(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The call with every parameter in its place, whether it was given or not; None if it is no call."""
        given = dict(zip(self.positions, args, strict=False))
        extra = tuple(args[len(self.positions) :])
        if (extra and self.starred is None) or any(name in given for name in kwargs):
            return None
        given = {**self.defaults, **given, **kwargs}
        if not all(name in given for name in (*self.positions, *self.keywords)):
            return None
        first = tuple(given.pop(name) for name in self.positions)
        return (*first, *extra), dict(sorted(given.items()))

    def spelt(self) -> inspect.Signature:
        """The parameters as Python has them."""
        parameter = inspect.Parameter
        kinds = {
            **dict.fromkeys(self.positions, parameter.POSITIONAL_OR_KEYWORD),
            **dict.fromkeys([self.starred] if self.starred else [], parameter.VAR_POSITIONAL),
            **dict.fromkeys(self.keywords, parameter.KEYWORD_ONLY),
            **dict.fromkeys([self.rest] if self.rest else [], parameter.VAR_KEYWORD),
        }
        defaults = {name: self.defaults.get(name, parameter.empty) for name in kinds}
        return inspect.Signature([parameter(name, kind, default=defaults[name]) for name, kind in kinds.items()])


def signature_of(forward: Callable[..., Any]) -> Signature:
    parameters = inspect.signature(forward).parameters.values()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Signature(
        tuple(p.name for p in parameters if p.kind in by_position),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        {p.name: p.default for p in parameters if p.default is not p.empty},
        next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None),
        next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None),
    )


@dataclass(frozen=True, slots=True)
class Leaf:
    """One of the values that a call consists of.

    number: of the program's input that it is, None if it is fixed.  rank: of a tensor, None for an integer.
    fixed: what it has to be, if it is no input.
    """

    number: int | None = None
    rank: int | None = None
    fixed: Any = None

    def takes(self, value: Any) -> bool:
        if self.number is None:
            return same_value(value, self.fixed)
        if self.rank is None:
            return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
        return isinstance(value, Tensor) and value.dim() == self.rank and value.layout is torch.strided


@dataclass(frozen=True, slots=True)
class Conditions:
    """The calls that a program answers.

    signature, spec, leaves: the structure of their arguments.
    guards: what must be true of `n[i][j]`, the size of axis j of input i (`n[i][0]` of an integer is the integer).
    ones: which sizes may be 1 at a time, as (input, axis); torch.export is careless there, so that these were compared.
    kinds: dtype and device of each input that is a tensor, None if the program is the same for all.
    weights: dtypes and devices of the weights, if `kinds` matters.
    outputs, structure: how the result is made of what the program returns: numbers of its outputs, or a constant.
    """

    signature: Signature
    spec: Any
    leaves: tuple[Leaf, ...]
    guards: tuple[str, ...]
    ones: frozenset[frozenset[tuple[int, int]]]
    kinds: tuple[Kind | None, ...] | None
    weights: frozenset[Kind]
    outputs: tuple[Leaf, ...]
    structure: Any

    @property
    def only_one(self) -> bool:
        """There are always calls that torch.export did not follow."""
        return False

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The program's inputs in a call, None if it does not answer it."""
        inputs = self.inputs(args, kwargs)
        if inputs is None or not self.allows(sizes_of(inputs)):
            return None
        return inputs if ones_in(sizes_of(inputs)) in self.ones else None

    def inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The program's inputs in a call of the right structure, whatever their sizes."""
        arranged = self.signature.arranged(args, kwargs)
        if arranged is None:
            return None
        leaves, spec = pytree.tree_flatten(arranged)
        if spec != self.spec or not all(map(Leaf.takes, self.leaves, leaves)):
            return None
        found: dict[int, Any] = {}
        for leaf, value in zip(self.leaves, leaves, strict=True):
            if leaf.number is not None and found.setdefault(leaf.number, value) is not value:
                return None
        inputs = [found[number] for number in range(len(found))]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        distinct = len(set(map(id, tensors))) == len(tensors)
        return inputs if distinct and (self.kinds is None or kinds_of(inputs) == self.kinds) else None

    def allows(self, sizes: Sizes) -> bool:
        """Whether the guards hold and nothing is empty."""
        if not all(size for shape in sizes for size in shape):
            return False
        try:
            return all(condition(guard)(sizes) for guard in self.guards)
        except ArithmeticError:  # a quotient by zero: not a size that the run could have had
            return False

    @property
    def rearranges(self) -> inspect.Signature:
        """A program takes and returns the leaves of what the module does."""
        return self.signature.spelt()

    def fits(self, module: nn.Module) -> bool:
        """Whether the weights are of the kind that the program was made for."""
        return self.kinds is None or weights_of(module) <= self.weights

    def result(self, values: Sequence[Any]) -> Any:
        """What the module returns, from what the program does."""
        leaves = [leaf.fixed if leaf.number is None else values[leaf.number] for leaf in self.outputs]
        return pytree.tree_unflatten(leaves, self.structure)


def sizes_of(inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    sizes = [tuple(value.shape) if isinstance(value, Tensor) else (value,) for value in inputs]
    return [tuple(map(int, shape)) for shape in sizes] if is_tracing() else sizes  # tensors, where it traces


def ones_in(sizes: Sizes) -> frozenset[tuple[int, int]]:
    """Where the sizes are 1, as (input, axis)."""
    return frozenset((i, axis) for i, shape in enumerate(sizes) for axis, size in enumerate(shape) if size == 1)


def kinds_of(inputs: Sequence[Any]) -> tuple[Kind | None, ...]:
    return tuple((value.dtype, value.device) if isinstance(value, Tensor) else None for value in inputs)


def weights_of(module: nn.Module) -> frozenset[Kind]:
    return frozenset((tensor.dtype, tensor.device) for tensor in (*module.parameters(), *module.buffers()))


@cache
def condition(guard: str) -> Callable[[Sizes], bool]:
    """A guard as a function of the sizes."""
    return eval(f"lambda n: {guard}", {"math": math, "torch": torch})  # torch.export wrote it


def in_words(guard: str) -> str:
    """A guard as one would write it."""
    return SIZE.sub(r"input\1.shape[\2]", guard)
