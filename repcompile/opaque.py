"""Inside a module that stays Python: which of the modules in it may be compiled on their own.

A compiled module is another object than the one that the forward was written for, so only one that is called, and
never looked into, can be exchanged. Containers may be iterated and indexed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from repcompile.reading import usage_of


def exchangeable_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, child) of the outermost modules that `module` only ever calls, by way of containers too."""
    usage = usage_of(module)
    times = Counter(map(id, (part for _, part in module.named_modules(remove_duplicate=False))))
    stack = [("", module)] if "" not in usage.looked else []
    while stack:
        path, part = stack.pop()
        for name, child in part.named_children():
            place = f"{path}.{name}".lstrip(".")
            if place in usage.looked or times[id(child)] > 1:
                continue
            if place in usage.entered:
                stack.append((place, child))
            else:
                yield place, child
