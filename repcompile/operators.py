"""One form for every operator, whoever calls it and how: what patterns are compared by.

`torch.sigmoid(x)`, `F.sigmoid(x)`, `x.sigmoid()` and `nn.Sigmoid()(x)` are one operator. Sums and products are flat:
`x * relu6(x + 3) / 6` is a sixth times two factors, in whatever order and nesting they were written.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from repcompile.capture import Captured
from repcompile.spelling import parameters

ALIASES = {
    **{
        "truediv": "div",
        "true_divide": "div",
        "divide": "div",
        "multiply": "mul",
        "subtract": "sub",
        "negative": "neg",
    },
    **{"concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose"},
    **{f"__{name}__": name for name in ("add", "mul", "sub", "pow", "matmul", "neg")},
    **{"__radd__": "add", "__rmul__": "mul", "__truediv__": "div", "clip": "clamp"},
}
NAMES = {  # positional parameters behind the operand, of operators that have no signature to ask
    **dict.fromkeys(("mean", "sum", "var", "std", "amax", "amin", "prod"), ("dim", "keepdim")),
    **dict.fromkeys(("softmax", "log_softmax"), ("dim",)),
    **{"clamp": ("min", "max"), "pow": ("exponent",), "cat": ("dim",), "flatten": ("start_dim", "end_dim")},
    **{"gelu": ("approximate",), "softplus": ("beta", "threshold")},
}
DEFAULTS: Mapping[str, tuple[Any, ...]] = {  # of the same
    **dict.fromkeys(("mean", "sum", "prod"), (None, False)),
    **dict.fromkeys(("amax", "amin"), ((), False)),
    **{"gelu": ("none",), "softplus": (1, 20), "flatten": (0, -1), "cat": (0,)},
}
MODULES: Mapping[type[nn.Module], tuple[str, tuple[str, ...]]] = {  # module -> function, attributes as its arguments
    **{getattr(nn, name): (name.lower(), ()) for name in ("ReLU", "ReLU6", "Sigmoid", "Tanh", "SiLU", "Mish", "SELU")},
    **{getattr(nn, name): (name.lower(), ()) for name in ("Hardswish", "Hardsigmoid", "Softsign", "Tanhshrink")},
    nn.GELU: ("gelu", ("approximate",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softmax: ("softmax", ("dim",)),
    nn.Flatten: ("flatten", ("start_dim", "end_dim")),
    nn.AdaptiveAvgPool1d: ("adaptive_avg_pool1d", ("output_size",)),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.AdaptiveAvgPool3d: ("adaptive_avg_pool3d", ("output_size",)),
}
IGNORED = ("inplace", "_stacklevel")  # that change how, and not what


@dataclass(frozen=True, slots=True)
class Operation:
    """name: of the operator, or the function itself where torch knows it not.  args, kwargs: without defaults."""

    name: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Flat:
    """number + sum of sign * value, or number * product of value ** sign.

    terms: (value, sign).  inner: the nodes that only combine them, the outermost included.
    """

    name: str
    number: float
    terms: tuple[tuple[fx.Node, int], ...]
    inner: tuple[fx.Node, ...]


def operation_of(node: fx.Node, captured: Captured) -> Operation | None:
    """What `node` computes of its operands, None if only its module knows."""
    if node.op == "call_module":
        return _of_module(node, captured)
    if node.op not in ("call_function", "call_method"):
        return None
    name = operator_name(node)
    return Operation(name, *_arguments(node, name))


def operator_name(node: fx.Node) -> Any:
    """The name of the operator that a function or method is, or the function itself if it is not one of torch's."""
    if node.op == "call_method":
        return ALIASES.get(str(node.target), str(node.target))
    return _function_name(node.target)


@cache
def _function_name(target: Any) -> Any:
    owner = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", "")
    known = owner in ("_operator", "operator", "builtins") or owner.partition(".")[0] == "torch"
    if not known and name and getattr(torch, name, None) is not target:  # built in C, without a module
        return target
    return ALIASES.get(name, name)


