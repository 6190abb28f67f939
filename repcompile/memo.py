"""A forward that remembers what it computed from parameters alone, and computes the same the next time.

Given: the graph of two calls, one after the other.  Result: nothing if the second is the program of the first;
otherwise the memory matters, and no graph shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.fx.node import map_arg


def same_program(first: Sequence[fx.Node], second: Sequence[fx.Node], results: tuple[Any, Any]) -> bool:
    """Whether the calls compute the same from their own inputs, and the second uses only constants of the first.

    first, second: nodes of the calls, placeholders included, in order.  results: what the calls return.
    """
    own = _constant(first) | frozenset(second)
    known: dict[str, fx.Node] = {}
    twins: dict[fx.Node, fx.Node] = {}  # node -> the first one that computes the same
    for node in first:
        twins[node] = known.setdefault(_key(node, twins), node)
    for node in second:
        twin = known.get(_key(node, twins))
        if twin is None or not own.issuperset(node.all_input_nodes):
            return False
        twins[node] = twin
    mine, others = results
    return _mapped(others, twins) == _mapped(mine, twins) and _only(others, own)


def _constant(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Those that depend on no placeholder."""
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return frozenset(nodes) - varying


def _key(node: fx.Node, twins: Mapping[fx.Node, fx.Node]) -> str:
    """What `node` computes, in terms of the first call's nodes."""
    target = node.target if isinstance(node.target, str) else id(node.target)
    return repr((node.op, target, _mapped((node.args, node.kwargs), twins)))


def _mapped(arguments: Any, twins: Mapping[fx.Node, fx.Node]) -> str:
    return repr(map_arg(arguments, lambda node: twins.get(node, node)))


def _only(result: Any, allowed: frozenset[fx.Node]) -> bool:
    found: list[fx.Node] = []
    map_arg(result, lambda node: found.append(node))  # type: ignore[arg-type, func-returns-value]
    return allowed.issuperset(found)
