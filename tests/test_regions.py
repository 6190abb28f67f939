"""Candidates: source, sink, interior, what dies, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from repcompile.affine import Affine
from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.cost import POSITIONS, total
from repcompile.execute import execute
from repcompile.facts import affine_facts
from repcompile.regions import Region, candidate_regions
from repcompile.rules import DEFAULT


class Block(nn.Module):
    """Layers a to d of 4 channels, and a `forward` given as a formula."""

    def __init__(self, formula: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.d = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


def regions_of(module: nn.Module, image: Tensor | None = None) -> list[Region]:
    captured = canonicalize(capture(module.eval(), DEFAULT.module_classes))
    known = {} if image is None else execute(captured, [image])[1]
    return candidate_regions(captured, affine_facts(captured, DEFAULT, known), known)


def regions(formula: Callable[[Any, Any], Any], image: Tensor | None = None) -> list[Region]:
    return regions_of(Block(formula), image)


def names(nodes: tuple[fx.Node, ...]) -> str:
    return " ".join(node.name for node in nodes)


def find(found: list[Region], source: str, sink: str) -> Region:
    (region,) = (r for r in found if (r.source.name, r.sink.name) == (source, sink))
    return region


def test_every_two_operators_or_more_of_a_chain() -> None:
    found = regions(lambda m, x: m.b(m.a(m.norm(x))))
    spans = {(region.source.name, names(region.nodes)) for region in found}
    assert spans == {("x", "norm a"), ("x", "norm a b"), ("norm", "a b")}


@given(length=st.integers(2, 6))
def test_a_chain_of_n_has_all_its_stretches(length: int) -> None:
    found = regions_of(nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(length)]))
    assert len(found) == length * (length - 1) // 2
    order = {node: index for index, node in enumerate(found[0].sink.graph.nodes)}
    assert [order[region.sink] for region in found] == sorted(order[region.sink] for region in found)


def test_the_interior_is_what_lies_between() -> None:
    diamond = find(regions(lambda m, x: m.a(x) + m.b(x) + x), "x", "add_1")
    assert names(diamond.interior) == names(diamond.dying) == "a b add"
    assert names(diamond.nodes) == "a b add add_1"
    assert isinstance(diamond.fact.map, Affine)


def test_what_somebody_else_reads_does_not_die() -> None:
    found = regions(lambda m, x: m.b(m.a(x)) * F.relu(m.a(x)))
    twice = find(found, "x", "b")
    assert names(twice.dying) == "a"  # the second call of `a` is another node
    found = regions(lambda m, x: (lambda y: m.norm(m.b(y)) + F.relu(y))(m.a(x)))
    shared = find(found, "x", "norm")
    assert names(shared.interior) == "a b"
    assert names(shared.dying) == "b"
    assert total(shared.before).launches == 2


def test_a_region_in_which_only_the_sink_would_go_saves_nothing() -> None:
    found = regions(lambda m, x: (lambda z: m.norm(z) + F.relu(z))(m.b(m.a(x))))
    assert [(region.source.name, region.sink.name) for region in found] == [("x", "b")]


def test_one_operator_is_no_region() -> None:
    assert regions(lambda m, x: m.a(x)) == []
    assert regions(lambda m, x: F.relu(m.a(F.relu(x)))) == []
    assert regions(lambda m, x: m.a(x.flatten(2).reshape(x.shape))) == []  # moving positions is no work


def test_numbers_alone_make_a_region_only_where_they_cancel() -> None:
    assert regions(lambda m, x: 2 * (3 * x)) == []
    assert regions(lambda m, x: 0.5 * (2 * x)) == []  # x may hold integers, which become floating point
    (nothing,) = regions(lambda m, x: 0.5 * (2 * torch.sigmoid(x)))
    assert [cost.launches for cost in nothing.after] == [1]  # a copy: nobody may write to x by way of it
    assert names(nothing.nodes) == "mul mul_1"


def test_costs_are_those_of_the_measured_sizes() -> None:
    image = torch.zeros(2, 4, 8, 6)
    region = find(regions(lambda m, x: m.norm(m.d(x)), image), "x", "norm")
    convolution, norm = region.before
    assert convolution.macs == 4 * 4 * 9 * (2 * 4 * 3)
    assert norm.macs == 4 * (2 * 4 * 3)
    assert region.after == (convolution,)


def test_without_example_inputs_the_sink_has_the_assumed_positions() -> None:
    region = find(regions(lambda m, x: m.a(m.d(x))), "x", "a")
    assert [cost.macs for cost in region.before] == [4 * 4 * 9 * POSITIONS, 4 * 4 * POSITIONS]
    strided = find(regions(lambda m, x: m.d(m.a(x))), "x", "d")
    assert strided.before[0].macs == 4 * 4 * 4 * POSITIONS  # four times as many in front of the stride


class Opaque(nn.Module):
    """Python that cannot be traced, and that might write."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_no_region_reaches_across_an_opaque_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.opaque = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), Opaque()

        def forward(self, x: Tensor) -> Tensor:
            before = self.a(x)
            other = self.opaque(x)
            return self.b(before) * other

    assert regions_of(Model()) == []
