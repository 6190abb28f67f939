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
    starred: name of `*args`, if there is one.  extra: how many of the inputs, the last ones, it holds.
    optional: the inputs that a call may leave out; the graph is for calls that give them, with tensors.
    tensors: inputs that the graph takes for tensors, because the forward has asked; other calls give something else.
    containers: inputs that hold tensors, as the example shows.
    given: inputs that are not None, because the model compares something with None.
    closed: whether the forward takes no `**kwargs`, which are empty in this call.
    """

    positions: tuple[str, ...]
    inputs: tuple[str, ...]
    fixed: Mapping[str, Any]
    starred: str | None = None
    optional: tuple[str, ...] = ()
    extra: int = 0
    closed: bool = True
    tensors: frozenset[str] = frozenset()
    containers: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()

    @property
    def only_one(self) -> bool:
        """Whether there is no other way of calling the model."""
        others = self.fixed or self.optional or self.tensors or self.given
        return not others and self.starred is None and self.closed

    def call(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """(args, kwargs) of this call, with `values` for the inputs."""
        everything = {**self.fixed, **dict(zip(self.inputs, values, strict=True))}
        names = (*self.positions, *self.inputs[len(self.inputs) - self.extra :])
        return [everything.pop(name) for name in names], everything

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """What the inputs are in a call, None if it is a call of another kind."""
        known = {*self.inputs, *self.fixed}
        twice = any(name in kwargs for name in self.positions[: len(args)])
        names = (*self.positions, *self.inputs[len(self.inputs) - self.extra :])
        if twice or len(args) > len(names) or not all(name in known for name in kwargs):
            return None
        given = {**self.fixed, **dict(zip(names, args, strict=False)), **kwargs}
        if not all(name in given for name in self.inputs):
            return None
        same = all(same_value(given[name], value) for name, value in self.fixed.items())
        alike = same and all(_holds_tensor(given[name]) for name in self.optional)
        alike = alike and all(isinstance(given[name], Tensor) for name in self.tensors)
        alike = alike and all(given[name] is not None for name in self.given)
        return [given[name] for name in self.inputs] if alike else None

    @property
    def rearranges(self) -> None:
        """A traced graph takes the model's arguments, and returns what the model does."""
        return None

    def fits(self, module: nn.Module) -> bool:
        """A traced graph is right for all weights."""
        return True

    def result(self, values: Any) -> Any:
        """A traced graph returns what the model does."""
        return values


def arguments_of(name: str, forward: Callable[..., Any], examples: Sequence[Any] | None = None) -> Arguments:
    """The call with every argument that has no default, or the one that `examples`, by position, show.

    Arguments that are left out have their default; what is no tensor is fixed to what it is. A model that can be called
    without arguments is taken to be called with a tensor for the first.
    Raises ModelError if `forward` cannot be called with `examples`, Untraceable if it names no argument.
    """
    parameters = inspect.signature(forward).parameters.values()
    named = [p for p in parameters if p.kind not in VARIABLE]
    starred = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)
    positions = tuple(p.name for p in named if p.kind in NAMED)
    closed = all(p.kind is not p.VAR_KEYWORD for p in parameters)
    more = _starred(starred, positions, examples)
    given = dict(zip(positions, _checked(name, named, positions, examples, starred), strict=False))
    inputs = tuple(p.name for p in named if _is_input(p, given))
    inputs = (*inputs, *more) or _likely(positions, named, examples)
    if not inputs:
        raise Untraceable("it takes no argument by name; example_inputs tell how it is called")
    fixed = {p.name: given.get(p.name, p.default) for p in named if p.name not in inputs}
    optional = tuple(p.name for p in named if p.name in inputs and p.default is not p.empty)
    containers = frozenset(n for n in inputs if n in given and not isinstance(given[n], Tensor))
    return Arguments(positions, inputs, fixed, starred, optional, len(more), closed, containers=containers)


def _is_input(parameter: inspect.Parameter, given: Mapping[str, Any]) -> bool:
    """Whether it holds tensors, or nobody knows what it holds: an argument without a default and without an example."""
    if parameter.name in given or parameter.default is not parameter.empty:
        return _holds_tensor(given.get(parameter.name))
    return True


def _starred(starred: str | None, positions: Sequence[str], examples: Sequence[Any] | None) -> tuple[str, ...]:
    """Names for what `*args` holds: as many as in the examples; one, if there is no other argument and no example."""
    if starred is None or (examples is None and positions):
        return ()
    given = 1 if examples is None else len(examples) - len(positions)
    return tuple(f"{starred}_{place}" for place in range(given))


def _likely(
    positions: Sequence[str], named: Sequence[inspect.Parameter], examples: Sequence[Any] | None
) -> tuple[str, ...]:
    """The first parameter, where all have defaults and nothing says how the model is called."""
    optional = examples is None and positions and all(p.default is None for p in named if p.name == positions[0])
    return tuple(positions[:1]) if optional else ()


def _checked(
    name: str,
    named: Sequence[inspect.Parameter],
    positions: Sequence[str],
    examples: Sequence[Any] | None,
    starred: str | None,
) -> Sequence[Any]:
    if examples is None:
        return ()
    if not isinstance(examples, tuple | list):
        raise ModelError(f"example_inputs is a tuple of positional arguments, (x,); got {type(examples).__name__}")
    required = [p.name for p in named if p.default is p.empty]
    missing = set(required) - set(positions[: len(examples)])
    if missing or (len(examples) > len(positions) and starred is None):
        raise ModelError(f"{name}.forward takes {len(required)} required arguments; example_inputs has {len(examples)}")
    return examples


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def same_value(value: Any, fixed: Any) -> bool:
    """Whether a forward could not tell one from the other."""
    return value is fixed or (type(value) is type(fixed) and isinstance(value, int | float | str) and value == fixed)
