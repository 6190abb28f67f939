"""What the compiler must not take for granted of ranks, sizes, dtypes, and of who else holds a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from tests.test_hostile import Inputs, Net, NetOfTwo, assert_close, check, conv, gain, image, made, norm


def picked(x: Tensor) -> Tensor:
    """Of one channel, where x has several."""
    return x[:, :1] * 2.0 + 1.0


# parts, what is computed, of images of which shape
SIZES: dict[str, tuple[dict[str, Any], Callable[[Any, Tensor], Any], tuple[int, ...]]] = {
    "a pool over the channels in front of a convolution": (
        {"pool": nn.MaxPool3d((2, 1, 1)), "conv": conv(1)},
        lambda m, x: (m.conv(m.pool(x)), picked(x)),
        (2, 2, 5, 5),
    ),
    "a crop of the channels in front of a convolution": (
        {"pad": nn.ConstantPad3d((0, 0, 0, 0, 0, -1), 0.0), "conv": conv(1)},
        lambda m, x: (m.conv(m.pad(x)), picked(x)),
        (2, 2, 5, 5),
    ),
    "a pool over the channels behind a convolution": (
        {"conv": conv(5, 16, 1), "pool": nn.MaxPool3d((16, 1, 1)), "g": gain(1), "h": gain(1)},
        lambda m, x: m.pool(m.conv(x)) * m.g + m.h,
        (3, 5, 7, 7),
    ),
    "a pool over the channels of a signal": (
        {"conv": nn.Conv1d(5, 16, 1), "pool": nn.MaxPool2d((16, 1)), "g": gain(1), "h": gain(1)},
        lambda m, x: m.pool(m.conv(x)) * m.g + m.h,
        (3, 5, 7),
    ),
    "an einsum that broadcasts its matrix": (
        {"w": gain(4, 1), "norm": norm()},
        lambda m, x: (m.norm(torch.einsum("bchw,oc->bohw", x, m.w)), picked(x)),
        (2, 8, 5, 5),
    ),
    "an einsum of tokens that broadcasts its matrix": (
        {"w": gain(4, 1), "v": gain(4)},
        lambda m, x: torch.einsum("bnc,oc->bno", x, m.w) + m.v,
        (2, 5, 3),
    ),
    "a mask of channels": (
        {"conv": conv(3, 3), "g": gain(1), "h": gain(1)},
        lambda m, x: m.conv(x)[:, [True, False, False]].relu() * m.g + m.h,
        (2, 3, 4, 4),
    ),
    "a mask of channels behind an activation": (
        {"conv": conv(3, 3), "g": gain(1), "h": gain(1)},
        lambda m, x: m.conv(x).relu()[:, [False, True, True]] * m.g + m.h,
        (2, 3, 4, 4),
    ),
    "a constant that widens": (
        {"a": conv(3, 1), "b": conv(3, 1), "k": gain(8, 1, 1)},
        lambda m, x: picked(torch.addcmul(m.a(x).relu(), m.b(x).relu(), m.k)),
        (2, 3, 4, 4),
    ),
    "images of one row and of one column": (
        {"linear": nn.Linear(32, 32), "conv": conv(2, 2, 1)},
        lambda m, x: m.linear(x.flatten(1)).reshape(x.shape[0], 2, 16, 1) + m.conv(x),
        (3, 2, 1, 16),
    ),
    "the first part of a split": (
        {"conv": conv(1)},
        lambda m, x: (m.conv(x.split(1, dim=1)[0]), picked(x)),
        (2, 3, 5, 5),
    ),
    "one value joined twice": (
        {"a": conv(), "b": conv(), "pool": nn.AvgPool2d(3, 1, 1)},
        lambda m, x: (lambda y: m.pool(y) + y)(torch.cat([m.a(x), *[m.b(x)] * 2], 1)),
        (2, 4, 5, 5),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_channels_are_not_guessed(name: str) -> None:
    parts, forward, shape = SIZES[name]
    other = (shape[0] + 1, *shape[1:])
    check(made(lambda: Net(forward, **parts)), (image(*shape),), (image(*other, seed=1),))


def ones(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


# a factor of ones that does more than nothing, behind which layer, the input
NEUTRAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Tensor]] = {
    "five axes": (lambda: conv(3, 8), (1, 1, 1, 1, 1), image(2, 3, 4, 4)),
    "three axes, of a Linear": (lambda: nn.Linear(3, 8), (1, 1, 1), image(2, 3)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_factor_of_ones_may_add_axes(name: str) -> None:
    build, shape, x = NEUTRAL[name]
    model = Net(lambda m, x: m.layer(x) * m.ones, layer=build(), ones=ones(*shape)).double().eval()
    check(model, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_factor_of_ones_may_promote(dtype: torch.dtype) -> None:
    model = Net(lambda m, x: m.layer(x) * m.ones, layer=conv(3, 8).to(dtype), ones=ones(8, 1, 1)).eval()
    assert fuse(model)(image(2, 3, 4, 4).to(dtype)).dtype == torch.float32


def test_a_norm_behind_a_sum_refuses_images_without_a_batch_that_it_would_take_for_others() -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.norm(m.a(x) + m.b(y))

    model = made(lambda: NetOfTwo(forward, a=nn.Conv1d(3, 8, 1), b=nn.Conv1d(5, 8, 1), norm=nn.BatchNorm1d(8)))
    check(model, (image(2, 3, 8), image(2, 5, 8)), (image(1, 3, 6), image(1, 5, 6)), operators=3)
    with pytest.raises(ValueError, match=r"this value has \d axes"):
        fuse(model)(image(3, 8), image(5, 8))


def test_a_norm_of_another_dtype_stays_behind_a_sum() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(m.norm(torch.relu(m.a(x)) + m.b(x)).relu())

    narrow = {name: conv(4, 4, 1).bfloat16() for name in "abc"}
    model = Net(forward, norm=norm(), **narrow).eval()
    x = image(2, 4, 5, 5).bfloat16()
    assert_close(fuse(model)(x), model(x), 0.02)


# what is done in place to h, of bfloat16, with what is float32
IN_PLACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "+=": lambda m, h: h.__iadd__(m.g),
    "*=": lambda m, h: h.__imul__(m.g),
    "mul_": lambda m, h: h.mul_(m.g),
    "add_ of a cast": lambda m, h: h.add_(torch.tanh(h.float())),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_keeps_its_dtype(name: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(IN_PLACE[name](m, torch.relu(m.a(x))))

    model = Net(forward, a=conv().bfloat16(), c=conv().bfloat16(), g=gain(4, 1, 1)).eval()
    for call in (image(2, 4, 5, 5), image(1, 4, 6, 7)):
        assert_close(fuse(model)(call.bfloat16()), model(call.bfloat16()), 0.02)


class Around(nn.Module):
    """Stays Python, and writes to what its child returns."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) < 0.0:
            return x
        a, b = self.child(x)
        a += 1.0
        return a + b + x


