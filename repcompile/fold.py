"""From a map to its numbers: the expression behind an `Affine`, evaluated once, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from repcompile.affine import Affine, Compose, Concat, Gather, Leaf, Linear, Select, Spread, Sum, Unrolled
from repcompile.axis import Axis
from repcompile.values import Reader, Values, in_float64

LeafReader = Callable[[Leaf], Values]
Positive = dict[tuple[int, int], tuple[Tensor, Tensor]]


def fold(x: Affine, read: Reader = in_float64) -> Values:
    """Kernel, bias and border term of `x` in float64.

    A part that is used twice is evaluated once.  read: turns a parameter into float64; pass one that remembers to share
    the conversions.
    """

    def exact(leaf: Leaf) -> Values:
        extra = (None if constant is None else constant.exact(read) for constant in (leaf.bias, leaf.border))
        return Values(leaf.kernel.exact(read), *extra)

    return _fold(x, exact, {})


def magnitude(x: Affine, image: Tensor, read: Reader = in_float64) -> Tensor:
    """The sum of the absolute values of all products that an evaluation of `x` adds up, for each entry of its result.

    It is what the rounding of a result is measured by (docs/math.md, section 10). Sums are taken operator by operator,
    which is the same as to fold first, where every term is positive, and less work on a small image.
    image: absolute values, of the shape that `apply` takes.
    """

    def positive(leaf: Leaf) -> Values:
        extra = (None if constant is None else constant.magnitude(read) for constant in (leaf.bias, leaf.border))
        return Values(leaf.kernel.magnitude(read), *extra)

    result = _magnitude(x, image, positive, {})
    if not (x.has_border and x.reads_less):
        return result
    border = _fold(x, positive, {}).border  # a value around the image: its products, and a bias that they cancel
    return result if border is None else result + 2 * border.flatten(1).sum(1).reshape(-1, *[1] * len(x.axes))


def _magnitude(x: Affine, image: Tensor, read: LeafReader, done: Positive) -> Tensor:
    """done: (image, result) by the identities of map and image; it keeps the images, so that no other gets theirs."""
    key = id(x), id(image)
    if key not in done:
        done[key] = image, _added_up(x, image, read, done)
    return done[key][1]


def _added_up(x: Affine, image: Tensor, read: LeafReader, done: Positive) -> Tensor:
    channels = image.dim() - 1 - len(x.axes)
    match x.parts:
        case Compose(outer, inner):
            return _magnitude(outer, _magnitude(inner, image, read, done), read, done)
        case Sum(left, right):
            return _magnitude(left, image, read, done) + _magnitude(right, image, read, done)
        case Concat(maps):
            return torch.cat([_magnitude(part, image, read, done) for part in maps], channels)
        case Select(index):
            return image.index_select(channels, torch.tensor(index))
        case _:
            return applied(x, _fold(x, read, {}), image)


def apply(x: Affine, image: Tensor) -> Tensor:
    """`x(image)` in float64, by torch's own operators: the meaning of an `Affine`, which tests compare against.

    image: (n, c_in, *spatial), or (..., c_in) without spatial axes.
    """
    return applied(x, fold(x), image)


def leaves_of(x: Affine) -> list[tuple[Affine, Leaf]]:
    """The maps that `x` is composed and added up from, each once, and their constants."""
    found: list[tuple[Affine, Leaf]] = []
    stack, seen = [x], set[int]()
    while stack:
        top = stack.pop()
        if id(top) in seen:
            continue
        seen.add(id(top))
        if isinstance(top.parts, Leaf):
            found.append((top, top.parts))
        stack.extend(_operands(top))
    return found


def _operands(x: Affine) -> Sequence[Affine]:
    match x.parts:
        case Compose(outer, inner):
            return outer, inner
        case Sum(left, right):
            return right, left
        case Concat(maps):
            return maps[::-1]
        case Spread(inner) | Gather(inner, _) | Linear(inner) | Unrolled(inner, _):
            return (inner,)
        case Leaf() | Select():
            return ()


def applied(x: Affine, values: Values, image: Tensor) -> Tensor:
    """`apply` with the numbers of `x` at hand."""
    if x.is_diagonal:
        shape = (-1, *[1] * len(x.axes))
        y = image * values.kernel.reshape(shape)
        return y if values.bias is None else y + values.bias.reshape(shape)
    if not x.axes:
        return F.linear(image, _regrouped(values.kernel, x.groups, 1), values.bias)
    y = convolve(x, extended(x, image), values.kernel, values.bias, x.groups)
    if values.border is None:
        return y
    return y + convolve(x, extended(x, torch.ones_like(image[:1, :1])), values.border, None, 1)


def convolve(x: Affine, image: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The padding-free convolution with the strides and dilations of `x`."""
    function = (F.conv1d, F.conv2d, F.conv3d)[len(x.axes) - 1]
    strides, dilations = [a.stride for a in x.axes], [a.dilation for a in x.axes]
    return function(image, kernel, bias, strides, 0, dilations, groups)


