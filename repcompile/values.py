"""Numbers, read late: what a map's weights are is known at once, their values only when somebody folds, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repcompile.errors import Inexact

Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Values:
    """The numbers of a map, float64.

    kernel: (c_out, c_in / groups, *sizes)  bias: (c_out,)  border: (c_out, 1, *sizes)
    """

    kernel: Tensor
    bias: Tensor | None = None
    border: Tensor | None = None


def in_float64(tensor: Tensor) -> Tensor:
    """A copy in float64, without history, on the host: not every device has float64."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor that does not depend on any input: a parameter, a buffer, or `function` of some, evaluated in float64.

    Its shape is known without evaluating it.
    positive: `function` with every term counted as positive, of the operands' magnitudes; where nothing can cancel
    inside `function`, None.
    """

    shape: tuple[int, ...]
    operands: tuple[Constant | Tensor, ...]
    function: Callable[..., Tensor] | None = None
    positive: Callable[..., Tensor] | None = None

    def exact(self, read: Reader = in_float64) -> Tensor:
        """The value in float64; `read` turns a parameter into float64 and may remember it."""
        arguments = [o.exact(read) if isinstance(o, Constant) else read(o) for o in self.operands]
        return arguments[0] if self.function is None else self.function(*arguments).reshape(self.shape)

    def magnitude(self, read: Reader = in_float64) -> Tensor:
        """The sum of the absolute values of its terms, in float64: what its rounding is measured by."""
        if self.positive is None:
            return self.exact(read).abs()
        sizes = [o.magnitude(read) if isinstance(o, Constant) else read(o).abs() for o in self.operands]
        return self.positive(*sizes).reshape(self.shape)

    def __neg__(self) -> Constant:
        return Constant(self.shape, (self,), torch.neg, _itself)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters and buffers that it is computed from."""
        parts = (o.tensors if isinstance(o, Constant) else (o,) for o in self.operands)
        return tuple(tensor for part in parts for tensor in part)


Weight = Tensor | Constant


def as_constant(weight: Weight) -> Constant:
    """A tensor as a `Constant`.  Raises Inexact unless it holds real floating-point numbers, in torch's own class."""
    if isinstance(weight, Constant):
        return weight
    if type(weight).__module__.partition(".")[0] != "torch":  # a library's quantized or distributed tensor
        raise Inexact(f"weights of class {type(weight).__name__} cannot be folded")
    if not weight.is_floating_point():
        raise Inexact(f"weights of dtype {weight.dtype} cannot be folded")
    return Constant(tuple(weight.shape), (weight,))


def computed(
    function: Callable[..., Tensor],
    *operands: Weight,
    shape: tuple[int, ...],
    positive: Callable[..., Tensor] | None = None,
) -> Constant:
    """`function(*operands)` of the given shape, evaluated in float64 when it is folded.  positive: as of `Constant`."""
    return Constant(shape, tuple(as_constant(operand) for operand in operands), function, positive)


def filled(number: Weight | float, count: int, shape: tuple[int, ...], most: float | None = None) -> Constant:
    """`count` numbers laid out in `shape`: those of a tensor with as many entries, or one number for all.

    most: the sum of the absolute values of the terms that the one number was added up from.
    """
    if isinstance(number, int | float):
        size = abs(float(number)) if most is None else most
        numbers = (lambda value=value: torch.full(shape, value, dtype=torch.float64) for value in (float(number), size))
        return Constant(shape, (), *numbers)

    def spread(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).expand(count)

    return computed(spread, number, shape=shape, positive=spread)


def _itself(value: Tensor) -> Tensor:
    return value
