"""What a forward may return so that the graph returns it too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch.fx.proxy import TraceError

from repcompile.proxies import Value


def require_plain(result: Any) -> None:
    """Only containers that the graph gives back as they are.  Raises TraceError."""
    if isinstance(result, Value):
        return
    if is_dataclass(result) and not isinstance(result, type):
        _require_rebuilt(result)
    elif isinstance(result, dict | list | tuple) and not _plain(result):
        raise TraceError(f"returns a {type(result).__name__}")
    for item in _items(result):
        require_plain(item)


def _plain(result: Any) -> bool:
    """Whether it is of a class that graphs know, or a named tuple."""
    named = isinstance(result, tuple) and hasattr(result, "_fields")
    return named or type(result) in (dict, list, tuple, OrderedDict)


def _items(result: Any) -> Iterator[Any]:
    if is_dataclass(result) and not isinstance(result, type):
        yield from (getattr(result, field.name) for field in fields(result))
    elif isinstance(result, dict):
        yield from result.values()
    elif isinstance(result, list | tuple):
        yield from result


def _require_rebuilt(result: Any) -> None:
    """The graph calls the dataclass with its fields: that must give the same object again."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    try:
        again = type(result)(**values)
    except Exception as error:  # its own __init__
        raise TraceError(f"returns a {type(result).__name__}, which its fields do not make") from error
    same = vars(again).keys() == vars(result).keys() and all(vars(again)[n] is v for n, v in vars(result).items())
    if not same or (isinstance(result, dict) and list(dict.keys(again)) != list(dict.keys(result))):
        raise TraceError(f"returns a {type(result).__name__}, which its fields do not make")
