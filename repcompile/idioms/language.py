"""The language of idioms: a formula of a paper as a Python function of `x`, made of words for operators.

    @idiom("CPE", source="Chu et al., CPVT, 2021")
    def cpe(x):
        "DWConv(x) + x"
        return depthwise(x) + x

A region is the sum of its branches, the ways from its source to its sink, and so is a formula: `scale(a + b)` is
`scale(a) + scale(b)`. The region has the idiom's name if every branch is one of the formula's, and each of these occurs
often enough. A name decides nothing: the algebra has done that before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from repcompile.errors import RuleError

MANY = 64


@dataclass(frozen=True, slots=True)
class Branch:
    """A regular expression for the words of a branch, each with a space behind it, and how many branches may match."""

    pattern: str
    negative: bool = False
    least: int = 1
    most: int = 1

    def accepts(self, words: str) -> bool:
        """Whether a branch, in the words of a report, is one of these."""
        negative, plain = words.startswith("- "), words.removeprefix("- ").split()
        return (
            negative == self.negative and re.fullmatch(self.pattern, "".join(f"{word} " for word in plain)) is not None
        )


@dataclass(frozen=True, slots=True)
class Formula:
    """A sum of branches."""

    branches: tuple[Branch, ...]

    def __add__(self, other: Formula) -> Formula:
        return Formula(self.branches + other.branches)

    def __neg__(self) -> Formula:
        return Formula(tuple(replace(branch, negative=not branch.negative) for branch in self.branches))

    def __sub__(self, other: Formula) -> Formula:
        return self + -other


@dataclass(frozen=True, slots=True)
class Word:
    """An operator, or one of several.  expression: a regular expression for its word in reports."""

    expression: str
    optional: bool = False

    def __call__(self, x: Formula) -> Formula:
        """The operator behind each branch of `x`."""
        pattern = f"({self.expression} )" + ("?" if self.optional else "")
        return Formula(tuple(replace(branch, pattern=branch.pattern + pattern) for branch in x.branches))

    def __or__(self, other: Word) -> Word:
        return Word(f"({self.expression}|{other.expression})")

    def of(self, *sizes: int | str) -> Word:
        """Only with windows of these sizes: the first axis, or all of them, as in "1x3"."""
        name = self.expression.partition(r"(")[0].partition("\\")[0]
        known = "|".join(str(size) if isinstance(size, str) else rf"{size}(x\d+)*" for size in sizes)
        return Word(f"{name}({known})")

    def at_least(self, size: int) -> Word:
        """Only with windows of at least this size."""
        return self.of(*range(size, MANY))


@dataclass(frozen=True, slots=True, eq=False)
class Idiom:
    """A name for regions whose branches match: every branch one of the formula's, each of these often enough.

    formula, source: for people.  label: how reports show it; `{branches}` is replaced by their number.
    """

    name: str
    branches: tuple[Branch, ...]
    formula: str
    source: str
    label: str = "{name}"
    kind: str = "idiom"

    def matches(self, branches: Sequence[str]) -> bool:
        """Whether branches, in the words of reports, are this idiom; one branch is no sum that lacks the others."""
        counts = [0] * len(self.branches)
        for words in branches:
            index = next((i for i, branch in enumerate(self.branches) if branch.accepts(words)), None)
            if index is None:
                return False
            counts[index] += 1
        enough = all(b.least <= count <= b.most for b, count in zip(self.branches, counts, strict=True))
        return enough and (len(branches) > 1 or len(self.branches) == 1)

    def called(self, branches: Sequence[str]) -> str:
        return self.label.format(name=self.name, branches=len(branches))


def idiom(name: str, source: str = "", label: str = "{name}") -> Callable[[Callable[[Formula], Formula]], Idiom]:
    """Declare a name: the decorated function is the formula, its docstring the formula as people write it."""

    def declare(function: Callable[[Formula], Formula]) -> Idiom:
        formula = function(Formula((Branch(""),)))
        if not isinstance(formula, Formula):
            raise RuleError(f"idiom {name!r}: its formula is a {type(formula).__name__}, not a sum of branches of x")
        return Idiom(name, formula.branches, (function.__doc__ or "").strip(), source, label)

    return declare


def name_of_branches(idioms: Sequence[Idiom], branches: Sequence[str]) -> str | None:
    """What the last of the idioms that match calls the branches, None if none does."""
    return next((each.called(branches) for each in reversed(idioms) if each.matches(branches)), None)


def maybe(part: Word) -> Word:
    """An operator that may be missing."""
    return replace(part, optional=True)


def perhaps(part: Formula) -> Formula:
    """Branches that may be missing."""
    return Formula(tuple(replace(branch, least=0) for branch in part.branches))


def many(part: Formula, least: int = 1) -> Formula:
    """Branches that occur any number of times."""
    return Formula(tuple(replace(branch, least=least, most=MANY) for branch in part.branches))


def word(text: str) -> Word:
    """The word that a rule of one's own gives its operator, whatever its window."""
    return Word(rf"{re.escape(text)}(\d+(x\d+)*)?")


conv = Word(r"conv\d+(x\d+)*")  # with a window, dense or in groups
depthwise = Word(r"dw(?!1(x1)* )\d+(x\d+)*")  # with a window
channelwise = Word(r"dw1(x1)*")  # 1x1 and depthwise
pointwise = Word("pw")  # 1x1 and dense
linear = Word("linear")
norm = Word("norm")
scale = Word("scale")
shift = Word("shift")
pad = Word("pad")
pick = Word("pick")
pool = Word(r"pool(\d+(x\d+)*)?")
layer = conv | depthwise | channelwise | pointwise | linear