def extended(x: Affine, image: Tensor) -> Tensor:
    """The image as `x` sees it: spread out, padded in its mode, then cropped where the padding is negative."""
    image = _spread_out(x, image)
    pads = [pad for axis in reversed(x.axes) for pad in (axis.lo, axis.hi)]
    if x.pads:
        image = F.pad(image, [max(pad, 0) for pad in pads], mode="constant" if x.mode == "zeros" else x.mode)
    return F.pad(image, [min(pad, 0) for pad in pads]) if min(pads) < 0 else image


def _spread_out(x: Affine, image: Tensor) -> Tensor:
    """`up - 1` zeros between neighbours along each axis."""
    if all(axis.up == 1 for axis in x.axes):
        return image
    first = image.dim() - len(x.axes)
    sizes = [axis.up * (size - 1) + 1 for axis, size in zip(x.axes, image.shape[first:], strict=True)]
    result = image.new_zeros(*image.shape[:first], *sizes)
    result[(..., *(slice(None, None, axis.up) for axis in x.axes))] = image
    return result


def _fold(x: Affine, read: LeafReader, done: dict[int, Values]) -> Values:
    if id(x) not in done:
        done[id(x)] = _evaluate(x, read, done)
    return done[id(x)]


def _evaluate(x: Affine, read: LeafReader, done: dict[int, Values]) -> Values:
    match x.parts:
        case Leaf():
            return read(x.parts)
        case Spread(inner):
            values = _fold(inner, read, done)
            return Values(values.kernel.reshape(*values.kernel.shape[:2], *[1] * len(x.axes)), values.bias)
        case Sum(left, right):
            return _added(x, left, _fold(left, read, done), right, _fold(right, read, done))
        case Compose(outer, inner):
            return _composed(x, outer, _fold(outer, read, done), inner, _fold(inner, read, done))
        case Select(index):
            return Values(_one_hot(x, index))
        case Concat(maps):
            return _concatenated(x, [(part, _fold(part, read, done)) for part in maps])
        case Gather(inner, index):
            values, places = _fold(inner, read, done), list(index)
            kernel = values.kernel.flatten()[places].reshape(len(index), 1, *[1] * len(x.axes))
            return Values(kernel, None if values.bias is None else values.bias[places])
        case Linear(inner):
            return Values(_fold(inner, read, done).kernel)
        case Unrolled(inner, sizes):
            return _as_matrix(x, inner, _fold(inner, read, done), sizes)


