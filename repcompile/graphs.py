"""The class of fused models: torch.fx's graph module, with attributes that its copies have too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, fx

from repcompile.classes import HOOK_TABLES, hooks_of, move_hooks

M = TypeVar("M", bound="Fused")


class Fused(fx.GraphModule):
    """A graph module that keeps attributes that no node of its graph names, and tensors that it does not register."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        result = super().__deepcopy__(memo)
        move_hooks(self, result)
        given_back(result, {name: copy.deepcopy(value, memo) for name, value in _unregistered(self).items()})
        return result

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        hooks = {name: vars(self)[name] for name in HOOK_TABLES} if hooks_of(self) else {}
        return _restored, (super().__reduce__(), {**_unregistered(self), **hooks})


def of_class(cls: type[M], module: fx.GraphModule) -> M:
    """The same module with another class."""
    result = cls.__new__(cls)
    vars(result).update(vars(module))
    type(result).__name__ = type(module).__name__
    result.recompile()
    return result


def given_back(module: fx.GraphModule, attributes: Mapping[str, Any]) -> None:
    """Give the module plain attributes, tensors of its graph among them that are no buffers."""
    for name, value in attributes.items():
        module._buffers.pop(name, None)
        vars(module)[name] = value


def _unregistered(module: fx.GraphModule) -> dict[str, Any]:
    tensors = {name for name, value in vars(module).items() if isinstance(value, Tensor)}
    return {
        name: vars(module)[name] for name in (*vars(module).get(KEEPS, ()), *tensors, KEEPS) if name in vars(module)
    }


KEEPS = "_keeps"  # names of attributes that copies have too


def keep(module: Fused, attributes: Mapping[str, Any]) -> None:
    """Let the module and its copies have these attributes, where it has none of these names."""
    free = {name: value for name, value in attributes.items() if not hasattr(module, name)}
    vars(module).update(free, **{KEEPS: (*vars(module).get(KEEPS, ()), *free)})


def _restored(reduced: tuple[Any, ...], attributes: Mapping[str, Any]) -> Fused:
    module = of_class(Fused, reduced[0](*reduced[1]))
    given_back(module, attributes)
    return module
