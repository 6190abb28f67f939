"""What people call a region: declarative patterns over its branches.

A region is the sum of its branches, the ways from source to sink; each is written as words, in the order in which
data flows: `dw7x7` (depthwise), `pw` (1x1), `conv3x3`, `linear`, `norm`, `scale`, `shift`, `pool2x2`, `pad`, `pick`.
The empty branch is a skip; `-` in front marks one that is subtracted. A name decides nothing: the algebra has done that
before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from repcompile.affine import Affine, Map, Uniform
from repcompile.facts import Facts
from repcompile.regions import Region

MOST_BRANCHES = 64


@dataclass(frozen=True, slots=True)
class Branch:
    """A regular expression for a branch, and how many branches may match it."""

    pattern: str
    least: int = 1
    most: int = 1


@dataclass(frozen=True, slots=True)
class Idiom:
    """A name for regions whose branches match: every branch exactly one pattern, every pattern often enough.

    label: `{branches}` is replaced by their number.
    """

    name: str
    branches: tuple[Branch, ...]
    formula: str
    source: str
    label: str = "{name}"


MANY = 64
DEPTHWISE, CONV = r"dw(?!1(x1)*\b)\S+", r"(dw|pw|conv|linear)\S*"

IDIOMS = (
    Idiom(
        "RepMixer",
        (Branch(""), Branch(r"((dw\S+ )?norm)( scale)?", 2, MANY), Branch("- norm( scale)?")),
        "x + gamma (mixer(x) - norm(x))",
        "Vasu et al., FastViT, 2023, as published",
    ),
    Idiom("RepMixer", (Branch(""), Branch(r"norm dw\S+( norm)?( scale)?")), "DWConv(BN(x)) + x", "FastViT, eq. 3"),
    Idiom("CPE", (Branch(""), Branch(DEPTHWISE)), "DWConv(x) + x", "Chu et al., CPVT, 2021"),
    Idiom(
        "LargeKernel",
        (Branch(r"dw([7-9]|\d\d)\S* norm"), Branch(r"dw[35]x\S* norm")),
        "BN(DWConv_large(x)) + BN(DWConv_small(x))",
        "Ding et al., RepLKNet, 2022",
    ),
    Idiom(
        "LargeKernel",
        (Branch(r"dw5x\S* norm"), Branch(r"dw3x\S* norm")),
        "BN(DWConv_large(x)) + BN(DWConv_small(x))",
        "Ding et al., RepLKNet, 2022",
    ),
    Idiom(
        "RepVGG",
        (Branch(r"conv\S+ norm"), Branch("pw norm"), Branch("norm", 0)),
        "BN(Conv3x3(x)) + BN(Conv1x1(x)) + BN(x)",
        "Ding et al., RepVGG, 2021",
    ),
    Idiom(
        "MobileOne",
        (Branch(rf"{DEPTHWISE} norm", 1, MANY), Branch(r"dw1\S* norm", 0), Branch("norm", 0)),
        "sum_k BN(DWConv_k(x)) + BN(DWConv1x1(x)) + BN(x)",
        "Vasu et al., MobileOne, 2023",
        "MobileOne ({branches} branches, depthwise)",
    ),
    Idiom(
        "MobileOne",
        (Branch("pw norm", 1, MANY), Branch("norm", 0)),
        "sum_k BN(Conv1x1_k(x)) + BN(x)",
        "Vasu et al., MobileOne, 2023",
        "MobileOne ({branches} branches, pointwise)",
    ),
    Idiom(
        "MobileOne",
        (Branch(r"conv\S+ norm", 2, MANY), Branch("pw norm", 0), Branch("norm", 0)),
        "sum_k BN(Conv_k(x)) + BN(Conv1x1(x)) + BN(x)",
        "Vasu et al., MobileOne, 2023",
        "MobileOne ({branches} branches)",
    ),
)

SINGLE = (
    Idiom("ConvBN", (Branch(rf"{CONV}( shift)? norm"),), "BN(Conv(x))", "Ioffe & Szegedy, 2015"),
    Idiom("LayerScale", (Branch(rf"{CONV}( norm)? scale"),), "gamma Conv(x)", "Touvron et al., CaiT, 2021"),
    Idiom("BNConv", (Branch(r"norm (dw|pw|conv)\S*"),), "Conv(BN(x))", "pre-activation order"),
    Idiom("BNLinear", (Branch("norm linear"),), "Linear(BN(x))", "BN in front of attention"),
)


def name_of(region: Region, facts: Facts) -> str:
    """The name of the first idiom that the region's branches match, "Affine" if there is none."""
    branches = branches_of(region, facts)
    if branches is None:
        return "Affine"
    for idiom in IDIOMS if len(branches) > 1 else SINGLE:
        if matches(idiom, branches):
            return idiom.label.format(name=idiom.name, branches=len(branches))
    return "Affine"


def matches(idiom: Idiom, branches: Sequence[str]) -> bool:
    counts = [0] * len(idiom.branches)
    for words in branches:
        index = next((i for i, b in enumerate(idiom.branches) if re.fullmatch(b.pattern, words)), None)
        if index is None:
            return False
        counts[index] += 1
    return all(b.least <= count <= b.most for b, count in zip(idiom.branches, counts, strict=True))


def branches_of(region: Region, facts: Facts) -> tuple[str, ...] | None:
    """The region's branches in words, None if there are more than anybody would name."""
    ways: dict[fx.Node, list[tuple[bool, tuple[str, ...]]]] = {region.source: [(False, ())]}
    for node in region.nodes:
        found: list[tuple[bool, tuple[str, ...]]] = []
        operands = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in ways]
        for index, operand in enumerate(operands):
            negative = facts.rules[node].subtracts and index == 1 and len(operands) > 1
            words = () if len(operands) > 1 else _words(node, facts)
            found += [(sign != negative, (*way, *words)) for sign, way in ways[operand]]
        if len(found) > MOST_BRANCHES:
            return None
        ways[node] = found
    return tuple(("- " if sign else "") + " ".join(way) for sign, way in ways[region.sink])


def _words(node: fx.Node, facts: Facts) -> tuple[str, ...]:
    """What `node` does to its one operand."""
    rule = facts.rules[node]
    if rule.kind == "layout" or not facts.maps[node]:
        return ()
    return _word(rule.word, facts.maps[node][0].map)


def _word(word: str, x: Map) -> tuple[str, ...]:
    if isinstance(x, Uniform):
        return () if x.is_identity else ("scale",)
    sizes = "x".join(str(axis.size) for axis in x.axes)
    if word:
        return (word if all(axis.size == 1 for axis in x.axes) else word + sizes,)
    return ("pick",) if x.selects else (_convolution(x, sizes),)


def _convolution(x: Affine, sizes: str) -> str:
    if x.groups == x.c_in and x.groups > 1:
        return f"dw{sizes}"
    return "pw" if all(axis.size == 1 for axis in x.axes) else f"conv{sizes}"
