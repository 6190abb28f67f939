"""The kernel of a module that claims to be linear and shift-equivariant, measured: nobody has to derive it.

Given: a module.  Result: the numbers of a convolution, found from what the module makes of zeros (the bias), of inputs
of several sizes (stride and padding) and of impulses (the kernel); then compared with the module on random images of
as many sizes as the stride has remainders, borders included, so that what is no convolution is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from repcompile.errors import Inexact

MODES = ("zeros", "reflect", "replicate", "circular")
LARGEST_STRIDE = 16
ROUNDING = 2.0**-40  # relative to the largest value: twelve digits of the sixteen that float64 has
CHUNK = 64  # impulses in one batch


@dataclass(frozen=True, slots=True)
class Measured:
    """A convolution, in float64.

    kernel: (c_out, c_in / groups, *sizes)   bias: (c_out,)   pads: (lo, hi) of each axis   mode: torch's padding mode
    """

    kernel: Tensor
    bias: Tensor | None
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int
    mode: str = "zeros"


def measured(function: Callable[[Tensor], Tensor], channels: int, n_axes: int, window: int) -> Measured:
    """The convolution that `function` is.

    function: from (n, channels, *spatial) to (n, c_out, *spatial'), in float64; without axes from (n, channels).
    window: an upper bound of the distance between the first and the last position that one output reads, plus one.
    Raises Inexact if it is none.
    """
    probe = _Probe(function, channels, n_axes, window)
    try:
        with torch.no_grad():
            return probe.measured()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise Inexact(f"it could not be measured: {error}") from error


@dataclass(frozen=True, slots=True)
class _Probe:
    function: Callable[[Tensor], Tensor]
    channels: int
    n_axes: int
    window: int

    def measured(self) -> Measured:
        growths = [self._growth(axis) for axis in range(self.n_axes)]
        strides = tuple(stride for stride, _ in growths)
        sizes = [2 * self.window + 2 * stride for stride in strides]
        bias = self._bias(sizes)
        taps, first = self._taps(sizes, strides, bias)
        found = _trimmed(taps, first, growths, bias)
        return self._confirmed(found)

    def _apply(self, image: Tensor) -> Tensor:
        result = self.function(image)
        if not isinstance(result, Tensor) or result.dim() != image.dim() or result.shape[0] != image.shape[0]:
            raise Inexact("it does not make images of images")
        if result.dtype != image.dtype:
            raise Inexact(f"it makes {result.dtype} of {image.dtype}")
        return result

    def _zeros(self, sizes: Sequence[int], batch: int = 1) -> Tensor:
        return torch.zeros(batch, self.channels, *sizes, dtype=torch.float64)

    def _growth(self, axis: int) -> tuple[int, int]:
        """(stride, growth) with output size = (size - 1 + growth) // stride + 1, from sizes one after the other."""
        start = 2 * self.window
        sizes = range(start, start + 2 * LARGEST_STRIDE + 1)
        made = [self._size(axis, size) for size in sizes]
        jumps = [size for size, a, b in zip(sizes[1:], made, made[1:], strict=False) if b == a + 1]
        if len(jumps) < 2 or sum(b - a for a, b in pairwise(made)) != len(jumps):
            raise Inexact("its output does not grow with its input as that of a strided window does")
        stride = jumps[1] - jumps[0]
        growth = stride * (made[jumps[0] - start] - 1) - jumps[0] + 1
        if made != [(size - 1 + growth) // stride + 1 for size in sizes]:
            raise Inexact("its output does not grow with its input as that of a strided window does")
        return stride, growth

    def _size(self, axis: int, size: int) -> int:
        sizes = [2 * self.window] * self.n_axes
        sizes[axis] = size
        return self._apply(self._zeros(sizes)).shape[2 + axis]

    def _bias(self, sizes: Sequence[int]) -> Tensor:
        answer = self._apply(self._zeros(sizes))[0][..., None].flatten(1)
        if (answer - answer[:, :1]).abs().max() > ROUNDING * answer.abs().max():
            raise Inexact(
                "its answer to zeros is not the same everywhere: it is no convolution, or a bias meets padding"
            )
        return answer[:, 0].clone()

    def _taps(self, sizes: Sequence[int], strides: Sequence[int], bias: Tensor) -> tuple[Tensor, list[int]]:
        """(kernel on a window that holds every tap, the first input position of that window for output position 0).

        An impulse at q answers with the tap q - stride p at position p; `stride` impulses side by side show all taps.
        """
        middles = [size // 2 for size in sizes]
        reach = 2 * self.window - 1  # offsets from -window + 1 to window - 1 around the middle of output positions
        kernel = torch.zeros(bias.numel(), self.channels, *[reach] * self.n_axes, dtype=torch.float64)
        for shift in product(*(range(stride) for stride in strides)):
            places = [middle + s for middle, s in zip(middles, shift, strict=True)]
            answers = self._answers(sizes, places) - bias.reshape(-1, *[1] * self.n_axes)
            for index in product(*(range(size) for size in answers.shape[2:])):
                offsets = [q - stride * p for q, stride, p in zip(places, strides, index, strict=True)]
                taps = [offset + self.window - 1 for offset in offsets]
                values = answers[(slice(None), slice(None), *index)].T
                if all(0 <= tap < reach for tap in taps):
                    kernel[(slice(None), slice(None), *taps)] = values
                elif values.abs().max() > ROUNDING * answers.abs().max():
                    raise Inexact(f"it reads further than a window of {self.window}, or it is not shift-equivariant")
        return kernel, [1 - self.window] * self.n_axes

    def _answers(self, sizes: Sequence[int], places: Sequence[int]) -> Tensor:
        """What becomes of an impulse at one place in each channel: (channels, c_out, *spatial')."""
        answers: list[Tensor] = []
        for start in range(0, self.channels, CHUNK):
            stop = min(start + CHUNK, self.channels)
            image = self._zeros(sizes, stop - start)
            for row, channel in enumerate(range(start, stop)):
                image[(row, channel, *places)] = 1.0
            answers.append(self._apply(image))
        return torch.cat(answers)

    def _confirmed(self, found: Measured) -> Measured:
        """The measured convolution with the padding mode that the module has.  Raises Inexact if it has none."""
        modes = MODES if any(side > 0 for pair in found.pads for side in pair) else MODES[:1]
        results = [self._difference(replace(found, mode=mode)) for mode in modes]
        for mode, (error, bound, _) in zip(modes, results, strict=True):
            if error <= bound:
                return replace(found, mode=mode)
        error, _, scaled = results[0]
        if scaled:
            raise Inexact("it is not linear: it does not answer the sum of two images with the sum of their answers")
        raise Inexact(f"it is not shift-equivariant: in the middle it is a convolution, elsewhere {error:.1e} off")

    def _difference(self, found: Measured) -> tuple[float, float, bool]:
        """(largest difference, what rounding explains, whether the module is not even linear), on several sizes."""
        generator = torch.Generator().manual_seed(0)
        error, bound, curved = 0.0, 0.0, False
        for remainder in range(max(found.strides, default=1) + 1):
            sizes = [self.window + 2 + remainder + place for place in range(self.n_axes)]
            image = torch.randn(2, self.channels, *sizes, dtype=torch.float64, generator=generator) * 3.0**remainder
            expected, got = self._apply(image), convolved(found, image)
            if expected.shape != got.shape:
                return float("inf"), 0.0, False
            difference = (expected - got).abs().max().item() if got.numel() else 0.0
            scale = found.kernel.flatten(1).abs().sum(1).max().item() * image.abs().max().item()
            error, bound = max(error, difference), max(bound, ROUNDING * (scale + expected.abs().max().item()))
            answers = self._apply(torch.cat([image, -image])) - self._apply(torch.zeros_like(image[:1]))
            curved = curved or bool((answers[:2] + answers[2:]).abs().max() > bound)
        return error, bound, curved


def convolved(found: Measured, image: Tensor) -> Tensor:
    """The measured convolution of an image."""
    if not found.strides:
        return F.linear(image, _dense(found), found.bias)
    flat = [side for pair in reversed(found.pads) for side in pair]
    image = F.pad(image, [max(side, 0) for side in flat], mode="constant" if found.mode == "zeros" else found.mode)
    image = F.pad(image, [min(side, 0) for side in flat])
    function = (F.conv1d, F.conv2d, F.conv3d)[len(found.strides) - 1]
    return function(image, found.kernel, found.bias, found.strides, 0, found.dilations, found.groups)


def _dense(found: Measured) -> Tensor:
    return torch.block_diag(*found.kernel.unflatten(0, (found.groups, -1)))


# -- the smallest convolution that it is -------------------------------------------------------------------------------


def _trimmed(taps: Tensor, first: Sequence[int], growths: Sequence[tuple[int, int]], bias: Tensor) -> Measured:
    """Without taps that are zero around the window and between its taps, and between groups of channels."""
    rounding = ROUNDING * (taps.abs().max() + bias.abs().max())
    taps = torch.where(taps.abs() <= rounding, 0.0, taps)
    pads, dilations = list[tuple[int, int]](), list[int]()
    for axis, (start, (_, growth)) in enumerate(zip(first, growths, strict=True)):
        used = taps.movedim(2 + axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [-start]
        dilation = gcd(*(place - used[0] for place in used)) or 1
        taps = taps.narrow(2 + axis, used[0], used[-1] - used[0] + 1)
        taps = taps[(slice(None),) * (2 + axis) + (slice(None, None, dilation),)]
        lo = -(start + used[0])
        pads.append((lo, growth - lo + used[-1] - used[0]))
        dilations.append(dilation)
    groups = _groups(taps)
    kernel = _blocks(taps, groups)
    strides = tuple(stride for stride, _ in growths)
    return Measured(kernel, bias if bias.any() else None, strides, tuple(pads), tuple(dilations), groups)


def _groups(taps: Tensor) -> int:
    """The largest number of groups whose channels do not mix."""
    c_out, c_in = taps.shape[:2]
    mixes = taps.flatten(2).any(2) if taps.dim() > 2 else taps != 0

    def apart(groups: int) -> bool:
        own = torch.arange(c_out)[:, None] // (c_out // groups) == torch.arange(c_in) // (c_in // groups)
        return not bool((mixes & ~own).any())

    return next(g for g in range(gcd(c_out, c_in), 0, -1) if c_out % g == c_in % g == 0 and apart(g))


def _blocks(taps: Tensor, groups: int) -> Tensor:
    c_out, c_in = taps.shape[:2]
    blocks = taps.unflatten(0, (groups, c_out // groups)).unflatten(2, (groups, c_in // groups))
    index = torch.arange(groups)
    return blocks[index, :, index].flatten(0, 1).contiguous()
