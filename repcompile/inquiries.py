"""Questions about a value's shape or device: who else could answer them, so that the value itself need not exist."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence

from torch import fx

RANK_QUESTIONS = {"ndim", "dim", "device"}
SIZE_QUESTIONS = RANK_QUESTIONS | {"shape", "size"}
ASKED = "asked"  # in a node's `meta`: values with the same answer, from the one that was asked back to the earliest


def question_of(node: fx.Node) -> str | None:
    """What `node` asks about the shape or device of its operand, None if it is no question."""
    if node.op == "call_function" and node.target is getattr and node.args[1] in SIZE_QUESTIONS:
        return str(node.args[1])
    return str(node.target) if node.op == "call_method" and node.target in ("size", "dim") else None


def other_subject(node: fx.Node, gone: Container[fx.Node]) -> fx.Node | None:
    """A value that is not `gone` and answers the question `node` as its operand does, None if there is none."""
    candidates: Sequence[fx.Node] = node.meta.get(ASKED, ())
    there = (value for value in reversed(candidates) if value.graph is node.graph and not value._erased)
    return next((value for value in there if value is not node.args[0] and value not in gone), None)


def about_batch(node: fx.Node) -> bool:
    """Whether the question is about the rank, the device, or the size of the first axis alone."""
    question = question_of(node)
    if question in RANK_QUESTIONS:
        return True
    if len(node.args) > 1 and question == "size":
        return bool(node.args[1] == 0)
    return all(user.target is operator.getitem and bool(user.args[1] == 0) for user in node.users)
