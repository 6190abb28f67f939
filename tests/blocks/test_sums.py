"""Sums and concatenations: what reads one value is one convolution, in whatever order it is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.cases import PAIRS, Case, conv_norm, holds, listed, table
from tests.test_hostile import Build, Net, NetOfTwo, conv, gain, norm

Function = Callable[[Any, Tensor], Any]


def of_two_convs(function: Function) -> Build:
    return lambda: Net(function, a=conv(), b=conv(size=1))


def of_branches(function: Function) -> Build:
    """Three branches of one source: 3x3 and 1x1 convolutions with norms, and a norm."""
    return lambda: Net(function, branches=listed(conv_norm(), conv_norm(size=1), norm()))


def of_two_inputs(function: Callable[[Any, Tensor, Tensor], Any]) -> Build:
    return lambda: NetOfTwo(function, a=conv(), b=conv(), d=conv(size=1), norm=norm())


# -- terms -------------------------------------------------------------------------------------------------------------


def ordered(order: str, leftmost: bool) -> Build:
    """tanh(x), a(x) and b(x) added in this order, the first two or the last two first: tanh, one conv, one sum."""

    def function(m: Any, x: Tensor) -> Tensor:
        one, two, three = ({"f": torch.tanh, "a": m.a, "b": m.b}[name](x) for name in order)
        return (one + two) + three if leftmost else one + (two + three)

    return of_two_convs(function)


ORDERS = {
    f"({one} + {two}) + {three}" if leftmost else f"{one} + ({two} + {three})": Case(
        ordered(one + two + three, leftmost), operators=3
    )
    for one, two, three in permutations("fab")
    for leftmost in (True, False)
}


def _pairs_of_terms(m: Any, x: Tensor) -> Tensor:
    return (torch.tanh(x) + m.a(x)) + (torch.sigmoid(x) + m.b(x))


def _in_place(m: Any, x: Tensor) -> Tensor:
    y = torch.tanh(x)
    y += m.a(x)
    y += m.b(x)
    return y


def _scaled_terms(m: Any, x: Tensor) -> Tensor:
    return torch.tanh(x) - 2.0 * m.a(x) + torch.add(x, m.b(x), alpha=0.5)


TERMS = {
    "two pairs": Case(of_two_convs(_pairs_of_terms), operators=5),
    "in place": Case(of_two_convs(_in_place), operators=3),
    "signs and factors": Case(of_two_convs(_scaled_terms), operators=3),
    "skip apart from its conv": Case(of_two_convs(lambda m, x: (torch.tanh(x) + x) + m.a(x)), operators=3),
    "a list with a stranger": Case(of_two_convs(lambda m, x: sum([m.a(x), torch.tanh(x), m.b(x)])), operators=3),
    "a(x) + b(y) + d(x)": Case(of_two_inputs(lambda m, x, y: m.a(x) + m.b(y) + m.d(x)), PAIRS, operators=3),
    "a(x) + (b(y) + d(x))": Case(of_two_inputs(lambda m, x, y: m.a(x) + (m.b(y) + m.d(x))), PAIRS, operators=3),
    "b(y) + a(x) + d(x)": Case(of_two_inputs(lambda m, x, y: m.b(y) + m.a(x) + m.d(x)), PAIRS, operators=3),
    "norm(a(x) + b(y))": Case(of_two_inputs(lambda m, x, y: m.norm(m.a(x) + m.b(y))), PAIRS, operators=3),
    "norm(a(x) + b(y)) + d(x)": Case(
        of_two_inputs(lambda m, x, y: m.norm(m.a(x) + m.b(y)) + m.d(x)), PAIRS, operators=3
    ),
}

# -- lists -------------------------------------------------------------------------------------------------------------


def _each(m: Any, x: Tensor) -> list[Tensor]:
    return [branch(x) for branch in m.branches]


def _sum_from_the_first(m: Any, x: Tensor) -> Tensor:
    first, *rest = _each(m, x)
    return sum(rest, first)


LISTS = {
    "sum of a list": Case(of_branches(lambda m, x: sum(_each(m, x)))),
    "stack, sum": Case(of_branches(lambda m, x: torch.stack(_each(m, x)).sum(0))),
    "stack, sum of the last axis": Case(of_branches(lambda m, x: torch.stack(_each(m, x), dim=-1).sum(dim=-1))),
    "stack, mean": Case(of_branches(lambda m, x: torch.stack(_each(m, x), 1).mean(1))),
    "reduce": Case(of_branches(lambda m, x: functools.reduce(torch.add, _each(m, x)))),
    "sum behind a list": Case(of_branches(_sum_from_the_first)),
}

# -- concatenations ----------------------------------------------------------------------------------------------------


def beside(function: Function, **parts: Any) -> Build:
    return lambda: Net(function, a=conv(), b=conv(c_out=2), **{name: build() for name, build in parts.items()})


def _concatenated(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.a(x), m.b(x)], 1)


def partial_conv(*behind: Callable[[], nn.Module]) -> Build:
    """behind([W3 x1, x2]), x = [x1, x2]: a quarter of the channels is convolved (Chen et al. 2023, FasterNet)."""

    def function(m: Any, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [1, 3], dim=1)
        return m.behind(torch.cat((m.conv(first), rest), 1))

    return lambda: Net(function, conv=conv(1, 1, bias=False), behind=nn.Sequential(*(build() for build in behind)))


def partial_conv_written() -> nn.Module:
    """The same, written over the channels that were read: FasterNet's form for inference."""

    def function(m: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :1, :, :] = m.conv(x[:, :1, :, :])
        return m.norm(x)

    return Net(function, conv=conv(1, 1, bias=False), norm=norm())


