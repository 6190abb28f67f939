"""Whether two programs compute the same: region by region before it is accepted, and whole models on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repcompile.affine import Affine
from repcompile.axis import Axis
from repcompile.capture import Captured
from repcompile.copies import duplicate
from repcompile.errors import VerificationError
from repcompile.execute import run_copy
from repcompile.facts import ELEMENTWISE, Facts
from repcompile.interpret import DEFAULT_SIZE, Interpreter, TapByTap, evaluated_shape
from repcompile.paths import Step
from repcompile.regions import Region
from repcompile.shapes import Shape, Size, product
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


def verify_region(
    region: Region, x: Affine, values: Values, module: nn.Module, captured: Captured, facts: Facts, read: Reader
) -> Check:
    """Compare `module` with the nodes of `region` on a small random image, both in float64.

    x, values: the map that `module` computes.  read: turns the user's weights into float64.
    The bound is eps times the largest value that occurs on the way, times the number of operations in a row: inner
    products of n terms err by at most n eps sum |w||x| (Higham 2002, sec. 3.1), and every node adds one rounding.
    """
    assigned = _assigned(region, x, facts)
    interpreter = Interpreter(captured, facts.sizes, assigned, read)
    with torch.no_grad(), TapByTap():
        image = _image(region, x, facts, assigned)
        expected, largest = _run_region(region, interpreter, image)
        got = _run_module(region, interpreter, module, image)
        reach = largest * (1.0 + torch.linalg.vector_norm(values.kernel.flatten(1), 1, dim=1).max().item())
        shift = sum(_largest(v) for v in (values.bias, values.border) if v is not None)
        terms = values.kernel[0].numel() + 16 * (len(region.nodes) + 1)
        return compare(got, expected, EPS * terms * (reach + shift))


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
    return Check(difference.flatten()[worst].item(), _largest(expected[expected.isfinite()]), bound, place)


def verify(model: nn.Module, fused: nn.Module, example_inputs: Sequence[Any]) -> tuple[Check, Check]:
    """Compare a model with its fused form: (in float64, in the model's own dtype).

    In float64 both run with float64 copies of their weights; what remains is the rounding of the folded weights. A
    model that runs in its own dtype only, because its forward makes tensors of that dtype, is compared in that alone.
    Neither model is changed.  Raises VerificationError if the outputs differ in structure.
    """
    tolerance = _tolerance(model)
    native = compare_outputs(run_copy(model, example_inputs), run_copy(fused, example_inputs), tolerance)
    inputs = _in_float64(example_inputs)
    try:
        expected = run_copy(duplicate(model).double(), inputs)
    except RuntimeError:  # the user's forward
        return native, native
    return compare_outputs(expected, run_copy(duplicate(fused).double(), inputs), tolerance), native


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
    return compare(b, a, 0.0 if exact else tolerance * _largest(a[a.isfinite()]))


def _tolerance(model: nn.Module) -> float:
    """Half the digits of the coarsest dtype among the weights."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=EPS) ** 0.5


def _in_float64(inputs: Sequence[Any]) -> list[Any]:
    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, list(inputs))


# -- probes ------------------------------------------------------------------------------------------------------------


