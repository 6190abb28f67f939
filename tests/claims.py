"""What is known of shapes before anything runs, against a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from repcompile.capture import Captured
from repcompile.facts import Facts
from repcompile.interpret import Interpreter, evaluated
from repcompile.shapes import Shape


def untrue(captured: Captured, facts: Facts, inputs: Sequence[Any]) -> Iterator[str]:
    """The claims about shapes and sizes that do not hold in the call with `inputs`, which nobody else reads.

    None is made about other ways of calling than the one that was captured.
    """
    given = inputs if captured.arguments is None else captured.arguments.values(inputs, {})
    values = {} if given is None else _values(captured, given)
    tensors = {node.name: value.shape for node, value in values.items() if isinstance(value, Tensor)}
    axes = ((name, axis, shape) for name, shape in tensors.items() for axis in range(-len(shape), len(shape)))
    assigned = {f"{name}.{axis}": shape[axis] for name, axis, shape in axes}
    for node, size in facts.sizes.items():
        if node in values and not _agree((size,), (values[node],), assigned):
            yield f"{node.name} is {values[node]}, not {size}"
    for node, known in facts.shapes.items():
        value = values.get(node)
        if known is not None and isinstance(value, Tensor) and not _agree(known, tuple(value.shape), assigned):
            yield f"{node.name} is {tuple(value.shape)}, not {known}"


def _agree(known: Shape, sizes: Sequence[int], assigned: Mapping[str, int]) -> bool:
    """Whether they are the same; of a quotient that may have a remainder, only a name is known."""
    pairs = zip(known, sizes, strict=False)
    return len(known) == len(sizes) and all(
        not assigned.keys() >= set(size.names) or evaluated(size, assigned) == other for size, other in pairs
    )


def _values(captured: Captured, given: Sequence[Any]) -> dict[fx.Node, Any]:
    """What every node returns."""
    placeholders = iter(given)
    interpreter, values = Interpreter(captured, {}, {}, lambda tensor: tensor), dict[fx.Node, Any]()
    with torch.no_grad():
        for node in captured.graph.nodes:
            if node.op != "output":
                values[node] = next(placeholders) if node.op == "placeholder" else interpreter.run(node, values)
    return values
