"""Norms that several operators read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_hostile import Net, check, conv, images, made, norm


def split(m: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(m.q(y)), torch.tanh(m.k(y))


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


# what reads the norm of a value that stays, how many operators that is
READ: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "two convolutions": (lambda m, x: split(m, m.norm(torch.relu(x))), 5),
    "a gain": (lambda m, x: split(m, torch.relu(m.norm2(x)) * m.gamma), 6),
    "a convolution and a Linear of tokens": (
        lambda m, x: (m.q(y := m.norm(torch.relu(x))).tanh(), m.tail(tokens(y)).tanh()),
        8,
    ),
    "through another norm": (lambda m, x: split(m, m.norm2(m.norm(torch.relu(x)))), 5),
    "somebody else too": (lambda m, x: (y := m.norm(torch.relu(x)), *split(m, y)), 6),
    "one that pads": (lambda m, x: (y := m.norm(torch.relu(x)), m.q(y).tanh(), m.wide(y).tanh())[1:], 6),
    "behind a convolution": (lambda m, x: split(m, m.norm(m.wide(x))), 5),
    "partly, behind a convolution": (lambda m, x: (torch.relu((y := m.norm(m.wide(x)))[:, :2]), y[:, 2:].tanh()), 3),
    "itself": (lambda m, x: torch.relu(m.q(y := m.norm(torch.relu(x))) + m.norm(y)), 3),
}


@pytest.mark.parametrize("name", READ)
def test_a_norm_goes_where_every_reader_takes_it_in_and_stays_once_otherwise(name: str) -> None:
    forward, operators = READ[name]
    more = {"q": conv(size=1), "k": conv(size=1), "wide": conv(), "tail": nn.Linear(4, 4), "norm2": norm()}
    model = made(lambda: Net(forward, norm=norm(), gamma=nn.Parameter(torch.rand(4, 1, 1) + 0.5), **more))
    check(model, *images(), operators=operators)


def test_a_norm_behind_a_sum_goes_into_what_becomes_one_convolution() -> None:
    """`v` by itself is no more than a gain; together with `q` it takes the norm in."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.v(m.q(torch.relu(x))) - m.k(torch.tanh(x)))

    parts = {"q": conv(), "v": conv(size=1, groups=4), "k": conv(), "norm": norm()}
    check(made(lambda: Net(forward, **parts)), *images(), operators=5)


def test_a_norm_stays_behind_a_sum_with_one_channel_that_is_broadcast() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(torch.tanh(x) + m.one(torch.sin(x)))

    model = made(lambda: Net(forward, one=nn.Conv2d(4, 1, 3, padding=1), norm=norm()))
    check(model, *images(), operators=5)


@pytest.mark.parametrize("times", [1, 2])
def test_a_norm_goes_into_what_is_concatenated_once(times: int) -> None:
    """A convolution that stands there twice is computed once, and has no room for two parts of the norm."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.norm(torch.cat([torch.tanh(x)] + times * [m.v(torch.sin(x))], 1)))

    model = made(lambda: Net(forward, v=conv(), norm=nn.BatchNorm2d(4 + 4 * times)))
    check(model, *images(), operators=6)
