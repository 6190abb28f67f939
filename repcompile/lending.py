"""Copies of the user's modules without weights of their own: a weight is copied when it is read, and dropped after use.

Given: a module.  Result: one that computes the same, in the dtype that it is brought to, and holds next to nothing. A
whole copy in float64 takes twice the memory of a model in float32; this one takes what one operator's weights take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repcompile.copies import TABLES, duplicate
from repcompile.errors import ModelError
from repcompile.heap import allocated

Convert = Callable[[nn.Module], nn.Module]  # changes dtypes, as `nn.Module.double` does
Change = Callable[[Tensor, int], None]  # of a tensor, in place; and its number among the parameters, then the buffers


def as_it_is(module: nn.Module) -> nn.Module:
    """No conversion."""
    return module


def unchanged(tensor: Tensor, number: int) -> None:
    """No change."""


def whole_copy(module: nn.Module, convert: Convert = as_it_is, change: Change = unchanged) -> nn.Module:
    """A copy that shares nothing with `module`: `convert`ed, and each of its tensors `change`d."""
    copy = convert(duplicate(module))
    with torch.no_grad():
        for number, tensor in enumerate((*copy.parameters(), *copy.buffers())):
            change(tensor, number)
    return copy


def lent_copy(
    module: nn.Module,
    convert: Convert = as_it_is,
    change: Change = unchanged,
    memo: dict[int, Any] | None = None,
) -> nn.Module:
    """The same, but whoever reads one of its parameters gets a new copy of it.

    memo: as of `duplicate`; no parameter is put into it.
    What a forward writes to a parameter is lost; buffers and attributes are its own, and remember.
    Raises ModelError if not every parameter is read by its name.
    """
    weights = list(module.parameters())
    _require_read_by_name(module, weights)
    memo = {} if memo is None else memo
    empty = {id(weight): _empty(weight) for weight in weights if id(weight) not in memo}
    memo.update(empty)
    numbers = {id(weight): number for number, weight in enumerate(weights)}
    copy = convert(duplicate(module, memo))
    for key in empty:
        del memo[key]
    parts = dict(copy.named_modules())
    for path, part in module.named_modules():
        if isinstance(parts[path]._parameters, _Lender):  # copied before, with another module
            continue
        lender = _Lender(parts[path]._parameters, change)
        for name, weight in part._parameters.items():
            if weight is not None:
                lender.sources[name] = (weight, numbers[id(weight)])
        parts[path].__dict__["_parameters"] = lender
    with torch.no_grad():
        for number, buffer in enumerate(copy.buffers(), start=len(weights)):
            change(buffer, number)
    return copy


class _Lender(dict[str, Any]):
    """A module's parameters, by name; those of `sources` are copied whenever they are read.

    The entries proper are empty, and say in which dtype and where the copies shall be.
    """

    def __init__(self, empty: Mapping[str, Tensor | None], change: Change) -> None:
        super().__init__(empty)
        self.sources: dict[str, tuple[Tensor, int]] = {}
        self.change = change

    def __getitem__(self, name: str) -> Any:
        like = super().__getitem__(name)
        if name not in self.sources:
            return like
        weight, number = self.sources[name]
        copy = weight.detach().to(like.device, like.dtype, copy=True)
        allocated(copy.nbytes)
        with torch.no_grad():
            self.change(copy, number)
        return nn.Parameter(copy, requires_grad=like.requires_grad)

    def __setitem__(self, name: str, value: Any) -> None:
        self.sources.pop(name, None)
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.keys() else default

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        return (self[name] for name in self)


def _empty(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().new_empty(0), requires_grad=weight.requires_grad)


def _require_read_by_name(module: nn.Module, weights: list[nn.Parameter]) -> None:
    """Raises ModelError where somebody else has a parameter too, or it is more than a tensor."""
    known = set(map(id, weights))
    held = any(id(value) in known for part in module.modules() for value in _attributes(part))
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())
    if held or scripted or any(type(weight) is not nn.Parameter for weight in weights):
        raise ModelError(f"{type(module).__name__} has parameters that are not read by their names")


def _attributes(module: nn.Module) -> Iterator[Any]:
    """What is inside a module's plain attributes."""
    for name, value in vars(module).items():
        if name not in TABLES:
            yield from pytree.tree_leaves(value)