def _assigned(region: Region, x: Affine, facts: Facts) -> dict[str, int]:
    """Integers for the unknown sizes of the source: enough positions for a border and an inside, different per axis.

    What a reshape on the way takes for granted comes first.
    """
    shape, fact = _source_shape(region, facts), region.fact
    fixed = _taken_for_granted(region, facts)
    if shape is None:
        return fixed
    assigned = {name: 2 if fact.path else 1 for size in shape for name in size.names}  # rearranging may mix up batches
    assigned |= fixed
    layout = fact.path[fact.at - 1].layout.shape if fact.at else shape  # as the map sees it
    for size, needed in zip(layout[len(layout) - len(x.axes) - 1 :], (x.c_in, *_wanted(x)), strict=True):
        free = [name for name in size.names if name not in fixed]
        if free:
            rest = prod(assigned.get(name, 1) for name in size.names if name != free[0]) * size.number
            assigned[free[0]] = max(assigned.get(free[0], 1), -(-needed // rest))
    return assigned


def _taken_for_granted(region: Region, facts: Facts) -> dict[str, int]:
    """Channels that an operator inside the region expects, and sizes that a change of layout there needs."""
    fixed = _channels_read(region, facts) | _sizes_added(region, facts)
    steps = [facts.steps[node] for node in region.nodes if node in facts.steps]
    for step in steps:
        before, after = product(step.before), product(step.layout.shape)
        if not step.layout.regroups or before == after:
            continue
        mine, theirs = Counter(before.names), Counter(after.names)
        left, right = [(mine - theirs).elements(), (theirs - mine).elements()]
        _solve(fixed, before.number, list(left), after.number, list(right))
    return fixed


def _sizes_added(region: Region, facts: Facts) -> dict[str, int]:
    """Sizes of one summand that the other one tells."""
    fixed: dict[str, int] = {}
    for node in region.nodes:
        shapes = [shape for value in node.all_input_nodes if (shape := facts.shapes.get(value)) is not None]
        if facts.rules[node].name not in ELEMENTWISE or len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
            continue
        for pair in zip(*shapes, strict=True):
            for size, other in (pair, pair[::-1]):
                if size.known not in (None, 1) and other.number == 1 and len(other.names) == 1:
                    fixed[other.names[0]] = size.known or 1
    return fixed


def _channels_read(region: Region, facts: Facts) -> dict[str, int]:
    """What operators inside the region that read the source as it is take for its channels."""
    shape, fixed = facts.shapes.get(region.source), dict[str, int]()
    for node in region.nodes if shape is not None else ():
        x = next((f.map for f in facts.maps.get(node, ()) if f.source is region.source and not f.path), None)
        if shape is None or not isinstance(x, Affine) or len(x.axes) >= len(shape):
            continue
        size = shape[-1 - len(x.axes)]
        if len(size.names) == 1 and x.c_in % size.number == 0:
            fixed[size.names[0]] = x.c_in // size.number
    return fixed


def _solve(fixed: dict[str, int], number: int, names: list[str], other: int, others: list[str]) -> None:
    """Assign `names` or `others` so that number * names = other * others, if one side has nothing left to assign."""
    for name in (*names, *others):
        if name in fixed:
            number, other = (number * fixed[name], other) if name in names else (number, other * fixed[name])
    free, frees = [n for n in names if n not in fixed], [n for n in others if n not in fixed]
    if free and not frees and other % number == 0:
        fixed.update(dict.fromkeys(free[:-1], 1), **{free[-1]: other // number})
    elif frees and not free and number % other == 0:
        fixed.update(dict.fromkeys(frees[:-1], 1), **{frees[-1]: number // other})


def _wanted(x: Affine) -> list[int]:
    """Positions along each axis so that some windows touch the border and some do not."""
    return [
        _covered(axis, max(axis.span + 2 * axis.stride - min(axis.lo, 0) - min(axis.hi, 0), 2) + place)
        for place, axis in enumerate(x.axes)
    ]


def _covered(axis: Axis, least: int) -> int:
    """The first size from `least` on at which the last window ends where the padding does, and reads all of it."""
    return next(
        size for size in range(least, least + axis.stride) if (axis.up * (size - 1) + axis.growth) % axis.stride == 0
    )


def _source_shape(region: Region, facts: Facts) -> Shape | None:
    """The shape of the source; where nothing tells it, that of the value in front of the first change of layout."""
    shape, path = facts.shapes.get(region.source), region.fact.path
    if shape is not None or not path:
        return shape
    operand = path[0].node.args[0]
    known = facts.shapes.get(operand) if isinstance(operand, fx.Node) else None
    inner = next((f.map for f in facts.maps.get(operand, ()) if f.source is region.source and not f.path), None)  # type: ignore[arg-type]
    if known is None or not isinstance(inner, Affine):
        return known
    channels = len(known) - 1 - len(inner.axes)
    return (*known[:channels], Size(inner.c_in), *known[channels + 1 :])


def _image(region: Region, x: Affine, facts: Facts, assigned: Mapping[str, int]) -> Tensor:
    shape = _source_shape(region, facts)
    if shape is not None:
        sizes = evaluated_shape(shape, assigned)
    else:
        sizes = (1, x.c_in, *_wanted(x)) if x.axes else (1, DEFAULT_SIZE, x.c_in)
    return torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _run_region(region: Region, interpreter: Interpreter, image: Tensor) -> tuple[Tensor, float]:
    """The sink's value, and the largest absolute value on the way."""
    values = {region.source: image}
    largest = _largest(image)
    for node in region.nodes:
        values[node] = value = interpreter.run(node, values)
        largest = max(largest, *(_largest(part) for part in (value if isinstance(value, tuple | list) else (value,))))
    return values[region.sink], largest


def _largest(tensor: Tensor) -> float:
    """The largest absolute value."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item())


def _run_module(region: Region, interpreter: Interpreter, module: nn.Module, image: Tensor) -> Tensor:
    fact = region.fact
    before, after = fact.path[: fact.at], fact.path[fact.at :]
    return _along(after, interpreter, module(_along(before, interpreter, image)))


def _along(path: Sequence[Step], interpreter: Interpreter, value: Tensor) -> Tensor:
    for step in path:
        operand = step.node.args[0]
        assert isinstance(operand, fx.Node)
        value = interpreter.run(step.node, {operand: value})
    return value
