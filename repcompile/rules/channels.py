"""Picking and joining: channels by 0/1 kernels, positions by windows and strides."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.axis import Axis
from repcompile.errors import Inexact
from repcompile.modules import put
from repcompile.rules.ruleset import RuleSet, affine_rule, layout_rule, shape_rule
from repcompile.shapes import Layout, Shape, Size, product, unknown

EVERYTHING = slice(None)


@affine_rule(operator.getitem, copies=True, dtype="same", word="pick")
def getitem(x: Map, index: Any, shape: Shape | None = None) -> Map:
    """x[:, a:b], x[:, [2, 1, 0]], x[:, :, 1:-1, ::2]: each entry acts on its own axis."""
    entries = _expanded(index, shape)
    for axis, entry in enumerate(entries):
        if not _is_everything(entry):
            x = _picked(x, axis, entry, shape)
    return x


@affine_rule(put, dtype="same")
def overwrite(x: Map, index: Any, value: Map, shape: Shape | None = None) -> Map:
    """x[:, a:b] = value: the channels before, the value, the channels behind."""
    entries = _expanded(index, shape)
    axes = [axis for axis, entry in enumerate(entries) if not _is_everything(entry)]
    if shape is None or len(axes) != 1 or not isinstance(value, Affine):
        raise Inexact("an assignment of something else than channels")
    n_axes = len(shape) - 1 - axes[0]
    if n_axes != len(value.axes) or axes[0] == 0 or not isinstance(entries[axes[0]], slice):
        raise Inexact("an assignment of something else than channels")
    x = x.placed(n_axes, None) if isinstance(x, Uniform) else x
    start, stop, step = _entries(entries[axes[0]]).indices(x.c_out)
    if step != 1 or stop - start != value.c_out:
        raise Inexact("an assignment of something else than channels")
    parts = [slice(0, start), slice(stop, x.c_out)]
    before, behind = ([_selected(x, axes[0], part, shape)] if part.stop > part.start else [] for part in parts)
    return Affine.cat([*before, value, *behind])


@affine_rule(torch.narrow, "narrow", dtype="same")
def narrow(x: Map, dim: int, start: int, length: int, shape: Shape | None = None) -> Map:
    stop = start + length or (None if length else 0)  # a start below zero counts from the end
    return _picked(x, _axis(dim, shape), _entries(slice(start, stop)), shape)


@affine_rule(torch.flip, "flip", dtype="same")
def flip(x: Map, dims: Any, shape: Shape | None = None) -> Map:
    axes = [_axis(dim, shape) for dim in ((dims,) if isinstance(dims, int) else dims)]
    if len(axes) != 1:
        raise Inexact("several axes are flipped")
    return _selected(x, axes[0], slice(None, None, -1), shape)


@affine_rule(torch.index_select, "index_select", dtype="same")
def index_select(x: Map, dim: int, index: Any, shape: Shape | None = None) -> Map:
    raise Inexact("channels that a tensor names are known only when it runs")


@affine_rule(torch.cat, torch.concat, torch.concatenate, dtype="promoted", word="pick")
def cat(tensors: Sequence[Map], dim: int = 0, shape: Shape | None = None) -> Map:
    """Maps of one input, one behind the other along the channels."""
    n_axes = next((len(x.axes) for x in tensors if isinstance(x, Affine)), None)
    if shape is None or (n_axes is None and len(shape) < 2):
        raise Inexact("the rank of the operands decides which axis they are joined along; example_inputs may tell")
    axis = _axis(dim, shape)
    n_axes = len(shape) - 1 - axis if n_axes is None else n_axes
    if axis != len(shape) - 1 - n_axes:
        raise Inexact("joined along another axis than the channels")
    if not all(isinstance(x, Affine | Uniform) for x in tensors):
        raise Inexact("joined with something that does not depend on the input")
    return Affine.cat([x.placed(n_axes) if isinstance(x, Uniform) else x for x in tensors])


@shape_rule(torch.cat, torch.concat, torch.concatenate)
def cat_shape(shape: Shape | None, dim: int = 0, *, shapes: Sequence[Shape | None], owner: str = "") -> Shape | None:
    first = shapes[0]
    known = [each for each in shapes if each is not None and first is not None and len(each) == len(first)]
    if first is None or len(known) < len(shapes):
        return None
    axis = dim % len(first)
    widths = [each[axis].known for each in known]
    width = unknown(owner, axis) if None in widths else Size(sum(width or 0 for width in widths))
    return (*first[:axis], width, *first[axis + 1 :])


# -- the parts of a split ----------------------------------------------------------------------------------------------


@affine_rule("chunk", torch.chunk, dtype="same", word="pick")
def chunk(x: Map, chunks: int, dim: int = 0, shape: Shape | None = None, part: int = 0) -> Map:
    size = _known(shape, _axis(dim, shape))
    width = -(-size // chunks)
    return _part(x, dim, shape, [width] * (size // width) + [size % width] * (size % width > 0), part)


@affine_rule("split", torch.split, torch.functional.split, dtype="same", word="pick")
def split(x: Map, split_size_or_sections: Any, dim: int = 0, shape: Shape | None = None, part: int = 0) -> Map:
    if isinstance(split_size_or_sections, int | Size):
        size, width = _known(shape, _axis(dim, shape)), _number(split_size_or_sections) or 1
        return _part(x, dim, shape, [width] * (size // width) + [size % width] * (size % width > 0), part)
    return _part(x, dim, shape, [_number(size) or 0 for size in split_size_or_sections], part)


def _part(x: Map, dim: int, shape: Shape | None, sizes: Sequence[int], part: int) -> Map:
    if not -len(sizes) <= part < len(sizes):
        raise Inexact(f"part {part} of {len(sizes)}")
    start = sum(sizes[: part % len(sizes)])
    return _picked(x, _axis(dim, shape), slice(start, start + sizes[part]), shape)


# -- rearranging channels and positions --------------------------------------------------------------------------------


@layout_rule(nn.ChannelShuffle)
def channel_shuffle_module(shape: Shape | None, m: nn.ChannelShuffle) -> Layout:
    return channel_shuffle(shape, m.groups)


@layout_rule(torch.channel_shuffle, torch.nn.functional.channel_shuffle)
def channel_shuffle(shape: Shape | None, groups: int) -> Layout:
    """Channel (g, i) of `groups` groups goes to (i, g) (Zhang et al. 2018)."""
    batch, channels, *rest = _image(shape)
    inner = _over(channels, groups)
    split = (batch, Size(groups), inner, *rest)
    order = (0, 2, 1, *range(3, len(split)))
    return Layout((batch, channels, *rest), (0, None, *range(2, len(rest) + 2)), ((split, order),))


@layout_rule(nn.PixelShuffle)
def pixel_shuffle_module(shape: Shape | None, m: nn.PixelShuffle) -> Layout:
    return pixel_shuffle(shape, m.upscale_factor)


@layout_rule(torch.pixel_shuffle, torch.nn.functional.pixel_shuffle)
def pixel_shuffle(shape: Shape | None, upscale_factor: int) -> Layout:
    """y[c, r h + i, r w + j] = x[(c, i, j), h, w] (Shi et al. 2016)."""
    batch, channels, height, width = _image(shape, 2)
    r = Size(upscale_factor)
    split = (batch, _over(channels, upscale_factor**2), r, r, height, width)
    return Layout((batch, split[1], height * r, width * r), (0, None, None, None), ((split, (0, 1, 4, 2, 5, 3)),))


@layout_rule(nn.PixelUnshuffle)
def pixel_unshuffle_module(shape: Shape | None, m: nn.PixelUnshuffle) -> Layout:
    return pixel_unshuffle(shape, m.downscale_factor)


@layout_rule(torch.pixel_unshuffle, torch.nn.functional.pixel_unshuffle)
def pixel_unshuffle(shape: Shape | None, downscale_factor: int) -> Layout:
    """y[(c, i, j), h, w] = x[c, r h + i, r w + j] (Shi et al. 2016, backwards)."""
    batch, channels, height, width = _image(shape, 2)
    r = Size(downscale_factor)
    small = [size.over(r) or Size(1, (f"{downscale_factor} of {size}",)) for size in (height, width)]
    split = (batch, channels, small[0], r, small[1], r)
    result = (batch, channels * r * r, *small)
    pieces = (batch, channels, small[0] * r, small[1] * r)
    regroups = ((pieces, (0, 1, 2, 3)), (split, (0, 1, 3, 5, 2, 4)))
    return Layout(result, (0, None, None, None), regroups, name="" if pieces == shape else f"unshuffle {shape}")


# -- one entry of an index ---------------------------------------------------------------------------------------------


def _expanded(index: Any, shape: Shape | None) -> list[Any]:
    """One entry for each axis, as far as the index goes."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [entry for entry in entries if entry is Ellipsis]:
        if shape is None:
            raise Inexact("the rank of the input is not known here; example_inputs may tell")
        place = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[place : place + 1] = [EVERYTHING] * (len(shape) - len(entries) + 1)
    if not all(isinstance(entry, slice | list) for entry in entries):
        raise Inexact("an index that drops or adds an axis, or that only the run will know")
    return entries


