"""Ranges of weights, one for each output channel: what decides how well one scale for a whole tensor quantizes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repcompile.affine import Affine
from repcompile.fold import fold, leaves_of
from repcompile.values import Reader, Values


@dataclass(frozen=True, slots=True)
class Ranges:
    """The largest absolute weight of each output channel.

    before: of the operator with the most weights, as it was.  after: of the one operator that took its place.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def spread_before(self) -> float:
        """The largest range of a channel over the smallest; channels without a weight other than zero do not count."""
        return _spread(self.before)

    @property
    def spread_after(self) -> float:
        """The same, as one operator."""
        return _spread(self.after)


def ranges_of(x: Affine, values: Values, read: Reader) -> Ranges | None:
    """The ranges of `x`, which has the numbers `values`.  None if nothing in it has weights."""
    heaviest = max((leaf for leaf, _ in leaves_of(x)), key=lambda leaf: leaf.weights, default=None)
    if heaviest is None:
        return None
    return Ranges(_ranges(fold(heaviest, read).kernel), _ranges(values.kernel))


def _ranges(kernel: Tensor) -> tuple[float, ...]:
    low, high = kernel.flatten(1).amin(1), kernel.flatten(1).amax(1)  # eight times as fast as the norm
    return tuple(torch.maximum(-low, high).tolist())


def _spread(ranges: tuple[float, ...]) -> float:
    weights = [size for size in ranges if size > 0.0]
    return max(weights) / min(weights) if weights else 1.0
