"""Whether two programs compute the same: region by region before it is accepted, and whole models on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.copies import duplicate
from repcompile.emit import ROUNDINGS
from repcompile.errors import VerificationError
from repcompile.execute import run_copy
from repcompile.facts import Facts
from repcompile.fold import applied, magnitudes
from repcompile.interpret import Interpreter, TapByTap, with_tensors
from repcompile.modules import ValuePad
from repcompile.paths import Step
from repcompile.probes import probe_sizes
from repcompile.regions import Region
from repcompile.rounding import explained, growth, vanishing
from repcompile.values import Reader, in_float64

EPS = torch.finfo(torch.float64).eps
ROUNDED = 2  # roundings of stored weights in one product: of the weight, and of the value that is padded with


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison of two results.

    error: largest absolute difference, or the one that is largest beside its bound, where the bound varies.
    scale: largest absolute value.  bound: what rounding explains there.  place: index of that difference.
    border: whether the window of that output sticks out of the image; None where there is none, or nobody knows.
    """

    error: float
    scale: float
    bound: float
    place: tuple[int, ...] = ()
    border: bool | None = None

    @property
    def passed(self) -> bool:
        return self.error <= self.bound < float("inf")

    @property
    def relative(self) -> float:
        """error / scale"""
        return self.error / self.scale if self.scale else self.error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a region's nodes and its map make of one image.

    bound: the difference that rounding explains, for each entry.  magnitude: the sum of the absolute values of the
    products that were added up.  run: what another module in the place of the map makes of the image.
    """

    region: Region
    image: Tensor
    expected: Tensor
    got: Tensor
    bound: Tensor
    magnitude: Tensor
    run: Callable[[nn.Module], Tensor]

    @property
    def check(self) -> Check:
        """Of what the map makes with numbers in float64."""
        return self._compared(self.got, self.bound)

    def rounded(self, module: nn.Module) -> Check:
        """Of a module with the same numbers in another dtype, computing in float64.

        Rounding them may cost what one rounding of all weights costs the model itself, in the channel that has most.
        """
        dtype = next((p.dtype for p in module.parameters()), torch.float64)
        once = growth(dtype, 0, ROUNDED) * largest_of(self.magnitude) + vanishing(dtype)
        with torch.no_grad(), TapByTap():
            return self._compared(self.run(with_tensors(module, in_float64)), self.bound + once)

    def _compared(self, got: Tensor, bound: Tensor) -> Check:
        check = compare(got, self.expected, bound)
        return replace(check, border=_at_border(self, check.place) if check.place else None)


def verify_region(region: Region, module: nn.Module, captured: Captured, facts: Facts, read: Reader) -> Outcome:
    """`module` and the nodes of `region` on a small random image, both in float64.

    read: turns the user's weights into float64.
    """
    return outcome_of(region, module, captured, facts, read)


def outcome_of(
    region: Region,
    module: Callable[[Tensor], Tensor],
    captured: Captured,
    facts: Facts,
    read: Reader,
    larger: int = 0,
) -> Outcome:
    """What `module`, and what the nodes of `region` make of a small random image.

    larger: positions more along each axis.
    """
    interpreter, image = _prepared(region, captured, facts, read, larger)

    def run(module: Callable[[Tensor], Tensor]) -> Tensor:
        return _run_module(region, interpreter, module, image)

    with torch.no_grad(), TapByTap():
        expected, got = _run_region(region, interpreter, image), run(module)
        bound, magnitude = _bound(region, interpreter, module, image, read)
        if bound.shape != expected.shape:  # the map is wrong about the size: nothing explains that
            bound, magnitude = torch.zeros_like(expected), torch.zeros_like(expected)
        return Outcome(region, image, expected, got, bound, magnitude, run)


def dtype_of(region: Region, captured: Captured, facts: Facts, larger: int, dtype: torch.dtype) -> torch.dtype:
    """The dtype of what the nodes of `region` make of an image in `dtype`, with weights in that dtype."""

    def read(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype, copy=True)

    interpreter, image = _prepared(region, captured, facts, read, larger)
    with torch.no_grad():
        return _run_region(region, interpreter, image.to(dtype)).dtype


def _prepared(
    region: Region, captured: Captured, facts: Facts, read: Reader, larger: int
) -> tuple[Interpreter, Tensor]:
    assigned, sizes = probe_sizes(region, facts, larger)
    image = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Interpreter(captured, facts.sizes, assigned, read), image


def _bound(
    region: Region, interpreter: Interpreter, module: Callable[[Tensor], Tensor], image: Tensor, read: Reader
) -> tuple[Tensor, Tensor]:
    """(the difference that rounding explains, the sum of the absolute values of all products), for each entry.

    Three evaluations err by as much each: operator by operator, the fold, and the folded map (docs/math.md, 10).
    """
    x, fact = region.fact.map, region.fact
    before, less = _magnified(fact.path[: fact.at], interpreter, image.abs())
    if isinstance(x, Affine):
        direct = applied(x, magnitudes(x, read), before)
    else:
        direct = x.magnitudes[0] * before + x.magnitudes[1]
    direct, more = _magnified(fact.path[fact.at :], interpreter, direct)
    folded, more = direct, less + more
    if isinstance(module, nn.Module) and any(isinstance(part, ValuePad) for part in module.modules()):
        emitted = with_tensors(module, torch.abs)(before)
        folded = _magnified(fact.path[fact.at :], interpreter, emitted.amax().expand_as(emitted).contiguous())[0]
        more += 2 * ROUNDINGS  # how well the value solves its equations
    err = partial(explained, x if isinstance(x, Affine) else None, dtype=torch.float64, operators=len(region.nodes))
    return 2 * err(direct, more=more) + err(folded, more=more), direct


def _magnified(path: Sequence[Step], interpreter: Interpreter, value: Tensor) -> tuple[Tensor, int]:
    """(what becomes of magnitudes, how many sums a product goes through) along a path.

    A mean of positions is at most the largest of them, or twice that: cubic interpolation has negative weights.
    """
    terms = 0
    for step in path:
        made = [axis for axis, place in enumerate(step.layout.carry) if place is None] if step.layout.name else []
        if made:
            terms += prod(value.shape[axis] for axis in made) + 1
            value = 2 * value.amax(made, keepdim=True).expand_as(value).contiguous()
        value = _along((step,), interpreter, value)
    return value, terms


def _at_border(outcome: Outcome, place: tuple[int, ...]) -> bool | None:
    """Whether a tap of the output at `place` is outside of the image; None where nothing is, or nobody knows."""
    fact, x = outcome.region.fact, outcome.region.fact.map
    if not isinstance(x, Affine) or not x.pads or fact.path:
        return None
    n_axes = len(x.axes)
    sizes, positions = outcome.image.shape[-n_axes:], place[len(place) - n_axes :]
    return any(
        axis.stride * position < axis.lo or axis.stride * position + axis.span - axis.lo > axis.up * (size - 1)
        for axis, position, size in zip(x.axes, positions, sizes, strict=True)
    )


def compare(got: Tensor, expected: Tensor, bound: float | Tensor) -> Check:
    """The largest difference, and where it is; a shape or a NaN that differs fails.

    bound: of all entries, or of each; then the difference that is largest beside its bound.
    """
    if got.shape != expected.shape:
        return Check(float("inf"), 1.0, 0.0 if isinstance(bound, Tensor) else bound)
    if not got.numel():
        return Check(0.0, 0.0, 0.0 if isinstance(bound, Tensor) else bound)
    difference = (got - expected).abs_()
    if not difference.sum().isfinite():
        difference[(got == expected) | (got.isnan() & expected.isnan())] = 0.0
        difference.nan_to_num_(nan=float("inf"), posinf=float("inf"))
    if isinstance(bound, Tensor):  # one that is no number explains nothing
        bound = torch.where(bound.isfinite(), bound, 0.0)
        share = (difference / bound).nan_to_num_(nan=0.0, posinf=float("inf"))
    else:
        share = difference
    worst = int(share.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), difference.shape))
    limit = bound.flatten()[worst].item() if isinstance(bound, Tensor) else bound
    return Check(difference.flatten()[worst].item(), largest_of(expected[expected.isfinite()]), limit, place)


def verify(model: nn.Module, fused: nn.Module, example_inputs: Sequence[Any]) -> tuple[Check, Check]:
    """Compare a model with its fused form: (in float64, in the model's own dtype).

    In float64 both run with float64 copies of their weights; what remains is the rounding of the folded weights. A
    model that runs in its own dtype only, because its forward makes tensors of that dtype, is compared in that alone.
    Neither model is changed.  Raises VerificationError if the outputs differ in structure.
    """
    tolerance = _tolerance(model)
    native = compare_outputs(run_copy(model, example_inputs), run_copy(fused, example_inputs), tolerance)
    if _is_float64(model, example_inputs):
        return native, native
    inputs = _in_float64(example_inputs)
    try:
        expected = run_copy(duplicate(model).double(), inputs)
    except RuntimeError:  # the user's forward
        return native, native
    return compare_outputs(expected, run_copy(duplicate(fused).double(), inputs), tolerance), native


def _is_float64(model: nn.Module, inputs: Sequence[Any]) -> bool:
    """Whether running in float64 is what the model does anyway."""
    tensors = (*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs))
    return {x.dtype for x in tensors if isinstance(x, Tensor) and x.is_floating_point()} == {torch.float64}


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


def _in_float64(inputs: Sequence[Any]) -> list[Any]:
    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, list(inputs))


# -- regions ---------------------------------------------------------------------------------------------------------


def _run_region(region: Region, interpreter: Interpreter, image: Tensor) -> Tensor:
    """The sink's value."""
    values = {region.source: image}
    for node in region.nodes:
        values[node] = interpreter.run(node, values)
    return values[region.sink]


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
