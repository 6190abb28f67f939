"""`torch.compile(model, backend="repcompile")`: every graph that Dynamo hands over is fused, then compiled by inductor.

Guards and graph breaks work as for any backend. Dynamo passes weights as inputs, so that what is folded from them is
compared at every call: where a weight was exchanged or written to, the graph runs as it was, which is slow and right.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend

from repcompile.compiler import fuse
from repcompile.errors import RepcompileError

Compiled = Callable[..., Any]
Backend = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


def repcompile(graph: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    """The backend: fuse, then inductor."""
    return before("inductor")(graph, inputs)


def before(backend: str | Backend) -> Backend:
    """A backend that fuses and then hands over to another one: `torch.compile(model, backend=before("eager"))`."""

    def fused_backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        following: Any = lookup_backend(backend) if isinstance(backend, str) else backend
        weights = {place: value for place, value in enumerate(inputs) if _is_weight(value)}
        fused = _fused(graph, weights)
        if fused is None:
            return following(graph, inputs)
        rest = [value for place, value in enumerate(inputs) if place not in weights]
        return _Guarded(graph, weights, following(fused, rest))

    return fused_backend


class _Guarded:
    """Runs what was compiled for `weights`, or the graph itself if these are not what they were."""

    def __init__(self, graph: fx.GraphModule, weights: dict[int, Tensor], compiled: Compiled) -> None:
        self._graph, self._weights, self._compiled = graph, weights, compiled
        self._versions = {place: tensor._version for place, tensor in weights.items()}

    def __call__(self, *args: Any) -> Any:
        if all(args[place] is t and t._version == self._versions[place] for place, t in self._weights.items()):
            return self._compiled(*(value for place, value in enumerate(args) if place not in self._weights))
        warnings.warn("weights changed after they were folded: call torch.compiler.reset() to fuse again", stacklevel=2)
        return self._graph(*args)


def _is_weight(value: Any) -> bool:
    """Whether Dynamo found it in a module: a parameter, or a buffer."""
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and hasattr(value, STATIC))


def _fused(graph: fx.GraphModule, weights: dict[int, Tensor]) -> fx.GraphModule | None:
    """The graph with its weights built in, fused; None where weights learn or cannot be watched, or nothing fuses."""
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights.values())
    if learns or any(weight.is_inference() for weight in weights.values()):
        return None
    try:
        fused = fuse(_bound(graph, weights))
    except RepcompileError:
        return None
    return fused if isinstance(fused, fx.GraphModule) else None


def _bound(graph: fx.GraphModule, weights: dict[int, Tensor]) -> fx.GraphModule:
    """The graph with `weights` as attributes in place of inputs.  weights: by the number of the input."""
    inner = copy.deepcopy(graph.graph)
    placeholders = [node for node in inner.nodes if node.op == "placeholder"]
    named: dict[str, Any] = {}
    for place, weight in weights.items():
        node = placeholders[place]
        named[f"{node.name}_"] = weight
        with inner.inserting_before(node):
            node.replace_all_uses_with(inner.get_attr(f"{node.name}_"))
        inner.erase_node(node)
    for node in inner.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in named:
            named[str(node.target)] = attrgetter(str(node.target))(graph)
    module = fx.GraphModule(named, inner)
    module.training = False
    return module


STATIC = "_dynamo_static_input_type"
