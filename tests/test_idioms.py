"""What people call a region: branches in words, and their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import DEFAULT, RuleError, affine_rule, explain
from repcompile.branches import MOST_BRANCHES, branches_of, name_of
from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.facts import Facts, affine_facts
from repcompile.idioms import IDIOMS, Formula, conv, idiom, many, norm, pointwise, word
from repcompile.regions import Region, candidate_regions
from repcompile.rules import NAMES
from tests.blocks import test_branches as branches
from tests.blocks import test_diverse as diverse
from tests.blocks import test_expanded as expanded
from tests.test_hostile import made


def depthwise(size: int, channels: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False, **options)


def normed(*layers: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(*layers, nn.BatchNorm2d(channels))


class Block(nn.Module):
    """Parts by name, and a formula for `forward`."""

    def __init__(self, formula: Callable[[Any, Any], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.formula = formula
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


class Branches(nn.Module):
    """The sum of branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        y = first(x)
        for branch in others:
            y = y + branch(x)
        return y


def whole_block(model: nn.Module) -> tuple[Region, Facts]:
    """The region from the model's input to its output."""
    captured = canonicalize(capture(model.eval(), DEFAULT.module_classes))
    facts = affine_facts(captured, DEFAULT)
    return max(candidate_regions(captured, facts), key=lambda region: len(region.nodes)), facts


def name(model: nn.Module) -> str:
    return name_of(*whole_block(model))


def words(model: nn.Module) -> list[str]:
    branches = branches_of(*whole_block(model))
    assert branches is not None
    return sorted(branches)


def scale(channels: int = 4) -> Tensor:
    return torch.full((channels, 1, 1), 0.5)


def mobile_one(k: int, kernel: nn.Conv2d, point: nn.Conv2d | None, skip: bool) -> Branches:
    branches: list[nn.Module] = [normed(kernel) for _ in range(k)]
    branches += [] if point is None else [normed(point)]
    return Branches(*branches, *([nn.BatchNorm2d(4)] if skip else []))


def rep_mixer(scaled: bool = True) -> Block:
    """FastViT as published: x + gamma (mixer(x) - norm(x))."""
    mixer = Branches(normed(depthwise(3)), normed(depthwise(1)), nn.BatchNorm2d(4))
    return Block(
        lambda m, x: x + (m.gamma if scaled else 1) * (m.mixer(x) - m.norm(x)),
        gamma=scale(),
        mixer=mixer,
        norm=nn.BatchNorm2d(4),
    )


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_branch_in_the_order_in_which_data_flows() -> None:
    block = nn.Sequential(nn.BatchNorm2d(4), depthwise(7), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1))
    assert words(block) == ["norm dw7x7 norm pw"]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (lambda m, x: m.dense(x) * m.gamma, ["conv3x3 scale"]),
        (lambda m, x: m.dense(x) + m.gamma, ["conv3x3 shift"]),
        (lambda m, x: m.point(x) + x, ["", "pw"]),
        (lambda m, x: x - m.point(x), ["", "- pw"]),
        (lambda m, x: m.point(x) - m.norm(x), ["- norm", "pw"]),
        (lambda m, x: (m.point(x) - x) - (x - m.norm(x)), ["- ", "- ", "norm", "pw"]),
        (lambda m, x: m.norm(2 * m.point(x)), ["pw scale norm"]),
        (lambda m, x: m.point(m.norm(x) + x), ["norm pw", "pw"]),
        (lambda m, x: m.norm(m.pool(x)), ["pool2x2 norm"]),
        (lambda m, x: m.point(m.pad(x)), ["pad pw"]),
    ],
)
def test_words(formula: Callable[[Any, Any], Any], expected: list[str]) -> None:
    block = Block(
        lambda m, x: formula(m, m.stem(x).relu()),  # the stem says how many channels there are
        stem=nn.Conv2d(3, 4, 1),
        dense=nn.Conv2d(4, 4, 3, padding=1),
        point=nn.Conv2d(4, 4, 1, bias=False),
        norm=nn.BatchNorm2d(4),
        pool=nn.AvgPool2d(2),
        pad=nn.ZeroPad2d(1),
        gamma=scale(),
    )
    assert words(block) == sorted(expected)


def test_the_words_of_a_rep_mixer() -> None:
    assert words(rep_mixer()) == ["", "- norm scale", "dw1x1 norm scale", "dw3x3 norm scale", "norm scale"]


