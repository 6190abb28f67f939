"""What an operator of drawn programs is: how it is drawn, and how it is written down as Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from torch import Tensor

from tests.fuzz.program import Params, Step

LARGEST = 16  # channels
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """lines: statements that assign to `{out}`, or an expression; "$" is the step's own attribute.

    attributes: constructors by suffix, "" for the attribute itself.
    """

    lines: str
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program so far.  tensors: in the two calls; of a tuple, none.  parts: how many a tuple has."""

    index: int
    tensors: tuple[Tensor, ...]
    parts: int = 0

    @property
    def shape(self) -> Shape:
        return tuple(self.tensors[0].shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensors[0].dtype).removeprefix("torch.")

    @property
    def channels(self) -> int:
        return self.shape[1]

    def fixed(self, axis: int) -> bool:
        """Whether both calls have the same size there."""
        return len({tensor.shape[axis] for tensor in self.tensors}) == 1

    def like(self, other: Value) -> bool:
        """Whether both have the same shape in both calls, and the same dtype."""
        shapes = [[tuple(t.shape) for t in value.tensors] for value in (self, other)]
        return shapes[0] == shapes[1] and self.dtype == other.dtype


class NotHere(Exception):
    """The operator takes none of the values that there are."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The dice, and the values that a step may read."""

    random: Random
    values: Sequence[Value]
    steps: Sequence[Step]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def among(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def value(self, wanted: Callable[[Value], bool] = lambda _: True) -> Value:
        """One of the values that are `wanted`, the last ones more often."""
        found = [value for value in self.values if value.tensors and wanted(value)]
        if not found:
            raise NotHere
        return found[-1] if self.chance(0.6) else self.random.choice(found)

    def image(self) -> Value:
        """Batch, channels, and one to three axes."""
        return self.value(lambda v: 3 <= v.rank <= 5 and v.fixed(1))

    def tokens(self) -> Value:
        """Something whose last axis is as long in both calls."""
        return self.value(lambda v: v.rank >= 2 and v.fixed(-1) and v.shape[-1] <= 2 * LARGEST)

    def also_like(self, value: Value) -> Value:
        """Another value of the same shape, or the same one."""
        return self.value(lambda v: v.like(value))

    def part_of(self, size: int) -> int:
        """One of its divisors."""
        return self.random.choice([n for n in range(1, size + 1) if size % n == 0])

    def channels(self, like: int) -> int:
        """How many come out: mostly as many as went in."""
        return like if self.chance(0.5) else self.random.randint(1, 8)

    def step(self, op: str, *reads: Value, **params: Any) -> Step:
        """The step; its weights have the dtype of what it reads first."""
        dtype = reads[0].dtype if reads else ""
        return Step(op, tuple(value.index for value in reads), params, self.random.randrange(10**6), dtype)


@dataclass(frozen=True, slots=True)
class Operator:
    """draw: one or several steps; raises NotHere.  write: of a step and the names of what it reads.

    weight: how often it is tried.
    """

    name: str
    draw: Callable[[Draw], Step]
    write: Callable[[Params, Sequence[str], str], Code]
    weight: float = 1.0
