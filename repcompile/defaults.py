"""A fused model whose graph is one way of calling it, and the model itself for the other ways."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_leaves

from repcompile.copies import duplicate
from repcompile.errors import ModelError
from repcompile.graphs import Fused, of_class


class Way(Protocol):
    """One way of calling a model."""

    @property
    def only_one(self) -> bool:
        """Whether there is no other way of calling it."""
        ...

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The inputs of the graph in a call, None if it is a call of another kind."""
        ...

    @property
    def rearranges(self) -> inspect.Signature | None:
        """The model's arguments if its graph takes and returns something else, None if it does not."""
        ...

    def fits(self, module: nn.Module) -> bool:
        """Whether the weights are still such that the graph is right."""
        ...

    def result(self, values: Any) -> Any:
        """What the model returns where the graph returns `values`."""
        ...


class Rearranged(CodeGen):
    """What an interpreter of a graph, which torch.export is, does before it and behind it."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def process_inputs(self, *args: Any) -> Any:
        values = self.way.values(args, {})
        if values is None:
            raise ModelError("the graph of the fused model is run in a way that it was not compiled for")
        return values

    def process_outputs(self, outputs: Any) -> Any:
        return self.way.result(outputs)


class Others:
    """A copy of the model that was fused, for the calls that its graph is not.

    It is no part of the fused model's `state_dict()`, `parameters()` or `modules()`. It shares every tensor that fusing
    left alone, and goes where the fused model goes. `stale` once the fused model has other weights.
    """

    def __init__(self, model: nn.Module, fused: nn.Module) -> None:
        self.model = model
        self.shared = tuple(_equal(model, fused))
        self.stale = False
        self.tie(fused)

    def tie(self, fused: nn.Module) -> None:
        """Share tensors with `fused`, and remember how its weights are."""
        for path in self.shared:
            _put(self.model, path, _get(fused, path))
        self.versions = _versions(fused)
        for part in self._specialized():
            part._tie_others()

    def follow(self, function: Callable[[Tensor], Tensor], fused: nn.Module) -> None:
        """Do to the own tensors what was done to those of `fused`."""
        inner = [(part._others, part._others.stale) for part in self._specialized() if part._others is not None]
        for path in self.shared:
            _put(self.model, path, None)
        self.model._apply(function)
        self.tie(fused)
        for others, stale in inner:  # they saw their shared tensors go
            others.stale = stale

    def _specialized(self) -> list[Specialized]:
        """The fused models inside: their tensors may be shared ones."""
        return [part for part in self.model.modules() if isinstance(part, Specialized)]


class Specialized(Fused):
    """Runs its graph when it is called as its `_way` says, and `otherwise` when it is called in another way."""

    if TYPE_CHECKING:  # torch.jit.script reads what is annotated here
        _way: Way
        _others: Others | None
        _written: Any  # the forward that torch.fx has written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run, cls = super().__call__, type(self)
        return self._answer(run, args, kwargs) if cls.forward is cls._written else run(*args, **kwargs)

    def _answer(self, graph: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        values = self._way.values(args, kwargs)
        if values is None or not self._way.fits(self):
            if not torch.compiler.is_compiling() and _is_leaf(self, args, kwargs):
                return graph(*args, **kwargs)
            return self.otherwise(*args, **kwargs)
        return self._way.result(graph(*values))

    def _become(self, way: Way, others: Others | None) -> None:
        vars(self).update(_way=way, _others=others)
        self._rearrange()

    def recompile(self) -> Any:
        code = super().recompile()
        type(self)._written = type(self).forward
        if "_way" in vars(self):  # not while it is made
            self._rearrange()
        return code

    def _rearrange(self) -> None:
        """Let `forward` and interpreters of the graph take and return what the model does."""
        signature = self._way.rearranges
        if signature is not None:
            self.graph.set_codegen(Rearranged(self._way))
            type(self).forward = _rearranging(signature)

    def _tie_others(self) -> None:
        """Take the weights as they are for those that were fused."""
        if self._others is not None:
            self._others.tie(self)

    @property
    def otherwise(self) -> nn.Module:
        """The model as it was.  Raises ModelError if it is not there any more, or the weights have changed since."""
        others = self._others
        if others is None:
            raise ModelError("the fused model is called in a way that it was not compiled for")
        if others.stale or others.versions != _versions(self):
            raise ModelError(
                "the fused model is called in a way that it was not compiled for, and the weights have changed since "
                "it was fused, so that the unfused one cannot answer: fuse the model that has the new weights"
            )
        return others.model

    @otherwise.deleter
    def otherwise(self) -> None:
        vars(self)["_others"] = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        others = self._others
        changed = others is not None and others.versions != _versions(self)
        super()._apply(fn, recurse)
        if others is not None:
            others.follow(fn, self)
            others.stale |= changed
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if self._others is not None:
            mine = self.state_dict()
            given = {name: state_dict.get(f"{prefix}{name}") for name in mine}
            same = all(value is None or _same(value, mine[name]) for name, value in given.items())
            self._others.stale |= not same or self._others.versions != _versions(self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Specialized:
        result: Any = super().__deepcopy__(memo)
        result._become(self._way, copy.deepcopy(self._others, memo))
        _watch(result, self)
        return result  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        changed = self._others is not None and self._others.versions != _versions(self)
        return _restored, (super().__reduce__(), self._way, self._others, changed)


def specialized(fused: fx.GraphModule, model: nn.Module, arguments: Way, named: bool) -> fx.GraphModule:
    """`fused`, which may be called in every way in which `model` may be; a copy of `model` answers the other calls.

    named: whether the inputs of `fused` have the names that they have in `model`.
    """
    return fused if arguments.only_one and named else standing_in(fused, duplicate(model), arguments)


def standing_in(fused: fx.GraphModule, otherwise: nn.Module, arguments: Way) -> Specialized:
    """`fused` for calls as `arguments` says, and `otherwise`, which is taken over, for the other ones."""
    result = of_class(Specialized, fused)
    result._become(arguments, Others(otherwise, fused))
    _watch(result)
    return result


def _rearranging(signature: inspect.Signature) -> Any:
    """A forward with these parameters."""

    def forward(self: Specialized, *args: Any, **kwargs: Any) -> Any:
        return self._answer(self._written, args, kwargs)

    name = "_".join(["self", *signature.parameters])  # is none of them
    own = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore
    return forward


def _is_leaf(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is recorded as that of one module: so torch.fx reads a graph that it has written to a file."""
    proxy = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)), None)
    tracer = None if proxy is None else proxy.tracer
    return isinstance(tracer, fx.Tracer) and tracer.is_leaf_module(module, "")


