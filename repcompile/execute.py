"""Running a captured graph as it stands, on the user's inputs: to learn shapes, and to see that the capture is true."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.node import map_arg

from repcompile.capture import Captured
from repcompile.classes import hooked
from repcompile.copies import copied, duplicate
from repcompile.errors import ModelError
from repcompile.lending import lent_copy
from repcompile.noise import SameNoise


def execute(captured: Captured, inputs: Sequence[Any]) -> tuple[Any, dict[fx.Node, tuple[int, ...]]]:
    """(output, shape of every tensor on the way) of a captured graph.

    Copies of the user's modules run, on copies of the inputs, so that nobody remembers it.
    Raises ModelError if the model was captured for another way of calling it.
    """
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    given = inputs if captured.arguments is None else captured.arguments.values(inputs, {})
    if given is None:
        raise ModelError(f"{captured.name} was captured for calls with other arguments than example_inputs")
    memo: dict[int, Any] = {}
    copy_of = duplicate if captured.opaque else _sparing_copy  # what stays Python may write to weights
    modules = {path: copy_of(module, memo) for path, module in captured.modules.items()}
    for node in captured.graph.nodes:
        if node.op == "call_module" and node.meta.get("inplace"):  # the graph is pure: others may read the operand
            modules[str(node.target)].__dict__["inplace"] = False
    constants = copy.deepcopy(dict(captured.constants), memo)
    captured, inputs = replace(captured, modules=modules, constants=constants), copied(given)
    values: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    with SameNoise(), torch.no_grad():
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
    return run(duplicate(model), inputs)


def run(model: nn.Module, inputs: Sequence[Any]) -> Any:
    """What `model` itself returns for copies of `inputs`, which it may remember; noise is the same at every call."""
    with SameNoise(), torch.no_grad():
        return model(*copied(inputs))


def _sparing_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy; of torch's own layers, which write to no weight, one that copies a weight when it is read."""
    if not hooked(module) and all(type(part).__module__.startswith("torch.nn.modules") for part in module.modules()):
        with contextlib.suppress(ModelError):
            return lent_copy(module, memo=memo)
    return duplicate(module, memo)


def _run(captured: Captured, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = _plain(map_arg((node.args, dict(node.kwargs)), values.__getitem__))
    if node.op == "output":
        return args[0]
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
    if type(value) in (dict, immutable_dict):
        return {name: _plain(item) for name, item in value.items()}
    if type(value) in (tuple, list, immutable_list):
        return (tuple if type(value) is tuple else list)(_plain(item) for item in value)
    return value
