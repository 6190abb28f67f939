"""The choice: as good as trying everything, and linear in the graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from torch import fx

from repcompile.affine import Uniform
from repcompile.cost import Cost, total
from repcompile.facts import Fact
from repcompile.plan import choose
from repcompile.regions import Region
from tests.strategies import counting_calls


def price(cost: Cost) -> float:
    """Multiply-accumulates alone, so that every tie is one that the planner has to break."""
    return cost.macs


def chain(length: int) -> list[fx.Node]:
    """Nodes in a row; regions over them need not be stretches, as in a diamond they are not."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(length):
        nodes.append(graph.call_function(abs, (nodes[-1],)))
    return nodes


def region(
    nodes: Sequence[fx.Node],
    places: Sequence[int],
    saving: float,
    launches: int = 1,
    source: int = 0,
    shared: Collection[int] = (),
) -> Region:
    """A region of the nodes at `places`, counted from 1, that saves so much; others read what is `shared`."""
    *interior, sink = sorted(places)
    dying = tuple(nodes[place] for place in interior if place not in shared)
    before, after = (Cost(100 + saving, 0, launches + len(places)),), (Cost(100, 0, len(places)),)
    fact = Fact(nodes[source], Uniform())
    return Region(fact, nodes[sink], tuple(nodes[place] for place in interior), dying, before, after)


def overlap(a: Region, b: Region) -> bool:
    """Whether both own a node, or one starts from what the other lets go."""
    shared = {*a.dying, a.sink} & {*b.dying, b.sink}
    return bool(shared) or a.source in b.dying or b.source in a.dying


def rank(chosen: Sequence[Region], nodes: Sequence[fx.Node]) -> tuple[float, int, int]:
    """Saving, then launches saved, then how early."""
    saving = sum(price(total(r.before)) - price(total(r.after)) for r in chosen)
    launches = sum(total(r.before).launches - total(r.after).launches for r in chosen)
    return saving, launches, -sum(nodes.index(r.nodes[0]) for r in chosen)


def starts_no_more(r: Region) -> bool:
    return total(r.before).launches >= total(r.after).launches


def every_choice(regions: Sequence[Region]) -> list[tuple[Region, ...]]:
    subsets = (s for size in range(len(regions) + 1) for s in combinations(regions, size))
    return [subset for subset in subsets if not any(overlap(a, b) for a, b in combinations(subset, 2))]


@st.composite
def region_sets(draw: st.DrawFn) -> tuple[list[fx.Node], list[Region]]:
    """Few nodes, few different savings: overlaps and ties in plenty."""
    nodes = chain(draw(st.integers(2, 9)))
    regions: list[Region] = []
    for _ in range(draw(st.integers(0, 8))):
        places = draw(st.sets(st.integers(1, len(nodes) - 1), min_size=1, max_size=4))
        shared = draw(st.sets(st.sampled_from(sorted(places)), max_size=2))
        source, saving, launches = (draw(st.integers(*ends)) for ends in ((0, min(places) - 1), (-1, 4), (-1, 2)))
        regions.append(region(nodes, sorted(places), saving, launches, source, shared))
    return nodes, regions


@given(drawn=region_sets())
def test_the_plan_is_as_good_as_the_best_of_all_choices(drawn: tuple[list[fx.Node], list[Region]]) -> None:
    nodes, regions = drawn
    plan = choose(regions, price)
    paying = [r for r in regions if price(total(r.before)) > price(total(r.after)) and starts_no_more(r)]
    choices = every_choice(paying)
    event(f"{len(choices) // 8 * 8} choices or some more")
    ranks = [rank(choice, nodes) for choice in choices]
    assert rank(plan.chosen, nodes) == max(ranks)
    assert plan.saving == max(saving for saving, _, _ in ranks)
    assert not any(overlap(a, b) for a, b in combinations(plan.chosen, 2))
    assert set(plan.refused) == set(regions) - set(paying)


@given(drawn=region_sets(), data=st.data())
def test_the_order_of_the_candidates_does_not_matter(
    drawn: tuple[list[fx.Node], list[Region]], data: st.DataObject
) -> None:
    nodes, regions = drawn
    shuffled = data.draw(st.permutations(regions))
    assert rank(choose(regions, price).chosen, nodes) == rank(choose(shuffled, price).chosen, nodes)


def test_greed_is_wrong() -> None:
    nodes = chain(6)
    greedy = region(nodes, [2, 3, 4, 5], 5)
    better = [region(nodes, [1, 2, 3], 4), region(nodes, [4, 5, 6], 4)]
    assert choose([greedy, *better], price).chosen == tuple(better)
    assert choose([greedy, better[0]], price).chosen == (greedy,)


