"""Lists and dicts that a traced forward hands to a module that stays Python.

Such a module may change them. In the graph every call builds them anew, so that it may do what it likes, as long as
the forward does not look at them afterwards: what it would find there is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any

from repcompile.proxies import Value

Contents = Sequence[tuple[Any, Any]]  # (container, a copy of what it holds)


class HandedOver(Value):
    """What stands in a container for whatever is there now: nothing can be asked of it."""

    def __init__(self, path: str, tracer: Any) -> None:
        super().__init__(None, tracer)
        vars(self).update(path=path)

    @property
    def node(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise self._refused()

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise self._refused()

    def __getattr__(self, name: str) -> Any:
        raise self._refused()

    def _refused(self) -> Exception:
        refusal: Exception = vars(self)["tracer"].refusal(
            f"looks at a list or dict that {vars(self)['path']} may have changed"
        )
        return refusal


def hand_over(arguments: Any, path: str, tracer: Any) -> None:
    """Make every list and dict among `arguments` unreadable, once they are arguments of the call of `path`.

    Raises the tracer's refusal for a container that may be older than the call: one that holds no value of the graph,
    or is of a class of its own.
    """
    for container in list(_containers(arguments)):
        if type(container) not in (list, dict) or not any(isinstance(item, Value) for item in _leaves(container)):
            raise tracer.refusal(
                f"passes a {type(container).__name__} to {path}, which stays Python and might change it"
            )
        keys = range(len(container)) if isinstance(container, list) else list(container)
        for key in keys:
            container[key] = HandedOver(path, tracer)


def contents(arguments: Any) -> Contents:
    """What the lists and dicts among `arguments` hold."""
    return [(container, container.copy()) for container in _containers(arguments) if type(container) in (list, dict)]


def restore(given: Contents) -> None:
    """Put back what the containers held, and the inner ones too."""
    for container, held in given:
        container.clear()
        container.extend(held) if isinstance(container, list) else container.update(held)


def _containers(value: Any) -> Iterator[Any]:
    """Everything among nested arguments that a callee can change and that is no tensor, outer ones first."""
    if _is_record(value):
        frozen = type(value).__dataclass_params__.frozen
        yield from (_inside(vars(value)) if frozen else _containers(vars(value)))
    elif isinstance(value, list | dict):
        yield value
        yield from _inside(value)
    elif isinstance(value, tuple):
        yield from _inside(value)


def _inside(container: Any) -> Iterator[Any]:
    for item in _items(container):
        yield from _containers(item)


def _items(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, Value) and (_is_record(value) or isinstance(value, list | dict | tuple)):
        for item in _items(vars(value) if _is_record(value) else value):
            yield from _leaves(item)
    else:
        yield value


def _is_record(value: Any) -> bool:
    """Whether it is an instance of a dataclass that is not a dict as well."""
    return not isinstance(value, Value | type | dict) and is_dataclass(value) and hasattr(value, "__dict__")
