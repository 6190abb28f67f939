"""What a running line is doing, as stand-ins for tensors see it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import fuse
from repcompile.frames import callee, unpacked
from tests.test_hostile import assert_close, image


class Asked:
    """Notes what its caller's line calls, or unpacks."""

    seen: Any = None

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        Asked.seen = callee(sys._getframe(1))
        return int

    def __iter__(self) -> Any:
        Asked.seen = unpacked(sys._getframe(1))
        return iter((1, 2, 3))


def test_the_callee_is_found_behind_its_arguments() -> None:
    x = Asked()
    _ = isinstance(x, int if len("a") + 1 else float)
    assert Asked.seen in (None, "isinstance")  # a branch among the arguments hides it
    for _ in range(30):  # also once the interpreter has specialized the line
        assert isinstance(x, (int, str))
        assert Asked.seen == "isinstance"
    assert x.__class__ is int
    assert Asked.seen == ""


def test_the_callee_is_found_by_any_name_and_with_any_arguments() -> None:
    x, pair = Asked(), (int, str)
    asks: Any = isinstance
    both: Any = (x, pair)
    for _ in range(30):
        Asked.seen = None
        _ = asks(x, pair)
        assert Asked.seen == "isinstance"
        Asked.seen = None
        _ = isinstance(*both)
        assert Asked.seen == "isinstance"
        Asked.seen = None
        _ = asks(*[x], *[pair], **{})
        assert Asked.seen == "isinstance"


def test_unpacking_is_told_from_other_iteration() -> None:
    a, b, c = Asked()
    assert (a, b, c, Asked.seen) == (1, 2, 3, 3)
    assert list(Asked()) == [1, 2, 3]
    assert Asked.seen is None


class Numbers(nn.Module):
    """Whose arguments are no tensors, although nothing says so."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, height: int, dtype: torch.dtype) -> Tensor:
        return x + self.function(height, dtype)


TAKEN = {
    "arange": lambda n, d: torch.arange(n, dtype=d),
    "arange with a start": lambda n, d: torch.arange(1, n + 1, dtype=d)[:, None].sum(),
    "zeros": lambda n, d: torch.zeros((n, 1), dtype=d),
    "full": lambda n, d: torch.full((n, 1), n, dtype=d),
    "linspace": lambda n, d: torch.linspace(0, n, n, dtype=d),
    "sum": lambda n, d: torch.ones(n, dtype=d).sum(0, dtype=d),
}


@pytest.mark.parametrize("name", TAKEN)
def test_torch_does_not_take_a_stand_in_for_a_number_for_a_tensor(name: str) -> None:
    """Its functions in C++ believe `__class__`, and would read the memory of a tensor that is not there."""
    model = Numbers(TAKEN[name]).eval()
    fused = fuse(model)
    for height in (3, 4):
        x = image(height, height)
        assert_close(fused(x, height, torch.float64), model(x, height, torch.float64))
