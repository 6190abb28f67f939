"""Which nodes do not depend on any input, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from repcompile.capture import Captured
from repcompile.errors import Inexact
from repcompile.inplace import exposed
from repcompile.spelling import name_of
from repcompile.tracing import KEPT
from repcompile.values import Constant, as_constant, computed

Evaluate = Callable[..., Any]


class Constants:
    """The part of a graph that is computed from parameters and buffers alone."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._nodes: set[fx.Node] = set()
        self._values: dict[fx.Node, Constant] = {}
        written = exposed(captured.graph, captured.opaque, captured.classes)
        for node in captured.graph.nodes:
            named = node.op == "get_attr" and str(node.target) not in captured.written
            derived = self._derived(node) and not captured.stays(node)
            if node not in written and (named or derived):
                self._nodes.add(node)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._nodes

    def value(self, node: fx.Node) -> Constant:
        """The constant that `node` is.  Raises Inexact if it is not a tensor of floating-point numbers."""
        if node not in self._values:
            self._values[node] = self._evaluated(node)
        return self._values[node]

    def evaluated(self, node: fx.Node) -> Tensor | None:
        """The tensor that `node` is, as the model computes it; a parameter if it is computed from parameters.

        None if it is no tensor, or if none of the model's own parameters and buffers is in it.
        """
        leaves, tensors = _leaves(node), self.tensors(node)
        if all(str(leaf.target).startswith(KEPT) for leaf in leaves):
            return None
        with torch.no_grad():
            value = _run(node, dict(zip(leaves, tensors, strict=True)))
        if not isinstance(value, Tensor):
            return None
        learned = value.is_floating_point() and any(isinstance(tensor, nn.Parameter) for tensor in tensors)
        value = value.detach().clone()
        return nn.Parameter(value, any(tensor.requires_grad for tensor in tensors)) if learned else value

    def is_floating(self, node: fx.Node) -> bool:
        """Whether the constant is a tensor of floating-point numbers."""
        value = self._captured.constants[str(node.target)] if node.op == "get_attr" else self.evaluated(node)
        return isinstance(value, Tensor) and value.is_floating_point()

    def keeps_dtype(self, node: fx.Node) -> bool:
        """Whether an evaluated constant of floating-point numbers has this dtype whatever the model's weights have."""
        leaves, tensors = _leaves(node), self.tensors(node)
        if node.op == "get_attr":
            return str(node.target) in self._captured.fixed
        with torch.no_grad():
            dtype = _run(node, dict(zip(leaves, tensors, strict=True))).dtype
            other = torch.float32 if dtype == torch.float64 else torch.float64
            others = [
                t.to(other) if self._follows(leaf) and t.is_floating_point() else t
                for leaf, t in zip(leaves, tensors, strict=True)
            ]
            try:
                again = _run(node, dict(zip(leaves, others, strict=True)))
            except (RuntimeError, TypeError, ValueError):  # of the user's forward, which takes no other dtype
                return False
        return bool(dtype.is_floating_point and again.dtype == dtype)

    def _follows(self, leaf: fx.Node) -> bool:
        return not str(leaf.target).startswith(KEPT) and str(leaf.target) not in self._captured.fixed

    def tensors(self, node: fx.Node) -> list[Tensor]:
        """The parameters and buffers that a constant is computed from."""
        return [self._captured.constants[str(leaf.target)] for leaf in _leaves(node)]

    def _derived(self, node: fx.Node) -> bool:
        pure = node.op in ("call_function", "call_method") and not _draws(node)
        inputs = node.all_input_nodes
        return pure and bool(inputs) and all(operand in self._nodes for operand in inputs)

    def _evaluated(self, node: fx.Node) -> Constant:
        if node.op == "get_attr":
            return as_constant(self._captured.constants[str(node.target)])
        leaves, tensors = _leaves(node), self.tensors(node)

        def evaluate(*values: Tensor) -> Any:
            return _run(node, dict(zip(leaves, values, strict=True)))

        with torch.no_grad():
            sample = evaluate(*tensors)
        if not isinstance(sample, Tensor) or not sample.is_floating_point():
            raise Inexact("a constant that is not a tensor of floating-point numbers")
        return computed(evaluate, *tensors, shape=tuple(sample.shape))


def _draws(node: fx.Node) -> bool:
    return name_of(node).removesuffix("_") in RANDOM


def _leaves(node: fx.Node) -> list[fx.Node]:
    """The `get_attr` nodes that `node` is computed from."""
    return [ancestor for ancestor in _ancestors(node) if ancestor.op == "get_attr"]


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """`node` and what it is computed from, operands first."""
    order: dict[fx.Node, None] = {}
    stack = [(node, False)]
    while stack:
        top, ready = stack.pop()
        if ready:
            order[top] = None
        elif top not in order:
            stack.append((top, True))
            stack.extend((operand, False) for operand in top.all_input_nodes)
    return list(order)


def _run(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a constant node, given those of its leaves."""
    for ancestor in _ancestors(node):
        if ancestor not in values:
            values[ancestor] = _call(ancestor, values)
    return values[node]


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


RANDOM = frozenset(
    "alpha_dropout bernoulli binomial dropout dropout1d dropout2d dropout3d empty_like exponential "
    "feature_alpha_dropout gumbel_softmax multinomial new_empty normal poisson rand_like randint_like randn_like "
    "random rrelu uniform".split()
)
