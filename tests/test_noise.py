"""Runs that draw the same noise, and leave everybody else's alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repcompile.noise import SameNoise

X = torch.rand(40, generator=torch.Generator().manual_seed(0))
DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(40),
    "randn_like": lambda: torch.randn_like(X),
    "randint": lambda: torch.randint(10**6, (40,)),
    "randperm": lambda: torch.randperm(40),
    "normal": lambda: torch.normal(0.0, 1.0, (40,)),
    "normal_": lambda: torch.empty(40).normal_(),
    "bernoulli": lambda: torch.bernoulli(X),
    "multinomial": lambda: torch.multinomial(X, 30),
    "dropout": lambda: F.dropout(X, 0.5, True),
    "native_dropout": lambda: torch.native_dropout(X, 0.5, True)[0],
    "feature dropout": lambda: F.dropout2d(X.reshape(1, 40, 1, 1), 0.5, True),
    "rrelu": lambda: F.rrelu(-X, training=True),
    "attention": lambda: F.scaled_dot_product_attention(*[X.reshape(1, 8, 5)] * 3, dropout_p=0.5),
    "gumbel": lambda: F.gumbel_softmax(X, dim=0),
    "poisson": lambda: torch.poisson(X * 50),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", DRAWS)
def test_every_draw_is_the_same_again_and_the_next_one_is_not(name: str, grad: bool) -> None:
    state, draw = torch.get_rng_state(), DRAWS[name]
    with torch.set_grad_enabled(grad):
        with SameNoise():
            first, second = draw(), draw()
        with SameNoise():
            again = draw()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", DRAWS)
def test_a_run_within_a_run(name: str) -> None:
    state, draw = torch.get_rng_state(), DRAWS[name]
    with SameNoise():
        expected = draw()
    with SameNoise(1), SameNoise():
        assert torch.equal(draw(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_is_other_noise() -> None:
    with SameNoise(1):
        first = torch.rand(4)
    with SameNoise(2):
        assert not torch.equal(first, torch.rand(4))


def test_a_generator_of_the_models_own_is_left_alone() -> None:
    with SameNoise():
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_other_threads_draw_as_if_nobody_ran() -> None:
    """The shared generator gives a bystander what it would have given, borrowed or not."""
    torch.manual_seed(5)
    expected = [torch.rand(3) for _ in range(50)]
    torch.manual_seed(5)
    begun, seen = threading.Event(), list[Tensor]()

    def bystander() -> None:
        begun.wait()
        seen.extend(torch.rand(3) for _ in range(50))

    thread = threading.Thread(target=bystander)
    thread.start()
    with SameNoise():
        begun.set()
        for _ in range(200):
            torch.rand(3)
    thread.join()
    assert all(map(torch.equal, seen, expected))
