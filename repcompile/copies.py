"""Copies of the user's modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repcompile.errors import ModelError

_TAKEN = frozenset((*vars(nn.Module()), *dir(fx.GraphModule)))  # names that a graph module needs for itself
TABLES = ("_parameters", "_buffers", "_modules")
CONTAINERS = (Tensor, list, tuple, dict)
PLAIN = (bool, int, float, str, bytes, type(None))
M = TypeVar("M", bound=nn.Module)


def duplicate(module: M, memo: dict[int, Any] | None = None) -> M:
    """A copy that shares nothing.  memo: as of `copy.deepcopy`, for copies that belong together.

    Tensors that a forward left behind are copied without their history, which deepcopy refuses.
    Raises ModelError if something in it cannot be copied.
    """
    memo = {} if memo is None else memo
    for tensor in _computed(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    _copy_empty_tables(module, memo)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # the user's own __deepcopy__ or attributes
        raise ModelError(f"{type(module).__name__} cannot be copied ({error}), so it cannot be compiled") from error


def structure_of(module: M) -> M:
    """A copy of the modules that shares every tensor."""
    tensors = (*module.parameters(), *module.buffers(), *_computed(module))
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    for part in module.modules():
        tables = (part._parameters, part._buffers)
        memo.update({id(table): table.copy() for table in tables if type(table) in (dict, OrderedDict)})
    _copy_empty_tables(module, memo)
    return copy.deepcopy(module, memo)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    """Whether two copies of a module hold equal tensors and equal plain attributes, all the way down."""
    pairs = list(zip(left.modules(), right.modules(), strict=False))
    if len(pairs) != sum(1 for _ in left.modules()) or len(pairs) != sum(1 for _ in right.modules()):
        return False
    return all(_same_attributes(vars(a), vars(b)) and _same_tensors(a, b) for a, b in pairs)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers, texts and the like that a module has, and that another one may have in its place."""
    return {name: value for name, value in vars(module).items() if is_plain(value) and name not in _TAKEN}


def is_plain(value: Any) -> bool:
    """Whether nobody can change it."""
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def copied(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, with tensors of their own."""
    return pytree.tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, list(inputs))


def is_empty_table(value: Any) -> bool:
    """What every module has a dozen of, hooks above all."""
    return type(value) in (dict, OrderedDict) and not value


def _copy_empty_tables(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copies of the empty tables, for which deepcopy takes ten times as long."""
    for module in model.modules():
        for value in vars(module).values():
            if is_empty_table(value):
                memo.setdefault(id(value), type(value)())


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a history among the plain attributes of all modules."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in TABLES or not isinstance(value, CONTAINERS):
                continue
            leaves = (value,) if isinstance(value, Tensor) else pytree.tree_leaves(value) if value else ()
            yield from (leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf)


def _same_tensors(left: nn.Module, right: nn.Module) -> bool:
    tables = [{**module._parameters, **module._buffers} for module in (left, right)]
    return tables[0].keys() == tables[1].keys() and all(
        _same(tensor, tables[1][name]) for name, tensor in tables[0].items()
    )


def _same_attributes(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Of the kinds that can be compared; an attribute that came or went tells too."""
    names = [name for name in left if name not in TABLES]
    if {*names} != {name for name in right if name not in TABLES}:
        return False
    return all(_same(left[name], right[name]) for name in names)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple | list):
        alike = type(left) is type(right) and len(left) == len(right)
        return alike and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return not isinstance(left, PLAIN) or left == right
    alike = left.shape == right.shape and left.dtype == right.dtype
    return alike and torch.allclose(left, right, rtol=0.0, atol=0.0, equal_nan=True)
