"""ATen operators, as torch.export writes them, in the words that people use: one vocabulary for both front ends."""

from __future__ import annotations

from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

ACTIVATIONS = frozenset("hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu silu".split())
METHODS = {"sym_size": "size"}
PLACES: tuple[Any, ...] = (torch, getattr(torch._C, "_nn"))  # noqa: B009 - which its stubs leave out


def from_aten(node: fx.Node) -> None:
    """Make an ATen call that of torch's function or method with the same name and arguments, if there is one."""
    target: Any = node.target
    whole: str = target._schema.name
    namespace, _, name = whole.partition("::")
    if namespace != "aten":
        return
    plain: str = name.removesuffix("_")
    if plain in ACTIVATIONS:
        node.target = getattr(F, plain)
        node.kwargs = {**node.kwargs, "inplace": True} if plain != name else node.kwargs
    elif (function := _function(name)) is not None:
        node.target = function
    elif isinstance(getattr(Tensor, METHODS.get(name) or name, None), MethodDescriptorType):
        node.op, node.target = "call_method", METHODS.get(name) or name


def _function(name: str) -> Any:
    """A function that parses its arguments by the operator's own schema."""
    found = (getattr(place, name, None) for place in PLACES)
    return next((function for function in found if isinstance(function, BuiltinFunctionType)), None)
