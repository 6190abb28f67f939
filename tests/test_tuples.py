"""Tuples of parts that are turned round, cut, joined and returned before anybody looks at a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_hostile import Net, check, conv, images, made

HANDLED: dict[str, Callable[[Any, Tensor], Any]] = {
    "joined again": lambda m, x: m.conv(torch.cat(torch.chunk(x, 2, 1), 1)),
    "turned round": lambda m, x: m.conv(torch.cat(torch.chunk(m.conv(x), 2, 1)[::-1], 1)),
    "the middle": lambda m, x: m.two(torch.cat(m.conv(x).chunk(4, 1)[1:3], 1)),
    "a part of some": lambda m, x: m.two(m.conv(x).split(2, 1)[::-1][1]),
    "the last": lambda m, x: m.two(m.conv(x).chunk(2, 1)[-1]),
    "some of unequal ones": lambda m, x: m.two(torch.split(m.conv(x), [1, 2, 1], 1)[1:][0]),
    "unpacked": lambda m, x: (lambda a, b: m.two(a) + m.two(b))(*m.conv(x).chunk(2, 1)[:2]),
    "concatenated": lambda m, x: m.conv(torch.cat(x.chunk(2, 1)[1:] + m.conv(x).chunk(2, 1)[:1], 1)),
    "twice": lambda m, x: m.wide(torch.cat(m.conv(x).chunk(2, 1) * 2, 1)),
    "stacked and added": lambda m, x: torch.stack(m.conv(x).chunk(2, 1)[::-1], 1).sum(1),
    "unbound": lambda m, x: m.two(torch.stack(m.conv(x).unbind(1)[::-1][:2], 1)),
    "split elsewhere": lambda m, x: m.two((m.conv(x) * 2).tensor_split(2, 1)[::-1][1]),
    "returned": lambda m, x: m.conv(x).chunk(2, 1)[::-1],
    "in a list": lambda m, x: m.conv(torch.cat([*m.conv(x).chunk(2, 1)[::-1]], 1)),
}


@pytest.mark.parametrize("name", HANDLED)
def test_what_is_done_to_tuples_is_not_taken_for_arithmetic(name: str) -> None:
    parts = {"conv": conv(), "two": conv(2), "wide": conv(8)}
    check(made(lambda: Net(HANDLED[name], **parts)), *images())
