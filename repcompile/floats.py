"""Which values surely hold floating-point numbers, whatever the model is called with.

An image may come as bytes: `x / 255` makes floating point of it, and a convolution that took the division in would be
given integers. Given: a graph and the rules.  Result: the values that cannot be integers, because of the operator that
makes them, or of one that reads them: the graph is a straight line, so that all of its operators run.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Sequence
from types import BuiltinFunctionType, NoneType
from typing import Any

import torch
from torch import fx

from repcompile.capture import Captured
from repcompile.constants import Constants
from repcompile.inplace import is_opaque
from repcompile.rules.ruleset import KINDS, Rule, RuleSet
from repcompile.spelling import name_of

MOVING = ("to", "type_as", "cpu", "cuda", "view_as", "expand_as")
CASTS = ("float", "double", "half", "bfloat16")
# Operators without a rule that make nothing but floating point of floating point.
PASSING = frozenset(
    (
        *("bmm", "baddbmm", "scaled_dot_product_attention", "where", "maximum", "minimum", "lerp", "pow", "addmm"),
        *("cumsum", "sum", "amax", "amin", "stack", "expand", "repeat", "masked_fill", "unbind", "to_dense", "detach"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "grid_sample", "unfold", "fold"),
    )
)


def floating_values(
    captured: Captured, rules: RuleSet, constants: Constants, numbers: Container[fx.Node]
) -> frozenset[fx.Node]:
    """The nodes whose values are floating-point tensors, or tuples of them.

    numbers: the nodes that are computed from sizes alone.
    """
    search = _Search(captured, rules, constants, numbers)
    search.forward()
    search.backward()
    search.forward()
    return frozenset(search.found)


class _Search:
    def __init__(self, captured: Captured, rules: RuleSet, constants: Constants, numbers: Container[fx.Node]) -> None:
        self._captured = captured
        self._constants = constants
        self._numbers = numbers
        nodes = [node for node in captured.graph.nodes if node not in numbers and node.op != "output"]
        self._rules: dict[fx.Node, Rule | None] = {}
        for node in nodes:
            found = (rules.find(node, captured, kind) for kind in KINDS)
            self._rules[node] = next((rule for rule in found if rule is not None), None)
        self.found: set[fx.Node] = {node for node in nodes if node in constants and constants.is_floating(node)}

    def forward(self) -> None:
        """From operands to results."""
        for node, rule in self._rules.items():
            if node not in self.found and node not in self._constants and self._is_made(node, rule):
                self.found.add(node)

    def backward(self) -> None:
        """From results, and from operators that take nothing else, to operands."""
        for node, rule in reversed(self._rules.items()):
            if rule is not None and node not in self._constants:
                self.found.update(self._required(node, rule))

    def _is_made(self, node: fx.Node, rule: Rule | None) -> bool:
        dtype = _asked_dtype(node)
        if dtype is not None:
            return dtype.is_floating_point
        if self._gives_indices(node):
            return False
        operands = self._operands(node)
        if rule is None:
            return self._is_passed_on(node, operands)
        if rule.dtype in ("floating", "made"):
            return "rounding_mode" not in node.kwargs
        if rule.dtype == "same":
            return _first(node) in self.found
        literal = rule.elementwise and any(isinstance(arg, float) for arg in node.args)
        return rule.dtype in ("common", "promoted") and (literal or not self.found.isdisjoint(operands))

    def _is_passed_on(self, node: fx.Node, operands: Sequence[fx.Node]) -> bool:
        """Of an operator without a rule."""
        known = not self.found.isdisjoint(operands)
        if node.op == "call_module":
            own = self._captured.torch_class(node) is not NoneType and not is_opaque(node, self._captured.opaque)
            return own and (known or any(True for _ in self._captured.module(node).parameters()))
        if node.op not in ("call_function", "call_method"):
            return False
        name = name_of(node)
        if name in MOVING:  # perhaps to the dtype of another operand
            return bool(operands) and self.found.issuperset(operands)
        one_of = len(node.args) == 1 and name == "where"  # the places that are not zero
        return name in CASTS or (name in PASSING and known and not one_of)

    def _gives_indices(self, node: fx.Node) -> bool:
        """Whether it is a pool that returns the places of the largest values, as torch's own adaptive ones do."""
        if node.op == "call_module":
            return bool(getattr(self._captured.module(node), "return_indices", False))
        if isinstance(node.target, BuiltinFunctionType) and "adaptive_max_pool" in name_of(node):  # not F's
            return True
        return bool(node.kwargs.get("return_indices")) or ("max_pool" in name_of(node) and True in node.args[2:])

    def _required(self, node: fx.Node, rule: Rule) -> Iterable[fx.Node]:
        """The operands that cannot be integers."""
        first = _first(node)
        settled = not isinstance(first, fx.Node) or first in self._numbers or first in self._constants
        known = () if settled else (first,)
        if rule.dtype == "floating":
            return known
        if node not in self.found or _asked_dtype(node) is not None or self._gives_indices(node):
            return ()
        if rule.dtype == "common":
            return [operand for operand in self._operands(node) if operand not in self._constants]
        if rule.dtype == "same":
            return () if self._picks_part(node) else known
        # a Python integer leaves the dtype alone, and makes no floating point of integers
        leaves = rule.dtype == "promoted" and rule.elementwise and len(node.all_input_nodes) == 1
        return self._operands(node) if leaves and not any(isinstance(arg, float) for arg in node.args) else ()

    def _picks_part(self, node: fx.Node) -> bool:
        """Whether it picks something from what may be a tuple or a dict, whose other parts may be anything."""
        if node.target is not operator.getitem or not isinstance(node.args[1], int | str):
            return False
        rule = self._rules.get(node.args[0])  # type: ignore[arg-type]
        return rule is None or not rule.wants("part")

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that it reads, in order."""
        return [operand for operand in node.all_input_nodes if operand not in self._numbers]


def _first(node: fx.Node) -> Any:
    """What it works on, by position or by name."""
    return node.args[0] if node.args else node.kwargs.get("input")


def _asked_dtype(node: fx.Node) -> torch.dtype | None:
    """The dtype that the call names, which the result has then."""
    if node.op not in ("call_function", "call_method"):
        return None
    named = (*node.args, *node.kwargs.values())
    return next((value for value in named if isinstance(value, torch.dtype)), None)
