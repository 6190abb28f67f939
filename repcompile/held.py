"""What the value of an expression may be, or hold, as far as modules go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

Held = frozenset[tuple[str, int]]  # (path of a module, number of Python containers around it)
NONE: Held = frozenset()


@dataclass(frozen=True, slots=True)
class Passed:
    """The arguments of a call.

    named: (name, value), with None for the name in `**value`.  starred: what `*args` held, at any position.
    """

    plain: Sequence[Held] = ()
    named: Sequence[tuple[str | None, Held]] = ()
    starred: Held = NONE

    @property
    def all(self) -> Held:
        return union((*self.plain, *(value for _, value in self.named), self.starred))

    def behind(self, first: Held) -> Passed:
        """With one more in front."""
        return replace(self, plain=[first, *self.plain])

    @property
    def rest(self) -> Passed:
        """Without the first."""
        return replace(self, plain=self.plain[1:])


def itself(path: str) -> Held:
    return frozenset(((path, 0),))


def union(values: Iterable[Held]) -> Held:
    return frozenset().union(*values)
