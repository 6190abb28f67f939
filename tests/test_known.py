"""What is known of each value before anything runs: its shape, and which values it is an affine map of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile import Affine, affine_rule
from repcompile.affine import Uniform
from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.errors import RuleError
from repcompile.execute import execute
from repcompile.facts import HORIZON, UNPREPARED, Facts, affine_facts
from repcompile.rules import DEFAULT, RuleSet, layout_rule, shape_rule
from repcompile.shapes import Size
from tests.claims import untrue, untrue_maps
from tests.test_hostile import Net, conv, gain, image, made, norm

Forward = Callable[[Any, Tensor], Any]


def layers() -> dict[str, Any]:
    return {
        **{"conv": conv(), "strided": conv(stride=2), "slim": conv(4, 2, 1), "two": conv(2), "norm": norm()},
        **{"tail": nn.Linear(4, 6), "six": nn.Linear(6, 4), "four": nn.Linear(4, 4), "embed": nn.Embedding(99, 4)},
        **{"signal": nn.Conv1d(4, 4, 3), "volume": nn.Conv3d(4, 4, 1), "pool": nn.AdaptiveAvgPool2d(8)},
        **{"framed": nn.ConstantPad2d((1, 2, 0, 1), 0.5), "frame": nn.ZeroPad2d((1, 0, 2, 1)), "square": gain(4, 4)},
        **{"shuffle": nn.ChannelShuffle(2), "column": nn.AdaptiveAvgPool2d((None, 1)), "flat": nn.Flatten(1, 2)},
        **{"parted": nn.Unflatten(1, (2, 2)), "larger": nn.Upsample(scale_factor=(2.0, 3.0))},
        **{"point": conv(size=1), "fewer": nn.Linear(4, 2)},
        **{
            "gamma": gain(4, 1, 1),
            "width": gain(4),
            "kernel": gain(4, 4, 1, 1),
            "matrix": gain(9, 5),
            "window": gain(4, 4, 3),
        },
        **{"canvas": torch.rand(1, 4, 6, 6)},
    }


def _laid(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _added(y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    return a + b


def _parted(m: Any, x: Tensor) -> Tensor:
    a, b = x.split([4, 2], 1)
    return m.slim(a) + m.two(b)[:, :2]


def _halved(m: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return m.two(a) + m.two(b)


def _halved_from_the_end(m: Any, x: Tensor) -> Tensor:
    a, b = torch.chunk(x, chunks=2, dim=-3)
    return m.two(a) + m.two(b)


def _half_told(m: Any, x: Tensor) -> Any:
    a, b = x.chunk(2, 1)
    return m.two(a), b * 2.0


def _shrunk(m: Any, x: Tensor) -> Any:
    a, _ = x.split([4, 3], 2)
    return m.conv(a), m.strided(x)


def _told_late(m: Any, x: Tensor) -> Any:
    y = x * m.gamma
    a, b = x.split([2, 2], 1)
    return m.two(a), b, y + 1.0


def _tokens_joined(m: Any, x: Tensor) -> Tensor:
    y, z = (_laid(each) for each in (x * m.gamma, m.norm(x)))
    return torch.cat([m.tail(y), m.four(z)], -1)


def _tokens(x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.reshape(b, n * c) * 2.0


def _overwritten(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x) * 1.0
    y[:, 1:3] = m.norm(x)[:, 1:3] * 2.0
    return y * m.gamma


def _product(y: Tensor, *sizes: Any) -> Tensor:
    for size in sizes:
        y = y * size
    return y


KNOWN: dict[str, tuple[Forward, str]] = {
    "a convolution": (
        lambda m, x: m.conv(x),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a convolution that shrinks": (
        lambda m, x: m.strided(x),
        """
        x: (x.0, 4, x.2, x.3)
        strided: (x.0, 4, strided.2, strided.3) x
        """,
    ),
    "a convolution that shrinks what is known": (
        lambda m, x: m.strided(F.interpolate(m.strided(m.pool(x)), scale_factor=2)),
        """
        x: ?
        pool: (pool.0, 4, pool.2, pool.3)
        strided: (pool.0, 4, strided.2, strided.3) pool
        interpolate: (pool.0, 4, 2*strided.2, 2*strided.3) strided~ pool~
        strided_1: (pool.0, 4, strided_1.2, strided_1.3) interpolate strided~
            not pool: two operators with a window, and a change of layout in between
        """,
    ),
    "a convolution of a keyword": (
        lambda m, x: m.conv(input=x),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a convolution of a signal": (
        lambda m, x: m.signal(x),
        """
        x: (x.0, 4, x.2)
        signal: (x.0, 4, signal.2) x
        """,
    ),
    "a convolution of a volume": (
        lambda m, x: m.volume(x),
        """
        x: (x.0, 4, x.2, x.3, x.4)
        volume: (x.0, 4, x.2, x.3, x.4) x
        """,
    ),
    "a convolution by its weights": (
        lambda m, x: F.conv2d(x, m.kernel),
        """
        x: (x.0, 4, x.2, x.3)
        conv2d: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a convolution without a known input": (
        lambda m, x: m.conv(torch.cumsum(x, 1)).cumsum(1) + 1.0,
        """
        x: ?
        cumsum: (cumsum.0, 4, cumsum.2, cumsum.3)
        conv: (cumsum.0, 4, cumsum.2, cumsum.3) cumsum
        cumsum_1: ?
        add: ? cumsum_1
        """,
    ),
    "a norm": (
        lambda m, x: m.norm(x),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        """,
    ),
    "linears of nobody knows what": (
        lambda m, x: m.six(m.tail(x)),
        """
        x: ?
        tail: ? x
        six: ? tail x
        """,
    ),
    "linears of tokens": (
        lambda m, x: m.six(m.tail(m.conv(x).flatten(2).transpose(1, 2))),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) conv~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ conv~ x~
        tail: (x.0, x.2*x.3, 6) transpose flatten~ conv~ x~
        six: (x.0, x.2*x.3, 4) tail transpose flatten~ conv~ x~
        """,
    ),
    "a convolution behind linears": (
        lambda m, x: m.conv(m.six(m.tail(m.norm(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        permute: (x.0, x.2, x.3, 4) norm~ x~
        tail: (x.0, x.2, x.3, 6) permute norm~ x~
        six: (x.0, x.2, x.3, 4) tail permute norm~ x~
        permute_1: (x.0, 4, x.2, x.3) six~ tail~ permute~ norm x
        conv: (x.0, 4, x.2, x.3) permute_1 six~ tail~ permute~ norm x
        """,
    ),
    "a signal behind linears": (
        lambda m, x: m.signal(m.six(m.tail(x)).transpose(1, 2)),
        """
        x: ?
        tail: ? x
        six: (six.0, six.1, 4) tail x
        transpose: (six.0, 4, six.1) six~ tail~ x~
        signal: (six.0, 4, signal.2) transpose six~ tail~ x~
        """,
    ),
    "a signal behind one linear": (
        lambda m, x: m.signal(m.four(x).transpose(-2, -1)),
        """
        x: ?
        four: (four.0, four.1, 4) x
        transpose: (four.0, 4, four.1) four~ x~
        signal: (four.0, 4, signal.2) transpose four~ x~
        """,
    ),
    "tokens and back": (
        lambda m, x: m.conv(m.norm(x).flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape)),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) norm~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ norm~ x~
        transpose_1: (x.0, 4, x.2*x.3) transpose~ flatten norm~ x~
        getattr_1: number
        reshape: (x.0, 4, x.2, x.3) transpose_1~ transpose~ flatten~ norm x
        conv: (x.0, 4, x.2, x.3) reshape transpose_1~ transpose~ flatten~ norm x
        """,
    ),
    "permuted by all its axes": (
        lambda m, x: x.permute(0, 3, 1, 2),
        """
        x: (x.0, x.1, x.2, x.3)
        permute: (x.0, x.3, x.1, x.2) x~
        """,
    ),
    "permuted by a list of all its axes": (
        lambda m, x: torch.permute(x, [0, 3, 1, 2]),
        """
        x: (x.0, x.1, x.2, x.3)
        permute: (x.0, x.3, x.1, x.2) x~
        """,
    ),
    "permuted by too few axes": (
        lambda m, x: m.conv(x).sum(1).permute(0, 2, 1),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        sum_1: (sum_1.0, sum_1.1, sum_1.2)
        permute: (sum_1.0, sum_1.2, sum_1.1) sum_1~
        """,
    ),
    "transposed, and nobody knows what": (
        lambda m, x: x.transpose(1, 2),
        """
        x: ?
        transpose: ?
        """,
    ),
    "transposed for its reader": (
        lambda m, x: m.conv(x.transpose(1, 2)),
        """
        x: (x.0, x.1, x.2, x.3)
        transpose: (x.0, 4, x.1, x.3) x~
        conv: (x.0, 4, x.1, x.3) transpose x~
        """,
    ),
    "swapped for its reader": (
        lambda m, x: m.conv(x.swapaxes(1, 3)),
        """
        x: (x.0, x.1, x.2, x.3)
        swapaxes: (x.0, 4, x.2, x.1) x~
        conv: (x.0, 4, x.2, x.1) swapaxes x~
        """,
    ),
    "transposed for a reader of weights": (
        lambda m, x: torch.einsum("nct,tu->ncu", x.transpose(1, 2), m.matrix),
        """
        x: (x.0, x.1, x.2)
        transpose: (x.0, x.2, x.1) x~
        einsum: (x.0, x.2, 5) transpose x~
        """,
    ),
    "flattened, and nobody knows what": (
        lambda m, x: m.tail(x.flatten(1)),
        """
        x: ?
        flatten: ?
        tail: ? flatten
        """,
    ),
    "an activation": (
        lambda m, x: m.norm(torch.relu(m.conv(x))),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        relu: (x.0, 4, x.2, x.3) alike
        norm: (x.0, 4, x.2, x.3) relu
        """,
    ),
    "a pool": (
        lambda m, x: F.max_pool2d(m.conv(x), 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        max_pool2d: (x.0, 4, max_pool2d.2, max_pool2d.3) alike
        """,
    ),
    "a pool of nobody knows what": (
        lambda m, x: F.max_pool2d(x, 2),
        """
        x: ?
        max_pool2d: ? alike
        """,
    ),
    "a softmax of a keyword": (
        lambda m, x: torch.softmax(input=m.conv(x), dim=1),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        softmax: ? alike
        """,
    ),
    "the mean of the image": (
        lambda m, x: m.tail(m.conv(x).mean((2, 3))),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: (x.0, 4) conv~ x~
        tail: (x.0, 6) mean conv~ x~
        """,
    ),
    "averages": (
        lambda m, x: F.avg_pool2d(m.conv(x), 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        avg_pool2d: (x.0, 4, avg_pool2d.2, avg_pool2d.3) conv x
        """,
    ),
    "upsampled": (
        lambda m, x: F.interpolate(m.conv(x), scale_factor=2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        interpolate: (x.0, 4, 2*x.2, 2*x.3) conv~ x~
        """,
    ),
    "a crop": (
        lambda m, x: m.conv(x)[:, 1:3, :, 1:],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 2, x.2, getitem.3) conv x
        """,
    ),
    "one channel": (
        lambda m, x: m.conv(x)[:, 1],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: ?
            not conv: an index that drops or adds an axis, or that only the run will know
        """,
    ),
    "a sum": (
        lambda m, x: m.conv(x) + m.norm(x),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        add: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a sum of keywords": (
        lambda m, x: torch.add(input=m.conv(x), other=m.norm(x)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        add: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a sum of tokens": (
        lambda m, x: m.conv(x).flatten(2) + m.norm(x).flatten(2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) conv~ x~
        norm: (x.0, 4, x.2, x.3) x
        flatten_1: (x.0, 4, x.2*x.3) norm~ x~
        add: (x.0, 4, x.2*x.3) x~
        """,
    ),
    "a sum of tokens and of tokens with a gain": (
        lambda m, x: torch.addcmul(_laid(m.norm(x)), _laid(m.point(x)), m.width),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) norm~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ norm~ x~
        point: (x.0, 4, x.2, x.3) x
        flatten_1: (x.0, 4, x.2*x.3) point~ x~
        transpose_1: (x.0, x.2*x.3, 4) flatten_1~ point~ x~
        addcmul: (x.0, x.2*x.3, 4) x~
        """,
    ),
    "a sum of values that are no map of one": (
        lambda m, x: torch.relu(x) + m.conv(x),
        """
        x: (x.0, 4, x.2, x.3)
        relu: (x.0, 4, x.2, x.3) alike
        conv: (x.0, 4, x.2, x.3) x
        add: (x.0, 4, x.2, x.3)
        """,
    ),
    "a sum with what is broadcast": (
        lambda m, x: m.conv(x) + m.norm(x).mean((2, 3), keepdim=True),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        mean: (x.0, 4, 1, 1) norm~ x~
        add: (x.0, 4, x.2, x.3)
            not x: the operands are laid out differently
        """,
    ),
    "a sum with what has other axes": (
        lambda m, x: m.norm(m.conv(x)) + m.conv(x).transpose(2, 3),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) conv x
        conv_1: (x.0, 4, x.2, x.3) x
        transpose: (x.0, 4, x.3, x.2) conv_1~ x~
        add: (x.0, 4, add.2, add.3)
            not x: the operands are laid out differently
        """,
    ),
    "a sum and a product by keywords": (
        lambda m, x: torch.addcmul(m.conv(x), tensor1=m.norm(x), tensor2=m.gamma),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        addcmul: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a gain": (
        lambda m, x: m.conv(x) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mul: (x.0, 4, x.2, x.3) conv x
        """,
    ),
    "a gain of the last axis": (
        lambda m, x: m.conv(x).permute(0, 2, 3, 1) * m.width,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        permute: (x.0, x.2, x.3, 4) conv~ x~
        mul: (x.0, x.2, x.3, 4) permute conv~ x~
        """,
    ),
    "a gain of nobody knows what": (
        lambda m, x: m.conv(x * m.gamma),
        """
        x: ?
        mul: (mul.0, 4, mul.2, mul.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (mul.0, 4, mul.2, mul.3) mul
        """,
    ),
    "a number of nobody knows what": (
        lambda m, x: torch.relu(x * 2.0) + 1.0,
        """
        x: ?
        mul: ? x
        relu: ? alike
        add: ? relu
        """,
    ),
    "joined": (
        lambda m, x: m.norm(torch.cat([m.slim(x), m.slim(x)], 1)),
        """
        x: (x.0, 4, x.2, x.3)
        slim: (x.0, 2, x.2, x.3) x
        slim_1: (x.0, 2, x.2, x.3) x
        cat: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) cat x
        """,
    ),
    "joined by a keyword": (
        lambda m, x: torch.cat(tensors=[m.slim(x), x], dim=1),
        """
        x: (x.0, 4, x.2, x.3)
        slim: (x.0, 2, x.2, x.3) x
        cat: (x.0, 6, x.2, x.3) x
        """,
    ),
    "joined positions": (
        lambda m, x: torch.cat([m.conv(x), x], 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        cat: (x.0, 4, cat.2, x.3)
            not x: joined along another axis than the channels
        """,
    ),
    "two borders": (
        lambda m, x: m.conv(m.norm(m.conv(x))),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) conv x
        conv_1: (x.0, 4, x.2, x.3) norm conv
            not x: zero padding between two operators that mix positions
        """,
    ),
    "no rule": (
        lambda m, x: m.norm(m.conv(x).cumsum(1)) + 1.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        cumsum: (cumsum.0, 4, cumsum.2, cumsum.3)
        norm: (cumsum.0, 4, cumsum.2, cumsum.3) cumsum
        add: (cumsum.0, 4, cumsum.2, cumsum.3) norm cumsum
        """,
    ),
    "padded by a constant": (
        lambda m, x: m.norm(m.framed(m.conv(x))),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        framed: (x.0, 4, framed.2, framed.3) conv
            not x: zero padding between two operators that mix positions
        norm: (x.0, 4, framed.2, framed.3) framed conv
        """,
    ),
    "an input padded by a constant": (
        lambda m, x: m.framed(x) + 0 * m.conv(m.framed(x)),
        """
        x: (x.0, 4, x.2, x.3)
        framed: (x.0, 4, framed.2, framed.3) x
        framed_1: (x.0, 4, framed_1.2, framed_1.3) x
        conv: (x.0, 4, framed_1.2, framed_1.3) framed_1
            not x: a bias meets zero padding behind an operator with a window of its own
        mul: (x.0, 4, framed_1.2, framed_1.3) conv framed_1
        add: (x.0, 4, add.2, add.3)
        """,
    ),
    "padded along one axis": (
        lambda m, x: F.pad(m.conv(x), (1, 2)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        pad: (x.0, 4, x.2, pad.3) conv
            not x: zero padding between two operators that mix positions
        """,
    ),
    "padded by zeros of a module": (
        lambda m, x: m.frame(m.conv(x)) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        frame: (x.0, 4, frame.2, frame.3) conv
            not x: zero padding between two operators that mix positions
        mul: (x.0, 4, frame.2, frame.3) frame conv
        """,
    ),
    "padded by what is near": (
        lambda m, x: F.pad(m.conv(x), (1, 1, 2, 0), mode="replicate") * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        pad: (x.0, 4, pad.2, pad.3) conv
            not x: padding mode 'replicate' meets 'zeros'
        mul: (x.0, 4, pad.2, pad.3) pad conv
        """,
    ),
    "one axis more from the end": (
        lambda m, x: m.conv(x).unsqueeze(-1),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        unsqueeze: (x.0, 4, x.2, x.3, 1) conv~ x~
        """,
    ),
    "one axis more in front": (
        lambda m, x: m.conv(x).unsqueeze(1) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        unsqueeze: (x.0, 1, 4, x.2, x.3) conv~ x~
        mul: (x.0, 1, 4, x.2, x.3) unsqueeze conv~ x~
        """,
    ),
    "one axis less": (
        lambda m, x: m.conv(x).mean(2, keepdim=True).squeeze(-2) * m.width[:, None],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: (x.0, 4, 1, x.3) conv~ x~
        squeeze: (x.0, 4, x.3) mean~ conv~ x~
        mul: (x.0, 4, x.3) squeeze mean~ conv~ x~
        """,
    ),
    "one axis less, which is not known to be one": (
        lambda m, x: m.conv(x).squeeze(2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        squeeze: ?
        """,
    ),
    "all axes of one less": (
        lambda m, x: m.conv(x).mean((2, 3), keepdim=True).squeeze(),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: (x.0, 4, 1, 1) conv~ x~
        squeeze: ?
        """,
    ),
    "shuffled channels": (
        lambda m, x: m.conv(m.shuffle(m.norm(x))),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        shuffle: (x.0, 4, x.2, x.3) norm x
        conv: (x.0, 4, x.2, x.3) shuffle norm x
        """,
    ),
    "shuffled channels of a gain": (
        lambda m, x: F.channel_shuffle(m.norm(x), 2) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        channel_shuffle: (x.0, 4, x.2, x.3) norm x
        mul: (x.0, 4, x.2, x.3) channel_shuffle norm x
        """,
    ),
    "an adaptive mean": (
        lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 2) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        adaptive_avg_pool2d: (x.0, 4, 2, 2) conv~ x~
        mul: (x.0, 4, 2, 2) adaptive_avg_pool2d conv~ x~
        """,
    ),
    "an adaptive mean to one column": (
        lambda m, x: m.column(m.conv(x)) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        column: (x.0, 4, x.2, 1) conv~ x~
        mul: (x.0, 4, x.2, 1) column conv~ x~
        """,
    ),
    "a mean along an axis": (
        lambda m, x: m.conv(x).mean(-1) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: (x.0, 4, x.2) conv~ x~
        mul: (x.0, 4, x.2) mean conv~ x~
        """,
    ),
    "a mean of the channels": (
        lambda m, x: torch.mean(m.conv(x), 1, keepdim=True),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: (x.0, 1, x.2, x.3) conv~ x~
        """,
    ),
    "a mean of everything": (
        lambda m, x: m.conv(x).mean(),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        mean: ?
        """,
    ),
    "a split axis": (
        lambda m, x: m.parted(m.conv(x)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        parted: (x.0, 2, 2, x.2, x.3) conv~ x~
        """,
    ),
    "a split axis by a method": (
        lambda m, x: m.conv(x).unflatten(-1, (2, -1)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        unflatten: (x.0, 4, x.2, 2, unflatten.4) conv~ x~
        """,
    ),
    "a flattened image": (
        lambda m, x: m.flat(m.conv(x)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flat: (x.0, 4*x.2, x.3) conv~ x~
        """,
    ),
    "pixels shuffled": (
        lambda m, x: F.pixel_shuffle(m.conv(x), 2) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        pixel_shuffle: (x.0, 1, 2*x.2, 2*x.3) conv~ x~
        mul: (x.0, 1, 2*x.2, 2*x.3) pixel_shuffle conv~
            not x: 1 channels meet 4
        """,
    ),
    "pixels unshuffled": (
        lambda m, x: F.pixel_unshuffle(m.conv(x), 2) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        pixel_unshuffle: (x.0, 16, 2 of Size(number=1, names=('x.2',)), 2 of Size(number=1, names=('x.3',))) conv~ x~
        mul: (x.0, 16, 2 of Size(number=1, names=('x.2',)), 2 of Size(number=1, names=('x.3',))) pixel_unshuffle conv~
            not x: 16 channels meet 4
        """,
    ),
    "upsampled by a module": (
        lambda m, x: m.larger(m.conv(x)) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        larger: (x.0, 4, 2*x.2, 3*x.3) conv~ x~
        mul: (x.0, 4, 2*x.2, 3*x.3) larger conv~ x~
        """,
    ),
    "upsampled to a size": (
        lambda m, x: F.interpolate(m.conv(x), size=(7, 9)) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        interpolate: (x.0, 4, interpolate.2, interpolate.3) conv~ x~
        mul: (x.0, 4, interpolate.2, interpolate.3) interpolate conv~ x~
        """,
    ),
    "upsampled between pixels": (
        lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear") * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        interpolate: (x.0, 4, 2*x.2, 2*x.3) conv~ x~
        mul: (x.0, 4, 2*x.2, 2*x.3) interpolate conv~ x~
        """,
    ),
    "rolled": (
        lambda m, x: m.conv(x).roll((1, 2), (2, 3)) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        roll: (x.0, 4, x.2, x.3) conv~ x~
        mul: (x.0, 4, x.2, x.3) roll conv~ x~
        """,
    ),
    "rolled channels": (
        lambda m, x: torch.roll(m.conv(x), 1, 1) * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        roll: (x.0, 4, x.2, x.3) conv~ x~
        mul: (x.0, 4, x.2, x.3) roll conv~
            not x: the channels are on another axis, or mixed up with positions
        """,
    ),
    "parts of which one is empty": (
        lambda m, x: m.conv(x).split([2, 0, 2], 1)[2] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        split: ? split
        getitem: (x.0, 2, x.2, x.3) conv x
        mul: (x.0, 2, x.2, x.3) getitem conv x
        """,
    ),
    "parts that are unlike": (
        lambda m, x: m.conv(x).chunk(3, 1)[1] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        chunk: ? split
        getitem: (x.0, 2, x.2, x.3) conv x
        mul: (x.0, 2, x.2, x.3) getitem conv x
        """,
    ),
    "all channels apart": (
        lambda m, x: m.conv(x).unbind(1)[1],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        unbind: ?
        getitem: ?
            not unbind: an index that drops or adds an axis, or that only the run will know
        """,
    ),
    "a window of channels": (
        lambda m, x: m.conv(x).narrow(1, 1, 2) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        narrow: (x.0, 2, x.2, x.3) conv x
        mul: (x.0, 2, x.2, x.3) narrow conv x
        """,
    ),
    "every other channel": (
        lambda m, x: m.conv(x)[:, ::2] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 2, x.2, x.3) conv x
        mul: (x.0, 2, x.2, x.3) getitem conv x
        """,
    ),
    "channels from the end": (
        lambda m, x: m.conv(x)[:, -3:-1] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 2, x.2, x.3) conv x
        mul: (x.0, 2, x.2, x.3) getitem conv x
        """,
    ),
    "channels by a list": (
        lambda m, x: m.conv(x)[:, [0, 2, 2]] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 3, x.2, x.3) conv x
        mul: (x.0, 3, x.2, x.3) getitem conv x
        """,
    ),
    "every other row": (
        lambda m, x: m.conv(x)[:, :, ::2] * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 4, getitem.2, x.3) conv x
        mul: (x.0, 4, getitem.2, x.3) getitem conv x
        """,
    ),
    "rows from the end": (
        lambda m, x: m.conv(x)[..., -2:, :] * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: ?
            not conv: positions counted from the other side than the size is known
        mul: ?
            not getitem: the number of channels is not known here; example_inputs may tell
        """,
    ),
    "a part of the batch": (
        lambda m, x: m.conv(x)[:1] * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: ?
            not conv: picked along another axis than the channels
        mul: ?
            not getitem: the number of channels is not known here; example_inputs may tell
        """,
    ),
    "an axis put in": (
        lambda m, x: m.conv(x)[:, None] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getitem: ?
            not conv: an index that drops or adds an axis, or that only the run will know
        mul: ? getitem
        """,
    ),
    "a linear by its weights": (
        lambda m, x: F.linear(_laid(m.norm(x)), m.fewer.weight, m.fewer.bias),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) norm~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ norm~ x~
        linear: (x.0, x.2*x.3, 2) transpose flatten~ norm~ x~
        """,
    ),
    "a product from the right": (
        lambda m, x: _laid(m.norm(x)) @ m.square,
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) norm~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ norm~ x~
        matmul: (x.0, x.2*x.3, 4) transpose flatten~ norm~ x~
        """,
    ),
    "a product from the left": (
        lambda m, x: m.square @ m.norm(x).flatten(2),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) norm~ x~
        matmul: (x.0, 4, x.2*x.3) flatten norm~ x~
        """,
    ),
    "a contraction": (
        lambda m, x: torch.einsum("nchw,oc->nohw", m.norm(x), m.square),
        """
        x: (x.0, 4, x.2, x.3)
        norm: (x.0, 4, x.2, x.3) x
        einsum: (x.0, 4, x.2, x.3) norm x
        """,
    ),
    "overwritten channels": (
        _overwritten,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        getitem: (x.0, 2, x.2, x.3) norm x
        mul_1: (x.0, 2, x.2, x.3) getitem norm x
        setitem: (x.0, 4, x.2, x.3) x
        mul_2: (x.0, 4, x.2, x.3) setitem x
        """,
    ),
    "a copy": (
        lambda m, x: m.conv(x).clone().contiguous() * m.gamma,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        clone: (x.0, 4, x.2, x.3) conv x
        contiguous: (x.0, 4, x.2, x.3) clone conv x
        mul: (x.0, 4, x.2, x.3) contiguous clone conv x
        """,
    ),
    "arithmetic": (
        lambda m, x: (1.0 - m.conv(x)) / 2.0 - m.norm(x) + (-x),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        sub: (x.0, 4, x.2, x.3) conv x
        truediv: (x.0, 4, x.2, x.3) sub conv x
        norm: (x.0, 4, x.2, x.3) x
        sub_1: (x.0, 4, x.2, x.3) x
        neg: (x.0, 4, x.2, x.3) x
        add: (x.0, 4, x.2, x.3) x
        """,
    ),
    "nothing": (
        lambda m, x: x,
        """
        x: ?
        """,
    ),
    "parts of what is known": (
        lambda m, x: m.two(m.conv(x).split(2, 1)[1]),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        split: ? split
        getitem: (x.0, 2, x.2, x.3) conv x
        two: (x.0, 4, x.2, x.3) getitem conv
            not x: zero padding between two operators that mix positions
        """,
    ),
    "chunks of what is known": (
        lambda m, x: _added(m.conv(x)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        chunk: ? split
        getitem: (x.0, 2, x.2, x.3) conv x
        getitem_1: (x.0, 2, x.2, x.3) conv x
        add: (x.0, 2, x.2, x.3) conv x
        """,
    ),
    "chunks that tell what they are parts of": (
        _halved,
        """
        x: (x.0, 4, x.2, x.3)
        chunk: ? split
        getitem: (x.0, 2, x.2, x.3) x
        getitem_1: (x.0, 2, x.2, x.3) x
        two: (x.0, 4, x.2, x.3) getitem x
        two_1: (x.0, 4, x.2, x.3) getitem_1 x
        add: (x.0, 4, x.2, x.3) x
        """,
    ),
    "chunks along an axis from the end": (
        _halved_from_the_end,
        """
        x: (x.0, x.1, x.2, x.3)
        chunk: ? split
        getitem: (getitem.0, 2, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        getitem_1: (getitem_1.0, 2, getitem_1.2, getitem_1.3)
            not x: the number of channels is not known here; example_inputs may tell
        two: (getitem.0, 4, getitem.2, getitem.3) getitem
        two_1: (getitem_1.0, 4, getitem_1.2, getitem_1.3) getitem_1
        add: (add.0, 4, add.2, add.3)
        """,
    ),
    "the half of the chunks": (
        lambda m, x: m.two(x.chunk(2, 1)[1]),
        """
        x: (x.0, x.1, x.2, x.3)
        chunk: ? split
        getitem: (getitem.0, 2, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        two: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "chunks along the batch": (
        lambda m, x: m.conv(x.chunk(2)[0]),
        """
        x: (x.0, x.1, x.2, x.3)
        chunk: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "chunks along an axis that is not there": (
        lambda m, x: m.conv(x.chunk(2, 7)[0]),
        """
        x: ?
        chunk: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts by their sizes": (
        _parted,
        """
        x: (x.0, 6, x.2, x.3)
        split: ? split
        getitem: (x.0, 4, x.2, x.3) x
        getitem_1: (x.0, 2, x.2, x.3) x
        slim: (x.0, 2, x.2, x.3) getitem x
        two: (x.0, 4, x.2, x.3) getitem_1 x
        getitem_2: (x.0, 2, x.2, x.3) two getitem_1 x
        add: (x.0, 2, x.2, x.3) x
        """,
    ),
    "one of the parts by their sizes": (
        lambda m, x: m.conv(x.split([4, 3], 1)[0]),
        """
        x: (x.0, 7, x.2, x.3)
        split: ? split
        getitem: (x.0, 4, x.2, x.3) x
        conv: (x.0, 4, x.2, x.3) getitem x
        """,
    ),
    "parts of the height": (
        lambda m, x: m.conv(x.split([4, 3], 2)[0]),
        """
        x: (x.0, x.1, 7, x.3)
        split: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts by a keyword": (
        lambda m, x: m.two(torch.split(x, [2, 2], dim=1)[0]),
        """
        x: (x.0, 4, x.2, x.3)
        split: ? split
        getitem: (x.0, 2, x.2, x.3) x
        two: (x.0, 4, x.2, x.3) getitem x
        """,
    ),
    "parts by a keyword of a method": (
        lambda m, x: m.two(x.split([2, 2], dim=1)[0]),
        """
        x: (x.0, 4, x.2, x.3)
        split: ? split
        getitem: (x.0, 2, x.2, x.3) x
        two: (x.0, 4, x.2, x.3) getitem x
        """,
    ),
    "parts of the batch by a keyword of a method": (
        lambda m, x: m.conv(x.split([1, 2], dim=0)[0]),
        """
        x: (3, x.1, x.2, x.3)
        split: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: picked along another axis than the channels
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts by sizes, of which one is asked for": (
        lambda m, x: m.conv(x.split([4, x.shape[1] - 4], 1)[0]),
        """
        x: (x.0, x.1, x.2, x.3)
        getattr_1: number
        getitem: number x.1
        sub: number
        split: ? split
        getitem_1: (getitem_1.0, 4, getitem_1.2, getitem_1.3)
            not x: an argument that only the run will know
        conv: (getitem_1.0, 4, getitem_1.2, getitem_1.3) getitem_1
        """,
    ),
    "parts by sizes, of which one is nothing": (
        lambda m, x: m.conv(x.split([4, 0], 1)[0]),
        """
        x: (x.0, x.1, x.2, x.3)
        split: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts of one size": (
        lambda m, x: m.two(x.split(2, 1)[0]),
        """
        x: (x.0, x.1, x.2, x.3)
        split: ? split
        getitem: (getitem.0, 2, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        two: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts turned round": (
        lambda m, x: m.two(m.conv(x).chunk(2, 1)[::-1][0]),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        chunk: ? split
        getitem: ?
        getitem_1: (getitem_1.0, 2, getitem_1.2, getitem_1.3)
        two: (getitem_1.0, 4, getitem_1.2, getitem_1.3) getitem_1
        """,
    ),
    "parts joined": (
        lambda m, x: torch.cat(m.slim(x).chunk(2, 1) + m.norm(x).chunk(2, 1), 1),
        """
        x: (x.0, 4, x.2, x.3)
        slim: (x.0, 2, x.2, x.3) x
        chunk: ? split
        norm: (x.0, 4, x.2, x.3) x
        chunk_1: ? split
        add: ?
        cat: ?
        """,
    ),
    "the largest": (
        lambda m, x: m.conv(x).max(1, keepdim=True)[0] * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        max_1: ?
        getitem: ?
            not max_1: an index that drops or adds an axis, or that only the run will know
        mul: ? getitem
        """,
    ),
    "sizes": (
        lambda m, x: m.conv(x) * x.size(1) * x.shape[-2] * x.size()[3],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        size: number 4
        mul: ?
            not conv: arithmetic with a Size
        getattr_1: number
        getitem: number x.2
        mul_1: ?
            not mul: arithmetic with a Size
        size_1: number
        getitem_1: number x.3
        mul_2: ?
            not mul_1: arithmetic with a Size
        """,
    ),
    "sizes of nobody knows what": (
        lambda m, x: x * x.shape[2] * x.shape[-1] * x.size(0),
        """
        x: ?
        getattr_1: number
        getitem: number x.2
        mul: ?
            not x: arithmetic with a Size
        getitem_1: number x.-1
        mul_1: ?
            not mul: arithmetic with a Size
        size: number x.0
        mul_2: ?
            not mul_1: arithmetic with a Size
        """,
    ),
    "products of sizes": (
        lambda m, x: m.conv(x).reshape(-1, x.shape[2] * x.shape[3] * 2, x.shape[1] // 2 * x.shape[0]),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.2
        getitem_1: number x.3
        mul: number x.2*x.3
        mul_1: number 2*x.2*x.3
        getitem_2: number 4
        floordiv: number 2
        getitem_3: number x.0
        mul_2: number 2*x.0
        reshape: (1, 2*x.2*x.3, 2*x.0) conv~ x~
        """,
    ),
    "quotients of sizes": (
        lambda m, x: _product(m.conv(x), x.shape[2] // 2, x.shape[1] // 2, x.shape[1] // 8, x.shape[2] * 2 // 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.2
        floordiv: number 1 ('x.2',) over 2 ()
        getitem_1: number 4
        floordiv_1: number 2
        floordiv_2: number 4 () over 8 ()
        mul: number 2*x.2
        floordiv_3: number x.2
        mul_1: ?
            not conv: arithmetic with a Size
        mul_2: ?
            not mul_1: arithmetic with a Size
        mul_3: ?
            not mul_2: arithmetic with a Size
        mul_4: ?
            not mul_3: arithmetic with a Size
        """,
    ),
    "sizes over sizes": (
        lambda m, x: _product(
            m.conv(x), x.shape[2] // x.shape[3], x.shape[2] * x.shape[3] // x.shape[3], 12 // x.shape[1]
        ),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.2
        getitem_1: number x.3
        floordiv: number 1 ('x.2',) over 1 ('x.3',)
        mul: number x.2*x.3
        floordiv_1: number x.2
        getitem_5: number 4
        floordiv_2: number 3
        mul_1: ?
            not conv: arithmetic with a Size
        mul_2: ?
            not mul_1: arithmetic with a Size
        mul_3: ?
            not mul_2: arithmetic with a Size
        """,
    ),
    "other arithmetic with sizes": (
        lambda m, x: _product(
            m.conv(x), x.shape[2] + 1, x.shape[2] / 2, x.shape[2] // 2.0, x.shape[2] * -1, x.shape[2] * 0
        ),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.2
        add: number
        truediv: number
        floordiv: number
        mul: number
        mul_1: number
        mul_2: ?
            not conv: an argument that only the run will know
        mul_3: ?
            not mul_2: an argument that only the run will know
        mul_4: ?
            not mul_3: an argument that only the run will know
        mul_5: ?
            not mul_4: an argument that only the run will know
        mul_6: ?
            not mul_5: an argument that only the run will know
        """,
    ),
    "what is true as a number": (
        lambda m, x: m.conv(x) * (x.shape[2] * True) * (x.shape[1] * 1),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.2
        mul: number
        mul_1: ?
            not conv: an argument that only the run will know
        getitem_1: number 4
        mul_2: number 4
        mul_3: ?
            not mul_1: arithmetic with a Size
        """,
    ),
    "some of the sizes": (
        lambda m, x: m.conv(x).reshape(x.shape[2:] + x.shape[:2]),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number
        getitem_1: number
        add: number
        reshape: ?
        """,
    ),
    "other questions": (
        lambda m, x: m.conv(x).to(x.device, x.dtype) * x.dim() * x.ndim * x.numel(),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getattr_2: number
        to: ?
        dim: number
        mul: ?
            not to: an argument that only the run will know
        getattr_3: number
        mul_1: ?
            not mul: an argument that only the run will know
        numel: number
        mul_2: ?
            not mul_1: an argument that only the run will know
        """,
    ),
    "the axes that are unpacked": (
        lambda m, x: _tokens(x),
        """
        x: (x.0, x.1, x.2)
        getattr_1: number
        getitem: number x.0
        getitem_1: number x.1
        getitem_2: number x.2
        mul: number x.1*x.2
        reshape: (x.0, x.1*x.2) x~
        mul_1: (x.0, x.1*x.2) reshape x~
        """,
    ),
    "the axes that are unpacked where they are known": (
        lambda m, x: _tokens(m.signal(x)),
        """
        x: (x.0, 4, x.2)
        signal: (x.0, 4, signal.2) x
        getattr_1: number
        getitem: number x.0
        getitem_1: number 4
        getitem_2: number signal.2
        mul: number 4*signal.2
        reshape: (x.0, 4*signal.2) signal~ x~
        mul_1: (x.0, 4*signal.2) reshape signal~ x~
        """,
    ),
    "numbers that make tensors": (
        lambda m, x: m.conv(x) + m.embed(torch.arange(x.shape[3])).sum(),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.3
        arange: number
        embed: ?
        sum_1: ?
        add: ?
        """,
    ),
    "reshaped to sizes": (
        lambda m, x: m.conv(x).flatten(2).reshape(x.size()),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) conv~ x~
        size: number
        reshape: (x.0, 4, x.2, x.3) flatten~ conv x
        """,
    ),
    "reshaped as another": (
        lambda m, x: m.conv(x).flatten(2).reshape_as(x),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) conv~ x~
        size: number
        reshape_as: (x.0, 4, x.2, x.3) flatten~ conv x
        """,
    ),
    "reshaped as nobody knows what": (
        lambda m, x: m.conv(x).reshape_as(x.flatten(1)[1:].view(1, 4, -1)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4*x.2*x.3) x~
        getitem: ?
            not flatten: picked along another axis than the channels
        view: (1, 4, view.2)
        size: number
        reshape_as: (1, 4, view.2) conv~ x~
        """,
    ),
    "a window of a size": (
        lambda m, x: F.avg_pool2d(m.conv(x), x.shape[1] // 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number 4
        floordiv: number 2
        avg_pool2d: (x.0, 4, avg_pool2d.2, avg_pool2d.3) conv~ x~
        """,
    ),
    "a convolution of a size": (
        lambda m, x: F.conv2d(m.conv(x), m.kernel, padding=x.shape[1] // 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number 4
        floordiv: number 2
        conv2d: ?
            not conv: an argument that depends on the input's size
        """,
    ),
    "rolled by a size": (
        lambda m, x: m.conv(x).roll(x.shape[1] // 2, 1),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number 4
        floordiv: number 2
        roll: (x.0, 4, x.2, x.3) conv~ x~
        """,
    ),
    "a convolution whose weights have a keyword": (
        lambda m, x: F.conv2d(m.pool(x), weight=m.kernel, stride=2),
        """
        x: ?
        pool: (pool.0, 4, pool.2, pool.3)
        conv2d: (pool.0, 4, conv2d.2, conv2d.3) pool
        """,
    ),
    "a convolution of a signal whose weights have a keyword": (
        lambda m, x: F.conv1d(torch.tanh(x), weight=m.window),
        """
        x: (x.0, 4, x.2)
        tanh: (x.0, 4, x.2) alike
        conv1d: (x.0, 4, conv1d.2) tanh
        """,
    ),
    "a transposed convolution by its weights": (
        lambda m, x: F.conv_transpose2d(x, m.kernel[:, :2], stride=2),
        """
        x: (x.0, 4, x.2, x.3)
        conv_transpose2d: (x.0, 2, conv_transpose2d.2, conv_transpose2d.3) x
        """,
    ),
    "chunks that nobody knows": (
        lambda m, x: x.chunk(2, 1)[0] * 2.0,
        """
        x: ?
        chunk: ? split
        getitem: ?
            not x: the number of channels is not known here; example_inputs may tell
        mul: ? getitem
        """,
    ),
    "chunks of which one tells nothing": (
        _half_told,
        """
        x: (x.0, x.1, x.2, x.3)
        chunk: ? split
        getitem: (getitem.0, 2, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        getitem_1: ?
            not x: the number of channels is not known here; example_inputs may tell
        two: (getitem.0, 4, getitem.2, getitem.3) getitem
        mul: ? getitem_1
        """,
    ),
    "parts of the batch by their sizes": (
        lambda m, x: m.conv(x.split([1, 2])[0]),
        """
        x: (3, x.1, x.2, x.3)
        split: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: picked along another axis than the channels
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts of the batch from the end": (
        lambda m, x: m.conv(x.split([1, 2], -4)[0]),
        """
        x: (3, x.1, x.2, x.3)
        split: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: picked along another axis than the channels
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "chunks along an axis behind the last": (
        lambda m, x: m.conv(x.chunk(2, 4)[0]),
        """
        x: ?
        chunk: ? split
        getitem: (getitem.0, 4, getitem.2, getitem.3)
            not x: the number of channels is not known here; example_inputs may tell
        conv: (getitem.0, 4, getitem.2, getitem.3) getitem
        """,
    ),
    "parts of an axis whose size is known then": (
        _shrunk,
        """
        x: (x.0, 4, 7, x.3)
        split: ? split
        getitem: (x.0, 4, 4, x.3) x
        conv: (x.0, 4, 4, x.3) getitem
            not x: zero padding between two operators that mix positions
        strided: (x.0, 4, 4, strided.3) x
        """,
    ),
    "parts that tell what was needed before": (
        _told_late,
        """
        x: (x.0, 4, x.2, x.3)
        mul: (x.0, 4, x.2, x.3) x
        split: ? split
        getitem: (x.0, 2, x.2, x.3) x
        getitem_1: (x.0, 2, x.2, x.3) x
        two: (x.0, 4, x.2, x.3) getitem x
        add: (x.0, 4, x.2, x.3) mul x
        """,
    ),
    "a size in front of the first": (
        lambda m, x: m.conv(x) * x.shape[-4],
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number x.0
        mul: ?
            not conv: arithmetic with a Size
        """,
    ),
    "a size behind the last": (
        lambda m, x: m.conv(x) * x.size(4),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        size: number x.4
        mul: ?
            not conv: arithmetic with a Size
        """,
    ),
    "numbers in front of a permutation": (
        lambda m, x: m.signal((x * 2.0).transpose(1, 2)),
        """
        x: ?
        mul: (mul.0, mul.1, mul.2) x
        transpose: (mul.0, 4, mul.1) mul~ x~
        signal: (mul.0, 4, signal.2) transpose mul~ x~
        """,
    ),
    "a pool of keywords": (
        lambda m, x: F.max_pool2d(m.conv(x), kernel_size=2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        max_pool2d: (x.0, 4, max_pool2d.2, max_pool2d.3) alike
        """,
    ),
    "joined with a constant": (
        lambda m, x: torch.cat([m.conv(x), m.canvas], 1) * 2.0,
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        cat: (x.0, 8, x.2, x.3)
            not conv: joined with something that does not depend on the input
        mul: (x.0, 8, x.2, x.3) cat
        """,
    ),
    "a constant reshaped as a value": (
        lambda m, x: m.conv(x) + m.canvas.reshape_as(m.conv(x)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        conv_1: (x.0, 4, x.2, x.3) x
        size: number
        reshape_as: ?
        add: ?
        """,
    ),
    "shuffled by a size": (
        lambda m, x: F.pixel_shuffle(m.conv(x), x.shape[1] // 2),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        getattr_1: number
        getitem: number 4
        floordiv: number 2
        pixel_shuffle: ?
        """,
    ),
    "tokens joined": (
        _tokens_joined,
        """
        x: (x.0, 4, x.2, x.3)
        mul: (x.0, 4, x.2, x.3) x
        norm: (x.0, 4, x.2, x.3) x
        flatten: (x.0, 4, x.2*x.3) mul~ x~
        transpose: (x.0, x.2*x.3, 4) flatten~ mul~ x~
        flatten_1: (x.0, 4, x.2*x.3) norm~ x~
        transpose_1: (x.0, x.2*x.3, 4) flatten_1~ norm~ x~
        tail: (x.0, x.2*x.3, 6) transpose flatten~ mul~ x~
        four: (x.0, x.2*x.3, 4) transpose_1 flatten_1~ norm~ x~
        cat: (x.0, x.2*x.3, 10) x~
        """,
    ),
    "an average that is no convolution": (
        lambda m, x: m.norm(F.avg_pool2d(m.conv(x), 3, padding=1)),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        avg_pool2d: (x.0, 4, avg_pool2d.2, avg_pool2d.3) conv
            not x: zero padding between two operators that mix positions
        norm: (x.0, 4, avg_pool2d.2, avg_pool2d.3) avg_pool2d conv
        """,
    ),
}

# of the inputs, where they are no images of 4 channels; none where the run fails
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "parts of the batch by a keyword of a method": ((3, 4, 6, 6), (3, 4, 8, 10)),
    "a convolution of a signal whose weights have a keyword": ((2, 4, 9), (1, 4, 12)),
    "parts of the batch by their sizes": ((3, 4, 6, 6), (3, 4, 8, 10)),
    "parts of the batch from the end": ((3, 4, 6, 6), (3, 4, 8, 10)),
    "chunks along an axis behind the last": (),
    "parts of an axis whose size is known then": ((2, 4, 7, 6), (1, 4, 7, 10)),
    "a size behind the last": (),
    "numbers in front of a permutation": ((2, 9, 4), (1, 12, 4)),
    "joined with a constant": ((1, 4, 6, 6),),
    "a constant reshaped as a value": ((1, 4, 6, 6),),
    "a convolution of a signal": ((2, 4, 9), (1, 4, 12)),
    "a convolution of a volume": ((2, 4, 3, 4, 5), (1, 4, 6, 5, 4)),
    "linears of nobody knows what": ((2, 5, 4), (3, 4)),
    "a signal behind linears": ((2, 9, 4), (1, 12, 4)),
    "a signal behind one linear": ((2, 9, 4), (1, 12, 4)),
    "transposed for its reader": ((2, 5, 4, 6), (1, 7, 4, 8)),
    "swapped for its reader": ((2, 5, 6, 4), (1, 7, 8, 4)),
    "transposed for a reader of weights": ((2, 9, 4), (1, 9, 3)),
    "flattened, and nobody knows what": ((2, 2, 2), (3, 4)),
    "a sum with what has other axes": ((2, 4, 6, 6), (1, 4, 8, 8)),
    "parts by their sizes": ((2, 6, 6, 6), (1, 6, 8, 10)),
    "one of the parts by their sizes": ((2, 7, 6, 6), (1, 7, 8, 10)),
    "parts of the height": ((2, 4, 7, 6), (1, 4, 7, 10)),
    "parts by sizes, of which one is asked for": ((2, 6, 6, 6), (1, 7, 8, 10)),
    "parts by sizes, of which one is nothing": ((2, 4, 6, 6), (1, 4, 8, 10)),
    "the axes that are unpacked": ((2, 9, 4), (1, 5, 7)),
    "the axes that are unpacked where they are known": ((2, 4, 9), (1, 4, 12)),
    "reshaped as nobody knows what": (),
    "chunks along an axis that is not there": (),
}

# with example inputs of which shape
MEASURED: dict[str, tuple[Forward, tuple[int, ...], str]] = {
    "no reader": (
        lambda m, x: torch.relu(x),
        (2, 4, 6, 6),
        """
        x: (x.0, x.1, x.2, x.3)
        relu: (x.0, x.1, x.2, x.3) alike
        """,
    ),
    "a reader that agrees": (
        lambda m, x: m.conv(x),
        (2, 4, 6, 6),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        """,
    ),
    "a reader that does not": (
        lambda m, x: m.conv(x),
        (4, 7, 6),
        """
        x: (4, x.1, x.2)
        conv: (4, x.1, x.2) x
        """,
    ),
    "an operator without a rule": (
        lambda m, x: m.conv(x).cumsum(1) * m.gamma,
        (2, 4, 6, 6),
        """
        x: (x.0, 4, x.2, x.3)
        conv: (x.0, 4, x.2, x.3) x
        cumsum: (cumsum.0, cumsum.1, cumsum.2, cumsum.3)
        mul: (mul.0, mul.1, mul.2, mul.3)
            not cumsum: the number of channels is not known here; example_inputs may tell
        """,
    ),
    "tokens": (
        lambda m, x: m.four(x).transpose(1, 2),
        (2, 5, 4),
        """
        x: (x.0, x.1, 4)
        four: (x.0, x.1, 4) x
        transpose: (x.0, 4, x.1) four~ x~
        """,
    ),
    "channels that nobody reads": (
        lambda m, x: x * m.gamma,
        (2, 4, 6, 6),
        """
        x: (x.0, x.1, x.2, x.3)
        mul: (mul.0, mul.1, mul.2, mul.3)
            not x: the number of channels is not known here; example_inputs may tell
        """,
    ),
}


def described(facts: Facts, captured: Captured) -> str:
    """A line for each value: its shape, and the values that it is a map of, ~ where positions move on the way; and a
    line for each value that it is no map of.
    """
    lines: list[str] = []
    for node in captured.graph.nodes:
        if node in facts.numbers:
            lines.append(f"{node.name}: number {_size(facts.sizes[node]) if node in facts.sizes else ''}".rstrip())
        elif node in facts.shapes:
            lines.append(f"{node.name}: {' '.join(_words(node, facts))}")
        lines += [f"    not {item.source.name}: {item.reason}" for item in facts.refusals if item.node is node]
    return "\n".join(lines + ["truncated"] * facts.truncated)


def _words(node: fx.Node, facts: Facts) -> list[str]:
    shape = facts.shapes[node]
    words = ["?" if shape is None else "(" + ", ".join(map(_size, shape)) + ")"]
    words += [f"{fact.source.name}{'~' * bool(fact.path)}" for fact in facts.maps.get(node, ())]
    words += ["alike"] * (node in facts.alike) + ["split"] * facts.is_split(node)
    return words


def _size(size: Size) -> str:
    number = [str(size.number)] if size.number != 1 or not size.names else []
    return "*".join([*number, *size.names])


def understood(forward: Forward, *inputs: Tensor) -> tuple[Captured, Facts]:
    captured = canonicalize(capture(made(lambda: Net(forward, **layers())), DEFAULT.module_classes))
    return captured, affine_facts(captured, DEFAULT, execute(captured, inputs)[1] if inputs else None)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known(name: str) -> None:
    forward, expected = KNOWN[name]
    captured, facts = understood(forward)
    assert described(facts, captured) == inspect.cleandoc(expected)


@pytest.mark.parametrize("name", MEASURED)
def test_example_inputs_tell_ranks(name: str) -> None:
    forward, shape, expected = MEASURED[name]
    captured, facts = understood(forward, image(*shape))
    assert described(facts, captured) == inspect.cleandoc(expected)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_so(name: str) -> None:
    for x in (image(*shape) for shape in SHAPES.get(name, ((2, 4, 6, 6), (1, 4, 8, 10)))):
        for captured, facts in (understood(KNOWN[name][0]), understood(KNOWN[name][0], x)):
            assert [*untrue(captured, facts, [x]), *untrue_maps(captured, facts, [x])] == []


def test_a_rule_of_ones_own_tells_channels_and_axes() -> None:
    class Window(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = gain(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, self.weight, stride=2)

    @affine_rule(Window, strict=True)
    def window(x: Any, m: Window) -> Any:
        return Affine.conv(m.weight, stride=2) @ x

    rules = DEFAULT + RuleSet((window,)).trusting()
    captured = canonicalize(capture(made(lambda: Net(lambda m, x: m.window(x), window=Window())), rules.module_classes))
    facts = affine_facts(captured, rules)
    assert described(facts, captured) == "x: (x.0, 4, x.2)\nwindow: (x.0, 6, window.2) x"
    assert list(untrue(captured, facts, [image(2, 4, 9)])) == []


def failing(x: Any) -> Any:
    raise LookupError("no such thing")


def test_a_rule_that_fails_is_an_error_only_on_trial() -> None:
    rule = affine_rule(torch.rot90)(failing)
    captured, _ = understood(lambda m, x: torch.rot90(m.conv(x)))
    facts = affine_facts(captured, DEFAULT + RuleSet((rule,)).trusting())
    assert [item.reason for item in facts.refusals] == [f"{UNPREPARED} LookupError"]
    with pytest.raises(RuleError, match="rule 'failing' failed on 'rot90' in Net: LookupError: no such thing"):
        affine_facts(captured, DEFAULT + [rule])


@pytest.mark.parametrize("kind", [layout_rule, shape_rule])
def test_a_rule_of_shapes_that_fails_is_an_error_only_on_trial(kind: Any) -> None:
    rule = kind(torch.rot90)(failing)
    captured, _ = understood(lambda m, x: torch.rot90(m.conv(x)))
    facts = affine_facts(captured, DEFAULT + RuleSet((rule,)).trusting())
    assert described(facts, captured).splitlines()[-1] == "rot90: ?"
    with pytest.raises(RuleError, match="rule 'failing' failed on 'rot90' in Net: LookupError: no such thing"):
        affine_facts(captured, DEFAULT + [rule])


@pytest.mark.parametrize(("made_of", "name"), [(lambda x: 3, "int"), (lambda x: "a map", "str")])
def test_a_rule_that_returns_no_map(made_of: Any, name: str) -> None:
    captured, _ = understood(lambda m, x: torch.rot90(x))
    with pytest.raises(RuleError, match=f"returned {name} for .*rot90.*, not a map"):
        affine_facts(captured, DEFAULT + [affine_rule(torch.rot90)(made_of)])


def test_a_function_on_trial_has_no_module_to_change() -> None:
    captured, _ = understood(lambda m, x: torch.rot90(x))
    facts = affine_facts(captured, DEFAULT + [affine_rule(torch.rot90)(lambda x: Uniform(2.0))])
    assert described(facts, captured) == "x: ?\nrot90: ? x"


# (at, home) of the map that the last value is of x: where it stands on its path, and where what weighs most stood
PLACES: dict[str, tuple[Forward, tuple[int, int]]] = {
    "a linear behind a layout": (lambda m, x: m.four(_laid(m.norm(x))), (2, 2)),
    "a layout behind a convolution": (lambda m, x: _laid(m.point(x)), (2, 0)),
    "a gain behind a layout behind a convolution": (
        lambda m, x: _laid(m.point(x)) * m.width,
        (2, 0),
    ),
    "a window behind which the layout changes": (lambda m, x: _laid(m.conv(x)) * m.width, (0, 0)),
    "a sum of a window and a gain": (lambda m, x: m.conv(x).flatten(2) + m.norm(x).flatten(2), (0, 0)),
    "a sum of tokens": (lambda m, x: m.four(_laid(m.norm(x))) + _laid(m.point(x)), (2, 2)),
    "a sum of tokens of convolutions": (lambda m, x: _laid(m.norm(x)) + _laid(m.point(x)), (2, 0)),
    "a wider linear": (lambda m, x: m.tail(_laid(m.point(x))), (2, 2)),
    "a narrower linear": (lambda m, x: m.fewer(_laid(m.point(x))), (2, 0)),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_maps_stand(name: str) -> None:
    forward, expected = PLACES[name]
    captured, facts = understood(forward)
    (result,) = captured.graph.output_node().args
    fact = facts.maps[result][-1]  # type: ignore[index]
    assert (fact.source.name, fact.at, fact.home) == ("x", *expected)
    assert all(facts.steps[step.node] == step for step in fact.path)
    assert all(isinstance(each.map, Affine | Uniform) for found in facts.maps.values() for each in found)


RULES: dict[str, tuple[Forward, dict[str, str]]] = {
    "refused": (lambda m, x: x * m.gamma, {"mul": "mul"}),
    "two values that are no map of one": (lambda m, x: torch.relu(x) * m.conv(x), {"conv": "conv_module"}),
    "two values that are refused": (
        lambda m, x: m.conv(x).transpose(2, 3) + m.conv(x),
        {"conv": "conv_module", "conv_1": "conv_module", "transpose": "transpose"},
    ),
    "averages": (lambda m, x: F.avg_pool2d(m.conv(x), 2), {"conv": "conv_module", "avg_pool2d": "average_pool"}),
}


@pytest.mark.parametrize("name", RULES)
def test_by_which_rule(name: str) -> None:
    forward, expected = RULES[name]
    _, facts = understood(forward)
    assert {node.name: rule.name for node, rule in facts.rules.items()} == expected


def test_a_long_chain_is_cut_off() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(HORIZON + 2):
            x = m.point(x)
        return x

    captured, facts = understood(forward)
    assert described(facts, captured).endswith("truncated")
    assert max(map(len, facts.maps.values())) == HORIZON
    assert not understood(lambda m, x: m.point(m.point(x)))[1].truncated


def test_what_cannot_be_integers() -> None:
    captured, facts = understood(lambda m, x: torch.relu(m.conv(x)) * 2)
    assert {node.name for node in facts.floating} >= {"x", "conv", "relu", "mul"}
    assert captured.graph.output_node() not in facts.floating
