"""The choice: regions that stay out of each other's way, for the greatest saving.

Given: candidate regions and a cost model.  Result: a `Plan`.

A region computes its sink anew and lets its dying nodes go: those it owns, and its price counts their kernels, so that
no node has two owners, and none dies that another region starts from. What a region only passes through, since others
read it too, is still computed, and belongs to whoever fuses it for those others.

Regions that compete, directly or by way of others, form a group, and each group is searched on its own. Going through
it in the graph's order, the state is what the chosen regions own and start from among the later nodes; for each state
only the best way to reach it is kept. In a chain there are as many states as a region is long, so that this is exact
and linear in the graph. Where the branches of a group interleave more than `STATES` ways, the best `STATES` are kept:
the plan is then at least as good as the best single choice at every step, not always optimal.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import floor, log2

import networkx as nx
from torch import fx

from repcompile.cost import CostModel, total
from repcompile.regions import Region

STATES = 256
RESOLUTION = 1e-9  # relative to the dearest candidate: smaller differences are rounding, and count as ties


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be rewritten.

    chosen: regions in graph order of their sinks.
    refused: legal regions that would not be cheaper as one operator, or would start more kernels.
    saving: price saved by the chosen ones, in the cost model's unit.
    """

    chosen: tuple[Region, ...]
    refused: tuple[Region, ...] = ()
    saving: float = 0.0


@dataclass(frozen=True, slots=True)
class _Claim:
    """What regions own and start from, as bits: bit i is the i-th node from where the search stands.

    dying, sinks: owned.  sources: read, so that they must not die; a source is the first node that its region claims.
    """

    dying: int = 0
    sinks: int = 0
    sources: int = 0

    def allows(self, other: _Claim) -> bool:
        owned = (self.dying | self.sinks) & (other.dying | other.sinks)
        return not (owned | self.dying & other.sources | self.sources & other.dying)

    def with_(self, other: _Claim) -> _Claim:
        return _Claim(self.dying | other.dying, self.sinks | other.sinks, self.sources | other.sources)

    def shifted(self) -> _Claim:
        return _Claim(self.dying >> 1, self.sinks >> 1)


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
    pays = {region: round(savings[region] / unit) > 0 and _launches_saved(region) >= 0 for region in regions}
    paying, refused = [x for x in regions if pays[x]], tuple(x for x in regions if not pays[x])
    chosen = _best(paying, {region: round(savings[region] / unit) for region in paying})
    return Plan(tuple(chosen), refused, sum(savings[region] for region in chosen))


def _launches_saved(region: Region) -> int:
    return total(region.before).launches - total(region.after).launches


def _best(regions: Sequence[Region], savings: dict[Region, int]) -> list[Region]:
    place = {node: place for place, node in enumerate(regions[0].sink.graph.nodes)} if regions else {}
    mortal = {node for region in regions for node in region.dying}
    chosen = [region for rivals in _rivals(regions, mortal) for region in _best_of(rivals, savings, place, mortal)]
    return sorted(chosen, key=lambda region: place[region.sink])


def _rivals(regions: Sequence[Region], mortal: Container[fx.Node]) -> list[list[Region]]:
    """Regions that are in each other's way, directly or by way of others; each group is searched on its own."""
    claims: nx.Graph[fx.Node | Region] = nx.Graph()
    for region in regions:
        claims.add_edges_from((region, node) for node in _claims(region, mortal))
    group = {item: number for number, items in enumerate(nx.connected_components(claims)) for item in items}
    groups: dict[int, list[Region]] = {}
    for region in regions:
        groups.setdefault(group[region], []).append(region)
    return list(groups.values())


def _claims(region: Region, mortal: Container[fx.Node]) -> tuple[fx.Node, ...]:
    """What the region owns, and where it starts from, if that might die."""
    return (*region.owned, *([region.source] if region.source in mortal else []))


def _best_of(
    regions: Sequence[Region], savings: dict[Region, int], place: dict[fx.Node, int], mortal: Container[fx.Node]
) -> list[Region]:
    nodes = sorted({node for region in regions for node in _claims(region, mortal)}, key=place.__getitem__)
    order = {node: index for index, node in enumerate(nodes)}
    starting: dict[int, list[tuple[_Claim, Region]]] = {}
    for region in regions:
        start, claim = _claimed(region, order, mortal)
        starting.setdefault(start, []).append((claim, region))
    states: dict[_Claim, _Way] = {_Claim(): _Way()}
    for index in range(len(order)):
        for claim, region in starting.get(index, ()):
            states = _best_states(_with_region(states, claim, region, savings[region], place[region.nodes[0]]))
        states = _shifted(states)
    (best,) = states.values()
    return _chosen(best)


def _claimed(region: Region, order: dict[fx.Node, int], mortal: Container[fx.Node]) -> tuple[int, _Claim]:
    """(the first place that the region claims, its claim from there on)"""
    dying, sink = [order[node] for node in region.dying], order[region.sink]
    sources = [order[region.source]] if region.source in mortal else []
    start = min([*dying, sink, *sources])
    return start, _Claim(_bits(dying, start), _bits([sink], start), _bits(sources, start))


def _bits(places: Sequence[int], start: int) -> int:
    return sum(1 << (place - start) for place in places)


def _with_region(
    states: dict[_Claim, _Way], claim: _Claim, region: Region, saving: int, place: int
) -> dict[_Claim, _Way]:
    """The states, and those that they become with this region."""
    launches = _launches_saved(region)
    reached = dict(states)
    for state, way in states.items():
        if state.allows(claim):
            longer = _Way(way.saving + saving, way.launches + launches, way.early - place, region, way)
            _keep_better(reached, state.with_(claim), longer)
    return reached


def _best_states(states: dict[_Claim, _Way]) -> dict[_Claim, _Way]:
    if len(states) <= STATES:
        return states
    return dict(sorted(states.items(), key=lambda item: item[1].rank(), reverse=True)[:STATES])


def _shifted(states: dict[_Claim, _Way]) -> dict[_Claim, _Way]:
    """The states one node further."""
    reached: dict[_Claim, _Way] = {}
    for state, way in states.items():
        _keep_better(reached, state.shifted(), way)
    return reached


def _keep_better(states: dict[_Claim, _Way], state: _Claim, way: _Way) -> None:
    if state not in states or way.rank() > states[state].rank():
        states[state] = way


def _chosen(way: _Way | None) -> list[Region]:
    regions: list[Region] = []
    while way is not None:
        if way.region is not None:
            regions.append(way.region)
        way = way.before
    return regions