def _one_hot(x: Affine, index: Sequence[int]) -> Tensor:
    kernel = torch.zeros(x.c_out, x.c_in // x.groups, *[1] * len(x.axes), dtype=torch.float64)
    kernel[range(x.c_out), [entry % (x.c_in // x.groups) for entry in index]] = 1.0
    return kernel


def _as_matrix(x: Affine, inner: Affine, values: Values, sizes: Sequence[int]) -> Values:
    """The answers to one impulse at each entry of an image."""
    origin = values.kernel.new_zeros(1, inner.c_in, *sizes)
    impulses = torch.eye(x.c_in, dtype=torch.float64).reshape(x.c_in, inner.c_in, *sizes)
    constant = applied(inner, values, origin).flatten()
    linear = Values(values.kernel)
    kernel = applied(inner, linear, impulses).flatten(1).T.contiguous()
    return Values(kernel, constant if x.has_bias else None)


# -- sums --------------------------------------------------------------------------------------------------------------


def _added(x: Affine, left: Affine, a: Values, right: Affine, b: Values) -> Values:
    kernel = _widened(_regrouped(a.kernel, left.groups, x.groups), left, x)
    kernel = kernel + _widened(_regrouped(b.kernel, right.groups, x.groups), right, x)
    borders = [_widened(v.border, part, x) for v, part in ((a, left), (b, right)) if v.border is not None]
    return Values(kernel, _total([v for v in (a.bias, b.bias) if v is not None]), _total(borders))


def _concatenated(x: Affine, parts: Sequence[tuple[Affine, Values]]) -> Values:
    kernels = [_widened(_regrouped(v.kernel, part.groups, x.groups), part, x) for part, v in parts]
    zero = kernels[0].new_zeros
    biases = [zero(part.c_out) if v.bias is None else v.bias for part, v in parts]
    sizes = [axis.size for axis in x.axes]
    borders = [zero(part.c_out, 1, *sizes) if v.border is None else _widened(v.border, part, x) for part, v in parts]
    return Values(
        torch.cat(kernels), torch.cat(biases) if x.has_bias else None, torch.cat(borders) if x.has_border else None
    )


def _total(terms: list[Tensor]) -> Tensor | None:
    return sum(terms[1:], terms[0]) if terms else None


def _widened(kernel: Tensor, part: Affine, whole: Affine) -> Tensor:
    """The kernel of `part` on the taps of `whole`, zero elsewhere."""
    if part.axes == whole.axes:
        return kernel
    result = kernel.new_zeros(*kernel.shape[:2], *[axis.size for axis in whole.axes])
    places = [_taps(inner, outer) for inner, outer in zip(part.axes, whole.axes, strict=True)]
    result[(slice(None), slice(None), *places)] = kernel
    return result


def _taps(part: Axis, whole: Axis) -> slice:
    first = (whole.lo - part.lo) // whole.dilation
    step = max(part.dilation // whole.dilation, 1)
    return slice(first, first + step * (part.size - 1) + 1, step)


def _regrouped(kernel: Tensor, groups: int, fewer: int) -> Tensor:
    """A kernel of `groups` groups written with `fewer`: block diagonal, the same map.  fewer divides groups."""
    if groups == fewer:
        return kernel
    c_out, c_in, *sizes = kernel.shape
    blocks = groups // fewer
    result = kernel.new_zeros(fewer, blocks, c_out // groups, blocks, c_in, *sizes)
    index = torch.arange(blocks)
    result[:, index, :, index] = kernel.reshape(fewer, blocks, c_out // groups, c_in, *sizes).transpose(0, 1)
    return result.reshape(c_out, blocks * c_in, *sizes)


# -- compositions ------------------------------------------------------------------------------------------------------


def _composed(x: Affine, outer: Affine, o: Values, inner: Affine, i: Values) -> Values:
    kernel = _kernel_of_composition(x, outer, o.kernel, inner, i.kernel)
    bias = o.bias
    border = None
    if i.border is not None:
        border = _convolved_kernels(outer, o.kernel, inner, i.border, outer.groups)
    if i.bias is not None:
        reach = _times_vector(outer, o.kernel, i.bias)
        bias, border = _with_constant(x, outer, inner, reach, bias, border)
    if o.border is not None:
        bias, border = _with_constant(x, outer, inner, o.border[:, 0], bias, border)
    return Values(kernel, bias, border)


def _with_constant(
    x: Affine, outer: Affine, inner: Affine, reach: Tensor, bias: Tensor | None, border: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Add what the constant that outer's taps see contributes: to the bias if every tap is inside, else to the border.

    reach: (c_out, *sizes of outer), the contribution of each tap of outer.
    """
    if outer.pads and x.mode == "zeros":
        term = _on_indicator(x, outer, inner, reach)
        return bias, term if border is None else border + term
    total = reach.reshape(x.c_out, -1).sum(1)
    return (total if bias is None else bias + total), border


def _on_indicator(x: Affine, outer: Affine, inner: Affine, reach: Tensor) -> Tensor:
    """`reach` on the taps of the composition; where inner has a window, nobody reads outside: any tap will do."""
    sizes = [axis.size for axis in x.axes]
    result = reach.new_zeros(reach.shape[0], 1, *sizes)
    places: list[slice] = []
    for whole, o, i in zip(x.axes, outer.axes, inner.axes, strict=True):
        step = max(i.stride * o.dilation // whole.dilation, 1)
        places.append(slice(0, step * (o.size - 1) + 1, step))
    result[(slice(None), 0, *places)] = reach
    return result


def _times_vector(outer: Affine, kernel: Tensor, vector: Tensor) -> Tensor:
    """sum_i kernel[o, i, j] vector[i]: (c_out, *sizes)."""
    c_out, c_in, *sizes = kernel.shape
    grouped = kernel.reshape(outer.groups, c_out // outer.groups, c_in, prod(sizes))
    return torch.einsum("goij,gi->goj", grouped, vector.reshape(outer.groups, c_in)).reshape(c_out, *sizes)


def _kernel_of_composition(x: Affine, outer: Affine, o: Tensor, inner: Affine, i: Tensor) -> Tensor:
    """A selection picks rows or columns of the other kernel, a diagonal map scales them; else they convolve.

    Depthwise kernels do so channel by channel: made dense, that would be a product of large matrices.
    """
    if isinstance(outer.parts, Select) and x.groups == 1:
        return _regrouped(i, inner.groups, 1)[list(outer.parts.index)]
    if isinstance(inner.parts, Select) and x.groups == 1:
        columns = o.new_zeros(x.c_out, x.c_in, *o.shape[2:])
        return columns.index_add_(1, torch.tensor(inner.parts.index, device=o.device), _regrouped(o, outer.groups, 1))
    if outer.is_diagonal:
        return i * o.reshape(-1, *[1] * (i.dim() - 1))
    if inner.is_diagonal:
        columns = i.reshape(outer.groups, 1, -1, *[1] * len(x.axes))
        return (o.reshape(outer.groups, -1, *o.shape[1:]) * columns).reshape(o.shape)
    if outer.groups == outer.c_out == outer.c_in:
        return _regrouped(_convolved_kernels(outer, o, inner, i, outer.groups), inner.groups, x.groups)
    if inner.groups == inner.c_out == inner.c_in:
        kernel = _convolved_kernels(outer, o, inner, i, outer.groups, depthwise=True)
        return _regrouped(kernel, outer.groups, x.groups)
    o, i = _regrouped(o, outer.groups, x.groups), _regrouped(i, inner.groups, x.groups)
    return _convolved_kernels(outer, o, inner, i, x.groups)


def _convolved_kernels(
    outer: Affine, o: Tensor, inner: Affine, i: Tensor, groups: int, *, depthwise: bool = False
) -> Tensor:
    """The kernel of a composition: the transposed convolution of outer's kernel with inner's.

    o: (c_out, c_mid / groups, *)   i: (c_mid, c_in / groups, *)   result: (c_out, c_in / groups, *)
    depthwise: i is (c_mid, 1, *) instead, each channel of its own.
    """
    if not outer.axes:
        return torch.bmm(o.unflatten(0, (groups, -1)), i.unflatten(0, (groups, -1))).flatten(0, 1)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(outer.axes) - 1]
    axes = [(a, b, a.after(b)) for a, b in zip(outer.axes, inner.axes, strict=True)]
    strides = [max(b.stride * a.dilation // whole.dilation, 1) for a, b, whole in axes]
    dilations = [max(b.dilation // whole.dilation, 1) for _, b, whole in axes]
    batch = o.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # (c_out / groups, c_mid, *)
    result = function(batch, i, stride=strides, groups=len(i) if depthwise else groups, dilation=dilations)
    return result.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
