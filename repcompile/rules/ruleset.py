"""Rules are values in a table: one function for each operator, `DEFAULT + [mine]`, the later rule wins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from repcompile.capture import Captured

Target = Any  # a module class, a function, or the name of a tensor method


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What is known of the operators `targets`.

    kind: "affine": operand maps in, map out.  "layout": the input's shape in, `Layout` out.
    "shape": the input's shape in, the output's shape out; for operators that are neither.
    late: it hands the weights on as they are, and does no arithmetic with them.
    A parameter called `shape` gets the first operand's shape, `shapes` those of all operands, `owner` the node's name.
    """

    kind: str
    targets: tuple[Target, ...]
    function: Callable[..., Any]
    signature: inspect.Signature
    late: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    def wants(self, parameter: str) -> bool:
        """Whether the function has a parameter of this name."""
        return parameter in self.signature.parameters

    def accepts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the function can be called like this."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A table of rules for each kind, looked up by what a node calls; an operator may have a rule of every kind."""

    rules: tuple[Rule, ...] = ()
    tables: dict[str, dict[Target, Rule]] = field(default_factory=dict[str, dict[Target, Rule]], compare=False, repr=False)

    def __post_init__(self) -> None:
        for rule in self.rules:
            self.tables.setdefault(rule.kind, {}).update(dict.fromkeys(rule.targets, rule))

    def __add__(self, more: RuleSet | Iterable[Rule]) -> RuleSet:
        return RuleSet((*self.rules, *more))

    def __sub__(self, fewer: RuleSet | Iterable[Rule]) -> RuleSet:
        dropped = set(map(id, fewer))
        return RuleSet(tuple(rule for rule in self.rules if id(rule) not in dropped))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def table(self) -> Mapping[Target, Rule]:
        """What is known of each target; an affine rule says most."""
        return {**self.tables.get("shape", {}), **self.tables.get("layout", {}), **self.tables.get("affine", {})}

    @property
    def module_classes(self) -> tuple[type[nn.Module], ...]:
        """The classes that tracing must not look into."""
        return tuple(target for target in self.table if isinstance(target, type) and issubclass(target, nn.Module))

    def find(self, node: fx.Node, captured: Captured, kind: str) -> Rule | None:
        """The rule of one kind for what `node` calls, None if there is none."""
        table = self.tables.get(kind, {})
        if node.op == "call_module":
            return None if node.target in captured.opaque else _for_module(table, captured, node)
        return table.get(node.target) if node.op in ("call_function", "call_method") else None


def _for_module(table: Mapping[Target, Rule], captured: Captured, node: fx.Node) -> Rule | None:
    module = captured.module(node)
    exact = None if "forward" in vars(module) else table.get(type(module))
    bases = captured.torch_class(node).__mro__
    return exact or next((table[base] for base in bases if base in table), None)


def affine_rule(*targets: Target, late: bool = False) -> Callable[[Callable[..., Any]], Rule]:
    """Declare what map an operator is.

    targets: module classes, functions, names of tensor methods.
    late: a rule for modules that only hands weights to the constructors of `Affine` may ask for the module itself;
    otherwise it gets a copy with weights in float64, so that the textbook formula does not round.
    The function gets an `Affine` (or `Uniform`) for every operand that depends on an input, a `Constant` for every
    tensor that does not, and everything else as it stands in the call; a module's rule gets `(x, module)`. It returns
    the map of the result, or raises `Inexact` with the reason. A parameter called `shape` receives what is known of the
    first operand's shape.
    """
    return _declare("affine", targets, late)


def layout_rule(*targets: Target) -> Callable[[Callable[..., Any]], Rule]:
    """Declare an operator that only moves positions: the input's `Shape` and the call's arguments in, `Layout` out."""
    return _declare("layout", targets)


def shape_rule(*targets: Target) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the output's shape of an operator that is not affine: shapes in, shape (or None) out."""
    return _declare("shape", targets)


def _declare(kind: str, targets: tuple[Target, ...], late: bool = False) -> Callable[[Callable[..., Any]], Rule]:
    def declare(function: Callable[..., Any]) -> Rule:
        return Rule(kind, targets, function, inspect.signature(function), late)

    return declare
