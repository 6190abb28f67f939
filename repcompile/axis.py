"""How an operator reads one spatial axis: plain integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from repcompile.errors import Inexact


@dataclass(frozen=True, slots=True)
class Axis:
    """How an operator reads one spatial axis: tap j of output position p sits at `stride p + dilation j - lo`.

    size: number of taps, > 0.  stride, dilation: > 0.
    lo, hi: positions read before the first and after the last one of the input; negative values crop.
    up: the input is first spread out, with `up - 1` zeros between neighbours, as a transposed convolution does; > 0.
    Positions, lo and hi count on the spread input.
    """

    size: int = 1
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0
    up: int = 1

    @property
    def span(self) -> int:
        """Distance between the first and the last tap."""
        return self.dilation * (self.size - 1)

    @property
    def growth(self) -> int:
        """Output size minus input size at stride 1; two operators of one stride, up and growth agree in size always."""
        return self.lo + self.hi - self.span

    @property
    def pads(self) -> bool:
        """Whether a tap can fall on a zero that is not the input's: outside, or between two neighbours."""
        return self.lo > 0 or self.hi > 0 or self.up > 1

    @property
    def pointwise(self) -> bool:
        """One tap and no padding; a stride is allowed."""
        return self.size == 1 and self.lo == 0 and self.hi == 0 and self.up == 1

    def fades_under(self, outer: Axis) -> bool:
        """Whether what `outer` reads outside this operator's output is zero by this operator's own window too.

        Position -1 sees nothing of the input if `lo > span - stride`, the first one behind the end if `hi >= span`.
        """
        low = outer.lo <= 0 or self.lo > self.span - self.stride
        return self.up == 1 and low and (outer.hi <= 0 or self.hi >= self.span)

    def output_size(self, size: int) -> int:
        """Number of output positions for `size` input positions."""
        return (self.up * (size - 1) + self.growth) // self.stride + 1

    def input_size(self, size: int) -> int:
        """The smallest number of input positions with at least `size` output positions."""
        return max(-(-(self.stride * (size - 1) - self.growth) // self.up) + 1, 1)

    def after(self, inner: Axis) -> Axis:
        """The axis of `self @ inner`: nested floors of the two output sizes are one floor."""
        spacings = ((inner.stride * self.dilation, self.size), (inner.dilation, inner.size))
        steps = [spacing for spacing, taps in spacings if taps > 1]
        dilation = gcd(*steps) or 1
        span = inner.stride * self.span + inner.span
        return Axis(
            size=span // dilation + 1,
            stride=self.stride * inner.stride,
            dilation=dilation,
            lo=inner.stride * self.lo + inner.lo,
            hi=inner.stride * self.hi + inner.hi,
            up=self.up * inner.up,
        )

    def united(self, other: Axis) -> Axis:
        """The smallest window that holds the taps of both, for axes of one stride, up and growth."""
        steps = [axis.dilation for axis in (self, other) if axis.size > 1]
        dilation = gcd(*steps, abs(self.lo - other.lo)) or 1
        lo = max(self.lo, other.lo)
        last = max(self.span - self.lo, other.span - other.lo)
        return Axis((last + lo) // dilation + 1, self.stride, dilation, lo, self.growth + last, self.up)


POINT = Axis()


# -- torch's spellings of geometry -------------------------------------------------------------------------------------


def per_axis(value: int | Sequence[int], n_axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    if isinstance(value, int):
        return (value,) * n_axes
    return tuple(value) * n_axes if len(value) == 1 else tuple(value)


def paddings(
    padding: int | str | Sequence[int | tuple[int, int]], sizes: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """(lo, hi) of every axis; 'same' pads the odd position at the end, as torch does."""
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding == "same":
        spans = [dilation * (size - 1) for size, dilation in zip(sizes, dilations, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    if isinstance(padding, str):
        raise Inexact(f"padding {padding!r} is neither 'same' nor 'valid'")
    entries = [padding] * len(sizes) if isinstance(padding, int) else list(padding)
    entries = entries * len(sizes) if len(entries) == 1 else entries
    return [(entry, entry) if isinstance(entry, int) else entry for entry in entries]