def test_more_branches_than_anybody_would_name() -> None:
    layers = [Block(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 1)) for _ in range(7)]
    assert 2 ** len(layers) > MOST_BRANCHES
    region, facts = whole_block(nn.Sequential(*layers))
    assert branches_of(region, facts) is None
    assert name_of(region, facts) == "Affine"


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
def test_rep_mixer_as_published(scaled: bool) -> None:
    assert name(rep_mixer(scaled)) == "RepMixer"


@pytest.mark.parametrize("layers", [[nn.BatchNorm2d(4), depthwise(3)], [nn.BatchNorm2d(4), depthwise(7)]])
@pytest.mark.parametrize("tail", [[], [nn.BatchNorm2d(4)]])
def test_rep_mixer_as_in_equation_3(layers: list[nn.Module], tail: list[nn.Module]) -> None:
    assert name(Block(lambda m, x: m.mixer(x) + x, mixer=nn.Sequential(*layers, *tail))) == "RepMixer"


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_mobile_one_depthwise(k: int, skip: bool) -> None:
    block = mobile_one(k, depthwise(3), depthwise(1), skip)
    assert name(block) == f"MobileOne ({k + 1 + skip} branches, depthwise)"


@pytest.mark.parametrize("k", [2, 3, 4])
def test_mobile_one_pointwise(k: int) -> None:
    assert name(mobile_one(k, nn.Conv2d(4, 4, 1), None, True)) == f"MobileOne ({k + 1} branches, pointwise)"
    assert name(mobile_one(k, nn.Conv2d(4, 4, 1), None, False)) == f"MobileOne ({k} branches, pointwise)"


def test_mobile_one_with_one_pointwise_branch() -> None:
    assert name(mobile_one(1, nn.Conv2d(4, 4, 1), None, True)) == "MobileOne (2 branches, pointwise)"
    assert name(mobile_one(1, nn.Conv2d(4, 4, 1), None, False)) == "ConvBN"


@pytest.mark.parametrize("k", [2, 3, 4])
def test_mobile_one_dense(k: int) -> None:
    block = mobile_one(k, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), False)
    assert name(block) == f"MobileOne ({k + 1} branches)"


def test_mobile_one_with_a_stride() -> None:
    assert name(mobile_one(1, depthwise(3, stride=2), depthwise(1, stride=2), False)) == (
        "MobileOne (2 branches, depthwise)"
    )


@pytest.mark.parametrize("skip", [True, False])
def test_rep_vgg(skip: bool) -> None:
    assert name(mobile_one(1, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), skip)) == "RepVGG"


@pytest.mark.parametrize("size", [3, 7])
def test_conditional_positional_encoding(size: int) -> None:
    assert name(Block(lambda m, x: m.conv(x) + x, conv=depthwise(size))) == "CPE"
    assert name(Block(lambda m, x: x + m.conv(x), conv=depthwise(size))) == "CPE"


@pytest.mark.parametrize(("large", "small"), [(7, 3), (13, 5), (31, 5), (5, 3)])
def test_large_kernel(large: int, small: int) -> None:
    assert name(Branches(normed(depthwise(large)), normed(depthwise(small)))) == "LargeKernel"


def test_conv_bn() -> None:
    for layer in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), depthwise(3)):
        assert name(normed(layer)) == "ConvBN"
    assert name(nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))) == "ConvBN"


def test_layer_scale() -> None:
    assert name(Block(lambda m, x: m.gamma * m.conv(x), gamma=scale(), conv=nn.Conv2d(4, 4, 1))) == "LayerScale"
    assert name(Block(lambda m, x: m.gamma * m.conv(x), gamma=scale(), conv=normed(nn.Conv2d(4, 4, 3)))) == "LayerScale"
    tokens = Block(
        lambda m, x: m.gamma * m.project(m.stem(x).flatten(2).transpose(1, 2).relu()),
        gamma=torch.ones(4),
        stem=nn.Conv2d(3, 4, 1),
        project=nn.Linear(4, 4),
    )
    assert name(tokens) == "LayerScale"


def test_bn_linear_across_a_change_of_layout() -> None:
    block = Block(
        lambda m, x: m.project(m.norm(x).flatten(2).transpose(1, 2)), norm=nn.BatchNorm2d(4), project=nn.Linear(4, 12)
    )
    assert words(block) == ["norm linear"]
    assert name(block) == "BNLinear"


