"""A fused model whose graph is one way of calling it, and the model itself for the other ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx, nn

from repcompile.copies import duplicate


class Way(Protocol):
    """One way of calling a model."""

    @property
    def only_one(self) -> bool:
        """Whether there is no other way of calling it."""
        ...

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The inputs of the graph in a call, None if it is a call of another kind."""
        ...

    def fits(self, module: nn.Module) -> bool:
        """Whether the weights are still such that the graph is right."""
        ...

    def result(self, values: Any) -> Any:
        """What the model returns where the graph returns `values`."""
        ...


class Specialized(fx.GraphModule):
    """Runs its graph when it is called as `arguments` says, and `otherwise` when it is called in another way.

    otherwise: a copy of the model that was fused.
    """

    if TYPE_CHECKING:  # torch.jit.script reads what else is annotated here
        arguments: Way
        otherwise: nn.Module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = self.arguments.values(args, kwargs)
        if values is None or not self.arguments.fits(self):
            return self.otherwise(*args, **kwargs)
        return self.arguments.result(super().__call__(*values))

    def __deepcopy__(self, memo: dict[int, Any]) -> Specialized:
        result: Any = super().__deepcopy__(memo)
        result.arguments, result.otherwise = self.arguments, copy.deepcopy(self.otherwise, memo)
        return result

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored, (super().__reduce__(), self.arguments, self.otherwise)


def specialized(fused: fx.GraphModule, model: nn.Module, arguments: Way) -> fx.GraphModule:
    """`fused`, which may be called in every way in which `model` may be; a copy of `model` answers the other calls.

    The copy shares the parameters that fusing left alone.
    """
    return fused if arguments.only_one else standing_in(fused, duplicate(model), arguments)


def standing_in(fused: fx.GraphModule, otherwise: nn.Module, arguments: Way) -> fx.GraphModule:
    """`fused` for calls as `arguments` says, and `otherwise`, which is taken over, for the other ones."""
    _share(otherwise, fused)
    return _made(fused, arguments, otherwise)


def _made(module: fx.GraphModule, arguments: Way, otherwise: nn.Module) -> Specialized:
    """The same module with another class."""
    result = Specialized.__new__(Specialized)
    vars(result).update(vars(module))
    type(result).__name__ = type(module).__name__
    result.recompile()
    result.arguments, result.otherwise = arguments, otherwise
    return result


def _restored(reduced: tuple[Any, ...], arguments: Way, otherwise: nn.Module) -> Specialized:
    return _made(reduced[0](*reduced[1]), arguments, otherwise)


def _share(model: nn.Module, fused: nn.Module) -> None:
    """Use the parameters of `fused` where they are equal and have the same name."""
    twins = dict(fused.named_parameters())
    for path, parameter in list(model.named_parameters()):
        twin = twins.get(path)
        if twin is not None and twin.dtype == parameter.dtype and torch.equal(twin, parameter):
            owner, _, field = path.rpartition(".")
            model.get_submodule(owner)._parameters[field] = twin
