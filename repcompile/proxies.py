"""What stands for a tensor or a number while a forward is traced: it answers what every run would, or refuses to.

`torch.fx.Proxy` is not used: it is callable, iterable and convertible where a tensor is not, and takes wrong branches.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import is_tensor_method_or_property

from repcompile.frames import callee, reads, told, unpacked

FX = os.path.dirname(fx.__file__)
OURS = os.path.dirname(__file__)
CLASSES = {  # of what a tensor is asked for
    **{"shape": torch.Size, "ndim": int, "dtype": torch.dtype, "device": torch.device, "layout": torch.layout},
    **{"is_cuda": bool, "dim": int, "numel": int},
}
MESSAGES = ("raise", "_assert", "warn", "warn_once", "warning", "info", "debug", "error", "log", "print")
RAISED = ("Error", "Exception", "Warning")
OF_INTEGERS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)


class Value:
    """A value of the graph: a size, a number, a tuple of tensors, anything that is no tensor.

    tracer: has `create_proxy`, `refusal(reason)`, `probed(frame)`, `settled(frame)` and the set `asked`.
    """

    __array_priority__ = 1000  # numpy's scalars leave arithmetic to us, as they do to tensors
    node: fx.Node
    tracer: Any

    def __init__(self, node: fx.Node | None, tracer: Any) -> None:
        vars(self).update(tracer=tracer)
        if node is not None:
            vars(self).update(node=node)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracer = tracer_of((args, kwargs))
        tracer.settled(sys._getframe(1))
        if isinstance(function, torch._C.ScriptMethod):
            raise tracer.refusal("calls a scripted method")
        if is_tensor_method_or_property(function):
            return tracer.create_proxy("call_method", function.__name__, args, kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `isinstance` is told of sizes and the like; the class of others only the run will know."""
        asking = _asking(sys._getframe(1))
        if asking not in ("isinstance", "", None):
            return type(self)
        known = None if asking is None else _class_of(self.node)
        if known is None:
            raise self.tracer.refusal("asks for the class of a value that only the run will know")
        return known

    def __hash__(self) -> int:
        """Equal values are one key, and which are equal only the run will know."""
        if not _is_inside(sys._getframe(1)):
            raise self.tracer.refusal("looks up a value that only the run will know")
        return object.__hash__(self)

    def __fx_create_arg__(self, tracer: Any) -> fx.Node:
        return self.node

    def __setattr__(self, name: str, value: Any) -> None:
        raise self.tracer.refusal(f"assigns to .{name} of a tensor")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Attribute(self, name)

    def __iter__(self) -> Iterator[Any]:
        """Unpacking (`b, c, h, w = x.shape`) is known by its instruction; any other iteration needs the values."""
        count = unpacked(sys._getframe(1))
        if count is None:
            raise self.tracer.refusal("iterates over a value that only the run will know")
        self.node.meta["unpacked"] = count
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(count)])

    def __index__(self) -> int:
        """torch asks for it before it hands a call over to `__torch_function__`: that is no question of the user's."""
        self.tracer.probed(sys._getframe(1))
        raise self.tracer.refusal("needs the number of a value that only the run will know")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.node.name})"

    def __str__(self) -> str:
        """Good as a key, the same for the same question; comparing it with what it might be needs the value."""
        root, name = vars(self).get("root", self), vars(self).get("name", "")
        return UnknownText(f"{root.node.op} {root.node.target} {name}", self.tracer)

    def __format__(self, specification: str) -> str:
        told_to = told(sys._getframe(1))
        if told_to is None or not (told_to in MESSAGES or told_to.endswith(RAISED)):  # a key, perhaps
            raise self.tracer.refusal("needs the text of a value that only the run will know")
        return f"<{vars(self).get('name', 'value')}>"  # in messages, which nobody branches on


class UnknownText(str):
    """The text of a value that only the run will know."""

    tracer: Any
    __slots__ = ("tracer",)
    __hash__ = str.__hash__

    def __new__(cls, text: str, tracer: Any) -> UnknownText:
        made = super().__new__(cls, text)
        made.tracer = tracer
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, UnknownText):
            return str.__eq__(self, other)
        raise self.tracer.refusal("needs the text of a value that only the run will know")

    def __ne__(self, other: object) -> bool:
        return not self == other


class TensorValue(Value):
    """A value that is a tensor, also to a forward that asks `isinstance(x, torch.Tensor)`.

    Augmented assignment is recorded as what it is: in place.
    """

    __hash__ = object.__hash__

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `isinstance` is told; torch's own functions in C++ would take it for memory of theirs, and crash."""
        asking = callee(sys._getframe(1))
        if asking is None:
            raise self.tracer.refusal("asks in a roundabout way whether a value is a tensor")
        self._note()
        return Tensor if asking in ("isinstance", "") else type(self)

    def __getattr__(self, name: str) -> Any:
        if name == "_is_param" or name.startswith("__") or not hasattr(Tensor, name):
            self._note()
            raise AttributeError(name)  # the first is what `isinstance(x, nn.Parameter)` asks
        if callee(sys._getframe(1)) in ("hasattr", "getattr"):
            self._note()
        return Attribute(self, name)

    def _note(self) -> None:
        """Somebody has asked whether an input is a tensor."""
        if self.node.op == "placeholder":
            self.tracer.asked.add(str(self.node.target))


