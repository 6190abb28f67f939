"""What a region's nodes, and the one operator for them, make of a small random image: translation validation.

Given: a region and the operator.  Result: both values, and for each entry the difference that rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import Tensor, fx, nn

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.compare import Check, compare, largest_of
from repcompile.emit import ROUNDINGS
from repcompile.facts import Facts
from repcompile.fold import magnitude
from repcompile.interpret import Interpreter, TapByTap, with_tensors
from repcompile.modules import ValuePad
from repcompile.paths import Step
from repcompile.probes import probe_sizes
from repcompile.regions import Region
from repcompile.rounding import explained, growth, vanishing
from repcompile.values import Reader, in_float64

ROUNDED = 2  # roundings of stored weights in one product: of the weight, and of the value that is padded with


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


def outcome_of(
    region: Region,
    module: Callable[[Tensor], Tensor],
    captured: Captured,
    facts: Facts,
    read: Reader,
    larger: int = 0,
) -> Outcome:
    """What `module`, and what the nodes of `region` make of a small random image, both in float64.

    read: turns the user's weights into float64.  larger: positions more along each axis.
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
    return Interpreter(captured, facts.sizes, facts.asked, facts.shapes, assigned, read), image


def _bound(
    region: Region, interpreter: Interpreter, module: Callable[[Tensor], Tensor], image: Tensor, read: Reader
) -> tuple[Tensor, Tensor]:
    """(the difference that rounding explains, the sum of the absolute values of all products), for each entry.

    Three evaluations err by as much each: operator by operator, the fold, and the folded map (docs/math.md, 10).
    """
    x, fact = region.fact.map, region.fact
    before, less = _magnified(fact.path[: fact.at], interpreter, image.abs())
    direct = magnitude(x, before, read) if isinstance(x, Affine) else x.magnitudes[0] * before + x.magnitudes[1]
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


def _run_region(region: Region, interpreter: Interpreter, image: Tensor) -> Tensor:
    """The sink's value."""
    values = {region.source: image}
    for node in region.nodes:
        values[node] = interpreter.run(node, values)
    return values[region.sink]


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
