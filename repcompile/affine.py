"""The algebra: every linear operator of a network in eval mode is one `Affine`.

    y[o, p] = sum_ij kernel[o, i, j] x~[i, stride p + dilation j - lo]  +  bias[o]  +  (border * 1~)[o, p]

`x~` is the input extended by its padding mode (zeros, unless said otherwise), `1~` the indicator image: one inside the
image, zero outside. The border term is the exact answer to a bias that meets zero padding. A transposed convolution is
the same formula on an input that was spread out with zeros (`Axis.up`).

This file is legality: it knows shapes and integers, and never reads a weight. An `Affine` remembers how it was made
(its `parts`); `fold` turns that into numbers, once, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from torch import Tensor, nn

from repcompile.axis import POINT, Axis, paddings, per_axis
from repcompile.copies import duplicate
from repcompile.errors import Inexact
from repcompile.impulses import measured
from repcompile.values import Constant, Weight, as_constant, computed, filled

Scalar = int | float


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


@dataclass(frozen=True, slots=True)
class Select:
    """y[o] = x[index[o]]: channels picked, dropped, repeated or exchanged."""

    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """The output channels of several maps of one input, one behind the other."""

    maps: tuple[Affine, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """A diagonal map with the numbers of the channels `index` of another one."""

    map: Affine
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """A map without its constants: what it does to differences."""

    map: Affine


@dataclass(frozen=True, slots=True)
class Unrolled:
    """A map of images of one fixed size as a matrix on their (channels, *spatial) entries.  sizes: of the input."""

    map: Affine
    sizes: tuple[int, ...]


Parts = Leaf | Compose | Sum | Spread | Select | Concat | Gather | Linear | Unrolled


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """An affine map from `(n, c_in, *spatial)` to `(n, c_out, *spatial')`, or from `(..., c_in)` without spatial axes.

    kernel: (c_out, c_in / groups, *sizes)   bias: (c_out,)   border: (c_out, 1, *sizes), on the kernel's own window
    scatters: whether a transposed convolution is in it, which works at the positions of its input.

    Build one with `conv`, `depthwise`, `conv_transpose`, `linear`, `diagonal` (a scale and a shift for each channel),
    `identity`, `pad`, `select` or `cat`, or let `probe` measure it; combine with
    `outer @ inner`, `a + b`, `a - b`, `-a`, and `gain * a`, `a + shift` for numbers and tensors under torch's
    broadcasting. What no single operator equals raises `Inexact` with the reason.

    >>> import torch
    >>> wide, point = Affine.conv(torch.ones(4, 4, 3, 3), padding=1), Affine.conv(torch.ones(4, 4, 1, 1))
    >>> [axis.size for axis in (wide @ point + Affine.identity(4, 2)).axes]
    [3, 3]
    >>> wide @ wide
    Traceback (most recent call last):
        ...
    repcompile.errors.Inexact: zero padding between two operators that mix positions
    """

    c_in: int
    c_out: int
    groups: int
    axes: tuple[Axis, ...]
    parts: Parts
    has_bias: bool = False
    has_border: bool = False
    mode: str = "zeros"
    scatters: bool = False

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
        strides, dilations = per_axis(stride, len(sizes)), per_axis(dilation, len(sizes))
        pads = paddings(padding, sizes, dilations)
        axes = tuple(
            Axis(size, step, dil if size > 1 else 1, lo, hi)
            for size, step, dil, (lo, hi) in zip(sizes, strides, dilations, pads, strict=True)
        )
        shift, edge = (None if tensor is None else as_constant(tensor) for tensor in (bias, border))
        leaf = Leaf(as_constant(weight), shift, edge)
        return Affine(c_in_group * groups, c_out, groups, axes, leaf, bias is not None, border is not None, mode)

    @staticmethod
    def conv_transpose(
        weight: Weight,
        bias: Weight | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Affine:
        """A transposed convolution as torch defines it: the input spread out by `stride`, behind it a convolution.

        weight: (c_in, c_out / groups, *sizes)   bias: (c_out,)
        """
        c_in, c_out_group, *sizes = weight.shape
        n, shape = len(sizes), (c_out_group * groups, c_in // groups, *sizes)

        def turned(value: Tensor) -> Tensor:
            return value.unflatten(0, (groups, -1)).transpose(1, 2).reshape(shape).flip(*range(2, 2 + n))

        geometry = (sizes, *(per_axis(option, n) for option in (stride, padding, output_padding, dilation)))
        axes = tuple(
            Axis(size, 1, dil if size > 1 else 1, dil * (size - 1) - pad, dil * (size - 1) - pad + extra, up)
            for size, up, pad, extra, dil in zip(*geometry, strict=True)
        )
        leaf = Leaf(computed(turned, weight, shape=shape), None if bias is None else as_constant(bias))
        return Affine(c_in, shape[0], groups, axes, leaf, bias is not None, scatters=True)

    @staticmethod
    def pad(
        channels: int,
        pads: Sequence[tuple[int, int]],
        mode: str = "zeros",
        value: Weight | Scalar = 0,
    ) -> Affine:
        """y = x with more around it, or less where `pads`, a pair (lo, hi) for each axis, is negative.

        mode: torch's padding mode.  value: in mode "zeros", what stands around: one number, or one for each channel.
        """
        one = filled(1.0, channels, (channels, 1, *[1] * len(pads)))
        if isinstance(value, int | float) and value == 0:
            return Affine.conv(one, None, padding=list(pads), groups=channels, mode=mode)
        constant = filled(value, channels, (channels,))
        edge = filled(-constant, channels, (channels, 1, *[1] * len(pads)))
        return Affine.conv(one, constant, padding=list(pads), groups=channels, border=edge)

    @staticmethod
    def select(channels: int, index: Sequence[int], n_axes: int) -> Affine:
        """y[o] = x[index[o]] of `channels` input channels.  Raises Inexact if an index is not one of them."""
        index = tuple(index)
        if not index or not all(0 <= entry < channels for entry in index):
            raise Inexact(f"channels {index} of {channels}")
        if index == tuple(range(channels)):
            return Affine.identity(channels, n_axes)
        groups = next(g for g in range(gcd(channels, len(index)), 0, -1) if _in_blocks(index, channels, g))
        return Affine(channels, len(index), groups, (POINT,) * n_axes, Select(index))

    @staticmethod
    def cat(maps: Sequence[Affine]) -> Affine:
        """The outputs of several maps of one input, concatenated along the channels."""
        if len(maps) == 1:
            return maps[0]
        for other in maps[1:]:
            _require_alike(maps[0], other)
        axes = maps[0].axes
        for other in maps[1:]:
            axes = tuple(a.united(b) for a, b in zip(axes, other.axes, strict=True))
        return Affine(
            c_in=maps[0].c_in,
            c_out=sum(x.c_out for x in maps),
            groups=1,
            axes=axes,
            parts=Concat(tuple(maps)),
            has_bias=any(x.has_bias for x in maps),
            has_border=any(x.has_border for x in maps),
            mode=next((x.mode for x in maps if x.pads), maps[0].mode),
            scatters=any(x.scatters for x in maps),
        )

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
    def depthwise(
        kernel: Weight,
        bias: Weight | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int | tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        mode: str = "zeros",
    ) -> Affine:
        """Each channel convolved with a kernel of its own.  kernel: (c, *sizes)  bias: (c,); the rest as for `conv`."""
        channels, *sizes = kernel.shape
        weight = computed(lambda w: w.unsqueeze(1), kernel, shape=(channels, 1, *sizes))
        return Affine.conv(weight, bias, stride, padding, dilation, channels, mode)

    @staticmethod
    def probe(module: Callable[[Tensor], Tensor], channels: int, n_axes: int = 2, window: int = 15) -> Affine:
        """The convolution that `module` is, measured by impulses: for operators whose kernel nobody wants to derive.

        module: a module (a copy in float64 is run), or a function; it takes (n, channels, *spatial) with `n_axes` axes.
        window: no output may read positions that are further apart.
        Raises Inexact, with the reason, if it is not linear, not shift-equivariant, or does not pad in a way torch has.
        """
        function = duplicate(module).double() if isinstance(module, nn.Module) else module
        found = measured(function, channels, n_axes, window)
        return Affine.conv(
            found.kernel, found.bias, found.strides, found.pads, found.dilations, found.groups, found.mode
        )

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
    def has_operator(self) -> bool:
        """Whether torch has it: a transposed convolution has no stride, and pads by no more than its window."""
        plain = all(axis.up == 1 for axis in self.axes)
        return plain or all(axis.stride == 1 and axis.span >= max(axis.lo, axis.hi) for axis in self.axes)

    @property
    def pads(self) -> bool:
        """Whether a tap can fall outside the input."""
        return any(axis.pads for axis in self.axes)

    @property
    def pads_at_once(self) -> bool:
        """Whether one zero padding of torch's, which crops where it is negative, does it all. On both sides of one axis
        it would crop first, and an image may be too small for that.
        """
        alike = all(min(axis.lo, axis.hi) >= 0 or max(axis.lo, axis.hi) <= 0 for axis in self.axes)
        return self.mode == "zeros" and alike

    @property
    def reads_less(self) -> bool:
        """Whether two passes over the input, with a value around it, cost less than one over the output."""
        ratio = prod(axis.stride for axis in self.axes)
        zeros = self.mode == "zeros" and all(min(axis.lo, axis.hi) >= 0 for axis in self.axes)
        return zeros and not self.spreads and 2 * self.c_in * ratio < self.c_out

    @property
    def crops_and_pads(self) -> bool:
        """Whether it crops along one axis and pads along another, both sides alike: as transposed convolutions may."""
        sides = [axis.lo for axis in self.axes] or [0]
        return self._pads_as_transposed and min(sides) < 0 < max(sides)

    @property
    def widens(self) -> bool:
        """Whether it returns more positions than it gets, as a transposed convolution that pads both sides alike."""
        growths = [axis.growth for axis in self.axes] or [0]
        return self._pads_as_transposed and min(growths) >= 0 and max(growths) > 0

    @property
    def _pads_as_transposed(self) -> bool:
        """Whether it goes step by step and has zeros on both sides alike, no more than its window reaches."""
        alike = all(axis.stride == axis.up == 1 and axis.lo == axis.hi <= axis.span for axis in self.axes)
        return alike and self.mode == "zeros"

    @property
    def spreads(self) -> bool:
        """Whether a transposed convolution computes it: where nothing else does, or where it was one and that is less
        than at the positions of the output.
        """
        needed = self.crops_and_pads or any(axis.up > 1 for axis in self.axes)
        return needed or (self.scatters and self.widens)

    @property
    def ends_evenly(self) -> bool:
        """Whether a transposed convolution needs no crop: torch's pads alike, and may add a little behind."""
        return all(0 <= axis.hi - axis.lo < max(axis.up, axis.dilation) for axis in self.axes)

    @property
    def weights(self) -> int:
        """Number of entries of the kernel."""
        return self.c_out * (self.c_in // self.groups) * prod(axis.size for axis in self.axes)

    @property
    def stored(self) -> int:
        """Number of entries of kernel and bias that are stored: those of an average are not."""
        match self.parts:
            case Leaf(kernel, bias):
                return self.weights * bool(kernel.operands) + self.c_out * bool(bias is not None and bias.operands)
            case Sum(left, right):
                return left.stored + right.stored
            case Concat(maps):
                return sum(x.stored for x in maps)
            case _:
                return self.weights + self.c_out * self.has_bias

    @property
    def selects(self) -> bool:
        """Whether it only picks channels."""
        return isinstance(self.parts, Select)

    # -- algebra -----------------------------------------------------------------------------------------------------

    def __matmul__(self, inner: Affine | Uniform) -> Affine:
        """`(outer @ inner)(x) == outer(inner(x))` for every x, borders included, or `Inexact`."""
        if isinstance(inner, Uniform):
            placed = inner.placed(len(self.axes), self.c_in)
            return self if inner.is_identity else self @ placed
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
            scatters=self.scatters or inner.scatters,
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

    def gathered(self, index: Sequence[int], n_axes: int) -> Affine:
        """The diagonal map whose channel o has the numbers of channel `index[o]` of this one."""
        if not self.is_diagonal:
            raise Inexact(f"{_shape(self)} mixes channels")
        index = tuple(index)
        if index == tuple(range(self.c_in)):
            return self.spread(n_axes)
        size = len(index)
        return replace(self, c_in=size, c_out=size, groups=size, axes=(POINT,) * n_axes, parts=Gather(self, index))

    @property
    def linear_part(self) -> Affine:
        """The same map without bias and border term."""
        if not (self.has_bias or self.has_border):
            return self
        return replace(self, parts=Linear(self), has_bias=False, has_border=False)

    def unrolled(self, sizes: Sequence[int]) -> Affine:
        """The matrix that this map is on images of `sizes`, their entries in the order (channel, *position)."""
        after = [axis.output_size(size) for axis, size in zip(self.axes, sizes, strict=True)]
        c_in, c_out = self.c_in * prod(sizes), self.c_out * prod(after)
        has_bias = self.has_bias or self.has_border
        return Affine(c_in, c_out, 1, (), Unrolled(self, tuple(sizes)), has_bias)

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
    most: gain and shift with every number they were computed from counted as positive; None: their absolute values.
    """

    gain: float = 1.0
    shift: float = 0.0
    sizes: tuple[int | None, ...] | None = None
    most: tuple[float, float] | None = None

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def is_identity(self) -> bool:
        return self.gain == 1.0 and self.shift == 0.0

    @property
    def magnitudes(self) -> tuple[float, float]:
        """What the rounding of gain and shift is measured by."""
        return (abs(self.gain), abs(self.shift)) if self.most is None else self.most

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
        numbers = zip((self.gain, self.shift), self.magnitudes, strict=True)
        gain, shift = (filled(number, width, (width,), most) for number, most in numbers)
        return Affine.diagonal(width, n_axes, gain, None if self.shift == 0.0 else shift)

    def __add__(self, other: Affine | Uniform | Weight | Scalar) -> Affine | Uniform:
        gain, shift = self.magnitudes
        if isinstance(other, Uniform):
            most = gain + other.magnitudes[0], shift + other.magnitudes[1]
            return replace(self, gain=self.gain + other.gain, shift=self.shift + other.shift, most=most)
        if isinstance(other, Affine):
            return _sum(self, other)
        if isinstance(other, int | float):
            return replace(self, shift=self.shift + other, most=(gain, shift + abs(other)))
        return _shifted(self._beside(other), other)

    __radd__ = __add__

    def __mul__(self, gain: Weight | Scalar) -> Affine | Uniform:
        if isinstance(gain, int | float):
            most = self.magnitudes[0] * abs(gain), self.magnitudes[1] * abs(gain)
            return replace(self, gain=self.gain * gain, shift=self.shift * gain, most=most)
        return _scaled(self._beside(gain), gain)

    __rmul__ = __mul__

    def __neg__(self) -> Uniform:
        return replace(self, gain=-self.gain, shift=-self.shift, most=self.magnitudes)

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
        if o.up > 1 and i != POINT:
            raise Inexact("a transposed convolution behind an operator with a window or a stride")
        if o.stride > 1 and i.up > 1:
            raise Inexact("a stride behind a transposed convolution")
        if not o.pads:
            continue
        if outer.mode == "zeros" and not i.fades_under(o):
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
    if left.c_out != right.c_out:
        raise Inexact(f"{_shape(left)} and {_shape(right)} cannot be added")
    _require_alike(left, right)
    return Affine(
        c_in=left.c_in,
        c_out=left.c_out,
        groups=gcd(left.groups, right.groups),
        axes=tuple(a.united(b) for a, b in zip(left.axes, right.axes, strict=True)),
        parts=Sum(left, right),
        has_bias=left.has_bias or right.has_bias,
        has_border=left.has_border or right.has_border,
        mode=left.mode if left.pads else right.mode,
        scatters=left.scatters or right.scatters,
    )


def _require_alike(left: Affine, right: Affine) -> None:
    """Two maps can stand side by side: they read one input, in one mode, and their outputs agree in size always."""
    if (left.c_in, len(left.axes)) != (right.c_in, len(right.axes)):
        raise Inexact(f"{_shape(left)} and {_shape(right)} cannot be added")
    if left.pads and right.pads and left.mode != right.mode:
        raise Inexact(f"padding mode {left.mode!r} does not add to {right.mode!r}")
    for a, b in zip(left.axes, right.axes, strict=True):
        if a.stride != b.stride or a.growth != b.growth or a.up != b.up:
            raise Inexact("the summands differ in stride or output size")


def _in_blocks(index: Sequence[int], channels: int, groups: int) -> bool:
    """Whether block k of the outputs reads block k of the inputs alone, for `groups` blocks of one size."""
    if channels % groups or len(index) % groups:
        return False
    return all(place // (len(index) // groups) == entry // (channels // groups) for place, entry in enumerate(index))


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
    if prod(shape) == 1 and len(shape) <= len(expected) + (n_axes > 0):
        return
    if len(shape) > len(expected) + (n_axes > 0) or shape[-len(expected) :] != expected or prod(shape) != x.c_out:
        raise Inexact(
            f"a tensor of shape {shape} is not one number for each of {x.c_out} channels before {n_axes} axes"
        )


def _shape(x: Affine) -> str:
    sizes = "x".join(str(axis.size) for axis in x.axes)
    return f"a map of {x.c_in} to {x.c_out} channels" + (f" with a window of {sizes}" if sizes else "")
