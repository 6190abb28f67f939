"""What is known of values before anything runs, against a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from repcompile.affine import Map, Uniform
from repcompile.capture import Captured
from repcompile.compare import compare, largest_of
from repcompile.facts import Facts
from repcompile.fold import apply
from repcompile.interpret import Interpreter, evaluated
from repcompile.shapes import Shape
from repcompile.testing.checks import TOLERANCE


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


def untrue_maps(captured: Captured, facts: Facts, inputs: Sequence[Tensor]) -> Iterator[str]:
    """The facts that do not hold for `inputs`, of float64: a value is its map of its source, along its path."""
    values = _values(captured, inputs)
    interpreter = Interpreter(captured, {}, {}, {}, {}, lambda tensor: tensor)
    with torch.no_grad():
        for node, fact in ((node, fact) for node, found in facts.maps.items() for fact in found):
            image = values[fact.source]
            for place, step in enumerate((*fact.path, None)):
                image = mapped(fact.map, image) if place == fact.at else image
                if step is not None:
                    image = interpreter.run(step.node, {**values, step.node.all_input_nodes[0]: image})
            check = compare(image, values[node], TOLERANCE * max(1.0, largest_of(values[node])))
            if not check.passed:
                yield f"{node.name} of {fact.source.name} differs by {check.error:.1e}"


def mapped(x: Map, image: Tensor) -> Tensor:
    """What a map makes of an image, which may have any number of axes in front of the channels."""
    if isinstance(x, Uniform):
        return x.gain * image + x.shift
    batch = max(image.dim() - 1 - len(x.axes), 1)
    return apply(x, image.flatten(0, batch - 1)).unflatten(0, image.shape[:batch])


def _agree(known: Shape, sizes: Sequence[int], assigned: Mapping[str, int]) -> bool:
    """Whether they are the same; of a quotient that may have a remainder, only a name is known."""
    pairs = zip(known, sizes, strict=False)
    return len(known) == len(sizes) and all(
        not assigned.keys() >= set(size.names) or evaluated(size, assigned) == other for size, other in pairs
    )


def _values(captured: Captured, given: Sequence[Any]) -> dict[fx.Node, Any]:
    """What every node returns."""
    placeholders = iter(given)
    interpreter, values = Interpreter(captured, {}, {}, {}, {}, lambda tensor: tensor), dict[fx.Node, Any]()
    with torch.no_grad():
        for node in captured.graph.nodes:
            if node.op != "output":
                values[node] = next(placeholders) if node.op == "placeholder" else interpreter.run(node, values)
    return values
