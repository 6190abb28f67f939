"""Borders written by hand: zeros around an image, then overwritten side by side with a value for each channel.

Given: a functionalized graph, which this stage takes over.  Result: the same graph with one operator, `surrounded`, for
a padding and the assignments that cover all of it.  That is how DBB and ECBSR pad with what a batch norm makes of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import fx

from repcompile.modules import put, surrounded

EVERYTHING = slice(None)
Side = tuple[int, bool]  # (axis counted from the end, whether behind the image)


def surround(graph: fx.Graph) -> None:
    """Replace every padding that is overwritten as a whole."""
    for node in list(graph.nodes):
        if node.target is F.pad and _plain(node):
            _replace(node)


def _plain(pad: fx.Node) -> bool:
    widths = pad.args[1] if len(pad.args) > 1 else None
    constant = len(pad.args) < 3 or pad.args[2] == "constant"
    return bool(constant) and isinstance(widths, list | tuple) and all(isinstance(w, int) and w >= 0 for w in widths)


def _replace(pad: fx.Node) -> None:
    """Follow the assignments behind `pad`; they must write one value to every side, and to nothing else."""
    widths: Sequence[int] = pad.args[1]  # type: ignore[assignment]
    wanted = {(i // 2 + 1, i % 2 == 1): width for i, width in enumerate(widths) if width}
    node, value = pad, None
    rank = 0
    while wanted and len(node.users) == 1:
        (user,) = node.users
        side = _side(user, node)
        if side is None or wanted.pop(side[0], None) != side[1] or value not in (None, user.args[2]):
            return
        if rank not in (0, len(user.args[1])):  # type: ignore[arg-type]
            return
        node, value, rank = user, user.args[2], len(user.args[1])  # type: ignore[arg-type]
    if wanted or not isinstance(value, fx.Node):
        return
    with node.graph.inserting_before(node):
        new = node.graph.call_function(surrounded, (pad.args[0], tuple(widths), value, rank))
    new.meta = {"path": pad.meta.get("path", "")}
    node.replace_all_uses_with(new)
    while node is not pad:
        before: Any = node.args[0]
        node.graph.erase_node(node)
        node = before
    pad.graph.erase_node(pad)


def _side(user: fx.Node, node: fx.Node) -> tuple[Side, int] | None:
    """(side, width) that an assignment overwrites, None if it does something else."""
    if user.target is not put or user.args[0] is not node or user.kwargs or not isinstance(user.args[1], tuple):
        return None
    index = user.args[1]
    sliced = [i for i, entry in enumerate(index) if entry != EVERYTHING]
    if len(sliced) != 1 or not isinstance(index[sliced[0]], slice):
        return None
    start, stop, step = (getattr(index[sliced[0]], name) for name in ("start", "stop", "step"))
    axis = len(index) - sliced[0]
    if step not in (None, 1):
        return None
    if start in (None, 0) and isinstance(stop, int) and stop > 0:
        return (axis, False), stop
    if isinstance(start, int) and start < 0 and stop is None:
        return (axis, True), -start
    return None
