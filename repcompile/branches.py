"""A region in words: what reports show, and what idioms are compared with.

A region is the sum of its branches, the ways from source to sink; each is written as words, in the order in which
data flows: `dw7x7` (depthwise), `pw` (1x1), `conv3x3`, `linear`, `norm`, `scale`, `shift`, `pool2x2`, `pad`, `pick`.
The empty branch is a skip; `-` in front marks one that is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from repcompile.affine import Affine, Map, Uniform
from repcompile.facts import Facts
from repcompile.idioms import IDIOMS, Idiom, name_of_branches
from repcompile.regions import Region

MOST_BRANCHES = 64


def name_of(region: Region, facts: Facts, idioms: Sequence[Idiom] = IDIOMS) -> str:
    """What the last idiom that the region's branches match calls it, "Affine" if there is none."""
    branches = branches_of(region, facts)
    return "Affine" if branches is None else name_of_branches(idioms, branches) or "Affine"


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
