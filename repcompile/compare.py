"""Two tensors that should be equal: the largest difference, and where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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


def compare(got: Tensor, expected: Tensor, bound: float | Tensor) -> Check:
    """The largest difference, and where it is; a shape or a NaN that differs fails.

    bound: of all entries, or of each; then the difference that is largest beside its bound.
    """
    if got.shape != expected.shape:
        return Check(float("inf"), 1.0, 0.0 if isinstance(bound, Tensor) else bound)
    if not got.numel():
        return Check(0.0, 0.0, 0.0 if isinstance(bound, Tensor) else bound)
    difference = (got - expected).abs_()
    if not has_finite_sum(difference):
        difference[(got == expected) | (got.isnan() & expected.isnan())] = 0.0
        difference.nan_to_num_(nan=float("inf"), posinf=float("inf"))
    share = difference
    if isinstance(bound, Tensor):
        if not has_finite_sum(bound):  # one that is no number explains nothing
            bound = torch.where(bound.isfinite(), bound, 0.0)
        share = (difference / bound).nan_to_num_(nan=0.0, posinf=float("inf"))
    worst = int(share.argmax())
    place = tuple(map(int, np.unravel_index(worst, difference.shape)))
    limit = bound.flatten()[worst].item() if isinstance(bound, Tensor) else bound
    return Check(difference.flatten()[worst].item(), largest_finite(expected), limit, place)


def has_finite_sum(tensor: Tensor) -> bool:
    """Whether the sum is finite, which needs one pass and no memory; False may be a false alarm."""
    return bool(tensor.sum().isfinite())


def largest_finite(tensor: Tensor) -> float:
    """The largest absolute value among those that are finite."""
    return largest_of(tensor if has_finite_sum(tensor) else tensor[tensor.isfinite()])


def largest_of(tensor: Tensor) -> float:
    """The largest absolute value."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item())
