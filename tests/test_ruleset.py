"""Rules as values, and tables of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repcompile.affine import Map
from repcompile.capture import Captured, capture
from repcompile.errors import RuleError
from repcompile.idioms import Idiom
from repcompile.rules import DEFAULT, Rule, RuleSet, affine_rule, layout_rule, shape_rule
from repcompile.rules import shape as shapes
from repcompile.rules.rewriting import RewriteRule
from repcompile.selection import Selection
from repcompile.shapes import Layout, Shape, Size, named, unknown
from tests.test_hostile import Net, made

OTHERS = tuple(entry for entry in DEFAULT if not isinstance(entry, Rule))


@affine_rule(torch.negative, "negative")
def minus(x: Map, *rest: Any) -> Map:
    return -x


@affine_rule(nn.Identity, torch.negative)
def other(x: Map, m: nn.Module, shape: Shape | None = None) -> Map:
    return x


@layout_rule(torch.negative)
def moved(shape: Shape | None) -> Layout:
    return Layout(shape or (), ())


@shape_rule(torch.negative, nn.Tanh)
def same(shape: Shape | None, *rest: Any) -> Shape | None:
    return shape


def graph_of(function: Any, **parts: nn.Module) -> tuple[Captured, Any]:
    """(the graph, the node whose value it returns)"""
    captured = capture(made(lambda: Net(function, **parts)), (nn.Tanh,))
    return captured, captured.graph.output_node().args[0]


def test_what_is_declared_unless_told() -> None:
    traits = ("late", "strict", "elementwise", "copies", "subtracts", "keeps_rank", "transposed")
    for rule, kind, dtype in ((minus, "affine", "floating"), (moved, "layout", "same"), (same, "shape", "unknown")):
        assert (rule.kind, rule.dtype, rule.word) == (kind, dtype, "")
        assert not any(getattr(rule, trait) for trait in traits)
    assert minus.targets == (torch.negative, "negative")


def test_what_is_declared_is_kept() -> None:
    for trait in ("late", "strict", "elementwise", "copies", "subtracts", "transposed"):
        rule = affine_rule(nn.Identity, dtype="made", word="w", **{trait: True})(minus.function)  # type: ignore[arg-type]
        assert (rule.dtype, rule.word) == ("made", "w")
        assert [
            name
            for name in ("late", "strict", "elementwise", "copies", "subtracts", "transposed", "keeps_rank")
            if getattr(rule, name)
        ] == [trait]
    rule = shape_rule(nn.Identity, keeps_rank=True, dtype="made")(same.function)
    assert (rule.keeps_rank, rule.dtype) == (True, "made")
    assert layout_rule(nn.Identity, dtype="floating")(moved.function).dtype == "floating"


def test_a_rule_is_its_function() -> None:
    assert (minus.name, repr(minus), repr(moved), repr(same)) == (
        *("minus", "<affine rule 'minus'>", "<layout rule 'moved'>", "<shape rule 'same'>"),
    )
    assert minus(3) == -3
    assert other.wants("shape")
    assert not other.wants("rest")
    assert other.accepts((1, 2), {})
    assert other.accepts((1,), {"m": 2})
    assert not other.accepts((1,), {})
    assert not other.accepts((1, 2), {"size": 3})


def test_a_set_says_what_is_in_it() -> None:
    assert repr(RuleSet()) == "RuleSet()"
    assert repr(RuleSet((minus, same))) == "RuleSet(minus, same; on trial: minus, same)"
    assert repr(RuleSet((minus, same)).trusting()) == "RuleSet(minus, same)"
    assert repr(RuleSet((minus,)).trusting() + [minus, same]) == "RuleSet(minus x 2, same; on trial: same)"


def test_sets_add_up_and_are_taken_apart() -> None:
    trusted = RuleSet((minus, same)).trusting()
    both = trusted + [other]
    assert list(both) == [minus, same, other]
    assert (len(both), len(RuleSet())) == (3, 0)
    assert [both.on_trial(rule) for rule in both] == [False, False, True]
    assert both.untried
    assert not trusted.untried
    assert not (both - [other]).untried
    less = both - [minus]
    assert list(less) == [same, other]
    assert (less + [minus]).on_trial(minus), "what was dropped is not trusted for what it was"
    assert not (RuleSet((other,)) + trusted).on_trial(minus)
    assert list(both - RuleSet((same, other))) == [minus]


def test_an_affine_rule_says_most_and_the_later_one_wins() -> None:
    assert RuleSet((minus, moved, same)).table == {torch.negative: minus, "negative": minus, nn.Tanh: same}
    assert RuleSet((same, moved)).table == {torch.negative: moved, nn.Tanh: same}
    assert RuleSet((minus, other)).table == {torch.negative: other, "negative": minus, nn.Identity: other}
    assert RuleSet((other, minus)).table == {torch.negative: minus, "negative": minus, nn.Identity: other}


def test_rules_idioms_and_rewrites_stand_side_by_side() -> None:
    found = RuleSet(OTHERS)
    assert found.idioms == tuple(entry for entry in OTHERS if isinstance(entry, Idiom))
    assert found.rewrites == tuple(entry for entry in OTHERS if isinstance(entry, RewriteRule))
    assert not found.table
    assert not found.untried
    assert (found + [minus]).idioms == found.idioms


def test_classes_that_tracing_leaves_whole() -> None:
    assert RuleSet((other, same, minus)).module_classes == (nn.Tanh, nn.Identity)


@pytest.mark.parametrize("entry", [F.relu, nn.Tanh, 3, None])
def test_a_set_holds_rules(entry: Any) -> None:
    name = getattr(entry, "__name__", type(entry).__name__)
    with pytest.raises(RuleError, match=f"a rule set holds what affine_rule and the like return; got {name}$"):
        RuleSet((entry,))


def test_which_rule_a_node_finds() -> None:
    rules = RuleSet((minus, other, moved, same))
    for function, expected in (
        (lambda m, x: torch.negative(x), (other, moved, same)),
        (lambda m, x: x.negative(), (minus, None, None)),
        (lambda m, x: m.tanh(x), (None, None, same)),
        (lambda m, x: x.abs(), (None, None, None)),
        (lambda m, x: x, (None, None, None)),
    ):
        captured, node = graph_of(function, tanh=nn.Tanh())
        assert tuple(rules.find(node, captured, kind) for kind in ("affine", "layout", "shape")) == expected


def test_of_what_stays_only_the_shape_is_known() -> None:
    rules = RuleSet((minus, moved, same))
    model = made(lambda: Net(lambda m, x: torch.negative(m.tanh(x)), tanh=nn.Tanh()))
    captured = capture(model, (nn.Tanh,), selection=Selection(frozenset(("", "tanh"))))
    for node in captured.graph.nodes:
        if node.op.startswith("call"):
            assert [rules.find(node, captured, kind) for kind in ("affine", "layout", "shape")] == [None, None, same]


@pytest.mark.parametrize("n_axes", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_maximum_over_windows_changes_its_positions(n_axes: int, batch: int) -> None:
    module = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[n_axes - 1]
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n_axes - 1]
    table = shapes.SHAPE.tables["shape"]
    rule = table[module]
    assert rule is table[function]
    assert (rule.keeps_rank, rule.dtype) == (True, "same")
    front = (*named("x", batch), Size(4))
    positions = tuple(unknown("y", batch + 1 + axis) for axis in range(n_axes))
    assert rule((*front, *[Size(9)] * n_axes), 2, owner="y") == (*front, *positions)
    assert rule(None, 2, owner="y") is None
    assert rule(named("x", n_axes), 2, owner="y") is None
    assert rule(named("x", n_axes + 3), 2, owner="y") is None


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_means_take_what_their_kernels_take(n_axes: int) -> None:
    mean: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n_axes - 1]
    adaptive: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[n_axes - 1]
    tables = DEFAULT.tables
    assert (tables["affine"][mean].dtype, tables["affine"][mean].word) == ("same", "pool")
    assert tables["layout"][mean].dtype == "same"
    assert tables["layout"][adaptive].dtype == "floating"
