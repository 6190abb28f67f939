"""Running a few nodes of a graph in float64, without touching the user's modules."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.modules import Mapped
from repcompile.shapes import Shape, Size
from repcompile.values import Reader, in_float64

DEFAULT_SIZE = 3  # of an axis about which nothing is known


class Interpreter:
    """Evaluates nodes in float64.

    sizes: symbolic sizes of the nodes that compute sizes.  asked: shapes, of the nodes that ask for whole ones.
    shapes: of other values; of one that is not given, no more is to be read.  assigned: integers for their unknowns.
    """

    def __init__(
        self,
        captured: Captured,
        sizes: Mapping[fx.Node, Size],
        asked: Mapping[fx.Node, Shape],
        shapes: Mapping[fx.Node, Shape | None],
        assigned: Mapping[str, int],
        read: Reader,
    ) -> None:
        self._captured = captured
        self._sizes = sizes
        self._asked = asked
        self._shapes = shapes
        self._assigned = assigned
        self._read = read
        self._constants: dict[fx.Node, Any] = {}

    def run(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
        """The value of `node`, given those of the values that it reads."""
        if node.op == "get_attr":
            return self._read(self._captured.constants[str(node.target)])
        args, kwargs = map_arg((node.args, node.kwargs), lambda operand: self._operand(operand, values))
        if node.op == "call_module":
            return with_tensors(self._captured.module(node), self._read)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if not callable(node.target):
            raise RuntimeError(f"it reads {node}, of which nothing is known")
        return node.target(*args, **kwargs)

    def _operand(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
        if node in values:
            return values[node]
        if node.target is operator.floordiv and node in self._sizes:
            return operator.floordiv(*map_arg(node.args, lambda operand: self._operand(operand, values)))
        if node in self._sizes:
            return evaluated(self._sizes[node], self._assigned)
        if node in self._asked:
            return torch.Size(evaluated_shape(self._asked[node], self._assigned))
        if (shape := self._shapes.get(node)) is not None:  # `y.view_as(x)`; whoever computes with it gets no number
            return torch.full(evaluated_shape(shape, self._assigned), torch.nan, dtype=torch.float64)
        if node not in self._constants:
            self._constants[node] = self.run(node, {})
        return self._constants[node]


def evaluated(size: Size, assigned: Mapping[str, int]) -> int:
    """A symbolic size as an integer."""
    result = size.number
    for name in size.names:
        result *= assigned.get(name, DEFAULT_SIZE)
    return result


def evaluated_shape(shape: Shape, assigned: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluated(size, assigned) for size in shape)


def with_tensors(module: nn.Module, convert: Reader) -> nn.Module:
    """A shallow copy of `module` with its floating-point parameters and buffers `convert`ed."""
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for field in ("_parameters", "_buffers"):
        tensors: dict[str, Tensor | None] = module.__dict__[field]
        copy.__dict__[field] = {
            name: convert(tensor) if tensor is not None and tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    copy.__dict__["_modules"] = {
        name: None if child is None else with_tensors(child, convert) for name, child in module._modules.items()
    }
    if isinstance(copy, Mapped):
        copy.remember_nothing()
    return copy


class Remembering:
    """A `Reader` that converts each tensor once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._done:
            self._done[id(tensor)] = (tensor, in_float64(tensor))
        return self._done[id(tensor)][1]


class TapByTap(TorchFunctionMode):
    """Depthwise convolutions in float64 tap by tap; torch's own goes channel by channel, 50 times slower on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv1d, F.conv2d, F.conv3d) and _is_depthwise(*args, **kwargs):
            return depthwise_convolution(*args, **kwargs)
        return func(*args, **kwargs)


def depthwise_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv1d`, `2d`, `3d` of a batch with one input channel per group: the same sum, in the order of the taps.

    x: (n, groups, *spatial)   weight: (c_out, 1, *sizes)
    """
    geometry = Affine.conv(weight, None, stride, padding, dilation, groups).axes
    pads = [pad for axis in reversed(geometry) for pad in (axis.lo, axis.hi)]
    sizes = [axis.output_size(size) for axis, size in zip(geometry, x.shape[2:], strict=True)]
    image = F.pad(x.movedim(1, -1), (0, 0, *pads))  # channels last: they are as many as make one loop worth while
    image = image.repeat_interleave(weight.shape[0] // groups, -1)
    kernel = weight[:, 0].movedim(0, -1).contiguous()
    y = image.new_zeros(x.shape[0], *sizes, weight.shape[0])
    for taps in product(*(range(axis.size) for axis in geometry)):
        window = tuple(
            slice(axis.dilation * tap, axis.dilation * tap + axis.stride * (size - 1) + 1, axis.stride)
            for axis, tap, size in zip(geometry, taps, sizes, strict=True)
        )
        y.addcmul_(image[(slice(None), *window)], kernel[taps])
    y = y if bias is None else y + bias
    return y.movedim(-1, 1).contiguous()


def _is_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    return groups > 1 and weight.shape[1] == 1 and x.dim() == weight.dim()
