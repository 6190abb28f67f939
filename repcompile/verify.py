"""Whether two programs compute the same: region by region before it is accepted, and whole models on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile.affine import Uniform
from repcompile.capture import Captured
from repcompile.copies import duplicate
from repcompile.errors import VerificationError
from repcompile.execute import run, run_copy
from repcompile.facts import Facts
from repcompile.interpret import Interpreter, TapByTap
from repcompile.paths import Step
from repcompile.probes import probe_sizes
from repcompile.regions import Region
from repcompile.values import Reader, Values

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of two results.

    error: largest absolute difference.  scale: largest absolute value.  bound: what rounding explains.
    place: index of the largest difference.
    """

    error: float
    scale: float
    bound: float
    place: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        return self.error <= self.bound < float("inf")

    @property
    def relative(self) -> float:
        """error / scale"""
        return self.error / self.scale if self.scale else self.error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a region's nodes and its map make of one image.  bound: the difference that rounding explains."""

    image: Tensor
    expected: Tensor
    got: Tensor
    bound: float


def verify_region(
    region: Region, values: Values, module: nn.Module, captured: Captured, facts: Facts, read: Reader
) -> Check:
    """Compare `module` with the nodes of `region` on a small random image, both in float64.

    values: the numbers of the map that `module` computes.  read: turns the user's weights into float64.
    """
    outcome = outcome_of(region, values, module, captured, facts, read)
    return compare(outcome.got, outcome.expected, outcome.bound)


def outcome_of(
    region: Region,
    values: Values | None,
    module: Callable[[Tensor], Tensor],
    captured: Captured,
    facts: Facts,
    read: Reader,
    larger: int = 0,
) -> Outcome:
    """What `module`, and what the nodes of `region` make of a small random image.

    values: None where the map is the same number for all channels.  larger: positions more along each axis.
    The bound is eps times the largest value that occurs on the way, times the number of operations in a row: inner
    products of n terms err by at most n eps sum |w||x| (Higham 2002, sec. 3.1), and every node adds one rounding.
    """
    interpreter, image = _prepared(region, captured, facts, read, larger)
    with torch.no_grad(), TapByTap():
        expected, largest = _run_region(region, interpreter, image)
        got = _run_module(region, interpreter, module, image)
        gain, shift, terms = _reach(values, region)
        bound = EPS * (terms + 16 * (len(region.nodes) + 1)) * (largest * (1.0 + gain) + shift)
        return Outcome(image, expected, got, bound)


def dtype_of(region: Region, captured: Captured, facts: Facts, larger: int, dtype: torch.dtype) -> torch.dtype:
    """The dtype of what the nodes of `region` make of an image in `dtype`, with weights in that dtype."""

    def read(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype, copy=True)

    interpreter, image = _prepared(region, captured, facts, read, larger)
    with torch.no_grad():
        return _run_region(region, interpreter, image.to(dtype))[0].dtype


def _prepared(
    region: Region, captured: Captured, facts: Facts, read: Reader, larger: int
) -> tuple[Interpreter, Tensor]:
    assigned, sizes = probe_sizes(region, facts, larger)
    image = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Interpreter(captured, facts.sizes, assigned, read), image


def _reach(values: Values | None, region: Region) -> tuple[float, float, int]:
    """(how much larger values get at most, the largest constant, terms of one inner product)"""
    if values is None:
        x = region.fact.map
        return (abs(x.gain), abs(x.shift), 1) if isinstance(x, Uniform) else (1.0, 0.0, 1)
    gain = torch.linalg.vector_norm(values.kernel.flatten(1), 1, dim=1).max().item()
    return gain, sum(largest_of(v) for v in (values.bias, values.border) if v is not None), values.kernel[0].numel()


def compare(got: Tensor, expected: Tensor, bound: float) -> Check:
    """The largest difference, and where it is; a shape or a NaN that differs fails."""
    if got.shape != expected.shape:
        return Check(float("inf"), 1.0, bound)
    if not got.numel():
        return Check(0.0, 0.0, bound)
    difference = (got - expected).abs_()
    if not difference.sum().isfinite():
        difference[(got == expected) | (got.isnan() & expected.isnan())] = 0.0
        difference.nan_to_num_(nan=float("inf"), posinf=float("inf"))
    worst = int(difference.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), difference.shape))
    return Check(difference.flatten()[worst].item(), largest_of(expected[expected.isfinite()]), bound, place)


