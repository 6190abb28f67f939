"""Operators that move positions and leave the numbers alone: a pointwise map may cross them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, layout_rule
from repcompile.shapes import Layout, Shape, Size, permuted, product, reshaped, unknown


@layout_rule(torch.flatten, "flatten")
def flatten(shape: Shape | None, start_dim: int = 0, end_dim: int = -1) -> Layout:
    shape = _known(shape)
    rank = len(shape)
    start, end = start_dim % rank, end_dim % rank
    return reshaped(shape, [*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :]], "")


@layout_rule(nn.Flatten)
def flatten_module(shape: Shape | None, m: nn.Flatten) -> Layout:
    return flatten(shape, m.start_dim, m.end_dim)


@layout_rule(torch.reshape, "reshape", "view")
def reshape(shape: Shape | None, *sizes: Any, owner: str = "") -> Layout:
    """The result's shape is known from the arguments, even where the input's is not."""
    entries = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes
    return _fixing(reshaped(shape, [_size(entry) for entry in entries], owner), entries)


@layout_rule(torch.permute, "permute")
def permute(shape: Shape | None, *order: Any) -> Layout:
    places = order[0] if len(order) == 1 and isinstance(order[0], Sequence) else order
    return permuted(_known(shape), places)


@layout_rule(torch.transpose, "transpose", torch.swapaxes, "swapaxes")
def transpose(shape: Shape | None, first: int, second: int) -> Layout:
    shape = _known(shape)
    order = list(range(len(shape)))
    order[first], order[second] = order[second], order[first]
    return permuted(shape, order)


@layout_rule(torch.unflatten, "unflatten")
def unflatten(shape: Shape | None, dim: int, sizes: Sequence[Any], owner: str = "") -> Layout:
    shape = _known(shape)
    axis = dim % len(shape)
    made = reshaped(shape, [*shape[:axis], *(_size(entry) for entry in sizes), *shape[axis + 1 :]], owner)
    return _fixing(made, sizes, axis)


@layout_rule(nn.Unflatten)
def unflatten_module(shape: Shape | None, m: nn.Unflatten, owner: str = "") -> Layout:
    if not isinstance(m.dim, int):
        raise Inexact("a named axis")
    return unflatten(shape, m.dim, m.unflattened_size, owner)


@layout_rule(torch.squeeze, "squeeze")
def squeeze(shape: Shape | None, dim: Any = None) -> Layout:
    shape = _known(shape)
    axes = {axis % len(shape) for axis in ((dim,) if isinstance(dim, int) else dim or ())}
    if not axes or any(shape[axis] != Size(1) for axis in axes):
        raise Inexact("axes that are not known to have size 1")
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    return Layout(
        tuple(shape[axis] for axis in kept),
        tuple(kept.index(axis) if axis in kept else None for axis in range(len(shape))),
    )


@layout_rule(torch.unsqueeze, "unsqueeze")
def unsqueeze(shape: Shape | None, dim: int) -> Layout:
    shape = _known(shape)
    place = dim % (len(shape) + 1)
    carry = tuple(axis + (axis >= place) for axis in range(len(shape)))
    return Layout((*shape[:place], Size(1), *shape[place:]), carry, name="unsqueeze")


@layout_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample_module(shape: Shape | None, m: nn.Upsample, owner: str = "") -> Layout:
    return interpolate(shape, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor, owner=owner)


@layout_rule(F.interpolate)
def interpolate(
    shape: Shape | None,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *rest: Any,
    owner: str = "",
    **options: Any,
) -> Layout:
    """Every mode weighs some positions with weights that sum to one."""
    shape = _known(shape)
    first = tuple(range(2))
    scales = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor] * (len(shape) - 2)
    scale = math.prod(float(s) for s in scales if isinstance(s, int | float))
    name = f"interpolate {owner}" if size is not None else f"interpolate {scale_factor} {mode} {rest} {options}"
    result = (
        *shape[:2],
        *(_scaled(axis, s, owner, i) for i, (axis, s) in enumerate(zip(shape[2:], scales, strict=True), 2)),
    )
    return Layout(result, (*first, *[None] * (len(shape) - 2)), name=name, scale=scale if size is None else 1.0)


def _scaled(size: Size, scale: Any, owner: str, axis: int) -> Size:
    whole = isinstance(scale, int | float) and scale > 0 and float(scale).is_integer()  # nn.Upsample has 2.0 for 2
    return size * Size(int(scale)) if whole else unknown(owner, axis)


@layout_rule(torch.roll, "roll")
def roll(shape: Shape | None, shifts: Any, dims: Any = None) -> Layout:
    shape = _known(shape)
    if dims in (None, (), []):
        raise Inexact("all axes are rolled as one")
    axes = {axis % len(shape) for axis in ((dims,) if isinstance(dims, int) else dims)}
    return Layout(
        shape, tuple(None if axis in axes else axis for axis in range(len(shape))), name=f"roll {shifts} {dims}"
    )


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise Inexact("the input's rank is not known here; example_inputs may tell")
    return shape


def _fixing(layout: Layout, entries: Sequence[Any], first: int = 0) -> Layout:
    """The same layout, of an operator that is given these sizes, from the axis `first` on."""
    return replace(layout, fixed=tuple(axis for axis, entry in enumerate(entries, first) if entry != -1))


def _size(entry: Any) -> Size | None:
    """None for the -1 that torch works out."""
    if isinstance(entry, Size):
        return entry
    if isinstance(entry, int) and entry > 0:
        return Size(entry)
    if entry == -1:
        return None
    raise Inexact("a size that is not known here")


LAYOUT = RuleSet(
    (
        *(flatten, flatten_module, unflatten, unflatten_module, reshape, permute, transpose),
        *(squeeze, unsqueeze, upsample_module, interpolate, roll),
    )
).trusting()
