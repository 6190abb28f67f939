"""What rules say of calls that they do not take, word for word: it is all that a user is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from repcompile.affine import Affine, Uniform
from repcompile.errors import Inexact
from repcompile.modules import BorderConv
from repcompile.rules import channels, emitted, norm, pad, pointwise, product
from repcompile.rules import layout as layouts
from repcompile.rules import pool as pools
from repcompile.shapes import Size, named
from repcompile.values import as_constant
from tests.test_hostile import gain


def _unflattened(dim: Any, sizes: tuple[int, ...]) -> nn.Unflatten:
    """torch itself takes a named axis with named sizes only."""
    module = nn.Unflatten(1, sizes)
    module.dim = dim
    return module


def _border_conv() -> BorderConv:
    return BorderConv(nn.ConvTranspose2d(4, 4, 3, 2), torch.ones(4, 1, 3, 3))


IMAGE, ROWS = named("x", 4), named("x", 2)
FOUR = (*named("x", 1), Size(4), *named("x", 4)[2:])  # (batch, 4, height, width)
SMALL = (*FOUR[:3], Size(6))
X = Uniform(sizes=(None, 4, None, None))
Y = Affine.identity(4, 2)
LINE = Affine.identity(4, 0)
W = as_constant(torch.ones(3, 4))
CUBE = as_constant(torch.ones(2, 3, 4))
CHANNELS = "the number of channels is not known here; example_inputs may tell"
ASSIGNED = "an assignment of something else than channels"
INDEX = "an index that drops or adds an axis, or that only the run will know"
OTHER = "picked along another axis than the channels"
SIDE = "positions counted from the other side than the size is known"
NOWHERE = "no positions are picked"
FORM = "an einsum of another form than 'image,matrix->image'"
EXCHANGE = "an einsum that does more than exchange the channels"
TWO = "a product of two values that depend on the input is not affine"
RANK = "the rank of the input is not known here; example_inputs may tell"
KNOWN = "the input's rank is not known here; example_inputs may tell"
REASONS: list[tuple[Callable[[], Any], str]] = [
    (lambda: layouts.flatten(None, 1), KNOWN),
    (lambda: layouts.permute(None, 0, 2, 1), KNOWN),
    (lambda: layouts.permute(IMAGE, 0, 2, 1), "(0, 2, 1) does not order 4 axes"),
    (lambda: layouts.transpose(None, 1, 2), KNOWN),
    (lambda: layouts.unsqueeze(None, 1), KNOWN),
    (lambda: layouts.squeeze(None, 1), KNOWN),
    (lambda: layouts.squeeze(IMAGE), "axes that are not known to have size 1"),
    (lambda: layouts.squeeze(IMAGE, 1), "axes that are not known to have size 1"),
    (lambda: layouts.squeeze((Size(1), Size(2)), (0, 1)), "axes that are not known to have size 1"),
    (lambda: layouts.reshape(IMAGE, 2.5, 3, owner="y"), "a size that is not known here"),
    (lambda: layouts.reshape(IMAGE, 0, 3, owner="y"), "a size that is not known here"),
    (lambda: layouts.unflatten(None, 1, (2, 2)), KNOWN),
    (lambda: layouts.unflatten_module(IMAGE, _unflattened("C", (2, 2))), "a named axis"),
    (lambda: layouts.interpolate(None, scale_factor=2), KNOWN),
    (lambda: layouts.roll(IMAGE, 1), "all axes are rolled as one"),
    (lambda: layouts.roll(IMAGE, 1, ()), "all axes are rolled as one"),
    (lambda: layouts.roll(None, 1, 2), KNOWN),
    (lambda: pools.mean(None, 1), RANK),
    (lambda: pools.mean(IMAGE), RANK),
    (lambda: pools.mean(IMAGE, ()), RANK),
    (lambda: pools.mean(IMAGE, [], True), RANK),
    (lambda: pools.adaptive_mean_module(None, nn.AdaptiveAvgPool2d(2)), RANK),
    (lambda: pools.adaptive_mean_module(None, nn.AdaptiveAvgPool2d(1)), RANK),
    (lambda: pools.adaptive_mean_module(ROWS, nn.AdaptiveAvgPool2d(2)), RANK),
    (lambda: pools.mean_of_windows_module(named("x", 5), nn.AvgPool2d(2, ceil_mode=True)), RANK),
    (lambda: pools.mean_of_windows_module(IMAGE, nn.AvgPool2d(3, 2, 1)), "zeros around the image are averaged too"),
    (
        lambda: pools.mean_of_windows_module(IMAGE, nn.AvgPool2d(3, 2, divisor_override=5)),
        "zeros around the image are averaged too",
    ),
    (
        lambda: pools.average_pool_module(X, nn.AvgPool2d(3, 2, ceil_mode=True)),
        "ceil_mode averages over windows that stick out",
    ),
    (
        lambda: pools.average_pool_module(X, nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        "count_include_pad=False divides by less at the border",
    ),
    (
        lambda: pools.average_pool_module(X, nn.AvgPool2d(2.5)),  # type: ignore[arg-type]
        "a pooling window that depends on the input's size",
    ),
    (lambda: channels.overwrite(Y, (slice(None), slice(0, 4)), Y), ASSIGNED),
    (lambda: channels.overwrite(Y, slice(None), Y, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Y, (slice(None), slice(0, 2), slice(0, 1)), Y, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Y, (slice(None), slice(0, 4)), X, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Y, (slice(None), slice(0, 4)), LINE, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Y, (slice(None), [0, 1, 2, 3]), Y, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Y, (slice(0, 1),), Affine.identity(4, 3), FOUR), ASSIGNED),
    (lambda: channels.overwrite(Affine.identity(8, 2), (slice(None), slice(0, 8, 2)), Y, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Affine.identity(4, 2), (slice(None), slice(0, 3)), Y, FOUR), ASSIGNED),
    (lambda: channels.overwrite(Affine.identity(4, 2), (slice(None), slice(0, 4, 2)), Y, FOUR), ASSIGNED),
    (lambda: channels.flip(Y, (2, 3), FOUR), "several axes are flipped"),
    (lambda: channels.flip(Y, (), FOUR), "several axes are flipped"),
    (lambda: channels.flip(Y, (-1,)), RANK),
    (lambda: channels.flip(Y, (1,)), RANK),
    (lambda: channels.flip(Y, -1, FOUR), OTHER),
    (lambda: channels.flip(Y, 0, FOUR), OTHER),
    (lambda: channels.flip(Affine.identity(4, 3), 0, FOUR), OTHER),
    (lambda: channels.flip(X, 1, named("x", 6)), OTHER),
    (
        lambda: channels.index_select(Y, 1, torch.tensor([1])),
        "channels that a tensor names are known only when it runs",
    ),
    (
        lambda: channels.cat([Y, Y], 1),
        "the rank of the operands decides which axis they are joined along; example_inputs may tell",
    ),
    (
        lambda: channels.cat([X, X], 0, named("x", 1)),
        "the rank of the operands decides which axis they are joined along; example_inputs may tell",
    ),
    (lambda: channels.cat([Y, Y], 0, FOUR), "joined along another axis than the channels"),
    (lambda: channels.cat([Y, Y], shape=FOUR), "joined along another axis than the channels"),
    (lambda: channels.cat([Y, Y], -1, FOUR), "joined along another axis than the channels"),
    (lambda: channels.cat([Y, W], 1, FOUR), "joined with something that does not depend on the input"),  # type: ignore[list-item]
    (lambda: channels.chunk(Y, 2, 1), CHANNELS),
    (lambda: channels.chunk(Y, 2, shape=FOUR), CHANNELS),
    (lambda: channels.split(Y, 2, shape=FOUR), CHANNELS),
    (lambda: channels.split(Y, [2, 2], shape=FOUR), OTHER),
    (lambda: channels.chunk(Y, 2, 7, FOUR), CHANNELS),
    (lambda: channels.chunk(Y, 2, 4, FOUR), CHANNELS),
    (lambda: channels.chunk(Y, 2, 1, named("x", 4)), CHANNELS),
    (lambda: channels.chunk(Y, 2, 1, FOUR, 2), "part 2 of 2"),
    (lambda: channels.split(Y, 2, 1, FOUR, -3), "part -3 of 2"),
    (lambda: channels.split(Y, [1, 3], 1, FOUR, 2), "part 2 of 2"),
    (lambda: channels.split(Y, Size(1, ("n",)), 1, FOUR), "positions that depend on the input's size"),
    (lambda: channels.getitem(Y, (..., slice(1))), RANK),
    (lambda: channels.getitem(Y, slice(1)), RANK),
    (lambda: channels.getitem(Y, (slice(None), 0), FOUR), INDEX),
    (lambda: channels.getitem(Y, (slice(None), None), FOUR), INDEX),
    (lambda: channels.getitem(Y, (slice(1),), FOUR), OTHER),
    (lambda: channels.getitem(Y, (slice(None), [True, False]), FOUR), "channels picked by a mask"),
    (lambda: channels.getitem(Y, (..., [0, 1]), FOUR), "positions picked one by one"),
    (lambda: channels.getitem(Y, (..., slice(-2, None)), FOUR), SIDE),
    (lambda: channels.getitem(Y, (..., slice(0, 3)), FOUR), SIDE),
    (lambda: channels.getitem(Y, (..., slice(Size(1, ("n",)))), FOUR), "positions that depend on the input's size"),
    (lambda: channels.narrow(Y, -1, 0, 3), RANK),
    (lambda: channels.narrow(Y, -1, 0, 3, FOUR), SIDE),
    (lambda: channels.narrow(Y, -1, 0, 0, FOUR), SIDE),
    (lambda: channels.narrow(Y, -1, -2, 2, FOUR), SIDE),
    (lambda: channels.getitem(Y, (..., slice(0)), FOUR), SIDE),
    (lambda: channels.getitem(Y, (..., slice(2, 0)), FOUR), SIDE),
    (lambda: channels.getitem(Y, (..., slice(0)), SMALL), NOWHERE),
    (lambda: channels.getitem(Y, (..., slice(4, 2)), SMALL), NOWHERE),
    (lambda: channels.narrow(Y, -1, 3, 0, SMALL), NOWHERE),
    (lambda: channels.channel_shuffle(None, 2), RANK),
    (lambda: channels.channel_shuffle(ROWS, 2), RANK),
    (
        lambda: channels.channel_shuffle(FOUR, 3),
        "Size(number=4, names=()) channels are not known to be a multiple of 3",
    ),
    (lambda: channels.pixel_shuffle(named("x", 3), 2), RANK),
    (lambda: channels.pixel_shuffle(named("x", 5), 2), RANK),
    (lambda: channels.pixel_unshuffle(named("x", 5), 2), RANK),
    (
        lambda: norm.batch_norm_module(Y, nn.BatchNorm2d(4, track_running_stats=False).eval(), FOUR),
        "batch norm without running statistics depends on the batch",
    ),
    (
        lambda: norm.batch_norm_module(Y, nn.BatchNorm2d(4), FOUR),
        "batch norm in training mode depends on the batch",
    ),
    (lambda: norm.batch_norm(Y, None, W), "batch norm in training mode depends on the batch"),
    (lambda: norm.batch_norm(Y, W, None), "batch norm in training mode depends on the batch"),
    (lambda: norm.batch_norm(Y, W, W, training=True), "batch norm in training mode depends on the batch"),
    (
        lambda: norm.batch_norm_module(LINE, nn.BatchNorm1d(4).eval()),
        "the rank of the input decides which axis holds the channels; example_inputs may tell",
    ),
    (lambda: pad.pad(Y, [Size(1, ("n",)), 1]), "padding that depends on the input's size"),  # type: ignore[list-item]
    (lambda: pad.pad(Y, [0, 0, 0, 0, 1, 0]), "padding along the channels or the batch"),
    (lambda: pad.pad(LINE, [1, 1]), "padding along the channels or the batch"),
    (lambda: pad.pad(Affine.identity(4, 4), [1, 1]), "padding along the channels or the batch"),
    (lambda: pad.pad(X, [1, 1], shape=named("x", 2)), "padding along the channels or the batch"),
    (lambda: pad.pad(Y, [1, -1], "reflect"), "a negative padding of mode 'reflect'"),
    (lambda: pad.surround(Y, [1, 1], gain(4), 3), "sides of another axis are overwritten"),
    (lambda: pad.surround(X, [1, 1], gain(4), 3, FOUR), "sides of another axis are overwritten"),
    (lambda: pad.surround(X, [0, 0, 0, 0, 1, 1], gain(4), 4, FOUR), "padding along the channels or the batch"),
    (lambda: pad.surround(X, [1, 1], gain(4), 2), "padding along the channels or the batch"),
    (lambda: pad.surround(X, [1, 1], gain(4), 6), "padding along the channels or the batch"),
    (lambda: pad.surround(Y, [1, 1], gain(4), 4), "a value of shape (4,) around 4 channels"),
    (lambda: pad.surround(Y, [1, 1], gain(1, 3, 1, 1), 4), "a value of shape (1, 3, 1, 1) around 4 channels"),
    (lambda: pointwise.mul(Y, Y), TWO),
    (lambda: pointwise.mul(X, Y), TWO),
    (lambda: pointwise.mul(Y, "y"), "arithmetic with a str"),
    (lambda: pointwise.add(2.0, 3.0), "none of the operands depends on an input"),
    (lambda: pointwise.div(2.0, Y), "a quotient by a value that depends on the input is not affine"),
    (lambda: pointwise.div(2.0, X), "a quotient by a value that depends on the input is not affine"),
    (lambda: pointwise.div(Y, 2.0, rounding_mode="floor"), "a rounded quotient is not affine"),
    (lambda: pointwise.div(Y, 0), "division by zero"),
    (lambda: pointwise.dropout_module(Y, nn.Dropout()), "dropout in training mode is random"),
    (lambda: pointwise.dropout(Y), "dropout in training mode is random"),
    (lambda: pointwise.dropout(Y, 0.1), "dropout in training mode is random"),
    (lambda: product.matmul(W, Y), RANK),
    (lambda: product.matmul(W, Y, FOUR), "a matrix times another axis than the channels"),
    (lambda: product.matmul(Y, Y), TWO),
    (lambda: product.matmul(W, W), TWO),
    (lambda: product.matmul(LINE, CUBE), "a product with a constant of shape (2, 3, 4), not a matrix"),
    (
        lambda: product.matmul(CUBE, Affine.identity(4, 1), named("x", 3)),
        "a product with a constant of shape (2, 3, 4), not a matrix",
    ),
    (lambda: product.einsum(Y, [0, 1], W, [2, 1]), FORM),
    (lambda: product.einsum("...c,oc->...o", Y, W), FORM),
    (lambda: product.einsum("bchw,oc", Y, W), FORM),
    (lambda: product.einsum("bchw,oc,o->bohw", Y, W, W), FORM),
    (lambda: product.einsum("bchw,bohw->bchw", Y, X), FORM),
    (lambda: product.einsum("ab,oc->ac", W, W), FORM),
    (lambda: product.einsum("bchw,c->bchw", Y, as_constant(torch.ones(4))), FORM),
    (lambda: product.einsum("bchw,oc->bhwo", Y, W), EXCHANGE),
    (lambda: product.einsum("bchw,oc->bochw", Y, W), EXCHANGE),
    (lambda: product.einsum("bchw,oc->bhw", Y, W), EXCHANGE),
    (lambda: product.einsum("bchw,hw->bc", Y, W), EXCHANGE),
    (lambda: product.einsum("bccw,oc->bocw", Y, W), EXCHANGE),
    (lambda: product.einsum("bchw,oh->bcow", Y, W), "an einsum over another axis than the channels"),
    (
        lambda: product.einsum("bchw,oc->bohw", X, as_constant(torch.ones(3, 1))),
        "an einsum that broadcasts its matrix",
    ),
    (
        lambda: emitted.border_conv(Y, _border_conv()),
        "a transposed convolution with a border map",
    ),
]


@pytest.mark.parametrize(("rule", "reason"), REASONS)
def test_what_a_rule_refuses(rule: Callable[[], Any], reason: str) -> None:
    with pytest.raises(Inexact) as refused:
        rule()
    assert str(refused.value) == reason