def test_ties_go_to_fewer_launches_then_to_the_earlier_region() -> None:
    nodes = chain(4)
    early, late = region(nodes, [1, 2], 3), region(nodes, [2, 3], 3)
    assert choose([late, early], price).chosen == (early,)
    longer = region(nodes, [1, 2, 3], 3)
    assert choose([late, longer], price).chosen == (longer,)
    lean = region(nodes, [2, 3], 3, launches=2)
    assert choose([early, lean], price).chosen == (lean,)
    through = region(nodes, [1, 2, 3], 3, shared=[1, 2])  # claims nothing before its sink, and begins before `late`
    assert choose([late, through], price).chosen == (through,)


def test_differences_that_are_rounding_are_ties() -> None:
    nodes = chain(4)
    early, late = region(nodes, [1, 2], 3.0), region(nodes, [2, 3], 3.0 + 1e-12)
    assert choose([late, early], price).chosen == (early,)
    nothing = region(nodes, [1, 2], 1e-12)
    assert choose([nothing], price).refused == (nothing,)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_the_price_does_not_matter(unit: float) -> None:
    nodes = chain(4)
    early, late = region(nodes, [1, 2], 3), region(nodes, [2, 3], 4)
    plan = choose([early, late], lambda cost: unit * price(cost))
    assert (plan.chosen, plan.refused) == ((late,), ())
    nothing = region(nodes, [1, 2], 1e-12)
    assert choose([nothing], lambda cost: unit * price(cost)).refused == (nothing,)


def test_nothing_to_choose_from() -> None:
    plan = choose([], price)
    assert (plan.chosen, plan.refused, plan.saving) == ((), (), 0.0)
    free = Region(Fact(chain(1)[0], Uniform()), chain(1)[1], (), (), (), ())
    assert choose([free], price).chosen == ()


def test_regions_that_interleave() -> None:
    nodes = chain(6)
    left, right = region(nodes, [1, 3, 5], 2), region(nodes, [2, 4, 6], 2)
    across = region(nodes, [1, 2, 3, 4, 5, 6], 3)
    assert choose([left, right, across], price).chosen == (left, right)


def test_what_a_region_only_passes_through_is_fused_for_its_other_readers() -> None:
    nodes = chain(4)
    through = region(nodes, [1, 2, 3, 4], 3, shared=[1, 2])
    shared = region(nodes, [1, 2], 2)
    assert choose([shared, through], price).chosen == (shared, through)


def test_what_a_region_starts_from_does_not_die() -> None:
    nodes = chain(4)
    over = region(nodes, [1, 2, 3], 2)
    inside = region(nodes, [2, 3, 4], 3, source=1, shared=[2, 3])
    assert choose([over, inside], price).chosen == (inside,)


def test_many_branches_from_what_might_die() -> None:
    nodes = chain(62)
    branches = [region(nodes, [place, place + 1], 1, source=1) for place in range(3, 63, 2)]
    assert choose([region(nodes, [1, 2], 1), *branches], price).chosen == tuple(branches)


def stretches(length: int, most: int) -> tuple[list[fx.Node], list[Region]]:
    """Every stretch of at most `most` nodes of a chain."""
    nodes = chain(length)
    spans = [(start, size) for start in range(1, length) for size in range(2, most + 1) if start + size <= length + 1]
    return nodes, [region(nodes, range(start, start + size), size * size) for start, size in spans]


def steps(length: int) -> int:
    """Function calls that the choice makes on a chain."""
    regions = stretches(length, 6)[1]
    plan, count = counting_calls(lambda: choose(regions, price))
    assert plan.saving == length // 6 * 36 + (length % 6) ** 2
    return count


def test_a_chain_twice_as_long_takes_twice_as_many_steps() -> None:
    short, long = steps(150), steps(300)
    assert long < 2.1 * short


def test_where_branches_interleave_a_lot_the_states_stay_bounded() -> None:
    nodes = chain(60)
    pairs = [region(nodes, [place, place + 30], 1) for place in range(1, 31)]
    plan = choose(pairs, price)
    assert set(plan.chosen) == set(pairs)


def test_what_does_not_compete_is_searched_on_its_own() -> None:
    """Chains side by side interleave in more ways than there are states, and greed is wrong in each."""
    chains = 12
    nodes = chain(6 * chains)
    regions = [
        region(nodes, [chains * (step - 1) + number + 1 for step in steps], saving)
        for number in range(chains)
        for steps, saving in (((2, 3, 4, 5), 7), ((1, 2, 3), 4), ((4, 5, 6), 2))
    ]
    assert choose(regions, price).saving == 7 * chains