def halves() -> nn.Module:
    """BN([W3 x1, V3 x2]): each half of the channels by its own convolution."""

    def function(m: Any, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return m.norm(torch.cat([m.a(first), m.b(second)], dim=1))

    return Net(function, a=conv(2, 2), b=conv(2, 2), norm=norm())


CONCATENATIONS = {
    "two convs": Case(beside(_concatenated)),
    "two convs, norm": Case(beside(lambda m, x: m.norm(_concatenated(m, x)), norm=lambda: norm(6))),
    "two convs with norms": Case(
        beside(lambda m, x: torch.cat([m.first(m.a(x)), m.second(m.b(x))], 1), first=norm, second=lambda: norm(2))
    ),
    "two convs, 1x1": Case(beside(lambda m, x: m.point(_concatenated(m, x)), point=lambda: conv(6, 4, 1))),
    "two convs, ReLU": Case(beside(lambda m, x: F.relu(_concatenated(m, x))), operators=2),
    "two sources, norm, 1x1": Case(
        beside(
            lambda m, x: m.point(m.norm(torch.cat([m.a(x), torch.tanh(x)], 1))),
            norm=lambda: norm(8),
            point=lambda: conv(8, 4, 1),
        ),
        operators=4,
    ),
    "partial conv, norm": Case(partial_conv(norm), blind=False),
    "partial conv, 1x1, norm": Case(partial_conv(functools.partial(conv, size=1), norm), blind=False),
    "partial conv written over its input": Case(partial_conv_written, blind=False),
    "halves": Case(halves, blind=False),
}


@table(ORDERS)
def test_the_order_of_additions_does_not_matter(case: Case) -> None:
    holds(case)


@table(TERMS)
def test_terms_of_one_source_are_one_convolution(case: Case) -> None:
    holds(case)


@table(LISTS)
def test_sums_of_lists(case: Case) -> None:
    holds(case)


@table(CONCATENATIONS)
def test_concatenations(case: Case) -> None:
    holds(case)


def test_a_gain_reaches_every_term() -> None:
    """g (a(x) + b(y)) + d(x)"""

    def build() -> nn.Module:
        return NetOfTwo(
            lambda m, x, y: (m.a(x) + m.b(y)) * m.gain + m.d(x), a=conv(), b=conv(), d=conv(size=1), gain=gain(4, 1, 1)
        )

    holds(Case(build, PAIRS, operators=3))
