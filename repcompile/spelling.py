"""One spelling for every call: arguments by position where torch has one for them, one function for each operator.

Given: a traced graph, which this stage takes over.  Result: the same operators in the spelling that rules know.
"""

from __future__ import annotations

import inspect
import operator
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._ops import OpOverload

from repcompile.aten import from_aten

ADDITIONS = (operator.add, torch.add, "add")
SUBTRACTIONS = (operator.sub, torch.sub, "sub")
MULTIPLICATIONS = (operator.mul, torch.mul, "mul")
DIVISIONS = (operator.truediv, torch.div, "div")
SAID = (int, float, complex, str)
PLAIN = (*SAID, bool)


def respell(graph: fx.Graph) -> None:
    """Rewrite every call in the usual spelling."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            _respell(node)


def target_of(node: fx.Node) -> Any:
    """The function, or the name of the method, that `node` calls; None where its target is a path or an argument."""
    return node.target if node.op in ("call_function", "call_method") else None


def name_of(node: fx.Node) -> str:
    """The name of the function or the method that `node` calls, "" if it calls neither."""
    target = target_of(node)
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def is_derived(value: Any) -> bool:
    """Whether it is a number or a text of a class that is derived from Python's, as `np.float64` is."""
    return isinstance(value, SAID) and type(value) not in PLAIN and not isinstance(value, Enum)


def as_it_is_said(value: Any) -> Any:
    """The number or text alone, as code would say its class's name; torch's operators see no difference."""
    kind: Any = next((cls for cls in SAID if isinstance(value, cls)), None)
    return kind(value) if is_derived(value) else value


@cache
def parameters(target: Any) -> tuple[str, ...]:
    """Names of the positional parameters, () if nobody knows them."""
    if target in BUILTIN:
        return tuple(BUILTIN[target].split())
    if isinstance(target, str) or not getattr(target, "__module__", "").startswith("torch"):
        return ()
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def _respell(node: fx.Node) -> None:
    if isinstance(node.target, OpOverload):
        from_aten(node)
    _by_position(node, parameters(node.target))
    if node.target in ORDER and len(node.args) + len(node.kwargs) >= len(ORDER[node.target][1]):
        function, order = ORDER[node.target]
        arguments = dict(zip(parameters(node.target), node.args, strict=False)) | node.kwargs
        node.target, node.args, node.kwargs = function, tuple(arguments[name] for name in order), {}


def _by_position(node: fx.Node, names: tuple[str, ...]) -> None:
    """Move keyword arguments to the position of their name, up to the first that is left out."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for name in names[len(args) :]:
        if name not in kwargs:
            break
        args.append(kwargs.pop(name))
    if len(args) > len(node.args):
        node.args, node.kwargs = tuple(args), kwargs


_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSE = "input weight bias stride padding output_padding groups dilation"
_BATCH_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled"

BUILTIN: dict[Any, str] = {  # functions that have no signature to ask
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONV),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _CONV_TRANSPOSE),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div, torch.multiply, torch.true_divide), "input other"),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm), "input other"),
    **dict.fromkeys((torch.neg, torch.negative, torch.clone, torch.relu, torch.sigmoid, torch.tanh), "input"),
    F.linear: "input weight bias",
    torch.batch_norm: _BATCH_NORM,
    torch.instance_norm: "input weight bias running_mean running_var use_input_stats momentum eps cudnn_enabled",
    torch.dropout: "input p train",
    torch.flatten: "input start_dim end_dim",
    torch.permute: "input dims",
    torch.transpose: "input dim0 dim1",
    torch.swapaxes: "input axis0 axis1",
    torch.reshape: "input shape",
    torch.unsqueeze: "input dim",
    torch.squeeze: "input dim",
    "flatten": "self start_dim end_dim",
    "permute": "self dims",
    "transpose": "self dim0 dim1",
    "swapaxes": "self axis0 axis1",
    "reshape": "self shape",
    "view": "self size",
    "unsqueeze": "self dim",
    "squeeze": "self dim",
    "add": "self other",
    "sub": "self other",
    "mul": "self other",
    "div": "self other",
}

# function -> the usual one for the same operator, and the order of its arguments
ORDER: dict[Any, tuple[Any, tuple[str, ...]]] = {
    torch.batch_norm: (F.batch_norm, tuple("input running_mean running_var weight bias training momentum eps".split())),
    torch.dropout: (F.dropout, ("input", "p", "train")),
}
