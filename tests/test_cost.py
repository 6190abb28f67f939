"""What operators cost: laws of the prices, and the judgements that depend on them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import Macs, Roofline, compile_model
from repcompile.affine import Affine, Uniform
from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.cost import ELEMENT, Cost, cost_of_elementwise, cost_of_map, seams_of, total
from repcompile.emit import emit
from repcompile.execute import execute
from repcompile.facts import affine_facts
from repcompile.fold import fold
from repcompile.modules import ValuePad
from repcompile.regions import candidate_regions
from repcompile.rules import DEFAULT
from repcompile.testing import randomize
from repcompile.testing.strategies import images_for
from tests.strategies import expressions
from tests.sweep.price import counts_of
from tests.test_hostile import Net

amounts = st.integers(0, 10**6)
costs = st.builds(Cost, amounts, amounts, st.integers(0, 5))
MODELS = (Roofline(), Macs())


def conv(c_in: int, c_out: int, size: int, groups: int = 1, padding: int | list[tuple[int, int]] = 0) -> Affine:
    return Affine.conv(torch.ones(c_out, c_in // groups, size, size), padding=padding, groups=groups)


@given(a=costs, b=costs, c=costs)
def test_costs_add(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c) == total([c, b, a])
    assert a + Cost() == a
    assert total([]) == Cost()


@pytest.mark.parametrize("price", MODELS)
@given(a=costs, more=costs)
def test_prices_are_not_negative_and_grow(price: Roofline | Macs, a: Cost, more: Cost) -> None:
    assert 0 <= price(a) <= price(a + more)
    assert price(a + Cost(launches=1)) > price(a)


def test_a_roofline_is_bounded_by_arithmetic_or_by_memory() -> None:
    price = Roofline(macs_per_second=100.0, bytes_per_second=10.0, launch=1.0)
    assert price(Cost(200, 10, 0)) == 2.0
    assert price(Cost(100, 30, 0)) == 3.0
    assert price(Cost(100, 30, 2)) == 5.0


def test_a_convolution_costs_its_weights_at_every_position() -> None:
    (kernel,) = cost_of_map(conv(8, 16, 3, padding=1), 16, before=100, after=100)
    assert kernel == Cost(8 * 16 * 9 * 100, ELEMENT * (8 * 100 + 16 * 100 + 8 * 16 * 9), 1)


@given(groups=st.sampled_from([1, 2, 4, 8]), size=st.integers(1, 5))
def test_groups_divide_the_arithmetic(groups: int, size: int) -> None:
    dense, grouped = (cost_of_map(conv(8, 8, size, g), 8, 50, 40)[0] for g in (1, groups))
    assert dense.macs == groups * grouped.macs or (groups == 8 and size == 1)


def test_what_is_free() -> None:
    assert cost_of_map(Uniform(), 8, 10, 10) == ()
    assert cost_of_map(Uniform(2.0), 8, 10, 10) == (cost_of_elementwise(1, 8, 10),)


def test_a_gain_for_each_channel_reads_that_and_a_shift() -> None:
    (kernel,) = cost_of_map(Affine.diagonal(8, 2, None), 8, 10, 10)
    assert kernel == Cost(80, ELEMENT * (2 * 80 + 2 * 8), 1)


def test_every_kernel_counts() -> None:
    plain, uneven, crop = (cost_of_map(conv(8, 8, 3, padding=p), 8, 9, 9) for p in (1, [(1, 0), (1, 1)], -1))
    assert [len(kernels) for kernels in (plain, uneven, crop)] == [1, 2, 2]
    both, apart = (cost_of_map(conv(8, 8, 3, padding=p), 8, 9, 9) for p in ([(-1, 0), (1, 0)], [(-1, 1), (0, 0)]))
    assert [len(kernels) for kernels in (both, apart)] == [2, 3]
    border = conv(8, 8, 3, padding=1) @ Affine.diagonal(8, 2, None, 1.0)
    assert len(cost_of_map(border, 8, 9, 9)) == 2
    assert plain[0] == uneven[0] == cost_of_map(border, 8, 9, 9)[0]


def test_an_elementwise_kernel_reads_every_operand_and_writes_once() -> None:
    assert cost_of_elementwise(2, 8, 10) == Cost(80, 3 * 80 * ELEMENT, 1)


@given(data=st.data())
def test_no_operator_that_a_map_becomes_is_forgotten(data: st.DataObject) -> None:
    """What runs never costs more than was thought; less where a border term vanishes."""
    x = data.draw(expressions())
    assume(not x.spreads and (x.axes or x.groups == 1 or x.is_diagonal))
    module, image = emit(x, fold(x)).eval(), data.draw(images_for(x))
    surrounded = any(isinstance(part, ValuePad) for part in module.modules())
    assume(surrounded or not (x.has_border and x.reads_less))  # where no value does, which only the numbers tell
    with torch.no_grad():
        sizes, outputs = image.shape[2:] if x.axes else (), module(image).shape[2:] if x.axes else ()
    images = image.numel() / (x.c_in * prod(sizes))
    padded = prod(size + axis.lo + axis.hi for size, axis in zip(sizes, x.axes, strict=True))
    wide = [size + max(axis.lo, 0) + max(axis.hi, 0) for size, axis in zip(sizes, x.axes, strict=True)]
    counts = (images * prod(count) for count in (sizes, outputs, [padded], wide))
    seams = seams_of(x, wide, images * prod(wide))
    thought = sum(map(Roofline(), cost_of_map(x, x.c_out, *counts, single=prod(outputs), seams=seams)))
    price = counts_of(module, (image,)).price
    assert price <= 1.000001 * thought
    if not x.has_border:
        assert thought <= 1.000001 * price


STANDING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "averages": lambda m, x: F.avg_pool2d(m.conv(x), 3, 1),
    "concatenation": lambda m, x: m.wide(torch.cat([x, m.conv(x)], 1)),
    "the same twice": lambda m, x: torch.cat([y := m.conv(x), y], 1),
    "gain and shift": lambda m, x: m.conv(x) * m.gamma + m.gamma,
    "norm": lambda m, x: m.norm(m.conv(x)),
    "padding": lambda m, x: m.conv(F.pad(x, (1, 0, -1, 2))),
    "sum": lambda m, x: m.conv(x) + m.norm(x) - x,
    "the shape of another": lambda m, x: m.norm((y := m.conv(x)).flatten(2).view_as(y)),
}


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_is_not_thought_dearer_than_it_is(name: str) -> None:
    """Else the operator in its place may cost more than it."""
    more = {"wide": nn.Conv2d(8, 4, 1), "norm": nn.BatchNorm2d(4), "gamma": nn.Parameter(torch.ones(4, 1, 1))}
    model, x = Net(STANDING[name], conv=nn.Conv2d(4, 4, 1), **more).eval(), torch.randn(2, 4, 7, 6)
    captured = canonicalize(capture(model, DEFAULT.module_classes))
    known = execute(captured, [x])[1]
    regions = candidate_regions(captured, affine_facts(captured, DEFAULT, known), known)
    whole = max(regions, key=lambda region: len(region.owned))
    assert len(whole.before) > 1
    assert sum(map(Roofline(), whole.before)) <= 1.000001 * counts_of(model, (x,)).price


# -- legality is not profit --------------------------------------------------------------------------------------------


def chosen(*layers: nn.Module, image: tuple[int, ...], cost: Roofline | Macs | None = None) -> int:
    model = randomize(nn.Sequential(*layers)).eval()
    x: Tensor = torch.randn(image)
    return len(compile_model(model, (x,), cost=cost).plan.chosen)


@pytest.mark.parametrize("cost", MODELS)
def test_legal_and_too_dear(cost: Roofline | Macs) -> None:
    bottleneck = nn.Conv2d(64, 2, 1), nn.Conv2d(2, 64, 1)
    assert chosen(*bottleneck, image=(1, 64, 32, 32), cost=Macs()) == 0
    separable = nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.Conv2d(64, 64, 1)
    assert chosen(*separable, image=(1, 64, 32, 32), cost=cost) == 0


@pytest.mark.parametrize("cost", MODELS)
def test_legal_and_cheaper(cost: Roofline | Macs) -> None:
    assert chosen(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), image=(1, 8, 16, 16), cost=cost) == 1
    assert chosen(nn.Conv2d(2, 64, 1), nn.Conv2d(64, 2, 1), image=(1, 2, 16, 16), cost=cost) == 1
    assert chosen(nn.Linear(64, 64), nn.Linear(64, 64), image=(4, 64), cost=cost) == 1


def test_a_bottleneck_on_a_large_image_stays_two_by_time_too() -> None:
    assert chosen(nn.Conv2d(64, 2, 1), nn.Conv2d(2, 64, 1), image=(8, 64, 64, 64), cost=Roofline()) == 0


@pytest.mark.parametrize(
    "pads",
    [
        (nn.ZeroPad2d((-1, 0, 0, 3)),),
        (nn.ZeroPad2d((0, 3, 0, 0)), nn.ZeroPad2d((-1, 0, 0, 0))),
        (nn.ReflectionPad2d((0, 0, 3, 0)), nn.ZeroPad2d((-1, 0, 0, 0))),
        (nn.CircularPad2d((0, 0, 3, 1)), nn.ZeroPad2d((-1, 0, 0, 0))),
    ],
    ids=str,
)
def test_what_pads_and_crops_is_priced_as_what_it_becomes(pads: tuple[nn.Module, ...]) -> None:
    gain = nn.Conv2d(6, 6, 1, groups=6)
    assert chosen(nn.Tanh(), *pads, gain, nn.Tanh(), image=(2, 6, 6, 6)) == 0
