"""Where every piece of every axis went: what a path of operators that only move positions does to an image.

A `Track` lists, for each axis of the result, the pieces of the source's axes that it consists of. Reshaping splits and
joins pieces by their symbolic sizes, permuting reorders axes, and an operator that mixes positions (a mean, an
interpolation) makes a new piece. Pieces that come together again, in order, are one piece again: so a path that only
exchanges channels, or does nothing in the end, is known for what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repcompile.shapes import Layout, Shape, Size


@dataclass(frozen=True, slots=True)
class Piece:
    """Some positions of an axis.

    origin: the source's axis, or what made the piece.  part: which halves were taken, one after the other.
    """

    origin: Any
    size: Size
    part: tuple[int, ...] = ()


Track = tuple[tuple[Piece, ...], ...]
ONE = Size(1)


def begin(shape: Shape) -> Track:
    """Every axis of `shape` in its place."""
    return tuple((Piece(axis, size),) for axis, size in enumerate(shape))


def along(shape: Shape, layouts: Sequence[Layout]) -> Track:
    """What became of an image of `shape` behind several layouts."""
    track = begin(shape)
    for layout in layouts:
        track = moved(track, layout)
    return track


def moved(track: Track, layout: Layout) -> Track:
    """The track behind one more operator."""
    if layout.regroups:
        for shape, order in layout.regroups:
            track = _regrouped(track, shape, layout.name)
            track = tuple(track[axis] for axis in order)
        return _regrouped(track, layout.shape, layout.name)
    sources = {place: axis for axis, place in enumerate(layout.carry) if place is not None}
    gone = tuple(pieces for axis, pieces in enumerate(track) if axis not in sources.values())
    return tuple(
        track[sources[place]] if place in sources else (Piece((layout.name, gone, place), size),)
        for place, size in enumerate(layout.shape)
    )


def place_of(track: Track, axis: int) -> int | None:
    """The axis of the result that is the source's `axis`, whole and in order; None if there is none."""
    return next((i for i, pieces in enumerate(track) if len(pieces) == 1 and _is_whole(pieces[0], axis)), None)


def spread_over(track: Track, axis: int) -> tuple[int, list[int]] | None:
    """(place, index): position p of the result's axis `place` belongs to entry index[p] of the source's `axis`.

    None if the entries are not all on one axis, or if a size is not known.
    """
    places = [i for i, pieces in enumerate(track) if any(piece.origin == axis for piece in pieces)]
    if len(places) != 1:
        return None
    index = _index(track[places[0]], axis)
    return None if index is None else (places[0], index)


def drawn_from(track: Track, place: int, axis: int) -> list[int] | None:
    """For every entry of the source's `axis`, its position on the result's axis `place`.

    None if other axes have a part in that one, if entries are lost, or if a size is not known.
    """
    mine = track[place]
    pieces = sorted((p for axes in track for p in axes if p.origin == axis), key=lambda piece: piece.part)
    if not mine or not all(piece.origin == axis for piece in mine) or not whole(pieces, axis):
        return None
    sizes = _known([piece.size for piece in pieces])
    if sizes is None:
        return None
    grid = dict(zip(pieces, np.indices(sizes).reshape(len(sizes), -1), strict=True))
    return _ravelled([grid[piece] for piece in mine], [piece.size.number for piece in mine]).tolist()


def exchanged(track: Track, shape: Shape) -> tuple[int, list[int]] | None:
    """(axis, index) if the track does nothing but reorder the entries of one axis; None otherwise."""
    if len(track) != len(shape):
        return None
    others = [i for i, pieces in enumerate(track) if not (len(pieces) == 1 and _is_whole(pieces[0], i))]
    if len(others) != 1 or not all(piece.origin == others[0] for piece in track[others[0]]):
        return None
    index = _index(track[others[0]], others[0])
    return None if index is None or len(index) != shape[others[0]].known else (others[0], index)


def is_neutral(track: Track, shape: Shape) -> bool:
    """Whether every axis is where it was."""
    return len(track) == len(shape) and all(place_of(track, axis) == axis for axis in range(len(shape)))