def _is_everything(entry: Any) -> bool:
    return isinstance(entry, slice) and entry in (EVERYTHING, slice(0, None), slice(None, None, 1), slice(0, None, 1))


def _picked(x: Map, axis: int, entry: Any, shape: Shape | None) -> Map:
    if shape is None:
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    if isinstance(x, Affine) and axis > len(shape) - 1 - len(x.axes):
        return _window(x, axis - len(shape), entry, shape)
    if isinstance(x, Uniform) and axis > 1:
        return _window(x.placed(len(shape) - 2), axis - len(shape), entry, shape)
    return _selected(x, axis, entry, shape)


def _selected(x: Map, axis: int, entry: Any, shape: Shape | None) -> Affine:
    """The channels `entry`, if `axis` is theirs."""
    if shape is None:
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    n_axes = len(shape) - 1 - axis
    if axis == 0 or n_axes > 3 or (isinstance(x, Affine) and n_axes != len(x.axes)):
        raise Inexact("picked along another axis than the channels")
    if isinstance(entry, list) and not all(type(place) is int for place in entry):
        raise Inexact("channels picked by a mask")
    channels = (x.placed(n_axes) if isinstance(x, Uniform) else x).c_out
    chosen = [place % channels for place in entry] if isinstance(entry, list) else range(channels)[_entries(entry)]
    return Affine.select(channels, list(chosen), n_axes) @ x


