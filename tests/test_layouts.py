"""Rules for what moves, repeats or averages positions: what merges, and what a price takes them for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.execute import execute
from repcompile.facts import affine_facts
from repcompile.rules import DEFAULT, channels
from repcompile.rules import layout as layouts
from repcompile.rules import pool as pools
from repcompile.shapes import Layout, Shape, Size, named, unknown
from tests.claims import untrue_maps
from tests.test_hostile import Net, conv, image, made, norm

Move = Callable[[Tensor], Tensor]

# Moves of an image of 12 x 12 that end at one size.
TWICE: dict[str, Move] = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "aligned": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, None, 2, "bicubic"),
    "each": lambda x: F.interpolate(x, scale_factor=(2, 2)),
    "Upsample": nn.Upsample(scale_factor=2),
    "Upsample bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "Upsample aligned": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "Upsample recomputed": nn.Upsample(scale_factor=2.0, mode="bilinear", recompute_scale_factor=True),
    "UpsamplingNearest2d": nn.UpsamplingNearest2d(scale_factor=2),
    "UpsamplingBilinear2d": nn.UpsamplingBilinear2d(scale_factor=2),
}
HALF: dict[str, Move] = {
    "half": lambda x: F.interpolate(x, scale_factor=0.5),
    "without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "sticking out": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "sticking out uncounted": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False),
    "of two": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "of one": lambda x: F.avg_pool2d(x, 1, 2, ceil_mode=True),
    "module": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "module sticking out": nn.AvgPool2d(3, 2, ceil_mode=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 6),
    "adaptive module": nn.AdaptiveAvgPool2d((6, 6)),
}
ONE: dict[str, Move] = {
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive module": nn.AdaptiveAvgPool2d((1, 1)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean from the end": lambda x: torch.mean(x, (-1, -2), True),
}
ROW: dict[str, Move] = {
    "rows": lambda x: x.mean(2, keepdim=True),
    "columns": lambda x: x.mean(3, keepdim=True).transpose(2, 3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (1, None)),
    "adaptive of a size": lambda x: F.adaptive_avg_pool2d(x, (1, 12)),
}
SAME: dict[str, Move] = {
    "rolled": lambda x: x.roll(1, 2),
    "rolled further": lambda x: x.roll(2, 2),
    "rolled along": lambda x: x.roll(1, 3),
    "rolled twice": lambda x: torch.roll(x, (1, 2), (2, 3)),
    "turned": lambda x: x.transpose(2, 3),
    "none": lambda x: x.view(x.shape[0], x.shape[1], -1).view(x.shape[0], x.shape[1], 12, 12),
}
UP: dict[str, Move] = {
    "shuffled": lambda x: F.pixel_shuffle(x, 2),
    "shuffled by a module": nn.PixelShuffle(2),
    "shuffled by hand": lambda x: (
        x.view(x.shape[0], 1, 2, 2, 12, 12).permute(0, 1, 4, 2, 5, 3).reshape(x.shape[0], 1, 24, 24)
    ),
    "turned": lambda x: F.pixel_shuffle(x, 2).transpose(2, 3),
}
DOWN: dict[str, Move] = {
    "unshuffled": lambda x: F.pixel_unshuffle(x, 2),
    "unshuffled by a module": nn.PixelUnshuffle(2),
    "turned": lambda x: F.pixel_unshuffle(x, 2).transpose(2, 3),
    "turned before": lambda x: F.pixel_unshuffle(x.transpose(2, 3), 2),
}
MIXED: dict[str, Move] = {
    "in pairs": lambda x: F.channel_shuffle(x, 2),
    "by a module": nn.ChannelShuffle(2),
    "apart": lambda x: F.channel_shuffle(x, 4),
    "back": lambda x: F.channel_shuffle(F.channel_shuffle(x, 2), 2),
    "up and down": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "flipped": lambda x: x.flip(1),
}
KINDS = {"up": UP, "down": DOWN, "mixed": MIXED, "twice": TWICE, "half": HALF, "one": ONE, "row": ROW, "same": SAME}
PAIRS = [
    pytest.param(f, g, one == other, moves not in (HALF, DOWN), id=f"{kind}: {one}, {other}")
    for kind, moves in KINDS.items()
    for (one, f), (other, g) in itertools.combinations_with_replacement(moves.items(), 2)
]
SPELLED = (  # in several ways
    *itertools.combinations(ONE.values(), 2),
    (HALF["adaptive"], HALF["adaptive module"]),
    (UP["shuffled"], UP["shuffled by a module"]),
    (MIXED["in pairs"], MIXED["by a module"]),
    (MIXED["apart"], MIXED["back"]),
    (MIXED["back"], MIXED["up and down"]),
)


@pytest.mark.parametrize(("first", "second", "alike", "sized"), PAIRS)
def test_what_moves_positions_alike_is_one_map(first: Move, second: Move, alike: bool, sized: bool) -> None:
    """first(W x) + second(BN x) is one map of x where both move alike; where they do not, nobody says so.

    sized: whether the size of the result is known; where it is not, nobody knows that two are of one size.
    """
    modules = {name: move for name, move in (("first", first), ("second", second)) if isinstance(move, nn.Module)}

    def forward(m: Any, x: Tensor) -> Tensor:
        moves = (getattr(m, name, move) for name, move in (("first", first), ("second", second)))
        return next(moves)(m.point(x)) + next(moves)(m.norm(x))

    net = Net(forward, point=conv(size=1), norm=norm(), **modules)
    inputs = (image(2, 4, 12, 12),)
    for known in (False, True):
        captured = canonicalize(capture(made(lambda: net), DEFAULT.module_classes, inputs))
        facts = affine_facts(captured, DEFAULT, execute(captured, inputs)[1] if known else None)
        (start, *_), (total,) = captured.graph.nodes, captured.graph.output_node().args
        assert not list(untrue_maps(captured, facts, inputs))
        if (alike and sized) or (first, second) in SPELLED:
            assert start in {fact.source for fact in facts.maps[total]}  # type: ignore[index]


# -- prices ------------------------------------------------------------------------------------------------------------

IMAGE, SIGNAL = named("x", 4), named("x", 3)
SCALES: list[tuple[Callable[[], Layout], float]] = [
    (lambda: layouts.interpolate(IMAGE, scale_factor=2), 4.0),
    (lambda: layouts.interpolate(IMAGE, None, (2.0, 0.5)), 1.0),
    (lambda: layouts.interpolate(IMAGE, None, (3, 2)), 6.0),
    (lambda: layouts.interpolate(SIGNAL, scale_factor=3), 3.0),
    (lambda: layouts.interpolate(IMAGE, 8), 1.0),
    (lambda: layouts.interpolate(IMAGE, 8, 2), 1.0),
    (lambda: layouts.roll(IMAGE, 1, 2), 1.0),
    (lambda: layouts.permute(IMAGE, 0, 2, 3, 1), 1.0),
    (lambda: layouts.flatten(IMAGE, 2), 1.0),
    (lambda: pools.mean(IMAGE, (2, 3)), 1 / pools.POSITIONS),
    (lambda: pools.mean(IMAGE, (2, 3), True), 1 / pools.POSITIONS),
    (lambda: pools.mean(SIGNAL, 2), 1 / 16),
    (lambda: pools.mean(IMAGE, -1, True), 1 / 16),
    (lambda: pools.adaptive_mean_module(IMAGE, nn.AdaptiveAvgPool2d(1)), 1 / pools.POSITIONS),
    (lambda: pools.adaptive_mean_module(IMAGE, nn.AdaptiveAvgPool2d(7)), 1.0),
    (lambda: pools.mean_of_windows_module(IMAGE, nn.AvgPool2d(3, 2, ceil_mode=True)), 1 / 4),
    (lambda: pools.mean_of_windows_module(IMAGE, nn.AvgPool2d(3, ceil_mode=True)), 1 / 9),
    (lambda: pools.mean_of_windows_module(IMAGE, nn.AvgPool2d((3, 2))), 1 / 6),
    (lambda: pools.mean_of_windows_module(SIGNAL, nn.AvgPool1d(3, 2, ceil_mode=True)), 1 / 2),
    (lambda: pools._mean_of_windows(IMAGE, 2, "y", 3), 1 / 9),
    (lambda: pools._mean_of_windows(IMAGE, 2, "y", 3, []), 1 / 9),
]


@pytest.mark.parametrize(("rule", "expected"), SCALES)
def test_how_many_positions_a_price_takes_it_for(rule: Callable[[], Layout], expected: float) -> None:
    assert rule().scale == pytest.approx(expected)


# -- layouts -----------------------------------------------------------------------------------------------------------

SIZED = (*named("x", 1), Size(4), Size(4), Size(6))
LAYOUTS: list[tuple[Shape, Callable[[Shape], Layout]]] = [
    *((shape, lambda shape: layouts.interpolate(shape, scale_factor=2, owner="y")) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: layouts.roll(shape, 1, -1)) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: layouts.transpose(shape, 1, 2)) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: layouts.flatten(shape, 1)) for shape in (IMAGE, SIGNAL, SIZED)),
    *((shape, lambda shape: layouts.unsqueeze(shape, -1)) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: pools.mean(shape, (1, 2))) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: pools.mean(shape, -1, True)) for shape in (IMAGE, SIGNAL)),
    *((shape, lambda shape: channels.channel_shuffle(shape, 2)) for shape in (SIZED, SIZED[:3])),
    (SIZED, lambda shape: channels.pixel_shuffle(shape, 2)),
    (SIZED, lambda shape: channels.pixel_unshuffle(shape, 2)),
    (IMAGE, lambda shape: channels.pixel_unshuffle(shape, 2)),
    (SIZED, lambda shape: layouts.unflatten(shape, 1, (2, -1))),
    (SIZED, lambda shape: layouts.reshape(shape, -1, 4, 24)),
    (named("x", 1), lambda shape: layouts.permute(shape, 0)),
    (IMAGE, lambda shape: layouts.permute(shape, (0, 2, 3, 1))),
    *((shape, lambda shape: pools.adaptive_mean_module(shape, nn.AdaptiveAvgPool2d(2))) for shape in (IMAGE, SIGNAL)),
    *(
        (shape, lambda shape: pools.mean_of_windows_module(shape, nn.AvgPool2d(2, ceil_mode=True), owner="y"))
        for shape in (IMAGE, SIGNAL)
    ),
]


@pytest.mark.parametrize(("shape", "rule"), LAYOUTS)
def test_where_each_axis_went(shape: Shape, rule: Callable[[Shape], Layout]) -> None:
    layout = rule(shape)
    assert len(layout.carry) == len(shape)
    for axis, place in enumerate(layout.carry):
        assert place is None or layout.shape[place] == shape[axis]


def test_sizes_that_nobody_knows_are_the_operators_own() -> None:
    for layout in (
        layouts.interpolate(IMAGE, 7, owner="y"),
        layouts.upsample_module(IMAGE, nn.Upsample(size=7), owner="y"),
        layouts.upsample_module(IMAGE, nn.Upsample(scale_factor=1.5), owner="y"),
        pools.mean_of_windows_module(IMAGE, nn.AvgPool2d(2, ceil_mode=True), owner="y"),
    ):
        assert layout.shape == (*IMAGE[:2], unknown("y", 2), unknown("y", 3))
    assert layouts.upsample_module(IMAGE, nn.Upsample(size=7), owner="y").name == "interpolate y"
    parted = layouts.unflatten_module(IMAGE, nn.Unflatten(1, (-1, 2)), owner="y")
    assert parted.shape == (IMAGE[0], unknown("y", 1), Size(2), *IMAGE[2:])
    assert layouts.interpolate(IMAGE, scale_factor=1, owner="y").shape == IMAGE
    assert channels.pixel_unshuffle(SIZED, 2).name == ""
    assert channels.pixel_unshuffle(IMAGE, 2).name


@pytest.mark.parametrize("keepdim", [False, True])
def test_a_mean_has_a_name(keepdim: bool) -> None:
    """By it a bound is told that numbers are added up."""
    assert pools.mean(IMAGE, -1, keepdim).name == "mean over [3] of 4"
    assert pools.mean(IMAGE, (3, 2), keepdim).name == "mean over [2, 3] of 4"


def test_which_sizes_an_operator_names() -> None:
    assert layouts.reshape(SIZED, 4, -1, 24, owner="y").fixed == (0, 2)
    assert layouts.unflatten(SIZED, 1, (2, -1)).fixed == (1,)
    assert layouts.unflatten_module(SIZED, nn.Unflatten(1, (-1, 2))).fixed == (2,)
    assert not any(layout.fixed for layout in (layouts.flatten(SIZED, 1), layouts.permute(SIZED, 0, 2, 3, 1)))
