"""Running a captured graph as it stands, on the user's inputs: to learn shapes, and to see that the capture is true."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from repcompile.capture import Captured
from repcompile.errors import ModelError


def execute(captured: Captured, inputs: Sequence[Any]) -> tuple[Any, dict[fx.Node, tuple[int, ...]]]:
    """(output, shape of every tensor on the way) of a captured graph.

    The user's modules and inputs are copied first, so that nobody remembers the run.
    Raises ModelError if the number of inputs is not the number of arguments without a default.
    """
    if not isinstance(inputs, tuple | list):
        raise ModelError(f"example_inputs is a tuple of positional arguments, (x,); got {type(inputs).__name__}")
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(placeholders):
        raise ModelError(
            f"{captured.name}.forward takes {len(placeholders)} required arguments; example_inputs has {len(inputs)}"
        )
    memo: dict[int, Any] = {}
    modules, constants = (copy.deepcopy(dict(table), memo) for table in (captured.modules, captured.constants))
    captured, inputs = replace(captured, modules=modules, constants=constants), copied(inputs)
    values: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for node in captured.graph.nodes:
            if node.op != "placeholder":
                values[node] = _run(captured, node, values)
            if isinstance(values[node], Tensor):
                shapes[node] = tuple(values[node].shape)
            if node.op == "output":
                return values[node], shapes
    raise ModelError(f"the graph of {captured.name} has no output")


def run_copy(model: nn.Module, inputs: Sequence[Any]) -> Any:
    """What a copy of `model` returns for copies of `inputs`; noise is the same at every call."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return model(*copied(inputs))


def copied(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, with tensors of their own."""
    return pytree.tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, list(inputs))


def _run(captured: Captured, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "output":
        return _plain(args[0])
    if node.op == "get_attr":
        return captured.constants[str(node.target)]
    if node.op == "call_module":
        return captured.module(node)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _plain(value: Any) -> Any:
    """torch.fx's immutable containers as the forward wrote them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if type(value) is tuple or isinstance(value, list):
        return (tuple if isinstance(value, tuple) else list)(_plain(item) for item in value)
    return value
