"""How a model is called: which arguments are inputs of its graph, and what the others are fixed to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repcompile.errors import ModelError, Untraceable

NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Arguments:
    """One way of calling a forward.

    positions: names of the parameters that may be given by position, in order.
    inputs: names of the parameters that are the graph's inputs.  fixed: value of every other one.
    starred: name of `*args`, if there is one; it is empty.
    optional: the inputs that a call may leave out; the graph is for calls that give them, with tensors.
    """

    positions: tuple[str, ...]
    inputs: tuple[str, ...]
    fixed: Mapping[str, Any]
    starred: str | None = None
    optional: tuple[str, ...] = ()

    @property
    def only_one(self) -> bool:
        """Whether there is no other way of calling the model."""
        return not self.fixed and not self.optional and self.starred is None

    def call(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """(args, kwargs) of this call, with `values` for the inputs."""
        everything = {**self.fixed, **dict(zip(self.inputs, values, strict=True))}
        return [everything.pop(name) for name in self.positions], everything

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """What the inputs are in a call, None if it is a call of another kind."""
        known = {*self.inputs, *self.fixed}
        twice = any(name in kwargs for name in self.positions[: len(args)])
        if twice or len(args) > len(self.positions) or not all(name in known for name in kwargs):
            return None
        given = {**self.fixed, **dict(zip(self.positions, args, strict=False)), **kwargs}
        if not all(name in given for name in self.inputs):
            return None
        same = all(same_value(given[name], value) for name, value in self.fixed.items())
        alike = same and all(_holds_tensor(given[name]) for name in self.optional)
        return [given[name] for name in self.inputs] if alike else None

    def fits(self, module: nn.Module) -> bool:
        """A traced graph is right for all weights."""
        return True

    def result(self, values: Any) -> Any:
        """A traced graph returns what the model does."""
        return values


def arguments_of(name: str, forward: Callable[..., Any], examples: Sequence[Any] | None = None) -> Arguments:
    """The call with every argument that has no default, or the one that `examples`, by position, show.

    Arguments that are left out have their default; what is no tensor is fixed to what it is.
    Raises ModelError if `forward` cannot be called with `examples`, Untraceable if it names no argument.
    """
    parameters = inspect.signature(forward).parameters.values()
    named = [p for p in parameters if p.kind not in VARIABLE]
    starred = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)
    positions = tuple(p.name for p in named if p.kind in NAMED)
    if examples is not None and starred is not None and len(examples) > len(positions):
        raise Untraceable(f"it takes any number of arguments (*{starred})")
    given = dict(zip(positions, _checked(name, named, positions, examples), strict=False))
    inputs = tuple(p.name for p in named if p.default is p.empty or _holds_tensor(given.get(p.name)))
    if not inputs:
        raise Untraceable("it can be called without arguments; example_inputs tell how it is")
    fixed = {p.name: given.get(p.name, p.default) for p in named if p.name not in inputs}
    optional = tuple(p.name for p in named if p.name in inputs and p.default is not p.empty)
    return Arguments(positions, inputs, fixed, starred, optional)


def _checked(
    name: str, named: Sequence[inspect.Parameter], positions: Sequence[str], examples: Sequence[Any] | None
) -> Sequence[Any]:
    if examples is None:
        return ()
    if not isinstance(examples, tuple | list):
        raise ModelError(f"example_inputs is a tuple of positional arguments, (x,); got {type(examples).__name__}")
    required = [p.name for p in named if p.default is p.empty]
    missing = set(required) - set(positions[: len(examples)])
    if missing or len(examples) > len(positions):
        raise ModelError(f"{name}.forward takes {len(required)} required arguments; example_inputs has {len(examples)}")
    return examples


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def same_value(value: Any, fixed: Any) -> bool:
    """Whether a forward could not tell one from the other."""
    return value is fixed or (type(value) is type(fixed) and isinstance(value, int | float | str) and value == fixed)
