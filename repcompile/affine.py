"""The algebra: every linear operator of a network in eval mode is one `Affine`.

    y[o, p] = sum_ij kernel[o, i, j] x~[i, stride p + dilation j - lo]  +  bias[o]  +  (border * 1~)[o, p]

`x~` is the input extended by its padding mode (zeros, unless said otherwise), `1~` the indicator image: one inside the
image, zero outside. The border term is the exact answer to a bias that meets zero padding.

This file is legality: it knows shapes and integers, and never reads a weight. An `Affine` remembers how it was made
(`Leaf`, `Compose`, `Sum`, `Spread`); `fold` turns that into numbers, once, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from repcompile.errors import Inexact
from repcompile.values import Constant, Weight, as_constant, filled

Scalar = int | float


@dataclass(frozen=True, slots=True)
class Axis:
    """How an operator reads one spatial axis: tap j of output position p sits at `stride p + dilation j - lo`.

    size: number of taps, > 0.  stride, dilation: > 0.
    lo, hi: positions read before the first and after the last one of the input; negative values crop.
    """

    size: int = 1
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0

    @property
    def span(self) -> int:
        """Distance between the first and the last tap."""
        return self.dilation * (self.size - 1)

    @property
    def growth(self) -> int:
        """Output size minus input size at stride 1; two operators of one stride and growth agree in size always."""
        return self.lo + self.hi - self.span

    @property
    def pads(self) -> bool:
        """Whether a tap can fall outside the input."""
        return self.lo > 0 or self.hi > 0

    @property
    def one_tap(self) -> bool:
        """One tap and no crop: outside its input this operator yields zeros, as zero padding does."""
        return self.size == 1 and self.lo >= 0 and self.hi >= 0

    @property
    def pointwise(self) -> bool:
        """One tap and no padding; a stride is allowed."""
        return self.size == 1 and self.lo == 0 and self.hi == 0

    def output_size(self, size: int) -> int:
        """Number of output positions for `size` input positions."""
        return (size + self.growth - 1) // self.stride + 1

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
        )

    def united(self, other: Axis) -> Axis:
        """The smallest window that holds the taps of both, for axes of one stride and growth."""
        steps = [axis.dilation for axis in (self, other) if axis.size > 1]
        dilation = gcd(*steps, abs(self.lo - other.lo)) or 1
        lo = max(self.lo, other.lo)
        last = max(self.span - self.lo, other.span - other.lo)
        return Axis((last + lo) // dilation + 1, self.stride, dilation, lo, self.growth + last)


POINT = Axis()


@dataclass(frozen=True, slots=True)
class Leaf:
    """Values that come from constants, read only when a region is folded."""

    kernel: Constant
    bias: Constant | None = None
    border: Constant | None = None


@dataclass(frozen=True, slots=True)
class Compose:
    outer: Affine
    inner: Affine


@dataclass(frozen=True, slots=True)
class Sum:
    left: Affine
    right: Affine


@dataclass(frozen=True, slots=True)
class Spread:
    """The same pointwise map with another number of spatial axes."""

    map: Affine


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """An affine map from `(n, c_in, *spatial)` to `(n, c_out, *spatial')`, or from `(..., c_in)` without spatial axes.

    kernel: (c_out, c_in / groups, *sizes)   bias: (c_out,)   border: (c_out, 1, *sizes), on the kernel's own window

    Build one with `conv`, `linear`, `diagonal` or `identity`; combine with `outer @ inner`, `a + b`, `a - b`, `-a`, and
    `gain * a`, `a + shift` for numbers and tensors under torch's broadcasting. What no single operator equals raises
    `Inexact` with the reason.
    """

    c_in: int
    c_out: int
    groups: int
    axes: tuple[Axis, ...]
    parts: Leaf | Compose | Sum | Spread
    has_bias: bool = False
    has_border: bool = False
    mode: str = "zeros"

    # -- constructors ------------------------------------------------------------------------------------------------

    @staticmethod
    def conv(
        weight: Weight,
        bias: Weight | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int | tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        mode: str = "zeros",
        border: Weight | None = None,
    ) -> Affine:
        """A convolution as torch defines it, for 0 to 3 spatial axes.

        weight: (c_out, c_in / groups, *sizes)   bias: (c_out,)   border: (c_out, 1, *sizes), for the indicator image
        padding: a number, 'same', 'valid', or per axis a number or a pair (lo, hi).
        mode: torch's padding mode.
        """
        c_out, c_in_group, *sizes = weight.shape
        strides, dilations = _per_axis(stride, len(sizes)), _per_axis(dilation, len(sizes))
        pads = _paddings(padding, sizes, dilations)
        axes = tuple(
            Axis(size, step, dil if size > 1 else 1, lo, hi)
            for size, step, dil, (lo, hi) in zip(sizes, strides, dilations, pads, strict=True)
        )
        shift, edge = (None if tensor is None else as_constant(tensor) for tensor in (bias, border))
        leaf = Leaf(as_constant(weight), shift, edge)
        return Affine(c_in_group * groups, c_out, groups, axes, leaf, bias is not None, border is not None, mode)

    @staticmethod
    def linear(weight: Weight, bias: Weight | None = None) -> Affine:
        """y = weight x + bias over the last axis.  weight: (c_out, c_in)   bias: (c_out,)"""
        return Affine.conv(weight, bias)

    @staticmethod
    def diagonal(
        channels: int, n_axes: int, gain: Weight | Scalar | None, shift: Weight | Scalar | None = None
    ) -> Affine:
        """y[c] = gain[c] x[c] + shift[c].

        gain, shift: `channels` numbers in a tensor of any shape, or one number for all channels; None is 1 and 0.
        """
        kernel = filled(1.0 if gain is None else gain, channels, (channels, 1, *[1] * n_axes))
        bias = None if shift is None else filled(shift, channels, (channels,))
        return Affine(channels, channels, channels, (POINT,) * n_axes, Leaf(kernel, bias), has_bias=shift is not None)

    @staticmethod
    def identity(channels: int, n_axes: int) -> Affine:
        """y = x."""
        return Affine.diagonal(channels, n_axes, None)

    # -- questions ---------------------------------------------------------------------------------------------------

    @property
    def pointwise(self) -> bool:
        """One tap, no padding, stride 1: the map acts on channels only."""
        return not self.has_border and all(axis == POINT for axis in self.axes)

    @property
    def is_diagonal(self) -> bool:
        """Pointwise, and each channel on its own."""
        return self.pointwise and self.groups == self.c_in == self.c_out

    @property
    def pads(self) -> bool:
        """Whether a tap can fall outside the input."""
        return any(axis.pads for axis in self.axes)

    @property
    def weights(self) -> int:
        """Number of entries of the kernel."""
        return self.c_out * (self.c_in // self.groups) * prod(axis.size for axis in self.axes)

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __matmul__(self, inner: Affine | Uniform) -> Affine:
        """`(outer @ inner)(x) == outer(inner(x))` for every x, borders included, or `Inexact`."""
        inner = inner.placed(len(self.axes), self.c_in) if isinstance(inner, Uniform) else inner
        if inner.c_out != self.c_in or len(inner.axes) != len(self.axes):
            raise Inexact(f"{_shape(self)} cannot read the output of {_shape(inner)}")
        stays = not self.pads  # a bias of inner is seen as a constant
        _require_composable(self, inner)
        carried = inner.has_bias or self.has_border
        to_border = carried and not stays and self.mode == "zeros"
        pairs = zip(self.axes, inner.axes, strict=True)
        if to_border and not all(i.pointwise or not (o.pads or i.pads) for o, i in pairs):
            raise Inexact("a bias meets zero padding behind an operator with a window of its own")
        return Affine(
            c_in=inner.c_in,
            c_out=self.c_out,
            groups=gcd(self.groups, inner.groups),
            axes=tuple(o.after(i) for o, i in zip(self.axes, inner.axes, strict=True)),
            parts=Compose(self, inner),
            has_bias=self.has_bias or (carried and not to_border),
            has_border=inner.has_border or to_border,
            mode=inner.mode if stays else self.mode,
        )

    def __add__(self, other: Affine | Uniform | Weight | Scalar) -> Affine:
        """The sum of two maps of one input, or a shift by a number or a per-channel tensor."""
        if isinstance(other, Affine | Uniform):
            return _sum(self, other)
        return _shifted(self, other)

    def __radd__(self, other: Weight | Scalar) -> Affine:
        return self + other

    def __mul__(self, gain: Weight | Scalar) -> Affine:
        """Every channel times a number, or times its own number: a tensor that torch broadcasts along the channels."""
        return _scaled(self, gain)

    __rmul__ = __mul__

    def __neg__(self) -> Affine:
        return self * -1.0

    def __sub__(self, other: Affine | Uniform | Weight | Scalar) -> Affine:
        return self + -other

    def __rsub__(self, other: Weight | Scalar) -> Affine:
        return -self + other

    def spread(self, n_axes: int) -> Affine:
        """The same pointwise map with `n_axes` spatial axes.  Raises Inexact if the map has a window."""
        if not self.pointwise:
            raise Inexact(f"{_shape(self)} mixes positions and keeps its layout")
        if n_axes == len(self.axes):
            return self
        return replace(self, axes=(POINT,) * n_axes, parts=Spread(self))


@dataclass(frozen=True, slots=True, eq=False)
class Uniform:
    """y = gain x + shift with one number each: the same in every layout, so neither channels nor axes are known yet.

    sizes: what is known of the input's shape, one entry an axis, None where only the run will tell; None: rank unknown.
    """

    gain: float = 1.0
    shift: float = 0.0
    sizes: tuple[int | None, ...] | None = None

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def is_identity(self) -> bool:
        return self.gain == 1.0 and self.shift == 0.0

    def placed(self, n_axes: int, channels: int | None = None) -> Affine:
        """This map as an `Affine` with `n_axes` spatial axes.

        Raises Inexact if nobody knows the number of channels, or if it is not the one asked for.
        """
        known = None if self.sizes is None or len(self.sizes) <= n_axes else self.sizes[-1 - n_axes]
        if channels is None and known is None:
            raise Inexact("the number of channels is not known here; example_inputs may tell")
        if channels is not None and known not in (None, channels):
            raise Inexact(f"{known} channels meet {channels}")
        width = known if channels is None else channels
        assert width is not None
        shift = None if self.shift == 0.0 else self.shift
        return Affine.diagonal(width, n_axes, self.gain, shift)

    def __add__(self, other: Affine | Uniform | Weight | Scalar) -> Affine | Uniform:
        if isinstance(other, Uniform):
            return replace(self, gain=self.gain + other.gain, shift=self.shift + other.shift)
        if isinstance(other, Affine):
            return _sum(self, other)
        if isinstance(other, int | float):
            return replace(self, shift=self.shift + other)
        return _shifted(self._beside(other), other)

    __radd__ = __add__

    def __mul__(self, gain: Weight | Scalar) -> Affine | Uniform:
        if isinstance(gain, int | float):
            return replace(self, gain=self.gain * gain, shift=self.shift * gain)
        return _scaled(self._beside(gain), gain)

    __rmul__ = __mul__

    def __neg__(self) -> Uniform:
        return replace(self, gain=-self.gain, shift=-self.shift)

    def __sub__(self, other: Affine | Uniform | Weight | Scalar) -> Affine | Uniform:
        return self + -other

    def __rsub__(self, other: Weight | Scalar) -> Affine | Uniform:
        return -self + other

    def _beside(self, tensor: Weight) -> Affine:
        """Placed so that the one axis along which `tensor` varies is the channel axis."""
        wide = [index for index, size in enumerate(tensor.shape) if size != 1]
        if not wide and self.sizes is not None:  # one number for all: any layout will do
            return self.placed(max(len(self.sizes) - 2, 0))
        if len(wide) != 1:
            raise Inexact(f"a tensor of shape {tuple(tensor.shape)} is not one number per channel")
        return self.placed(len(tensor.shape) - 1 - wide[0])


Map = Affine | Uniform


# -- legality ----------------------------------------------------------------------------------------------------------


def _require_composable(outer: Affine, inner: Affine) -> None:
    """The composition is exact, per axis, when outer reads nothing outside its input or inner commutes with padding."""
    if outer.pads and inner.pads and outer.mode != inner.mode:
        raise Inexact(f"padding mode {outer.mode!r} meets {inner.mode!r}")
    for o, i in zip(outer.axes, inner.axes, strict=True):
        if not o.pads:
            continue
        if outer.mode == "zeros" and not i.one_tap:
            raise Inexact("zero padding between two operators that mix positions")
        if outer.mode != "zeros" and i != POINT:
            raise Inexact(f"padding mode {outer.mode!r} behind an operator with a window or a stride")


def _sum(left: Map, right: Map) -> Affine:
    """Two maps of one input, added: windows united, groups at their greatest common divisor."""
    if isinstance(left, Uniform):
        assert isinstance(right, Affine)
        left = left.placed(len(right.axes), right.c_in)
    if isinstance(right, Uniform):
        right = right.placed(len(left.axes), left.c_in)
    if (left.c_in, left.c_out, len(left.axes)) != (right.c_in, right.c_out, len(right.axes)):
        raise Inexact(f"{_shape(left)} and {_shape(right)} cannot be added")
    if left.pads and right.pads and left.mode != right.mode:
        raise Inexact(f"padding mode {left.mode!r} does not add to {right.mode!r}")
    for a, b in zip(left.axes, right.axes, strict=True):
        if a.stride != b.stride or a.growth != b.growth:
            raise Inexact("the summands differ in stride or output size")
    return Affine(
        c_in=left.c_in,
        c_out=left.c_out,
        groups=gcd(left.groups, right.groups),
        axes=tuple(a.united(b) for a, b in zip(left.axes, right.axes, strict=True)),
        parts=Sum(left, right),
        has_bias=left.has_bias or right.has_bias,
        has_border=left.has_border or right.has_border,
        mode=left.mode if left.pads else right.mode,
    )


def _scaled(x: Affine, gain: Weight | Scalar) -> Affine:
    _require_per_channel(x, gain)
    return Affine.diagonal(x.c_out, len(x.axes), gain) @ x


def _shifted(x: Affine, shift: Weight | Scalar) -> Affine:
    _require_per_channel(x, shift)
    return Affine.diagonal(x.c_out, len(x.axes), None, shift) @ x


def _require_per_channel(x: Affine, tensor: Weight | Scalar) -> None:
    """torch broadcasts from the last axis: only a tensor that varies along axis -(1 + n_axes) alone is per channel."""
    if isinstance(tensor, int | float):
        return
    shape, n_axes = tuple(tensor.shape), len(x.axes)
    expected = (x.c_out, *[1] * n_axes)
    if prod(shape) == 1 and len(shape) <= len(expected):
        return
    if len(shape) > len(expected) + (n_axes > 0) or shape[-len(expected) :] != expected or prod(shape) != x.c_out:
        raise Inexact(
            f"a tensor of shape {shape} is not one number for each of {x.c_out} channels before {n_axes} axes"
        )


# -- torch's spellings of geometry -------------------------------------------------------------------------------------


def _per_axis(value: int | Sequence[int], n_axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n_axes
    return tuple(value) * n_axes if len(value) == 1 else tuple(value)


def _paddings(
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


def _shape(x: Affine) -> str:
    sizes = "x".join(str(axis.size) for axis in x.axes)
    return f"a map of {x.c_in} to {x.c_out} channels" + (f" with a window of {sizes}" if sizes else "")
