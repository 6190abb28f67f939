"""What a module remembers from one call to the next: its attributes before and after a forward, compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from repcompile.copies import PLAIN, is_empty_table
from repcompile.proxies import Value

ANOTHER = "computes something else when it is called again"
FOR_THE_MOMENT = "calls modules that it changed before: weights, hooks or settings that they have for this call"
DEPTH = 4
TABLES = ("_parameters", "_buffers", "_modules", "forward", "_compiled_call_impl")


class Remembers(Exception):
    """A forward that leaves something for its next call, which no graph shows.

    paths: the modules that may have done it.  how: what they did.
    """

    def __init__(self, paths: tuple[str, ...], how: str = "changes attributes of the module") -> None:
        super().__init__(f"its forward {how}")
        self.paths = paths


Snapshot = Mapping[int, Mapping[str, Any]]


def snapshot(model: nn.Module) -> Snapshot:
    """What the attributes of every module are worth, as far as one can compare, by its id."""
    return {id(module): _attributes(module) for module in model.modules()}


def changes(model: nn.Module, before: Snapshot) -> tuple[str, ...]:
    """Paths of the modules whose attributes a forward in between wrote to.

    before: of the model, or of one that it is a part of.
    """
    return tuple(path for path, module in model.named_modules() if _attributes(module) != before.get(id(module)))


def contents(model: nn.Module) -> Snapshot:
    """A snapshot for whom equal containers are the same."""
    return {id(module): _attributes(module, lambda container: 0) for module in model.modules()}


def _attributes(module: nn.Module, identity: Callable[[Any], int] = id) -> dict[str, Any]:
    own = {name: _worth(value, identity) for name, value in vars(module).items() if name not in TABLES}
    own["__class__"] = type(module)
    for table in TABLES:
        entries = vars(module).get(table)
        if isinstance(entries, dict):
            own[table] = {name: id(value) for name, value in dict.items(entries)}
    return own


def _worth(value: Any, identity: Callable[[Any], int], depth: int = DEPTH) -> Any:
    if type(value) in PLAIN:
        return value
    if is_empty_table(value):
        return identity(value), None
    if isinstance(value, Value):
        return id(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version, _place(value) if depth == DEPTH else None
    if depth and type(value) in (tuple, frozenset):  # which nobody writes to: equal ones are the same
        return type(value), [_worth(item, identity, depth - 1) for item in value]
    if depth and type(value) in (list, set, deque):
        return identity(value), [_worth(item, identity, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return identity(value), {str(name): _worth(item, identity, depth - 1) for name, item in dict.items(value)}
    state = getattr(value, "__dict__", None)
    plain = not isinstance(value, nn.Module | type | ModuleType) and not callable(value)
    if depth and plain and isinstance(state, dict):
        return id(value), {name: _worth(item, identity, depth - 1) for name, item in state.items()}
    return id(value)


def _place(tensor: Tensor) -> int | None:
    """Where its numbers are: `tensor.data = other` changes nothing else.  None if there is no such place.

    Asked of attributes alone: in the list of an `nn.LSTM`, its own `flatten_parameters` moves the weights.
    """
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a sparse one, or one without numbers
        return None