def test_bn_conv() -> None:
    assert name(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))) == "BNConv"


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)),
        Block(lambda m, x: m.conv(x) + 2 * x, conv=depthwise(3)),
        Block(lambda m, x: x - m.conv(x), conv=depthwise(3)),
        Block(lambda m, x: m.conv(x) + x + x, conv=depthwise(3)),
        Branches(normed(nn.Conv2d(4, 4, 3, padding=1)), normed(depthwise(3))),
    ],
)
def test_what_nobody_has_named(block: nn.Module) -> None:
    assert name(block) == "Affine"


# -- the blocks of papers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "case", "expected"),
    [
        (branches, "QARepVGG", {"QARepVGG": 1}),
        (branches, "QARepVGG with average pool", {"QARepVGG": 1}),
        (branches, "ACNet", {"ACNet": 1}),
        (branches, "ACNet, cropped", {"ACNet": 1}),
        (branches, "ACNet, 5x5, cropped, stride 2", {"ACNet": 1}),
        (branches, "RepLKNet", {"LargeKernel": 1}),
        (branches, "ModernTCN", {"LargeKernel": 1}),
        (branches, "UniRepLKNet", {"DilatedReparam": 1}),
        (branches, "RepViT token mixer", {"RepViT": 1}),
        (branches, "RepMixer", {"RepMixer": 1}),
        (branches, "RepConv", {"RepVGG": 1}),
        (diverse, "DBB", {"DBB": 1}),
        (diverse, "DBB, 5x5", {"DBB": 1}),
        (diverse, "DBB, biases and zero padding", {"DBB": 1}),
        (diverse, "ECBSR", {"ECBSR": 1}),
        (diverse, "ECBSR without identity", {"ECBSR": 1}),
        (expanded, "LoRA", {"LoRA": 1}),
        (expanded, "LoRA on tokens", {"LoRA": 1}),
        (expanded, "LoRA on a convolution", {"LoRA": 1}),
        (expanded, "ExpandNets", {"ExpandNet": 1}),
        (expanded, "Linear chain", {"LinearChain": 1}),
    ],
)
def test_the_blocks_of_papers(cases: Any, case: str, expected: dict[str, int]) -> None:
    block = cases.CASES[case]
    assert dict(explain(made(block.build), block.calls[0]).idioms) == expected


def test_every_idiom_says_its_formula_and_its_source() -> None:
    assert all(each.formula and each.source for each in IDIOMS)
    assert {each.name for each in IDIOMS} >= {
        "RepMixer",
        "MobileOne",
        "CPE",
        "RepVGG",
        "DBB",
        "ACNet",
        "ConvBN",
        "LoRA",
    }


# -- names of one's own ------------------------------------------------------------------------------------------------


@idiom("Sandwich", source="somebody, 2026")
def sandwich(x: Formula) -> Formula:
    """BN(Conv1x1(BN(Conv1x1(x)))) - x"""
    return norm(pointwise(norm(pointwise(x)))) - x


def sandwiched() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return Block(lambda m, x: m.layers(x) - x, layers=layers).eval()


def test_a_name_of_ones_own() -> None:
    assert dict(explain(sandwiched()).idioms) == {"Affine": 1}
    assert dict(explain(sandwiched(), rules=DEFAULT + [sandwich]).idioms) == {"Sandwich": 1}


def test_the_later_name_wins() -> None:
    @idiom("Mine", label="{name} of {branches}")
    def mine(x: Formula) -> Formula:
        return many(norm(conv(x))) + many(norm(pointwise(x)))

    block = Branches(normed(nn.Conv2d(4, 4, 3, padding=1)), normed(nn.Conv2d(4, 4, 1))).eval()
    assert dict(explain(block).idioms) == {"RepVGG": 1}
    assert dict(explain(block, rules=DEFAULT + [mine]).idioms) == {"Mine of 2": 1}
    assert dict(explain(block, rules=DEFAULT - NAMES).idioms) == {"Affine": 1}


def test_the_word_of_a_rule_of_ones_own() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    @affine_rule(Doubled, word="twice")
    def doubled(x: Any, layer: Doubled) -> Any:
        return 2.0 * (x.placed(2) if hasattr(x, "placed") else x)

    @idiom("TwiceConv")
    def twice_conv(x: Formula) -> Formula:
        return word("twice")(conv(x))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled()).eval()
    report = explain(model, rules=DEFAULT + [doubled, twice_conv])
    assert [(item.idiom, item.branches) for item in report.fused] == [("TwiceConv", ("conv3x3 twice",))]


def test_a_formula_is_a_sum_of_branches() -> None:
    with pytest.raises(RuleError, match="idiom 'Odd': its formula is a Word, not a sum of branches of x"):
        idiom("Odd")(lambda x: norm)  # type: ignore[arg-type, return-value]
