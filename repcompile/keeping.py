"""Which statements stay Python in the course of a trace: found where a forward fails, and recorded as one node each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from types import MethodType
from typing import Any

from torch import Tensor, nn

from repcompile.copies import is_plain
from repcompile.handover import hand_over
from repcompile.proxies import Value
from repcompile.reasons import line_in, reason_of
from repcompile.records import records_of
from repcompile.statements import (
    KeptStatement,
    Statement,
    parameter,
    plain_forward,
    redecorated,
    statement_at,
    with_statements,
)

NAME = "python_"  # of the nodes, and a number


class Keeping:
    """The statements that stay Python.

    tracer: has `create_proxy`, `refusal(reason)`, and `failures`, which gets the reasons.
    statements: those recorded so far, by the path that their nodes name.
    """

    def __init__(self, tracer: Any) -> None:
        self.statements: dict[str, KeptStatement] = {}
        self._tracer = tracer
        self._taken = {path for path, _ in tracer.root.named_modules()} | set(tracer.root.state_dict())
        self._inside: dict[str, dict[Statement, str]] = {}  # path of a module -> those of its forward, and why

    def one_more(
        self, error: Exception, forward: Callable[..., Any], path: str, is_as_before: Callable[[], bool]
    ) -> bool:
        """Whether the forward of the module at `path` can be tried again, with the statement that failed kept.

        is_as_before: whether the first time has left nothing behind; asked last, as it looks at the whole model.
        """
        function = plain_forward(forward)
        line = None if function is None else line_in(error, function.__code__)
        method: Any = forward
        statement = None if function is None or line is None else statement_at(method.__func__, line)
        kept = self._inside.setdefault(path, {})
        if statement is None or statement in kept or not is_as_before():
            return False
        kept[statement] = reason_of(error)
        return True

    def applied(self, forward: Callable[..., Any], path: str) -> Callable[..., Any]:
        """The forward that records the statements kept so far."""
        kept = self._inside.get(path)
        function = plain_forward(forward) if kept else None
        if not kept or function is None:
            return forward
        recorders = [self._recorder(statement, path, reason) for statement, reason in kept.items()]
        method: Any = forward
        made = redecorated(method.__func__, function, with_statements(function, list(kept), recorders))
        return MethodType(made, method.__self__)

    def _recorder(self, statement: Statement, path: str, reason: str) -> Callable[..., Any]:
        def record(*values: Any) -> Any:
            named = dict(zip(map(parameter, statement.reads), values, strict=True))
            given = {name: value for name, value in named.items() if _depends_on_inputs(value)}
            fixed = self._fixed({name: value for name, value in named.items() if name not in given}, statement)
            name = self._name(path, KeptStatement(statement, list(given), fixed))
            self._tracer.failures[name] = reason
            result = self._tracer.create_proxy("call_module", name, tuple(given.values()), {})
            hand_over(tuple(given.values()), name, self._tracer)
            return tuple(result[place] for place in range(len(statement.writes)))

        return record

    def _name(self, path: str, kept: KeptStatement) -> str:
        """A name for the statement in the module at `path`: the same for what is the same, as it remembers nothing."""
        names = (f"{path}.{NAME}{number}".lstrip(".") for number in count())
        free = (name for name in names if name not in self._taken)
        return next(name for name in free if self.statements.setdefault(name, kept).same(kept))

    def _fixed(self, values: Mapping[str, Any], statement: Statement) -> dict[str, Any]:
        """What stands for what a statement reads and no input decides."""
        modules = {name: value for name, value in values.items() if isinstance(value, nn.Module)}
        strange = next((v for name, v in values.items() if name not in modules and not is_plain(v)), None)
        if strange is not None:
            raise self._tracer.refusal(f"reads a {type(strange).__name__} in a statement that stays Python")
        records = records_of(statement.node, statement.function, modules)
        if records is None:
            raise self._tracer.refusal("does more with a module than to read its numbers, in a statement of Python")
        return {**values, **records}


def _depends_on_inputs(value: Any) -> bool:
    """Whether it is, or holds, a value of the graph, or a tensor."""
    if isinstance(value, Value) or not isinstance(value, tuple | list | dict):
        return isinstance(value, Value | Tensor)
    return any(map(_depends_on_inputs, value.values() if isinstance(value, dict) else value))
