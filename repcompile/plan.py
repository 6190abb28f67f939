"""The choice: regions that do not overlap, for the greatest saving.

Given: candidate regions and a cost model.  Result: a `Plan`.

Regions overlap if they share a node. Going through the graph in order, the state is the set of later nodes that chosen
regions already cover; for each state only the best way to reach it is kept. In a chain there are as many states as a
region is long, so that this is exact and linear in the graph. Where branches interleave more than `STATES` ways, the
best `STATES` are kept: the plan is then at least as good as the best single choice at every step, not always optimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log2

from torch import fx

from repcompile.cost import CostModel, total
from repcompile.regions import Region

STATES = 256
RESOLUTION = 1e-9  # relative to the dearest candidate: smaller differences are rounding, and count as ties


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be rewritten.

    chosen: regions in graph order of their sinks.  refused: legal regions that would not be cheaper as one operator.
    saving: price saved by the chosen ones, in the cost model's unit.
    """

    chosen: tuple[Region, ...]
    refused: tuple[Region, ...] = ()
    saving: float = 0.0


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to reach a state.  Ways compare by saving, then launches saved, then the earlier start."""

    saving: int = 0
    launches: int = 0
    early: int = 0
    region: Region | None = None
    before: _Way | None = None

    def rank(self) -> tuple[int, int, int]:
        return self.saving, self.launches, self.early


def choose(regions: Sequence[Region], cost: CostModel) -> Plan:
    """The regions worth rewriting, without overlap."""
    prices = {region: sum(map(cost, region.before)) for region in regions}
    savings = {region: price - sum(map(cost, region.after)) for region, price in prices.items()}
    largest = max(prices.values(), default=0.0)
    unit = 2.0 ** floor(log2(RESOLUTION * largest)) if largest else 1.0  # a power of two divides exactly
    paying = [region for region in regions if round(savings[region] / unit) > 0]
    refused = tuple(region for region in regions if round(savings[region] / unit) <= 0)
    chosen = _best(paying, {region: round(savings[region] / unit) for region in paying})
    return Plan(tuple(chosen), refused, sum(savings[region] for region in chosen))


def _best(regions: Sequence[Region], savings: dict[Region, int]) -> list[Region]:
    order = _order(regions)
    starting: dict[int, list[tuple[int, Region]]] = {}
    for region in regions:
        places = sorted(order[node] for node in region.nodes)
        mask = sum(1 << (place - places[0]) for place in places)
        starting.setdefault(places[0], []).append((mask, region))
    states: dict[int, _Way] = {0: _Way()}
    for place, position in enumerate(_positions(order)):
        states = _advanced(states, starting.get(place, ()), savings, position)
    return _chosen(max(states.values(), key=_Way.rank))


def _advanced(
    states: dict[int, _Way], starting: Sequence[tuple[int, Region]], savings: dict[Region, int], position: int
) -> dict[int, _Way]:
    """The states one node further; bit i of a state is the i-th node from here.  position: of this one in the graph."""
    reached: dict[int, _Way] = {}

    def offer(mask: int, way: _Way) -> None:
        if mask not in reached or way.rank() > reached[mask].rank():
            reached[mask] = way

    for covered, way in states.items():
        offer(covered >> 1, way)
        for mask, region in starting:
            if covered & mask == 0:
                offer((covered | mask) >> 1, _extended(way, region, savings[region], position))
    if len(reached) > STATES:
        reached = dict(sorted(reached.items(), key=lambda item: item[1].rank(), reverse=True)[:STATES])
    return reached


def _extended(way: _Way, region: Region, saving: int, position: int) -> _Way:
    launches = total(region.before).launches - total(region.after).launches
    return _Way(way.saving + saving, way.launches + launches, way.early - position, region, way)


def _chosen(way: _Way | None) -> list[Region]:
    regions: list[Region] = []
    while way is not None:
        if way.region is not None:
            regions.append(way.region)
        way = way.before
    return regions[::-1]


def _positions(order: dict[fx.Node, int]) -> list[int]:
    """Where in the graph the nodes of `order` stand."""
    graph = next(iter(order)).graph if order else ()
    return [position for position, node in enumerate(graph.nodes) if node in order] if graph else []


def _order(regions: Sequence[Region]) -> dict[fx.Node, int]:
    """The nodes that any region covers, numbered in graph order."""
    nodes = {node for region in regions for node in region.nodes}
    if not nodes:
        return {}
    graph = next(iter(nodes)).graph
    return {node: index for index, node in enumerate(node for node in graph.nodes if node in nodes)}
