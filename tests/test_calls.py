"""Calls inside a run, recorded without a trace, and repeated at other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile.calls import Call, Calls, positional, recorded, run_call
from tests.test_hostile import assert_untouched, conv, image, made, state_of


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, *, scale: float = 1.0, shift: Tensor | None = None) -> Tensor:
        y = self.conv(x) * scale
        return y if shift is None else y.add_(shift)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.never = Inner(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y.add_(1)  # after it was seen
        return self.inner(y, scale=2.0, shift=x)


def test_every_call_is_recorded_as_it_was() -> None:
    model, x = made(Outer), image(2, 4, 5, 6)
    before, attributes = state_of(model), {name: set(vars(part)) for name, part in model.named_modules()}
    calls = recorded(model, [Call((x,))], ["inner", "inner.conv", "never"])
    assert_untouched(model, before)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    first, second = calls["inner"]
    inner: Any = model.inner
    assert torch.equal(first.args[0], x)
    assert dict(first.kwargs) == {}
    assert torch.equal(second.args[0], inner(x) + 1)
    assert second.kwargs["scale"] == 2.0
    assert torch.equal(second.kwargs["shift"], x)
    assert len(calls["inner.conv"]) == 2
    assert calls["never"] == []
    assert torch.equal(run_call(inner, second), model(x))


def test_one_tensor_stays_one_and_views_do_not_alias() -> None:
    x = image(3)
    copied = Call((x, [x, x * 1]), {"more": x}).copied()
    first, (second, third) = copied.args
    assert first is second is copied.kwargs["more"]
    assert first is not x
    assert first is not third


@pytest.mark.parametrize("batch", [1, 3])
def test_other_sizes_are_those_that_the_model_takes(batch: int) -> None:
    calls = Calls((Call((image(batch, 4, 5, 6),)),)).at_other_sizes(made(Outer))
    assert calls.others is not None
    sizes = [tuple(call.args[0].shape) for call in calls.others]
    assert sizes == [(2 if batch == 1 else 1, 4, 5, 6), (2 if batch == 1 else 3, 4, 37, 70)]


def test_a_model_of_one_size_has_no_other() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(1, 4, 5, 6) if tuple(x.shape) == (1, 4, 5, 6) else x.view(-1, 0)

    assert Calls((Call((image(1, 4, 5, 6),)),)).at_other_sizes(Fixed().eval()).others == ()


def test_arguments_by_position_where_that_says_everything() -> None:
    def forward(x: int, y: int = 2, *more: int, flag: bool = False, **rest: int) -> None:
        pass

    assert positional(forward, Call((1,))) == (1, 2)
    assert positional(forward, Call((1,), {"y": 5})) == (1, 5)
    assert positional(forward, Call((1, 2, 3))) == (1, 2, 3)
    assert positional(forward, Call((1,), {"flag": True})) is None
    assert positional(forward, Call((1,), {"other": 3})) is None
    assert positional(forward, Call(())) is None