def whole(pieces: Sequence[Piece], axis: int) -> bool:
    """Whether `pieces`, in this order, are all entries of `axis`."""
    joined = _joined(pieces)
    return len(joined) == 1 and _is_whole(joined[0], axis)


def _is_whole(piece: Piece, axis: int) -> bool:
    return piece.origin == axis and not piece.part


def _index(pieces: Sequence[Piece], axis: int) -> list[int] | None:
    """The entry of `axis` for every position on an axis of these pieces."""
    sizes = _known([piece.size for piece in pieces])
    mine = sorted((piece for piece in pieces if piece.origin == axis), key=lambda piece: piece.part)
    if sizes is None or not whole(mine, axis):
        return None
    grid = dict(zip(pieces, np.indices(sizes).reshape(len(sizes), -1), strict=True))
    return _ravelled([grid[piece] for piece in mine], [piece.size.number for piece in mine]).tolist()


def _ravelled(digits: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The number that has these digits, the last one the fastest."""
    result = np.zeros_like(digits[0])
    for digit, size in zip(digits, sizes, strict=True):
        result = result * size + digit
    return result


def _known(sizes: Sequence[Size]) -> list[int] | None:
    numbers = [size.known for size in sizes]
    return None if any(number is None for number in numbers) else [number or 0 for number in numbers]


# -- reshaping ---------------------------------------------------------------------------------------------------------


def _regrouped(track: Track, shape: Shape, name: str) -> Track:
    """The pieces, in order, dealt out to the axes of `shape`: from the front, then from the back, the rest at once."""
    pieces = [piece for axis in track for piece in axis if piece.size != ONE]
    front, pieces = _dealt(pieces, shape, last=False)
    rest = shape[len(front) :]
    back, pieces = _dealt(pieces, rest, last=True)
    middle = rest[: len(rest) - len(back)]
    if len(middle) == 1 and pieces:
        between: list[tuple[Piece, ...]] = [tuple(pieces)]
    else:
        between = [(Piece((name, tuple(pieces), shape, i), size),) for i, size in enumerate(middle)]
    return tuple(_joined(axis) for axis in (*front, *between, *back))


def _dealt(
    pieces: Sequence[Piece], shape: Sequence[Size], last: bool
) -> tuple[list[tuple[Piece, ...]], list[Piece]]:
    """(axes, pieces left): deal from one end for as long as the sizes say where an axis ends."""
    stack = list(pieces) if last else list(reversed(pieces))  # the next piece is the last entry
    axes: list[tuple[Piece, ...]] = []
    for size in reversed(shape) if last else shape:
        taken = _taken(stack, size, last)
        if taken is None:
            break
        axis, stack = taken
        axes.append(tuple(reversed(axis)) if last else tuple(axis))
    return (axes[::-1], stack) if last else (axes, stack[::-1])


def _taken(stack: Sequence[Piece], size: Size, last: bool) -> tuple[list[Piece], list[Piece]] | None:
    """(pieces of an axis of `size`, what is left), None if the sizes do not tell.  A piece may be cut in two."""
    left, axis = list(stack), list[Piece]()
    while size != ONE:
        if not left:
            return None
        piece = left.pop()
        smaller, larger = size.over(piece.size), piece.size.over(size)
        if smaller is not None:
            axis.append(piece)
            size = smaller
        elif larger is not None:
            near, far = (1, 0) if last else (0, 1)
            axis.append(Piece(piece.origin, size, (*piece.part, near)))
            left.append(Piece(piece.origin, larger, (*piece.part, far)))
            size = ONE
        else:
            return None
    return axis, left


def _joined(axis: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours that were halves of one piece are that piece again."""
    result: list[Piece] = []
    for piece in axis:
        result.append(piece)
        while len(result) > 1 and _halves(result[-2], result[-1]):
            second, first = result.pop(), result.pop()
            result.append(Piece(first.origin, first.size * second.size, first.part[:-1]))
    return tuple(result)


def _halves(first: Piece, second: Piece) -> bool:
    same = first.origin == second.origin and bool(first.part) and first.part[:-1] == second.part[:-1]
    return same and (first.part[-1:], second.part[-1:]) == ((0,), (1,))
