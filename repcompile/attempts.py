"""Two ways to compute a value, compared on random inputs of two sizes: a rewrite rule's trial.

The shapes of the inputs are those that are known; where they are not, images, signals and vectors with as many channels
as some module or constant nearby has, whichever runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from repcompile.capture import Captured
from repcompile.compare import compare, largest_of
from repcompile.errors import Inexact, RuleError
from repcompile.facts import Facts
from repcompile.interpret import Interpreter, evaluated_shape
from repcompile.shapes import Shape
from repcompile.tracing import KEPT

SIZES = ((0, 4.0), (3, 16.0))  # (positions more, standard deviation): small values and such that saturate
CHANNELS = ("in_channels", "num_features", "in_features", "num_channels", "normalized_shape")
TOLERANCE = torch.finfo(torch.float64).eps ** 0.5  # half of the digits: what is not linear may magnify rounding
USERS_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True)
class Attempts:
    """inputs: the values that both ways read.  old: the nodes of the one that is replaced, in graph order."""

    captured: Captured
    facts: Facts
    inputs: Sequence[Any]
    old: Sequence[fx.Node]

    def compare(self, rule: str, place: str, root: fx.Node, new: Sequence[fx.Node], result: fx.Node) -> float:
        """The largest relative difference between `root` and `result`, which the nodes `new` compute.

        Raises RuleError if they differ, Inexact if the old nodes do not run on any random input.
        """
        guess = self._guess(root)
        worst = 0.0
        for more, scale in SIZES:
            values = self._values(guess, more, scale)
            shapes = ", ".join(str(tuple(value.shape)) for value in values.values())
            expected = self._run(self.old, values, torch.float64)[root]
            try:
                got = self._run(new, values, torch.float64)[result]
            except USERS_ERRORS as error:
                _wrong(rule, place, f"its replacement fails on inputs of shape {shapes}: {error}")
            worst = max(worst, _compared(rule, place, got, expected, shapes))
        self._compare_dtypes(rule, place, guess, root, new, result)
        return worst

    def _compare_dtypes(
        self, rule: str, place: str, guess: _Guess, root: fx.Node, new: Sequence[fx.Node], result: fx.Node
    ) -> None:
        values = {node: value.float() for node, value in self._values(guess, 0, 1.0).items()}
        try:
            old, fresh = self._run(self.old, values, torch.float32)[root], self._run(new, values, torch.float32)[result]
        except USERS_ERRORS as error:
            raise Inexact(f"it could not be checked in float32: {error}") from error
        if old.dtype != fresh.dtype:
            _wrong(rule, place, f"its replacement makes {fresh.dtype} of torch.float32, its pattern {old.dtype}")

    def _guess(self, root: fx.Node) -> _Guess:
        """The first shapes on which the old nodes run."""
        reason = ""
        for guess in self._guesses():
            try:
                for more, scale in SIZES:
                    made = self._run(self.old, self._values(guess, more, scale), torch.float64)[root]
                    if not isinstance(made, Tensor):
                        raise Inexact("it is no tensor")
                return guess
            except USERS_ERRORS as error:
                reason = reason or str(error)
        raise Inexact(f"it could not be checked: {reason}")

    def _guesses(self) -> Iterator[_Guess]:
        nodes = [node for node in self.inputs if isinstance(node, fx.Node) and node not in self.facts.constants]
        known = {node: shape for node in nodes if (shape := self.facts.shapes.get(node)) is not None}
        if len(known) == len(nodes):
            yield _Guess(known)
        for channels in dict.fromkeys((*self._channels(nodes), 6)):
            for shape in (
                (2, channels, 7, 8),
                (2, channels, 9),
                (2, 5, channels),
                (2, channels),
                (2, channels, 4, 5, 6),
            ):
                yield _Guess({}, shape, tuple(nodes))

    def _channels(self, nodes: Sequence[fx.Node]) -> Iterator[int]:
        for node in self.old:
            module: Any = self.captured.modules.get(str(node.target)) if node.op == "call_module" else None
            for name in CHANNELS:
                value = getattr(module, name, None)
                value = value[-1] if isinstance(value, tuple) and value else value
                if isinstance(value, int):
                    yield value
        for node in (n for each in self.old for n in each.all_input_nodes if n in self.facts.constants):
            for tensor in self.facts.constants.tensors(node):
                yield from (size for size in tensor.shape if size > 1)

    def _values(self, guess: _Guess, more: int, scale: float) -> dict[fx.Node, Tensor]:
        generator = torch.Generator().manual_seed(more)
        shapes = guess.shapes(more)
        return {
            node: torch.randn(shape, dtype=torch.float64, generator=generator) * scale for node, shape in shapes.items()
        }

    def _run(
        self, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Tensor], dtype: torch.dtype
    ) -> dict[fx.Node, Any]:
        constants = self.captured.constants if dtype is torch.float32 else {}  # a model in float32 has them as they are
        kept = {id(tensor) for name, tensor in constants.items() if name.startswith(KEPT)}

        def read(tensor: Tensor) -> Tensor:
            kind = dtype if tensor.is_floating_point() and id(tensor) not in kept else tensor.dtype
            return tensor.detach().to("cpu", kind, copy=True)

        interpreter = Interpreter(self.captured, self.facts.sizes, self.facts.asked, self.facts.shapes, {}, read)
        known: dict[fx.Node, Any] = dict(values)
        with torch.no_grad():
            for node in nodes:
                known[node] = interpreter.run(node, known)
        return known


@dataclass(frozen=True, slots=True)
class _Guess:
    """Shapes of the inputs: the known ones, with integers for what is not known; or one for all."""

    known: Mapping[fx.Node, Shape]
    shape: tuple[int, ...] = ()
    nodes: tuple[fx.Node, ...] = ()

    def shapes(self, more: int) -> dict[fx.Node, tuple[int, ...]]:
        if self.nodes:
            tokens = len(self.shape) == 3 and self.shape[1] == 5
            wider = (1,) if tokens else range(2, len(self.shape))
            sizes = tuple(size + more * (axis in wider) for axis, size in enumerate(self.shape))
            return dict.fromkeys(self.nodes, sizes)
        names = dict.fromkeys(name for shape in self.known.values() for size in shape for name in size.names)
        assigned = {name: 2 + more + index for index, name in enumerate(names)}
        return {node: evaluated_shape(shape, assigned) for node, shape in self.known.items()}


def _compared(rule: str, place: str, got: Any, expected: Tensor, shapes: str) -> float:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        _wrong(rule, place, f"its replacement makes {shape} of inputs of shape {shapes}, its pattern {expected.shape}")
    if got.dtype != expected.dtype:
        _wrong(rule, place, f"its replacement makes {got.dtype} of torch.float64, its pattern {expected.dtype}")
    check = compare(got.double(), expected.double(), TOLERANCE * max(largest_of(expected.double()), 1.0))
    if not check.passed:
        where = "at the border only" if _only_at_border(got, expected, check.bound) else "in the interior"
        reason = f"its replacement differs by {check.error:.1e} {where}, most at {check.place}"
        _wrong(rule, place, f"{reason}, for inputs of shape {shapes}")
    return check.relative


def _only_at_border(got: Tensor, expected: Tensor, bound: float) -> bool:
    n_axes = max(got.dim() - 2, 0)
    wrong = ~((got - expected).abs() <= bound)
    inside = (slice(None),) * (got.dim() - n_axes) + (slice(1, -1),) * n_axes
    return n_axes > 0 and not wrong[inside].any()


def _wrong(rule: str, place: str, reason: str) -> NoReturn:
    raise RuleError(f"rewrite rule {rule!r} is wrong about {place}: {reason}; nothing is returned")
