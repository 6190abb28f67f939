"""Copies of the user's modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repcompile.errors import ModelError

_TAKEN = frozenset((*vars(nn.Module()), *dir(fx.GraphModule)))  # names that a graph module needs for itself
TABLES = ("_parameters", "_buffers", "_modules")
M = TypeVar("M", bound=nn.Module)


def duplicate(module: M, memo: dict[int, Any] | None = None) -> M:
    """A copy that shares nothing.  memo: as of `copy.deepcopy`, for copies that belong together.

    Tensors that a forward left behind are copied without their history, which deepcopy refuses.
    Raises ModelError if something in it cannot be copied.
    """
    memo = {} if memo is None else memo
    for tensor in _computed(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # the user's own __deepcopy__ or attributes
        raise ModelError(f"{type(module).__name__} cannot be copied ({error}), so it cannot be compiled") from error


def structure_of(module: M) -> M:
    """A copy of the modules that shares every tensor."""
    tensors = (*module.parameters(), *module.buffers(), *_computed(module))
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers, texts and the like that a module has, and that another one may have in its place."""
    return {name: value for name, value in vars(module).items() if _is_plain(value) and name not in _TAKEN}


def _is_plain(value: Any) -> bool:
    """Whether nobody can change it."""
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def copied(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, with tensors of their own."""
    return pytree.tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, list(inputs))


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a history among the plain attributes of all modules."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in TABLES or not isinstance(value, Tensor | list | tuple | dict):
                continue
            leaves = pytree.tree_leaves(value)
            yield from (leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf)
