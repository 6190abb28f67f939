"""The work of planning grows with the graph, not faster: counted in function calls, which no busy machine blurs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.cost import Roofline
from repcompile.facts import affine_facts
from repcompile.plan import Plan, choose
from repcompile.regions import candidate_regions
from repcompile.regroup import regrouped
from repcompile.rules import DEFAULT
from tests.strategies import counting_calls


class Block(nn.Module):
    """RepVGG's."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.square = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.square(x) + self.point(x) + self.skip(x))


def repvgg(blocks: int) -> nn.Module:
    return nn.Sequential(*(Block() for _ in range(blocks))).eval()


def chain(length: int) -> nn.Module:
    """Linear operators in a row, each with a number of channels of its own."""
    return nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(length))).eval()


def calls(build: Callable[[int], nn.Module], size: int) -> int:
    """Function calls from the canonical graph to the plan."""
    captured = canonicalize(capture(build(size), DEFAULT.module_classes))

    def planned() -> Plan:
        facts = affine_facts(captured, DEFAULT)
        assert regrouped(captured, facts) is None
        return choose(candidate_regions(captured, facts), Roofline())

    plan, count = counting_calls(planned)
    assert len(plan.chosen) >= (size if build is repvgg else size // 24)
    return count


@pytest.mark.parametrize("build", [repvgg, chain])
def test_a_graph_four_times_as_long_takes_no_more_for_each_block(build: Callable[[int], nn.Module]) -> None:
    short, long = calls(build, 60), calls(build, 240)
    assert long < 1.5 * 4 * short
