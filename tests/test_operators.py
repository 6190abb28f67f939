"""One form for every operator: spellings that are the same, and some that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.operators import flat, operation_of


class One(nn.Module):
    def __init__(self, function: Callable[[Any], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.parts[0](x) if len(self.parts) else self.function(x)


def behind_exp(operator: Any) -> Any:
    """What it reads is its own, so that it may write to it."""
    return nn.Sequential(One(torch.exp), operator if isinstance(operator, nn.Module) else One(operator))


def last(operator: Any) -> tuple[Captured, fx.Node]:
    model = One(lambda x: x, operator) if isinstance(operator, nn.Module) else One(operator)
    captured = canonicalize(capture(model.eval()))
    (root,) = captured.graph.find_nodes(op="output")[0].args
    assert isinstance(root, fx.Node)
    return captured, root


def key(operator: Any) -> Any:
    captured, root = last(behind_exp(operator))
    operation = operation_of(root, captured)
    assert operation is not None
    return operation.name, operation.args[1:], dict(operation.kwargs)


SAME: list[list[Any]] = [
    [torch.sigmoid, F.sigmoid, lambda x: x.sigmoid(), nn.Sigmoid()],
    [F.relu, torch.relu, lambda x: x.relu(), nn.ReLU(), nn.ReLU(inplace=True), lambda x: F.relu(x, True)],
    [F.relu6, nn.ReLU6(), lambda x: F.relu6(x, inplace=True)],
    [F.gelu, nn.GELU(), lambda x: F.gelu(x, approximate="none")],
    [nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")],
    [F.silu, nn.SiLU()],
    [F.hardswish, nn.Hardswish()],
    [lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, negative_slope=0.2)],
    [lambda x: F.leaky_relu(x), nn.LeakyReLU(), lambda x: F.leaky_relu(x, 0.01)],
    [F.softplus, nn.Softplus()],
    [lambda x: F.softmax(x, 1), lambda x: x.softmax(1), lambda x: torch.softmax(x, dim=1), nn.Softmax(1)],
    [lambda x: x.mean((2, 3)), lambda x: torch.mean(x, (2, 3)), lambda x: x.mean(dim=[2, 3], keepdim=False)],
    [lambda x: x.mean((2, 3), True), lambda x: torch.mean(x, (2, 3), keepdim=True)],
    [lambda x: F.adaptive_avg_pool2d(x, 1), nn.AdaptiveAvgPool2d(1)],
    [lambda x: x.flatten(1), nn.Flatten(), lambda x: torch.flatten(x, 1), lambda x: x.flatten(1, -1)],
    [lambda x: torch.cat([x, x], 1), lambda x: torch.concat([x, x], dim=1)],
    [lambda x: x.clamp(0, 6), lambda x: torch.clamp(x, min=0, max=6)],
]


@pytest.mark.parametrize("spellings", SAME, ids=[str(index) for index in range(len(SAME))])
def test_spellings_of_one_operator(spellings: list[Any]) -> None:
    first, *others = map(key, spellings)
    for other in others:
        assert other[0] == first[0]
        assert [entry for entry in other[1] if not isinstance(entry, tuple)] == [
            entry for entry in first[1] if not isinstance(entry, tuple)
        ]
        assert other[2] == first[2]


def test_different_operators_differ() -> None:
    keys = [str(key(spellings[0])) for spellings in SAME]
    assert len(set(keys)) == len(keys)


def test_a_function_of_the_users_is_itself() -> None:
    """Whatever its name."""

    def sigmoid(x: Tensor) -> Tensor:
        return x

    captured, root = last(lambda x: torch.tanh(x))
    root.target = sigmoid
    operation = operation_of(root, captured)
    assert operation is not None
    assert operation.name is sigmoid


@pytest.mark.parametrize(
    ("function", "number", "signs"),
    [
        (lambda x: x + 3 - x.exp() + 1, 4.0, [1, -1]),
        (lambda x: 3 - (x.sin() - 2), 5.0, [-1]),
        (lambda x: 2 * x / 4 * x.exp(), 0.5, [1, 1]),
        (lambda x: x / x.exp() / 2, 0.5, [1, -1]),
        (lambda x: -(3 * x), -3.0, [1]),
        (lambda x: 1 / (x.sin() * 2), 0.5, [-1]),
    ],
)
def test_flat_sums_and_products(function: Callable[[Any], Any], number: float, signs: list[int]) -> None:
    captured, root = last(function)
    found = flat(root, captured)
    assert found is not None
    assert found.number == number
    assert [sign for _, sign in found.terms] == signs


def test_what_others_read_is_a_term() -> None:
    def shared(x: Any) -> Any:
        y = x + x.exp()
        return (y + x.sin()) * y.cos()

    captured, root = last(shared)
    product = flat(root, captured)
    assert product is not None
    (inner, _), _ = product.terms
    total = flat(inner, captured)
    assert total is not None
    assert len(total.terms) == 2
    assert flat(captured.graph.find_nodes(op="placeholder")[0], captured) is None
