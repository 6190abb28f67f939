"""Operators that move positions and leave the numbers alone: a pointwise map may cross them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, layout_rule
from repcompile.shapes import Layout, Shape, Size, permuted, product, reshaped


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
    return reshaped(shape, [_size(entry) for entry in entries], owner)


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


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise Inexact("the input's rank is not known here; example_inputs may tell")
    return shape


def _size(entry: Any) -> Size | None:
    """None for the -1 that torch works out."""
    if isinstance(entry, Size):
        return entry
    if isinstance(entry, int) and entry > 0:
        return Size(entry)
    if entry == -1:
        return None
    raise Inexact("a size that is not known here")


LAYOUT = RuleSet((flatten, flatten_module, reshape, permute, transpose))
