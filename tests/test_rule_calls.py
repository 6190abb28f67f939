"""Rules for arithmetic, padding, products and norms, called as a graph calls them, against torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.fold import apply, magnitude
from repcompile.modules import BorderConv, surrounded
from repcompile.rules import emitted, norm, pad, pointwise, product
from repcompile.shapes import Shape, Size, named
from repcompile.values import Constant, as_constant
from tests.strategies import assert_close

Rule = Callable[[Map, Shape], Map]
Case = tuple[Rule, Callable[[Tensor], Tensor]]

SHAPE = (Size(1, ("x.0",)), Size(4), *named("x", 4)[2:])
TOKENS = (*named("x", 2), Size(4))


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) + 0.5


GAIN, LAST, ROW, ONE, SINGLE = numbers(4, 1, 1), numbers(1, 1, 4), numbers(4), numbers(1, 1, 1), numbers()
LEADING, SQUARE, WIDE = numbers(1, 4, 1, 1), numbers(4, 4), numbers(3, 4)
MEAN, VAR, WEIGHT, BIAS = numbers(4), 1e-5 * numbers(4), numbers(4) - 1, numbers(4) - 1


def c(tensor: Tensor) -> Constant:
    return as_constant(tensor)


IMAGES: list[Case] = [
    (lambda x, s: pointwise.add(x, c(GAIN), 1, s), lambda x: x + GAIN),
    (lambda x, s: pointwise.add(x, c(GAIN), 2.5, s), lambda x: torch.add(x, GAIN, alpha=2.5)),
    (lambda x, s: pointwise.add(c(GAIN), x, 2.5, s), lambda x: torch.add(GAIN, x, alpha=2.5)),
    (lambda x, s: pointwise.add(x, c(LEADING), 2, s), lambda x: torch.add(x, LEADING, alpha=2)),
    (lambda x, s: pointwise.add(x, 3.0, 2, s), lambda x: x + 6.0),
    (lambda x, s: pointwise.add(x, x, 0.5, s), lambda x: 1.5 * x),
    (lambda x, s: pointwise.sub(x, c(GAIN), shape=s), lambda x: x - GAIN),
    (lambda x, s: pointwise.sub(c(LEADING), x, 3, s), lambda x: torch.sub(LEADING, x, alpha=3)),
    (lambda x, s: pointwise.mul(x, c(LEADING), s), lambda x: x * LEADING),
    (lambda x, s: pointwise.mul(c(GAIN), x, s), lambda x: x * GAIN),
    (lambda x, s: pointwise.mul(x, c(ONE), s), lambda x: x * ONE),
    (lambda x, s: pointwise.div(x, c(GAIN), shape=s), lambda x: x / GAIN),
    (lambda x, s: pointwise.div(x, 0.25, shape=s), lambda x: x / 0.25),
    (lambda x, s: pointwise.addcmul(x, x, c(GAIN), value=0.5, shape=s), lambda x: torch.addcmul(x, x, GAIN, value=0.5)),
    (lambda x, s: pointwise.addcmul(x, c(GAIN), x, shape=s), lambda x: torch.addcmul(x, GAIN, x)),
    (lambda x, s: pointwise.addcmul(x, c(GAIN), c(LEADING), shape=s), lambda x: x + GAIN * LEADING),
    (lambda x, s: pointwise.addcmul(x, c(SINGLE), c(GAIN), value=2, shape=s), lambda x: x + 2 * SINGLE * GAIN),
    (lambda x, s: pointwise.addcmul(x, c(GAIN), 2.0, shape=s), lambda x: x + 2 * GAIN),
    (lambda x, s: pointwise.addcmul(c(GAIN), x, 2.0, value=3, shape=s), lambda x: GAIN + 6 * x),
    (lambda x, s: pointwise.dropout(x, 0.0), lambda x: x),
    (lambda x, s: pointwise.dropout(x, 0.5, False), lambda x: x),
    (lambda x, s: pad.pad(x, [1, 2], shape=s), lambda x: F.pad(x, [1, 2])),
    (lambda x, s: pad.pad(x, [1, 0, 2, 1], "constant", 0.5, s), lambda x: F.pad(x, [1, 0, 2, 1], value=0.5)),
    (lambda x, s: pad.pad(x, [-1, 2, 0, -1, 0, 0], shape=s), lambda x: F.pad(x, [-1, 2, 0, -1])),
    (lambda x, s: pad.pad(x, [1, 2, 0, 1], "reflect", shape=s), lambda x: F.pad(x, [1, 2, 0, 1], "reflect")),
    (lambda x, s: pad.constant_pad_module(x, nn.ConstantPad1d((1, 2), 0.5), s), nn.ConstantPad1d((1, 2), 0.5)),
    (lambda x, s: pad.constant_pad_module(x, nn.ZeroPad1d((2, 0)), s), nn.ZeroPad1d((2, 0))),
    (lambda x, s: pad.replication_pad_module(x, nn.ReplicationPad2d(1), s), nn.ReplicationPad2d(1)),
    (lambda x, s: pad.circular_pad_module(x, nn.CircularPad2d((1, 2, 0, 3)), s), nn.CircularPad2d((1, 2, 0, 3))),
    (lambda x, s: pad.surround(x, (1, 2), GAIN, 4, s), lambda x: surrounded(x, (1, 2), GAIN, 4)),
    (lambda x, s: pad.surround(x, (1, 0, 2, 1), LEADING, 4, s), lambda x: surrounded(x, (1, 0, 2, 1), LEADING, 4)),
    (lambda x, s: pad.surround(x, (1, 2, 0, 0, 0, 0), GAIN, 4, s), lambda x: surrounded(x, (1, 2), GAIN, 4)),
    (lambda x, s: norm.batch_norm(x, MEAN, VAR, shape=s), lambda x: F.batch_norm(x, MEAN, VAR)),
    (lambda x, s: norm.batch_norm(x, MEAN, VAR, WEIGHT, shape=s), lambda x: F.batch_norm(x, MEAN, VAR, WEIGHT)),
    (lambda x, s: norm.batch_norm(x, MEAN, VAR, None, BIAS, shape=s), lambda x: F.batch_norm(x, MEAN, VAR, None, BIAS)),
    (
        lambda x, s: norm.batch_norm(x, MEAN, VAR, WEIGHT, BIAS, False, 0.5, 0.01, s),
        lambda x: F.batch_norm(x, MEAN, VAR, WEIGHT, BIAS, eps=0.01),
    ),
    (
        lambda x, s: product.einsum("b c h w, o c -> b o h w", x, c(WIDE), shape=s),
        lambda x: torch.einsum("bchw,oc->bohw", x, WIDE),
    ),
    (
        lambda x, s: product.einsum("co,bchw->bohw", c(SQUARE), x, shape=s),
        lambda x: torch.einsum("co,bchw->bohw", SQUARE, x),
    ),
    (lambda x, s: product.einsum("bchw,oc->bohw", [x, c(WIDE)]), lambda x: torch.einsum("bchw,oc->bohw", x, WIDE)),
]
ROWS: list[Case] = [
    (lambda x, s: pointwise.add(x, c(LAST), 2, s), lambda x: x + 2 * LAST),
    (lambda x, s: pointwise.sub(x, c(ROW), shape=s), lambda x: x - ROW),
    (lambda x, s: pointwise.mul(c(LAST), x, s), lambda x: x * LAST),
    (lambda x, s: pointwise.div(x, c(LAST), shape=s), lambda x: x / LAST),
    (lambda x, s: pointwise.addcmul(x, x, c(LAST), value=2, shape=s), lambda x: x + 2 * x * LAST),
    (lambda x, s: pointwise.addcmul(x, c(ROW), c(LAST), value=2, shape=s), lambda x: x + 2 * ROW * LAST),
    (lambda x, s: pointwise.addcmul(x, c(LAST), c(ONE), shape=s), lambda x: x + LAST * ONE),
    (lambda x, s: product.matmul(x, c(SQUARE), s), lambda x: x @ SQUARE),
    (lambda x, s: product.einsum("bnc,oc->bno", x, c(WIDE), shape=s), lambda x: x @ WIDE.T),
    (lambda x, s: product.einsum("bnc,co->bno", x, c(SQUARE), shape=s), lambda x: x @ SQUARE),
]


def _applied(x: Map, image: Tensor, n_axes: int) -> Tensor:
    x = x if isinstance(x, Affine) else x.placed(n_axes, 4)
    if len(x.axes) == n_axes:
        return apply(x, image)
    return apply(x, image.flatten(0, -2)).unflatten(0, image.shape[:-1])


@pytest.mark.parametrize("start", [Affine.identity(4, 2), Uniform(sizes=(None, 4, None, None))])
@pytest.mark.parametrize(("rule", "function"), IMAGES)
def test_a_rule_of_images(rule: Rule, function: Callable[[Tensor], Tensor], start: Map) -> None:
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    assert_close(_applied(rule(start, SHAPE), image, 2), function(image))


@pytest.mark.parametrize("start", [Affine.identity(4, 0), Uniform(sizes=(None, None, 4))])
@pytest.mark.parametrize(("rule", "function"), ROWS)
def test_a_rule_of_rows(rule: Rule, function: Callable[[Tensor], Tensor], start: Map) -> None:
    image = torch.randn(2, 5, 4, dtype=torch.float64)
    assert_close(_applied(rule(start, TOKENS), image, -1), function(image))


def test_a_norm_behind_a_map_that_knows_its_axes() -> None:
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    x = norm.batch_norm(Affine.identity(4, 2), MEAN, VAR)
    assert_close(_applied(x, image, 2), F.batch_norm(image, MEAN, VAR))


def test_one_number_for_all_rows() -> None:
    image = torch.randn(2, 5, 4, dtype=torch.float64)
    assert_close(_applied(pointwise.mul(Affine.identity(4, 0), c(ONE), TOKENS), image, -1), image * ONE)


@pytest.mark.parametrize("pads", [(), (1, 2, 0, 1)])
def test_a_convolution_with_a_border(pads: tuple[int, ...]) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=0 if pads else (1, 2), groups=2)
    module = BorderConv(conv, torch.randn(6, 1, 3, 3), pads).double()
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        assert_close(_applied(emitted.border_conv(Affine.identity(4, 2), module), image, 2), module(image))


def test_an_image_of_a_rank_that_only_its_padding_tells() -> None:
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    x = pad.pad(Uniform(sizes=(None, 4, None, None)), [1, 2, 0, 1])
    assert_close(_applied(x, image, 2), F.pad(image, [1, 2, 0, 1]))


def test_a_matrix_on_the_left() -> None:
    signal = torch.randn(2, 4, 5, dtype=torch.float64)
    x = product.matmul(c(WIDE), Affine.identity(4, 1), named("x", 3))
    assert_close(apply(x, signal), WIDE @ signal)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_what_cancels_in_a_norm_counts_for_its_rounding(weight: Tensor | None, bias: Tensor | None) -> None:
    """|gain| |x| + |gain| |mean| + |bias|: the mean may be all that there is of x."""
    x = norm.batch_norm(Affine.identity(4, 2), MEAN, VAR, weight, bias, shape=SHAPE)
    image = torch.randn(2, 4, 3, 3, dtype=torch.float64).abs()
    gain = (VAR + 1e-5).rsqrt() * (1.0 if weight is None else weight.abs())
    expected = gain.view(-1, 1, 1) * (image + MEAN.view(-1, 1, 1))
    expected = expected if bias is None else expected + bias.abs().view(-1, 1, 1)
    assert isinstance(x, Affine)
    assert_close(magnitude(x, image), expected)


@pytest.mark.parametrize("tensor", [GAIN, LEADING, ONE, SINGLE, LAST])
def test_leading_axes_that_broadcasting_drops(tensor: Tensor) -> None:
    found: Any = pointwise._fitting(c(tensor), SHAPE)
    expected = (
        tensor.squeeze()
        if tensor.numel() == 1
        else tensor[(0,) * (next(i for i, n in enumerate(tensor.shape) if n > 1))]
    )
    assert found.shape == tuple(expected.shape)
    assert torch.equal(found.exact(), expected)
