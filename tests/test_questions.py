"""Which forwards ask for the exact type of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile.questions import asks_for_identity, asks_for_type
from tests.test_hostile import Net


def helper(x: Any) -> bool:
    return type(x) is Tensor


def deeper(x: Any) -> Any:
    return x if helper(x) else -x


class Named(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, type(self).__name__, type(self) is Named


class Method(nn.Module):
    def kind(self, x: Any) -> bool:
        return type(x) in (list, tuple)

    def forward(self, x: Tensor) -> Tensor:
        return x[0] if self.kind(x) else x


CASES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "is": (lambda: Net(lambda m, x: x if type(x) is Tensor else -x), True),
    "equal": (lambda: Net(lambda m, x: x if type(x) == Tensor else -x), True),  # noqa: E721
    "a helper's helper": (lambda: Net(lambda m, x: deeper(x)), True),
    "a method": (Method, True),
    "a comprehension": (lambda: Net(lambda m, x: [y for y in x if type(y) is Tensor]), True),
    "of the module": (Named, False),
    "printed": (lambda: Net(lambda m, x: f"{type(x)}"), False),
    "isinstance": (lambda: Net(lambda m, x: x if isinstance(x, Tensor) else -x), False),
    "torch's own": (lambda: nn.MultiheadAttention(4, 2), False),
}


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def inner() -> None: ...

        child: Any = self.child
        return x if child.forward is inner else -x


IDENTITIES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "two tensors": (lambda: Net(lambda m, x: x if x is m.first(x) else x.contiguous() is x), True),
    "a method and a function": (Wrapped, False),
    "None": (lambda: Net(lambda m, x: x if x is None else -x), False),
    "a class": (lambda: Net(lambda m, x: x if m.kind is nn.Identity else -x), False),
    "a dtype": (lambda: Net(lambda m, x: x if x.dtype is torch.float32 else -x), True),
    "id": (lambda: Net(lambda m, x: x if id(x) == id(m) else -x), True),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_asks_for_identity(name: str) -> None:
    build, expected = IDENTITIES[name]
    assert asks_for_identity(build()) == expected


@pytest.mark.parametrize("name", CASES)
def test_asks_for_type(name: str) -> None:
    build, expected = CASES[name]
    assert asks_for_type(build()) == expected
