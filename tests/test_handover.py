"""Lists and dicts handed to a module that stays Python: fused around it where nobody looks at them again."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import explain, fuse
from tests.test_hostile import Net, assert_close, check, conv, gain, images, made, norm, run_by


def unit() -> nn.Sequential:
    return nn.Sequential(conv(), norm(), nn.ReLU())


class Head(nn.Module):
    """Stays Python, and writes to the container that it is given, before and after the line that cannot be traced."""

    def forward(self, xs: Any) -> Any:
        first: Any = 0 if isinstance(xs, list) else "a"
        last: Any = -1 if isinstance(xs, list) else "b"
        xs[first] = xs[first] * 2
        keep = float(xs[first].detach().abs().sum()) >= 0
        xs[last] = xs[last] + 1
        return xs[first] - xs[last] if keep else xs[first]


class Collecting(nn.Module):
    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        if float(x.detach().abs().sum()) >= 0:
            seen.append(x)
        return x


@dataclass
class Record:
    levels: list[Tensor]


class RecordHead(Head):
    def forward(self, xs: Any) -> Tensor:
        return super().forward(xs.levels)


def through_neck(m: Any, x: Tensor) -> Tensor:
    """As object detectors are written: a list of feature maps is kept, and a part of it handed to each layer."""
    kept: list[Tensor] = []
    for layer in m.layers:
        x = layer(x)
        kept.append(x)
    return m.head([kept[j] for j in (0, 1)])


HANDED = {
    "list": lambda m, x: m.head([m.layers[0](x), m.layers[1](x)]),
    "dict": lambda m, x: m.head({"a": m.layers[0](x), "b": m.layers[1](x)}),
    "neck": through_neck,
    "elements": lambda m, x: (lambda y: m.head([y, torch.tanh(m.layers[1](y))]) + y)(m.layers[0](x)),
}


@pytest.mark.parametrize("name", HANDED)
def test_a_container_built_for_the_call_is_handed_over(name: str) -> None:
    model = made(lambda: Net(HANDED[name], layers=nn.ModuleList([unit(), unit()]), head=Head()))
    fused = check(model, *images())
    assert len([kind for kind in run_by(fused) if kind not in ("tanh", "add")]) == 5  # conv, relu, conv, relu, head
    assert [item.path for item in explain(model).left] == ["head"]


def test_a_record_is_handed_over() -> None:
    model = made(lambda: Net(lambda m, x: m.head(Record([m.body(x), torch.tanh(x)])), body=unit(), head=RecordHead()))
    assert len(explain(model).fused) == 1
    check(model, *images())


def test_what_is_looked_at_again_is_not() -> None:
    def reads(m: Any, x: Tensor) -> Tensor:
        levels = [m.body(x), torch.tanh(x)]
        return m.head(levels) + levels[0]

    model = made(lambda: Net(reads, body=unit(), head=Head()))
    assert "looks at a list or dict that head may have changed" in explain(model).left[0].reason
    check(model, *images())


def test_a_list_that_is_returned_is_looked_at() -> None:
    def returns(m: Any, x: Tensor) -> Any:
        levels = [m.body(x), torch.tanh(x)]
        return m.head(levels), levels

    model = made(lambda: Net(returns, body=unit(), head=Head()))
    assert "looks at a list or dict" in explain(model).left[0].reason
    check(model, *images())


def test_a_list_that_is_filled_by_others_is_looked_at() -> None:
    def collects(m: Any, x: Tensor) -> Tensor:
        seen = [x]
        return m.head(m.body(x), seen) + seen[-1]

    check(made(lambda: Net(collects, body=unit(), head=Collecting())), *images())


@pytest.mark.parametrize("numbers", ["kept", "new"])
def test_a_container_without_values_may_be_older_than_the_call(numbers: str) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: list[float]) -> Tensor:
            by[0] += 1.0
            return x * by[0] if float(x.detach().abs().sum()) >= 0 else x

    def scales(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(x), m.numbers if numbers == "kept" else [1.0])

    model = made(lambda: Net(scales, body=unit(), head=Scaled(), numbers=[1.0]))
    assert "passes a list to head" in explain(model).left[0].reason


class Writing(nn.Module):
    """Stays Python, and doubles what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) >= 0:
            x.mul_(2)
        return x.clone()


WRITTEN = {
    "what a product with one made": lambda m, x: (lambda y: m.head(y * 1) + y)(m.norm(m.conv(x))),
    "a parameter": lambda m, x: m.head(m.gain) * 0 + m.norm(m.conv(x)) * m.gain,
    "what parameters make": lambda m, x: m.head(m.gain * 3) + m.norm(m.conv(x)) * (m.gain * 3),
    "a view of it": lambda m, x: m.head((m.gain * 3).view(1, 4, 1, 1)) + m.norm(m.conv(x)) * (m.gain * 3),
    "a view of what is read later": lambda m, x: (
        lambda y: m.head(y.flatten(1))[:, :1, None, None] + m.norm(m.other(y))
    )(m.conv(x)),
    "what a norm made": lambda m, x: (lambda y: m.head(y) + m.other(y))(m.norm(torch.relu(x))),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_module_that_stays_python_may_write_to_what_it_reads(name: str) -> None:
    model = made(lambda: Net(WRITTEN[name], conv=conv(), other=conv(), norm=norm(), gain=gain(4, 1, 1), head=Writing()))
    fused, copied = fuse(model), copy.deepcopy(model)
    with torch.no_grad():
        for call in (*images(), *images()):  # what is written stays, in both
            assert_close(fused(*call), copied(*call))


class Keeping(nn.Module):
    """Stays Python, and keeps something of what it is given: in a buffer, in a parameter, or in a plain tensor."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(4, 1, 1))
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.plain = torch.ones(4, 1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) >= 0:
            for kept in (self.mean, self.gain, self.plain):
                kept.detach().copy_(x.detach().mean((0, 2, 3)).view(4, 1, 1))
        return x.clone()


KEPT = {
    "a buffer": lambda m, x: m.norm(m.conv(m.head(x))) * m.head.mean,
    "a parameter": lambda m, x: m.norm(m.conv(m.head(x))) * m.head.gain,
    "a plain tensor": lambda m, x: m.norm(m.conv(m.head(x))) * m.head.plain,
    "what it makes": lambda m, x: m.norm(m.conv(m.head(x))) * (m.head.gain * 2 + 1),
    "of ones, so far": lambda m, x: m.conv(m.head(x)) * m.head.mean,
    "read before it is written": lambda m, x: m.norm(m.conv(x)) * m.head.mean + m.head(x),
}


@pytest.mark.parametrize("informed", [False, True], ids=["blind", "informed"])
@pytest.mark.parametrize("name", KEPT)
def test_what_a_module_that_stays_python_keeps_is_no_constant(name: str, informed: bool) -> None:
    model = made(lambda: Net(KEPT[name], conv=conv(), norm=norm(), head=Keeping()))
    fused, copied = fuse(model, *([images()[0]] if informed else [])), copy.deepcopy(model)
    with torch.no_grad():
        for call in (*images(), *images()):
            assert_close(fused(*call), copied(*call))