def verify(model: nn.Module, fused: nn.Module, example_inputs: Sequence[Any]) -> tuple[Check, Check]:
    """Compare a model with its fused form: (in float64, in the model's own dtype).

    In float64 both run with float64 copies of their weights; what remains is the rounding of the folded weights. A
    model that runs in its own dtype only, because its forward makes tensors of that dtype, is compared in that alone.
    The coarsest dtype that occurs on the way sets the tolerance.  Neither model is changed.
    Raises VerificationError if the outputs differ in structure.
    """
    with _Coarsest() as coarsest:
        expected = run_copy(model, example_inputs)
    tolerance = max(_tolerance(model), coarsest.eps**0.5)
    native = compare_outputs(expected, run_copy(fused, example_inputs), tolerance)
    if all(dtype == torch.float64 for dtype in _dtypes(model, fused, example_inputs)):
        return native, native
    inputs = _in_float64(example_inputs)
    try:
        expected = run(duplicate(model).double(), inputs)
    except RuntimeError:  # the user's forward
        return native, native
    return compare_outputs(expected, run(duplicate(fused).double(), inputs), tolerance), native


def compare_outputs(expected: Any, got: Any, tolerance: float = 1e-6) -> Check:
    """The worst of the tensors in two results of the same structure.

    tolerance: largest relative error that passes.
    """
    expected, structure = pytree.tree_flatten(expected)
    got, other = pytree.tree_flatten(got)
    if structure != other:
        raise VerificationError(f"the model returns {structure}, the other one {other}")
    pairs = zip(expected, got, strict=True)
    checks = [_compare_tensors(a, b, tolerance) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return max(checks, key=lambda check: (not check.passed, check.relative), default=Check(0.0, 0.0, 0.0))


def same_results(expected: Any, got: Any, model: nn.Module) -> bool:
    """Whether two results are the same for whoever called `model`: structure, kinds, and numbers up to rounding."""
    leaves, structure = pytree.tree_flatten(expected)
    others, other = pytree.tree_flatten(got)
    if structure != other or not all(map(_alike, leaves, others)):
        return False
    return compare_outputs(expected, got, _tolerance(model)).passed


def _alike(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
    return type(value) is type(other) and bool(value == other)


def _compare_tensors(expected: Tensor, got: Tensor, tolerance: float) -> Check:
    """Numbers up to rounding; integers and truth values exactly."""
    exact = not (expected.is_floating_point() or expected.is_complex())
    a, b = (torch.view_as_real(t).double() if t.is_complex() else t.double() for t in (expected, got))
    return compare(b, a, 0.0 if exact else tolerance * largest_of(a[a.isfinite()]))


def _tolerance(model: nn.Module) -> float:
    """Half the digits of the coarsest dtype among the weights."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=EPS) ** 0.5


def _dtypes(model: nn.Module, fused: nn.Module, inputs: Sequence[Any]) -> set[torch.dtype]:
    """The floating-point types of weights and inputs."""
    modules = (tensor for module in (model, fused) for tensor in (*module.parameters(), *module.buffers()))
    given = (value for value in pytree.tree_leaves(list(inputs)) if isinstance(value, Tensor))
    return {tensor.dtype for tensor in (*modules, *given) if tensor.is_floating_point()}


class _Coarsest(TorchDispatchMode):
    """The largest eps among the floating-point types that operators return: a model may cast on the way."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.eps = EPS

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else (result,)
        floating = [value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        self.eps = max([self.eps, *(torch.finfo(dtype).eps for dtype in floating)])
        return result


def _in_float64(inputs: Sequence[Any]) -> list[Any]:
    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, list(inputs))


# -- regions ---------------------------------------------------------------------------------------------------------


def _run_region(region: Region, interpreter: Interpreter, image: Tensor) -> tuple[Tensor, float]:
    """The sink's value, and the largest absolute value on the way."""
    values = {region.source: image}
    largest = largest_of(image)
    for node in region.nodes:
        values[node] = value = interpreter.run(node, values)
        largest = max(largest, *(largest_of(part) for part in (value if isinstance(value, tuple | list) else (value,))))
    return values[region.sink], largest


def largest_of(tensor: Tensor) -> float:
    """The largest absolute value."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item())


def _run_module(region: Region, interpreter: Interpreter, module: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    fact = region.fact
    before, after = fact.path[: fact.at], fact.path[fact.at :]
    return _along(after, interpreter, module(_along(before, interpreter, image)))


def _along(path: Sequence[Step], interpreter: Interpreter, value: Tensor) -> Tensor:
    for step in path:
        operand = step.node.args[0]
        assert isinstance(operand, fx.Node)
        value = interpreter.run(step.node, {operand: value})
    return value
