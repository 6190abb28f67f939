"""What is known of shapes without running anything: sizes as products of integers and names.

The size of an axis is a `Size`; `B, C, H, W = x.shape` gives four names, `H * W` their product. That is enough to see
which axis of `x.flatten(2).transpose(1, 2)` the channels are on, or that `reshape(B, C, H, W)` puts them back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import mul

from repcompile.errors import Inexact


@dataclass(frozen=True, slots=True)
class Size:
    """A positive integer times named unknowns, each of them a positive integer too."""

    number: int = 1
    names: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: Size) -> Size | None:
        """The quotient, if it is known to be whole."""
        mine, theirs = Counter(self.names), Counter(other.names)
        if self.number % other.number or theirs - mine:
            return None
        return Size(self.number // other.number, tuple(sorted((mine - theirs).elements())))

    @property
    def known(self) -> int | None:
        """The integer, if there is no unknown in it."""
        return None if self.names else self.number


Shape = tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A rearrangement of positions, or a mean of some with weights that sum to one.

    shape: of the result.  carry: where each axis of the input went, or None.
    regroups: where axes are split or joined: shapes to bring the image to in turn, and how to permute it there; what
    comes last is `shape`.
    name: what is done to the positions; operators of one name do the same.
    scale: positions of the result for each one of the input, as far as a price is concerned.
    fixed: the axes of the result whose sizes the operator names, so that it takes no other number there.
    """

    shape: Shape
    carry: tuple[int | None, ...]
    regroups: tuple[tuple[Shape, tuple[int, ...]], ...] = ()
    name: str = ""
    scale: float = 1.0
    fixed: tuple[int, ...] = field(default=(), compare=False)

    @property
    def is_view(self) -> bool:
        """Whether no position is made anew, so that nothing has to be computed."""
        return not self.name or None not in self.carry


def named(owner: str, rank: int) -> Shape:
    """A shape of which only the rank is known."""
    return tuple(unknown(owner, axis) for axis in range(rank))


def unknown(owner: str, axis: int) -> Size:
    """The size of one axis of the value called `owner`."""
    return Size(1, (f"{owner}.{axis}",))


def product(sizes: Sequence[Size]) -> Size:
    return reduce(mul, sizes, Size())


def known_sizes(shape: Shape | None) -> tuple[int | None, ...] | None:
    """The integers of a shape, None where only the run will tell."""
    return None if shape is None else tuple(size.known for size in shape)


def broadcast(left: Shape | None, right: Shape | None, owner: str) -> Shape | None:
    """The shape of an elementwise operation; where two unknowns meet, the result is an unknown of `owner`'s own."""
    if left is None or right is None:
        return None
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    padded = (Size(1),) * (len(longer) - len(shorter)) + shorter
    return tuple(_wider(a, b, unknown(owner, axis)) for axis, (a, b) in enumerate(zip(longer, padded, strict=True)))


def _wider(a: Size, b: Size, neither: Size) -> Size:
    if a == b or b == Size(1):
        return a
    if a == Size(1):
        return b
    return a if a.known else b if b.known else neither


def reshaped(shape: Shape | None, sizes: Sequence[Size | None], owner: str) -> Layout:
    """`reshape` to `sizes`, where None is the -1 that torch works out.

    An axis survives where its own size and the number of elements in front of it (or behind it) are the same.
    """
    if shape is None:
        return Layout(tuple(unknown(owner, i) if size is None else size for i, size in enumerate(sizes)), ())
    rest = [size for size in sizes if size is not None]
    missing = product(shape).over(product(rest)) if len(rest) < len(sizes) else None
    result = tuple((missing or unknown(owner, i)) if size is None else size for i, size in enumerate(sizes))
    carry = tuple(_survivor(shape, axis, result) for axis in range(len(shape)))
    return Layout(result, carry, ((shape, tuple(range(len(shape)))),))


def permuted(shape: Shape, order: Sequence[int]) -> Layout:
    """`permute` by `order`, which may count from the end."""
    places = [axis % len(shape) for axis in order]
    if sorted(places) != list(range(len(shape))):
        raise Inexact(f"{tuple(order)} does not order {len(shape)} axes")
    return Layout(tuple(shape[axis] for axis in places), tuple(places.index(axis) for axis in range(len(shape))))


def _survivor(shape: Shape, axis: int, result: Shape) -> int | None:
    for place, size in enumerate(result):
        if size != shape[axis]:
            continue
        in_front = product(shape[:axis]) == product(result[:place])
        if in_front or product(shape[axis + 1 :]) == product(result[place + 1 :]):
            return place
    return None
