"""Rewrite rules: a pattern and a replacement, two ordinary functions that are traced like a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from repcompile.arguments import Arguments
from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.errors import RepcompileError, RuleError
from repcompile.rules.wildcards import AnyConstant, AnyModule, Built


class Wild(nn.Module):
    """Stands for a module that is not known yet; one node of a traced pattern."""

    def forward(self, *values: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A pattern or a replacement as a graph.

    captured: its placeholders are values, its modules those named in `modules`, its tensors those in `constants`.
    root: the one value that it returns.
    """

    captured: Captured
    root: fx.Node
    modules: Mapping[str, AnyModule | Built | nn.Module | None] = field(
        default_factory=dict[str, "AnyModule | Built | nn.Module | None"]
    )
    constants: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class RewriteRule:
    """What computes `pattern` is replaced by `replacement`, where `where(match)` holds.  Made by `rewrite_rule`."""

    name: str
    pattern: Side
    replacement: Side
    where: Callable[[Any], bool]
    kind: str = "rewrite"

    @property
    def module_classes(self) -> tuple[type[nn.Module], ...]:
        """The classes of the user's own that its pattern names, which tracing must not look into."""
        wanted = [wild for wild in self.pattern.modules.values() if isinstance(wild, AnyModule)]
        classes = (cls for wild in wanted for cls in wild.classes)
        return tuple(cls for cls in classes if not cls.__module__.startswith("torch.nn"))


def rewrite_rule(cls: type) -> RewriteRule:
    """Declare that what computes one thing may be computed in another way.

    cls: a class with two functions, and perhaps a third one:

        @rewrite_rule
        class HardSwish:
            def pattern(x): return x * F.relu6(x + 3) / 6
            def replacement(x): return F.hardswish(x)
            def where(match): return True

    pattern: a parameter without default stands for any value; a default of `any_module(...)` or `any_constant()` for
    such a module or constant. Sums and products match in any order and nesting, and as a part of longer ones.
    replacement: has parameters of the pattern's, and may have others whose default is a new module, or `build(...)`.
    where: gets the match, which holds by name a copy of each module, each constant's value, and each value's node; it
    may raise `Inexact` with a reason for the report.
    Raises RuleError if one of them is missing or cannot be traced.
    """
    parts = {name: inspect.unwrap(_plain(value)) for name, value in vars(cls).items() if callable(_plain(value))}
    missing = [name for name in ("pattern", "replacement") if name not in parts]
    if missing:
        raise RuleError(f"rewrite rule {cls.__name__!r} has no function {missing[0]!r}")
    pattern = _side(cls.__name__, "pattern", parts["pattern"], {})
    replacement = _side(cls.__name__, "replacement", parts["replacement"], pattern.modules)
    names = {node.name for node in pattern.captured.graph.nodes if node.op == "placeholder"} | set(pattern.constants)
    unknown = [node for node in _inputs(replacement) if str(node.target) not in names]
    if unknown:
        raise RuleError(f"rewrite rule {cls.__name__!r}: its pattern has no {str(unknown[0].target)!r}")
    return RewriteRule(cls.__name__, pattern, replacement, parts.get("where", lambda match: True))


def _plain(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod) else value


def _inputs(side: Side) -> list[fx.Node]:
    return [node for node in side.captured.graph.nodes if node.op == "placeholder" and node.users]


def _side(rule: str, role: str, function: Callable[..., Any], known: Mapping[str, Any]) -> Side:
    parameters = inspect.signature(function).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    modules = {
        name: default for name, default in defaults.items() if isinstance(default, AnyModule | Built | nn.Module)
    }
    modules |= {name: None for name in defaults if name in known and name not in modules}
    constants = frozenset(name for name, default in defaults.items() if isinstance(default, AnyConstant))
    values = [name for name in defaults if name not in modules and name not in constants]
    strange = [name for name in values if defaults[name] is not inspect.Parameter.empty]
    if strange or not values:
        reason = f"the default of {strange[0]!r} is no wildcard" if strange else "it has no value among its parameters"
        raise RuleError(f"rewrite rule {rule!r}: {role}: {reason}")
    shell = _Shell(function, values, list(modules), constants)
    try:
        captured = canonicalize(capture(shell, (Wild,), arguments=Arguments(tuple(values), tuple(values), {})))
    except RepcompileError as error:
        raise RuleError(f"rewrite rule {rule!r}: {role} cannot be traced: {error}") from error
    (root,) = captured.graph.find_nodes(op="output")[0].args
    computes = isinstance(root, fx.Node) and root.op not in ("placeholder", "get_attr")
    if not isinstance(root, fx.Node) or (role == "pattern" and not computes):
        raise RuleError(f"rewrite rule {rule!r}: {role} has to return one value, and to compute it")
    return Side(captured, root, modules, constants)


class _Shell(nn.Module):
    """A function as a model: modules and constants are its own, values its inputs."""

    def __init__(
        self, function: Callable[..., Any], values: Sequence[str], modules: Sequence[str], constants: frozenset[str]
    ) -> None:
        super().__init__()
        self.function, self.values = function, tuple(values)
        self.names = (*modules, *constants)
        for name in modules:
            self.add_module(name, Wild())
        for name in constants:
            self.register_buffer(name, torch.tensor(float("nan")))
        self.eval()

    def forward(self, *values: Tensor) -> Any:
        own = {name: getattr(self, name) for name in self.names}
        return self.function(**dict(zip(self.values, values, strict=True)), **own)
