"""A forward that computes the same every time, also where it remembers what it computed from parameters alone.

Given: the graph of two calls, one after the other.  Result: nothing if the second is the program of the first;
otherwise the forward remembers something that matters, and no graph shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


def other_program(
    first: Sequence[fx.Node], second: Sequence[fx.Node], results: tuple[Any, Any], constants: Mapping[str, Tensor]
) -> str | None:
    """Where the second call first does what the first did not, or needs more of the first than constants: a module's
    path, None where the calls compute the same from their own inputs.

    first, second: nodes of the calls, placeholders included, in order.  results: what the calls return.
    constants: what `get_attr` targets mean.
    """
    own = _constant(first) | frozenset(second)
    known: dict[str, fx.Node] = {}
    twins: dict[fx.Node, fx.Node] = {}  # node -> the first one that computes the same
    for node in first:
        twins[node] = known.setdefault(_key(node, twins), node)
    made = [node for node in first if node.op == "get_attr"]
    for node in second:
        twin = known.get(_key(node, twins)) or _equal(node, made, constants)
        if twin is None or not own.issuperset(node.all_input_nodes):
            return str(node.meta["path"])
        twins[node] = twin
    mine, others = results
    same = _mapped(others, twins) == _mapped(mine, twins) and _only(others, own)
    return None if same else ""


def _equal(node: fx.Node, made: Sequence[fx.Node], constants: Mapping[str, Tensor]) -> fx.Node | None:
    """The constant with the numbers of `node`, which a forward makes anew in each call."""
    if node.op != "get_attr":
        return None
    tensor = constants[str(node.target)]
    return next((other for other in made if _alike(constants[str(other.target)], tensor)), None)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


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
