"""Rules are values in a table: one function for each operator, `DEFAULT + [mine]`, the later rule wins.

A rule is on trial unless its set trusts it: what it says is compared with what the operator computes, and a difference
is an error. Our own rules have passed `repcompile.testing.check_affine_rule`, and are trusted.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from repcompile.capture import Captured
from repcompile.errors import RuleError
from repcompile.idioms import Idiom
from repcompile.rules.rewriting import RewriteRule

Target = Any  # a module class, a function, or the name of a tensor method
KINDS = ("affine", "layout", "shape")  # of rules
# How the result's dtype follows from what comes in. "floating": the operator takes floating-point numbers alone, and
# returns them.  "same": its first operand's, whatever that is.  "common": all operands have one, and the result has it.
# "promoted": what torch makes of its operands' and its numbers' dtypes.  "made": floating point from whatever comes in.
Dtype = Literal["floating", "same", "common", "promoted", "made", "unknown"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rule:
    """What is known of the operators `targets`.

    kind: "affine": operand maps in, map out.  "layout": the input's shape in, `Layout` out.
    "shape": the input's shape in, the output's shape out; for operators that are neither.
    late: it hands the weights on as they are, and does no arithmetic with them.
    strict: the operator fails on any other number of channels than its map reads, so that it tells how many there are.
    elementwise: operands are broadcast as torch does it.  dtype: how the result's follows from what comes in.
    copies: it moves numbers and computes nothing, as far as a price is concerned.
    keeps_rank: the result has as many axes as its operand, whatever it computes.
    transposed: a convolution that works at the positions of its input.  subtracts: its second operand counts negative.
    word: what idioms call it; "" leaves that to its map.
    A parameter called `shape` gets the first operand's shape, `shapes` those of all operands, `owner` the node's name,
    `part` the index into the tuple that the operator returns.
    """

    kind: str
    targets: tuple[Target, ...]
    function: Callable[..., Any]
    signature: inspect.Signature
    late: bool = False
    strict: bool = False
    elementwise: bool = False
    dtype: Dtype = "unknown"
    copies: bool = False
    subtracts: bool = False
    keeps_rank: bool = False
    transposed: bool = False
    word: str = ""

    def __repr__(self) -> str:
        return f"<{self.kind} rule {self.name!r}>"

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


Entry = Rule | RewriteRule | Idiom


@dataclass(frozen=True, slots=True, repr=False)
class RuleSet:
    """A table of rules for each kind, looked up by what a node calls; an operator may have a rule of every kind.

    trusted: the rules that are not on trial.
    """

    rules: tuple[Entry, ...] = ()
    trusted: frozenset[Entry] = frozenset()
    tables: dict[str, dict[Target, Rule]] = field(default_factory=dict[str, dict[Target, Rule]], compare=False)

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not isinstance(rule, Entry):
                raise RuleError(f"a rule set holds what affine_rule and the like return; got {_shown(rule)}")
            if not isinstance(rule, Rule):
                continue
            self.tables.setdefault(rule.kind, {}).update(dict.fromkeys(rule.targets, rule))

    def __repr__(self) -> str:
        trial = [rule.name for rule in self.rules if rule not in self.trusted]
        names = Counter(rule.name for rule in self.rules)
        words = ", ".join(name if times == 1 else f"{name} x {times}" for name, times in names.items())
        return f"RuleSet({words}{'; on trial: ' if trial else ''}{', '.join(trial)})"

    def __add__(self, more: RuleSet | Iterable[Entry]) -> RuleSet:
        more = more if isinstance(more, RuleSet) else RuleSet(tuple(more))
        return RuleSet((*self.rules, *more.rules), self.trusted | more.trusted)

    def __sub__(self, fewer: RuleSet | Iterable[Entry]) -> RuleSet:
        dropped = frozenset(fewer)
        return RuleSet(tuple(rule for rule in self.rules if rule not in dropped), self.trusted - dropped)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def trusting(self) -> RuleSet:
        """The same rules, none of them on trial: a region that differs is rolled back, and reported."""
        return RuleSet(self.rules, frozenset(self.rules))

    @property
    def untried(self) -> bool:
        """Whether any rule is on trial."""
        return any(self.on_trial(rule) for rule in self.rules if isinstance(rule, Rule))

    @property
    def rewrites(self) -> tuple[RewriteRule, ...]:
        """The rewrite rules, in their order."""
        return tuple(rule for rule in self.rules if isinstance(rule, RewriteRule))

    @property
    def idioms(self) -> tuple[Idiom, ...]:
        """The names, in their order."""
        return tuple(rule for rule in self.rules if isinstance(rule, Idiom))

    def on_trial(self, rule: Entry) -> bool:
        """Whether what the rule says is still to be compared with what the operator computes."""
        return rule not in self.trusted

    @property
    def table(self) -> Mapping[Target, Rule]:
        """What is known of each target; an affine rule says most."""
        return {**self.tables.get("shape", {}), **self.tables.get("layout", {}), **self.tables.get("affine", {})}

    @property
    def module_classes(self) -> tuple[type[nn.Module], ...]:
        """The classes that tracing must not look into."""
        known = (target for target in self.table if isinstance(target, type) and issubclass(target, nn.Module))
        return (*known, *(cls for rule in self.rewrites for cls in rule.module_classes))

    def find(self, node: fx.Node, captured: Captured, kind: str) -> Rule | None:
        """The rule of one kind for what `node` calls, None if there is none, or if the caller skips it."""
        if kind != "shape" and captured.stays(node):
            return None
        table = self.tables.get(kind, {})
        if node.op == "call_module":
            return None if node.target in captured.opaque else _for_module(table, captured, node)
        if node.op not in ("call_function", "call_method"):
            return None
        return next((table[target] for target in _spellings(node.target) if target in table), None)


def _spellings(target: Any) -> tuple[Any, ...]:
    """What a call names, and what rules may name instead: a custom operator is called by its overload or its packet."""
    if isinstance(target, OpOverload):
        return target, target.overloadpacket
    return (target, getattr(target, "default", target)) if isinstance(target, OpOverloadPacket) else (target,)


def _named(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """The targets, where what `torch.library.custom_op` returns is the overload that it made."""
    return tuple(target._opoverload if isinstance(target, CustomOpDef) else target for target in targets)


def _for_module(table: Mapping[Target, Rule], captured: Captured, node: fx.Node) -> Rule | None:
    module = captured.module(node)
    exact = None if "forward" in vars(module) else table.get(type(module))
    bases = captured.torch_class(node).__mro__
    return exact or next((table[base] for base in bases if base in table), None)


def affine_rule(
    *targets: Target,
    late: bool = False,
    strict: bool = False,
    elementwise: bool = False,
    dtype: Dtype = "floating",
    copies: bool = False,
    subtracts: bool = False,
    transposed: bool = False,
    word: str = "",
) -> Callable[[Callable[..., Any]], Rule]:
    """Declare what map an operator is.

    targets: module classes, functions (`torch.ops` overloads too), names of tensor methods.
    late: a rule for modules that only hands weights to the constructors of `Affine` may ask for the module itself;
    otherwise it gets a copy with weights in float64, so that the textbook formula does not round.
    The function gets an `Affine` (or `Uniform`) for every operand that depends on an input, a `Constant` for every
    tensor that does not, and everything else as it stands in the call; a module's rule gets `(x, module)`. It returns
    the map of the result, or raises `Inexact` with the reason. A parameter called `shape` receives what is known of the
    first operand's shape.  The other options are explained at `Rule`.
    """

    def declare(function: Callable[..., Any]) -> Rule:
        signature = inspect.signature(function)
        traits = (late, strict, elementwise, dtype, copies, subtracts, False, transposed, word)
        return Rule("affine", _named(targets), function, signature, *traits)

    return declare


def layout_rule(*targets: Target, dtype: Dtype = "same") -> Callable[[Callable[..., Any]], Rule]:
    """Declare an operator that only moves positions: the input's `Shape` and the call's arguments in, `Layout` out."""
    return lambda function: Rule("layout", _named(targets), function, inspect.signature(function), dtype=dtype)


def shape_rule(
    *targets: Target, keeps_rank: bool = False, dtype: Dtype = "unknown"
) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the output's shape of an operator that is not affine: shapes in, shape (or None) out.

    keeps_rank: the result has as many axes as its operand, also where nobody knows its shape.  dtype: as for `Rule`.
    """

    def declare(function: Callable[..., Any]) -> Rule:
        signature = inspect.signature(function)
        return Rule("shape", _named(targets), function, signature, dtype=dtype, keeps_rank=keeps_rank)

    return declare


def _shown(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)