def _of_module(node: fx.Node, captured: Captured) -> Operation | None:
    cls, module = captured.torch_class(node), captured.modules.get(str(node.target))
    if cls not in MODULES or module is None:
        return None
    name, attributes = MODULES[cls]
    values = [_plain(getattr(module, attribute)) for attribute in attributes]
    return Operation(name, (*node.args, *_without_defaults(name, values)), dict(node.kwargs))


def _arguments(node: fx.Node, name: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional where torch has a position, without what is the default anyway."""
    names = parameters(node.target)[1:] or NAMES.get(name, ())
    args, kwargs = list(node.args[1:]), {key: value for key, value in node.kwargs.items() if key not in IGNORED}
    for key in names[len(args) :]:
        if key not in kwargs:
            break
        args.append(kwargs.pop(key))
    kept = [_plain(arg) for key, arg in zip((*names, *[""] * len(args)), args, strict=False) if key not in IGNORED]
    given = {key: _plain(value) for key, value in kwargs.items()}
    return (*node.args[:1], *_without_defaults(name, kept)), given


def _without_defaults(name: Any, args: list[Any]) -> list[Any]:
    defaults = _defaults(name) if isinstance(name, str) else ()
    while args and len(args) <= len(defaults) and _same(args[-1], defaults[len(args) - 1]):
        args = args[:-1]
    return args


def _same(value: Any, default: Any) -> bool:
    numbers = type(value) in (int, float) and type(default) in (int, float)
    return (numbers or type(value) is type(default)) and not isinstance(value, fx.Node) and bool(value == default)


@cache
def _defaults(name: str) -> tuple[Any, ...]:
    """The defaults of the parameters behind the operand, as torch.nn.functional has them."""
    function = getattr(nn.functional, name, None)
    if name in DEFAULTS or function is None:
        return DEFAULTS.get(name, ())
    try:
        given = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
    return tuple(p.default for key, p in list(given.items())[1:] if key not in IGNORED)


def _plain(value: Any) -> Any:
    """torch.fx's lists as tuples; integers where they are meant."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


# -- sums and products -------------------------------------------------------------------------------------------------


def flat(node: Any, captured: Captured) -> Flat | None:
    """`node` as a flat sum or product, None if it is neither.

    Values that others read, too, are terms; so are those that the caller wants to stay.
    """
    name = _kind(node)
    if name is None:
        return None
    terms, inner, number = list[tuple[fx.Node, int]](), list[fx.Node](), 0.0 if name == "sum" else 1.0
    for value, sign in _spread(node, name, captured, inner):
        if isinstance(value, fx.Node):
            terms.append((value, sign))
        elif name == "sum":
            number += sign * value
        else:
            number *= value**sign
    return Flat(name, number, tuple(terms), tuple(inner))


def _spread(node: fx.Node, name: str, captured: Captured, inner: list[fx.Node]) -> Iterator[tuple[Any, int]]:
    stack: list[tuple[Any, int]] = [(node, 1)]
    while stack:
        value, sign = stack.pop()
        own = value is node or (isinstance(value, fx.Node) and len(value.users) == 1 and not captured.stays(value))
        if not own or _kind(value) != name:
            yield value, sign
            continue
        inner.append(value)
        stack.extend(reversed(_parts(value, sign)))


def _kind(node: Any) -> str | None:
    """Whether `node` adds or multiplies two values, or a value and a number."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or node.kwargs:
        return None
    name = operator_name(node)
    if name == "neg" and len(node.args) == 1:
        return "product"
    fits = len(node.args) == 2 and all(isinstance(arg, fx.Node) or type(arg) in (int, float) for arg in node.args)
    if name == "div" and fits and node.args[1] == 0:
        return None
    return {"add": "sum", "sub": "sum", "mul": "product", "div": "product"}.get(name) if fits else None


def _parts(node: fx.Node, sign: int) -> Sequence[tuple[Any, int]]:
    name = operator_name(node)
    if name == "neg":
        return ((-1.0, 1), (node.args[0], sign))
    left, right = node.args
    return ((left, sign), (right, -sign if name in ("sub", "div") else sign))
