"""What operators cost: multiply-accumulates, bytes moved, launches; and models that turn these into one number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from repcompile.affine import Affine, Map, Uniform

POSITIONS = 256  # output positions assumed where no example input tells the size: one 16 x 16 image
ELEMENT = 4  # bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """macs: multiply-accumulates.  bytes: read and written.  launches: kernels started."""

    macs: float = 0
    bytes: float = 0
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.bytes + other.bytes, self.launches + other.launches)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of what several operators cost."""
    return sum(costs, Cost())


class CostModel(Protocol):
    """Anything that prices one operator's `Cost`; the planner maximizes the price saved, added over operators."""

    def __call__(self, cost: Cost) -> float:
        """The price, >= 0, in any unit."""
        ...


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds on a machine bounded by arithmetic or by memory, plus a fixed time per kernel (Williams et al. 2009).

    macs_per_second, bytes_per_second: > 0.  launch: seconds a kernel. The defaults are those of a few CPU cores.
    """

    macs_per_second: float = 5e10
    bytes_per_second: float = 1e10
    launch: float = 5e-6

    def __call__(self, cost: Cost) -> float:
        arithmetic, memory = cost.macs / self.macs_per_second, cost.bytes / self.bytes_per_second
        return max(arithmetic, memory) + self.launch * cost.launches


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates alone; kernels break ties."""

    def __call__(self, cost: Cost) -> float:
        return cost.macs + 1e-3 * cost.launches


def cost_of_map(
    x: Map,
    channels: int,
    before: float,
    after: float,
    padded: float | None = None,
    widest: float | None = None,
    single: float = 0,
    transposed: bool = False,
    stored: float | None = None,
    seams: float = 0,
) -> tuple[Cost, ...]:
    """The kernels that compute `x`: one, and more for padding that is not zeros or not alike on both sides, for a
    crop, and for a border map.

    channels: of a `Uniform` map.  before, after: positions of the input and the output, batch included.
    padded: of the padded and cropped input, or of what a transposed convolution makes before it is cropped, if known.
    widest: of the padded input before it is cropped, if known.
    single: of one output, as a border map has them; few beside a batch.
    transposed: whether the model spells it as a transposed convolution, which pads and crops by itself.
    stored: numbers that are read beside the image; those of the operator that we make unless given.
    seams: positions that are copied from the opposite sides of the image, where padding is circular.
    """
    if isinstance(x, Uniform):
        return () if x.is_identity else (cost_of_elementwise(1, channels, after),)  # an operator that only passes on
    if x.selects:
        return (cost_of_elementwise(1, x.c_out, after),)
    if x.is_diagonal:  # ours has a gain and a shift
        stored = 2 * x.c_out if stored is None else stored
        return (cost_of_elementwise(1, x.c_out, after) + Cost(bytes=ELEMENT * stored),)
    surrounds = x.has_border and x.reads_less  # by a value for each channel, and the convolution has a bias for it
    if stored is None:
        stored = x.weights + x.c_out * (x.has_bias or surrounds)
    plain = [] if transposed or x.spreads else x.axes
    alike = x.mode == "zeros" and all(axis.lo == axis.hi >= 0 for axis in plain)  # a convolution does it by itself
    pads = any(axis.pads for axis in plain) and (surrounds or not alike)
    crops = any(min(axis.lo, axis.hi) < 0 for axis in plain)
    given = before
    if pads or (crops and padded is not None):  # the convolution reads what the padding wrote
        before = max(before, after * prod(axis.stride for axis in plain)) if padded is None else padded
    ragged = x.spreads and not transposed and not x.ends_evenly
    made = padded if ragged and padded is not None else after
    moved = x.c_in * before + x.c_out * made + stored
    positions = before if transposed or x.spreads else after  # a transposed convolution works at those of its input
    kernels = [Cost(x.weights * positions, ELEMENT * moved, 1)]
    if pads and crops and not x.pads_at_once:
        widest = before if widest is None else widest
        kernels += cost_of_padding(x, x.c_in * given, x.c_in * widest, x.c_in * seams)
        kernels.append(cost_of_copy(x.c_in * widest, x.c_in * before))
    elif pads:
        kernels += cost_of_padding(x, x.c_in * given, x.c_in * before, x.c_in * seams)
    elif crops:
        kernels.append(cost_of_copy(x.c_in * given, x.c_in * before))
    if ragged:
        kernels.append(cost_of_copy(x.c_out * made, x.c_out * after))
    if surrounds:
        image = before * single / max(after, 1)
        kernels.append(cost_of_elementwise(1, x.c_in, before) + Cost(bytes=ELEMENT * x.c_in * image))
    elif x.has_border:
        kernels.append(cost_of_elementwise(1, x.c_out, after) + Cost(bytes=ELEMENT * x.c_out * single))
    return tuple(kernels)


def cost_of_padding(x: Map, before: float, after: float, seams: float) -> tuple[Cost, ...]:
    """One kernel; torch pads circularly by an empty image, a copy of the image, and one of each side.

    before, after: how many numbers the image has.  seams: how many are copied from its sides.
    """
    if not isinstance(x, Affine) or x.mode != "circular":
        return (cost_of_copy(before, after),)
    sides = sum((axis.lo > 0) + (axis.hi > 0) for axis in x.axes)
    side = seams / max(sides, 1)
    return (Cost(launches=1), cost_of_copy(before, before), *((cost_of_copy(side, side),) * sides))


def seams_of(x: Map, sizes: Sequence[int], numbers: float) -> float:
    """How many of the `numbers` of an image that is padded circularly come from its opposite sides; none where the
    sizes are not known.

    sizes: of the padded image, the spatial ones last.
    """
    if not isinstance(x, Affine) or x.mode != "circular" or not sizes or not all(sizes):
        return 0.0
    last = sizes[len(sizes) - len(x.axes) :]
    return sum(numbers * (max(axis.lo, 0) + max(axis.hi, 0)) / size for axis, size in zip(x.axes, last, strict=True))


def cost_of_resampling(channels: int, before: float, after: float) -> Cost:
    """A mean, or an interpolation: every position read once, the new ones written."""
    return Cost(channels * max(before, after), ELEMENT * channels * (before + after), 1)


def cost_of_copy(before: float, after: float) -> Cost:
    """A kernel that crops or pads: what it keeps is read, the result written.  before, after: how many numbers."""
    return Cost(after, ELEMENT * (min(before, after) + after), 1)


def cost_of_elementwise(operands: int, channels: int, positions: float) -> Cost:
    """One elementwise kernel: every operand read, one result written."""
    return Cost(channels * positions, ELEMENT * (operands + 1) * channels * positions, 1)