class ResultValue(TensorValue):
    """What a module that stays Python returns: a tensor, a tuple, anything, so that nobody knows its class."""

    def __getattr__(self, name: str) -> Any:
        if name == "_is_param" or name.startswith("__") or hasattr(Tensor, name):
            return super().__getattr__(name)
        if not reads(sys._getframe(1), name):
            raise self.tracer.refusal(f"asks whether what a module that stays Python returns has .{name}")
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        asking = sys._getframe(1)
        if asking.f_code.co_filename.startswith(FX):
            return type(self)
        if callee(asking) in ("isinstance", "", None):
            raise self.tracer.refusal("asks for the class of what a module that stays Python returns")
        return type(self)


class Attribute(Value):
    """`x.name`: a method if it is called, a `getattr` node if it is used."""

    def __init__(self, root: Value, name: str) -> None:
        super().__init__(None, root.tracer)
        vars(self).update(root=root, name=name)

    @property
    def node(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        own = vars(self)
        if "recorded" not in own or own["recorded"]._erased:  # with what a module recorded that cannot be traced
            own["recorded"] = self.tracer.create_proxy("call_function", getattr, (own["root"], own["name"]), {}).node
        return own["recorded"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", vars(self)["name"], (vars(self)["root"], *args), kwargs)


class ConstantValue(TensorValue):
    """A parameter, a buffer or a tensor of the user's: an unknown value of known shape and dtype."""

    def __init__(self, node: fx.Node, tracer: Any, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        vars(self).update(_tensor=tensor)

    @property
    def _is_param(self) -> bool:
        return isinstance(self._tensor, nn.Parameter)

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> int | torch.Size:
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return bool(self._tensor.is_floating_point())


def original(value: Any) -> Any:
    """The tensor that a constant stands for; anything else as it is."""
    return vars(value)["_tensor"] if type(value) is ConstantValue else value


def _asking(frame: FrameType) -> str | None:
    """Whom the running instruction of `frame` calls, as `callee` has it; ours and torch.fx ask for no user."""
    return OURS if _is_inside(frame) else callee(frame)


def _is_inside(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((FX, OURS))


def _class_of(node: Any) -> type | None:
    """The class of a size, or of what is computed from sizes; None if nobody knows."""
    if isinstance(node, bool | int):
        return type(node)
    if not isinstance(node, fx.Node):
        return None
    name = node.args[1] if node.target is getattr else node.target
    if name == "size" and node.op == "call_method":
        return torch.Size if len(node.args) == 1 and not node.kwargs else int
    if node.target is getattr or node.op == "call_method":
        return CLASSES.get(str(name))
    if node.target is operator.getitem and _class_of(node.args[0]) is torch.Size:
        return torch.Size if isinstance(node.args[1], slice) else int
    return int if node.target in OF_INTEGERS and {_class_of(arg) for arg in node.args} == {int} else None


def tracer_of(arguments: Any) -> Any:
    """The tracer of the values among (nested) arguments, None if there are none."""
    found: list[Any] = []
    map_aggregate(arguments, lambda leaf: found.append(leaf.tracer) if isinstance(leaf, Value) else None)
    return found[0] if found else None


# -- operators ---------------------------------------------------------------------------------------------------------


def _recording(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def record(self: Value, *others: Any) -> Any:
        args = (*others, self) if reflected else (self, *others)
        return self.tracer.create_proxy("call_function", function, args, {})

    return record


def _unknown(question: str) -> Callable[..., Any]:
    def refuse(self: Value, *args: Any) -> Any:
        raise self.tracer.refusal(f"needs {question} of a value that only the run will know")

    return refuse


UNARY = "abs invert neg pos"
COMPARISONS = "eq ge gt le lt ne getitem"
BINARY = "add and floordiv lshift matmul mod mul or pow rshift sub truediv xor"
INPLACE = "iadd isub imul itruediv ifloordiv ipow imod iand ior ixor ilshift irshift"
UNKNOWN = {
    "bool": "the truth",
    "float": "the number",
    "int": "the number",
    "complex": "the number",
    "len": "the length",
    "contains": "the elements",
    "delitem": "a place",
    "deepcopy": "a copy",
}

for _name in f"{UNARY} {COMPARISONS} {BINARY}".split():
    setattr(Value, f"__{_name}__", _recording(getattr(operator, f"__{_name}__")))
for _name in BINARY.split():
    setattr(Value, f"__r{_name}__", _recording(getattr(operator, f"__{_name}__"), reflected=True))
for _name in f"{INPLACE} setitem".split():
    setattr(TensorValue, f"__{_name}__", _recording(getattr(operator, f"__{_name}__")))
for _name, _question in UNKNOWN.items():
    setattr(Value, f"__{_name}__", _unknown(_question))
for _name in "__contains__ __getitem__ endswith find index lower partition replace rpartition split startswith".split():
    setattr(UnknownText, _name, _unknown("the text"))
for _function in (math.ceil, math.floor):
    setattr(Value, f"__{_function.__name__}__", _recording(_function))