COPIES: dict[str, tuple[dict[str, nn.Module], Callable[[Any, Tensor], Any]]] = {
    "of the input": ({"act": nn.PReLU(init=1.0)}, lambda m, x: (m.act(x), m.norm(m.conv(x)))),
    "of the input, by a slope of one": ({"act": nn.LeakyReLU(1.0)}, lambda m, x: (m.act(x), m.norm(m.conv(x)))),
    "of another result": ({}, lambda m, x: (lambda y: (y, y * 1.0))(m.norm(m.conv(x)))),
    "of a view": ({"act": nn.LeakyReLU(1.0)}, lambda m, x: (m.act(x.flatten(2)).reshape(x.shape), m.conv(x))),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_that_is_returned_stays_one(name: str) -> None:
    parts, forward = COPIES[name]
    calls: tuple[Inputs, ...] = ((image(2, 4, 5, 6),), (image(1, 4, 7, 7),))
    child = Net(forward, conv=conv(), norm=norm(), **parts).double().eval()
    check(Around(child).eval(), *calls)
    x = calls[0][0]
    assert all(result.data_ptr() != x.data_ptr() for result in fuse(child)(x))


def test_a_module_that_writes_is_run_on_a_value_that_others_read() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.pool(x)
        z = m.leaky(y)
        m.relu(y)
        return z, y

    parts = {"pool": nn.AvgPool2d(2), "leaky": nn.LeakyReLU(1.0), "relu": nn.ReLU(inplace=True)}
    check(Net(forward, **parts).eval(), (image(2, 4, 6, 6),), (image(1, 4, 8, 9),))


def test_a_dead_region_leaves_nothing_to_find() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        torch.einsum("oc,bchw->bohw", m.w, m.pool(y))
        return m.b(y)

    parts = {"a": conv(4, 3, 1), "b": conv(3, 3, 1), "w": gain(6, 3), "pool": nn.AvgPool2d(3)}
    check(made(lambda: Net(forward, **parts)), (image(2, 4, 6, 6),), (image(1, 4, 8, 9),), operators=1)


def test_integer_weights_prove_nothing() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.conv(F.conv2d(x, m.k, padding=1) / 9.0) + m.conv(x / 2.0)

    parts = {"k": torch.ones(1, 1, 3, 3, dtype=torch.long), "conv": conv(1)}
    model = Net(forward, **parts).eval()
    x = torch.randint(0, 2, (2, 1, 6, 6))
    assert_close(fuse(model)(x), model(x), 1e-5)
    halves = Net(lambda m, x: F.linear(x, m.k) / 1, k=torch.ones(4, 3, dtype=torch.long)).eval()
    x = torch.randint(0, 2, (2, 3))
    assert_close(fuse(halves)(x), halves(x))


# -- who writes in between ---------------------------------------------------------------------------------------------


class Fill(nn.Module):
    """Stays Python, and writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill_(x > 0, 0.0) if float(x.detach().abs().sum()) >= 0.0 else x


def sum_of(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    total = torch.relu(m.c(x)) + y
    if x.mean() > -100:
        y.add_(1)
    return total + m.b(x), y


def stack_of(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    total = torch.stack([y, m.b(x)])
    if x.mean() > -100:
        y.add_(1)
    return total.sum(0), y


def joined(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    whole = torch.cat([y, m.b(torch.relu(x))], 1)
    if x.mean() > -100:
        y.add_(1)
    return m.wide(whole), y


def filled(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    total = torch.relu(m.c(x)) + y
    z = m.fill(y)
    return total + m.b(x), z


@pytest.mark.parametrize("forward", [sum_of, stack_of, joined, filled])
def test_what_is_written_later_is_read_before(forward: Callable[[Any, Tensor], Any]) -> None:
    parts = {"a": conv(), "b": conv(), "c": conv(), "wide": norm(8), "fill": Fill()}
    check(made(lambda: Net(forward, **parts)), (image(2, 4, 5, 6),), (image(1, 4, 7, 7),))


@pytest.mark.parametrize("act", [nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.ELU(inplace=True)])
def test_a_stored_constant_is_not_written_to(act: nn.Module) -> None:
    model = made(lambda: Net(lambda m, x: m.a(x) * m.act(m.g.float() * 2).double(), a=conv(), act=act, g=gain(4, 1, 1)))
    fused = fuse(model)
    for _ in range(3):
        assert_close(fused(image(2, 4, 5, 6)), model(image(2, 4, 5, 6)))


def test_a_constant_that_is_computed_is_new_in_every_call() -> None:
    model = made(lambda: Net(lambda m, x: (m.norm(m.a(x)), m.g * 2), a=conv(), norm=norm(), g=gain(4, 1, 1)))
    fused = fuse(model)
    for _ in range(2):
        with torch.no_grad():
            mine, theirs = fused(image(2, 4, 5, 6)), model(image(2, 4, 5, 6))
            assert_close(mine, theirs)
            mine[1].add_(5)
