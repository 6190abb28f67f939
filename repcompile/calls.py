"""Calls of modules: recorded inside a run of the model, and repeated at other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repcompile.copies import duplicate
from repcompile.noise import SameNoise
from repcompile.wrappers import own_call

STEPS = (32, 64)  # by which an image grows along its two sides: a multiple of what most networks divide sizes by


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def copied(self) -> Call:
        """The same arguments with tensors of their own; what was one tensor stays one."""
        return self.mapped(lambda tensor: tensor.detach().clone())

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with every tensor changed, once for each tensor."""
        done: dict[int, Tensor] = {}

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) not in done:
                done[id(value)] = change(value)
            return done[id(value)] if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(changed, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]


@dataclass(frozen=True, slots=True)
class Calls:
    """What is known of how a module is called.

    given: by the user, or in the course of what the user gave.  others: the same at other sizes; None if nobody tried.
    """

    given: tuple[Call, ...] = ()
    others: tuple[Call, ...] | None = None

    @property
    def all(self) -> tuple[Call, ...]:
        return (*self.given, *(self.others or ()))

    @property
    def first(self) -> Call | None:
        return self.given[0] if self.given else None

    def at_other_sizes(self, model: nn.Module) -> Calls:
        """The same calls, and those that `model` takes at other sizes."""
        if self.others is not None or not self.given:
            return self
        return Calls(self.given, tuple(call for call in _varied(self.given[0]) if _runs(model, call)))

    def running(self, model: nn.Module) -> Calls:
        """The calls, if `model` takes them on its own, as the first one shows; none if it does not."""
        return self if not self.given or _runs(model, self.given[0]) else Calls()

    def inside(self, model: nn.Module, paths: Iterable[str]) -> dict[str, Calls]:
        """What the calls of `model` mean for the modules at `paths`, by path."""
        paths = list(paths)
        given, others = recorded(model, self.given, paths), recorded(model, self.others or (), paths)
        return {path: Calls(tuple(given[path]), tuple(others[path])) for path in paths}


def run_call(model: nn.Module, call: Call, times: int = 1) -> Any:
    """What a copy of `model` returns for a copy of the arguments, the last of so many times; noise is the same each."""
    model, result = duplicate(model), None
    for _ in range(times):
        again = call.copied()
        with SameNoise(), torch.no_grad():
            result = model(*again.args, **again.kwargs)
    return result


def recorded(model: nn.Module, calls: Sequence[Call], paths: Sequence[str]) -> dict[str, list[Call]]:
    """The calls of the modules at `paths` in the course of `calls` of `model`, by path.

    A copy of the model is run. There are none of a module with a `__call__` of its own, which hooks do not see.
    """
    found: dict[str, list[Call]] = {path: [] for path in paths}
    for call in calls if paths else ():
        copy, arguments = duplicate(model), call.copied()
        for path in paths:
            module = copy.get_submodule(path)
            if not own_call(module) and not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(_recorder(found[path]), prepend=True, with_kwargs=True)
        with SameNoise(), torch.no_grad():
            copy(*arguments.args, **arguments.kwargs)
    return found


def positional(forward: Callable[..., Any], call: Call) -> tuple[Any, ...] | None:
    """All arguments by position, with the defaults of those left out; None where that does not say everything."""
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    named = signature.parameters
    plain = all(
        value == {} if named[name].kind is inspect.Parameter.VAR_KEYWORD else value is named[name].default
        for name, value in bound.arguments.items()
        if named[name].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    )
    return bound.args if plain else None


def _recorder(calls: list[Call]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(args, kwargs).copied())

    return record


def _varied(call: Call) -> Iterator[Call]:
    """The call with another number of examples, and with larger images too."""
    tensors = call.tensors
    batch = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    if not batch:
        return

    def resized(x: Tensor) -> Tensor:
        examples = x.dim() > 0 and x.shape[0] == batch
        return (torch.cat([x, x.flip(0)]) if batch == 1 else x[:1].clone()) if examples else x

    def grown(x: Tensor) -> Tensor:
        sides = range(x.dim() - 2, x.dim()) if x.dim() >= 4 and x.numel() else ()
        for side, step in zip(sides, STEPS, strict=False):
            ahead = torch.arange(x.shape[side] + step, device=x.device) % x.shape[side]
            x = x.index_select(side, ahead)
        return x

    other = call.mapped(resized)
    yield other
    yield (other if batch == 1 else call).mapped(grown)


def _runs(model: nn.Module, call: Call) -> bool:
    try:
        run_call(model, call)
    except Exception:  # noqa: BLE001 - the user's forward, at a size that it may not take
        return False
    return True