def _window(x: Affine, axis: int, entry: Any, shape: Shape) -> Affine:
    """A crop and a stride along one axis, counted from the end."""
    if not isinstance(entry, slice):
        raise Inexact("positions picked one by one")
    entry = _entries(entry)
    start, stop, step = entry.start or 0, entry.stop, entry.step or 1
    size = shape[axis].known
    if size is not None:
        start, stop, step = entry.indices(size)
        if stop <= start:
            raise Inexact("no positions are picked")
        stop = stop - size or None
    if start < 0 or (stop is not None and stop >= 0) or step < 1:
        raise Inexact("positions counted from the other side than the size is known")
    window = Axis(1, step, 1, -start, stop or 0)
    pads = [(0, 0)] * len(x.axes)
    axes = list(Affine.pad(x.c_out, pads).axes)
    axes[axis] = window
    return replace(Affine.pad(x.c_out, pads), axes=tuple(axes)) @ x


def _entries(entry: slice) -> slice:
    """A slice of integers.  Raises Inexact if only the run will know them."""
    numbers = [_number(value) for value in (entry.start, entry.stop, entry.step)]
    return slice(*numbers)


def _number(value: Any) -> int | None:
    value = value.known if isinstance(value, Size) and value.known is not None else value
    if value is not None and not isinstance(value, int):
        raise Inexact("positions that depend on the input's size")
    return value


def _axis(dim: int, shape: Shape | None) -> int:
    if dim >= 0:
        return dim
    if shape is None:
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    return dim % len(shape)


def _known(shape: Shape | None, axis: int) -> int:
    size = None if shape is None or axis >= len(shape) else shape[axis].known
    if size is None:
        raise Inexact("the number of channels is not known here; example_inputs may tell")
    return size


def _image(shape: Shape | None, n_axes: int | None = None) -> Shape:
    if shape is None or len(shape) < 3 or (n_axes is not None and len(shape) != n_axes + 2):
        raise Inexact("the rank of the input is not known here; example_inputs may tell")
    return shape


def _over(size: Size, divisor: int) -> Size:
    result = size.over(Size(divisor))
    if result is None:
        raise Inexact(f"{product([size])} channels are not known to be a multiple of {divisor}")
    return result


CHANNELS = RuleSet(
    (
        *(getitem, overwrite, narrow, flip, index_select, cat, cat_shape, chunk, split),
        *(channel_shuffle_module, channel_shuffle, pixel_shuffle_module, pixel_shuffle),
        *(pixel_unshuffle_module, pixel_unshuffle),
    )
).trusting()
