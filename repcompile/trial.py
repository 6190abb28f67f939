"""Rules on trial: what a user's rule says of an operator, compared with what the operator computes.

Given: facts and a set of rules.  Result: nothing, or a `RuleError` that names the rule, the module, the largest
difference and where it is. Both run in float64, on images of two sizes, with a border and an inside; then once more in
float32, to see that the dtype is kept. Rules that their set trusts, as `DEFAULT` trusts ours, cost nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, fx

from repcompile.affine import Affine, Uniform
from repcompile.capture import Captured, called
from repcompile.compare import compare
from repcompile.emit import emit
from repcompile.errors import Inexact, RuleError
from repcompile.facts import KINDS, Facts
from repcompile.fold import fold
from repcompile.interpret import Interpreter, Remembering, evaluated, evaluated_shape
from repcompile.outcomes import Outcome, dtype_of, outcome_of
from repcompile.regions import Region, interior_of
from repcompile.rules.ruleset import Rule, RuleSet

LARGER = (4, 9)  # positions more than a border and an inside take: even and odd, divisible by a stride and not
USERS_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)  # of an operator on our random image


@dataclass(frozen=True, slots=True)
class Trial:
    """The rules of a compilation, as far as they are on trial."""

    captured: Captured
    facts: Facts
    rules: RuleSet

    def of_rules(self) -> None:
        """Compare what each rule on trial says of a node with that node alone.  Raises RuleError."""
        for node in self.facts.shapes if self.rules.untried else ():
            for rule in self.rules_of([node]):
                try:
                    self.of_node(node, rule)
                except Inexact:  # it cannot be run alone: its region will tell
                    continue

    def of_node(self, node: fx.Node, rule: Rule) -> None:
        """Compare what a rule says of one node.  Raises RuleError, or Inexact if the node cannot be run alone."""
        if rule.kind != "affine":
            self._compare_shapes(node, rule)
        elif self.facts.maps.get(node) and node in self.facts.rules and not self.facts.is_split(node):
            fact = self.facts.maps[node][0]
            interior = interior_of(fact.source, node, self.captured.graph, self.facts)
            self._compare(Region(fact, node, interior, (), (), ()), repr(rule.name), node)

    def of_region(self, region: Region) -> None:
        """Compare a region in which a rule on trial took part with its nodes.  Raises RuleError."""
        rules = self.rules_of(region.nodes)
        if rules:
            self._compare(region, " and ".join(repr(rule.name) for rule in rules), region.sink)

    def rules_of(self, nodes: Sequence[fx.Node]) -> list[Rule]:
        """The rules on trial that may have had a say in what is known of `nodes`."""
        if not self.rules.untried:
            return []
        found = [self.rules.find(node, self.captured, kind) for node in nodes for kind in KINDS]
        found += [self.facts.rules.get(node) for node in nodes]
        return list(dict.fromkeys(rule for rule in found if rule is not None and self.rules.on_trial(rule)))

    def _compare(self, region: Region, name: str, node: fx.Node) -> None:
        right: Sequence[int] | None = None
        for larger in LARGER:
            outcome = self._outcome(region, larger)
            wrong = _difference(outcome, region)
            if wrong:
                depends = f", while it is right for one of shape {tuple(right)}" if right is not None else ""
                shape = tuple(outcome.image.shape)
                self._fail(name, node, f"{wrong}, for an input of shape {shape}{depends}")
            right = outcome.image.shape
        dtype = self._dtype(region)
        if dtype is not torch.float32:
            self._fail(name, node, f"the operator makes {dtype} of torch.float32, and its map keeps the dtype")

    def _fail(self, name: str, node: fx.Node, reason: str) -> NoReturn:
        raise RuleError(f"rule {name} is wrong about {called(node, self.captured)}: {reason}; nothing is returned")

    def _outcome(self, region: Region, larger: int) -> Outcome:
        """Raises Inexact if the nodes cannot be run on a random image."""
        module = _computed(region)
        read = Remembering()  # its own, so that a fold that writes to weights shows
        try:
            return outcome_of(region, module, self.captured, self.facts, read, larger)
        except USERS_ERRORS as error:
            raise Inexact(f"it could not be checked: {error}") from error

    def _dtype(self, region: Region) -> torch.dtype:
        try:
            return dtype_of(region, self.captured, self.facts, LARGER[0], torch.float32)
        except USERS_ERRORS as error:
            raise Inexact(f"it could not be checked: {error}") from error

    def _compare_shapes(self, node: fx.Node, rule: Rule) -> None:
        """Run the node on an input of the shape that is known, where it has one, and see what it makes of it."""
        claimed, values = self.facts.shapes.get(node), [v for v in node.all_input_nodes if v in self.facts.shapes]
        shape = self.facts.shapes.get(values[0]) if len(values) == 1 else None
        if claimed is None or shape is None:
            return
        for larger in LARGER:
            names = dict.fromkeys(name for size in shape for name in size.names)
            assigned = {name: 2 + larger + index for index, name in enumerate(names)}
            image = torch.randn(evaluated_shape(shape, assigned), dtype=torch.float64)
            known = self.facts.sizes, self.facts.asked, self.facts.shapes
            interpreter = Interpreter(self.captured, *known, assigned, Remembering())
            try:
                with torch.no_grad():
                    made = tuple(interpreter.run(node, {values[0]: image}).shape)
            except (*USERS_ERRORS, AttributeError):
                return
            expected = [None if set(size.names) - set(assigned) else evaluated(size, assigned) for size in claimed]
            if len(expected) != len(made) or any(e not in (None, m) for e, m in zip(expected, made, strict=True)):
                said = ", ".join("?" if size is None else str(size) for size in expected)
                reason = f"of shape {tuple(image.shape)} it says ({said}), and the operator makes {made}"
                self._fail(repr(rule.name), node, reason)


def _computed(region: Region) -> Callable[[Tensor], Tensor]:
    """The map that the rules claim."""
    x = region.fact.map
    if isinstance(x, Uniform):
        return lambda image: x.gain * image + x.shift
    with torch.no_grad():
        return emit(x, fold(x, Remembering()))


def _difference(outcome: Outcome, region: Region) -> str:
    """What differs and where, "" if nothing does."""
    got, expected = outcome.got, outcome.expected
    if got.shape != expected.shape:
        return f"its map makes an output of shape {tuple(got.shape)}, the operator one of shape {tuple(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"its map keeps the dtype, and the operator makes {expected.dtype} of {outcome.image.dtype}"
    check = compare(got, expected, outcome.bound)
    if check.passed:
        return ""
    where = "at the border only" if _only_at_border(outcome, region) else "in the interior"
    return f"it differs by {check.error:.1e} {where}, most at {check.place}"


def _only_at_border(outcome: Outcome, region: Region) -> bool:
    """Whether the outputs that differ all read past the input's edge, or stand at the edge themselves."""
    fact = region.fact
    if fact.path:
        return False
    n_axes = len(fact.map.axes) if isinstance(fact.map, Affine) else max(outcome.image.dim() - 2, 0)
    wrong = ~((outcome.got - outcome.expected).abs() <= outcome.bound)
    inside = [slice(None)] * (wrong.dim() - n_axes)
    for axis in fact.map.axes if isinstance(fact.map, Affine) else (None,) * n_axes:
        lo, hi = (1, 1) if axis is None else (max(-(-side // axis.stride), 1) for side in (axis.lo, axis.hi))
        inside.append(slice(lo, -hi))
    return n_axes > 0 and not wrong[tuple(inside)].any()