def _restored(reduced: tuple[Any, ...], arguments: Way, others: Others | None, changed: bool) -> Specialized:
    result = of_class(Specialized, reduced[0](*reduced[1]))
    result._become(arguments, others)
    _watch(result)
    if others is not None:
        others.stale |= changed
    return result


def _watch(module: Specialized, original: Specialized | None = None) -> None:
    """Notice when weights are loaded; remember how they are now."""
    vars(module)["_load_state_dict_post_hooks"] = type(module._load_state_dict_post_hooks)({0: _after_loading})
    if module._others is not None:
        if original is not None and original._others is not None:
            module._others.stale |= original._others.versions != _versions(original)
        module._others.tie(module)


def _after_loading(module: Any, keys: Any) -> None:
    """`_load_from_state_dict` has compared."""
    if module._others is not None:
        module._others.tie(module)


def _equal(model: nn.Module, fused: nn.Module) -> Iterator[str]:
    """Paths at which both have the same numbers."""
    twins = {**dict(fused.named_parameters()), **dict(fused.named_buffers())}
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        twin = twins.get(path)
        if twin is not None and type(twin) is type(tensor) and twin.dtype == tensor.dtype and torch.equal(twin, tensor):
            yield path


def _same(value: Tensor, other: Tensor) -> bool:
    same = isinstance(value, Tensor) and value.shape == other.shape
    return same and torch.equal(value.to(other.device, other.dtype), other)


def _get(module: nn.Module, path: str) -> Tensor | None:
    owner, _, name = path.rpartition(".")
    module = module.get_submodule(owner)
    return (module._parameters if name in module._parameters else module._buffers)[name]


def _put(module: nn.Module, path: str, tensor: Tensor | None) -> None:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, tensor)  # recurrent modules keep their weights in a list, too


def _versions(module: nn.Module) -> list[tuple[int, int]]:
    """What changes when somebody writes to a parameter."""
    return [(id(p), 0 if p.is_inference() else p._version) for p in module.parameters()]
