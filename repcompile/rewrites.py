"""Rewrite rules at work.

Given: a canonical graph, which this stage takes over, and what is known of its shapes.  Result: the graph with each
match of a pattern replaced, what was replaced, and what was not and why. Every replacement is on trial: it is compared
with what it replaces, in float64 on inputs of two sizes, and in float32 for the dtype; a difference is a `RuleError`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from repcompile.attempts import Attempts
from repcompile.capture import Captured, called
from repcompile.classes import torch_class
from repcompile.copies import duplicate
from repcompile.errors import Inexact, RepcompileError, RuleError
from repcompile.facts import Facts
from repcompile.matching import Found, Matcher
from repcompile.operators import Flat
from repcompile.rules.rewriting import RewriteRule
from repcompile.rules.wildcards import Built
from repcompile.tracing import KEPT


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a rewrite rule did at one place.

    rule: its name.  path: of the module whose forward computed it.  before, after: how many operators it was, and is.
    error: largest difference, relative.
    """

    rule: str
    path: str
    before: int
    after: int
    error: float


@dataclass(frozen=True, slots=True)
class Declined:
    """Where a pattern matched and nothing was replaced, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rewrites:
    """The graph behind the rules, and what they did."""

    captured: Captured
    done: tuple[Replacement, ...] = ()
    declined: tuple[Declined, ...] = ()


@dataclass(frozen=True, slots=True)
class Match(Mapping[str, Any]):
    """What `where` and `build` see, by the names of the pattern's parameters.

    A module is a copy of the user's, a constant a number or a copy of the tensor, a value its node in the graph.
    """

    items_by_name: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, name: str) -> Any:
        return self.items_by_name[name]

    def __iter__(self) -> Any:
        return iter(self.items_by_name)

    def __len__(self) -> int:
        return len(self.items_by_name)


def rewritten_by(rules: Sequence[RewriteRule], captured: Captured, facts: Facts) -> Rewrites:
    """Go over the graph once for each rule, in their order, from the outputs to the inputs.

    Raises RuleError if a replacement is not what its pattern computes, or if a rule's own code fails.
    """
    editor = _Editor(captured, facts)
    for rule in rules:
        editor.apply(rule)
    if editor.done:
        captured.graph.lint()
    return Rewrites(editor.captured, tuple(editor.done), tuple(editor.declined))


class _Editor:
    def __init__(self, captured: Captured, facts: Facts) -> None:
        self.captured = captured
        self.done: list[Replacement] = []
        self.declined: list[Declined] = []
        self._facts = facts
        self._segments: dict[fx.Node, int] = {}

    def apply(self, rule: RewriteRule) -> None:
        gone: set[fx.Node] = set()
        self._segments = self.captured.segments(self._facts.numbers)
        matcher = Matcher(rule, self.captured, self._facts.constants, self._facts.numbers)
        for root in reversed(list(self.captured.graph.nodes)):
            found = None if root in gone else matcher.at(root)
            if found is None:
                continue
            try:
                gone |= self._replaced(rule, matcher, root, found)
            except Inexact as reason:
                self.declined.append(Declined(_path(root), f"rewrite {rule.name!r}: {reason}"))

    def _replaced(self, rule: RewriteRule, matcher: Matcher, root: fx.Node, found: Found) -> set[fx.Node]:
        """Replace one match.  Raises Inexact, with the reason, if it stays."""
        others = matcher.readers(found, root)
        if others:
            raise Inexact("a value inside has other readers")
        if any(self._segments[node] != self._segments[root] for node in found.covered):
            raise Inexact("something that stays Python runs in between, and may write to what it reads")
        match = self._match(found)
        if not _users(rule, rule.where, match):
            return set()
        splice = _Splice(rule, root, found, self.captured, match)
        try:
            captured = replace(
                self.captured,
                modules={**self.captured.modules, **splice.modules},
                constants={**self.captured.constants, **splice.constants},
                classes={**self.captured.classes, **splice.classes},
                transient=self.captured.transient | frozenset(splice.constants),
            )
            attempts = Attempts(captured, self._facts, list(found.values.values()), _ordered(found.covered))
            error = attempts.compare(rule.name, called(root, captured), root, splice.nodes, splice.result)
        except Inexact:
            splice.undo()
            raise
        before, path = len(found.covered), _path(root)
        root.replace_all_uses_with(splice.result)
        for node in reversed(_ordered(found.covered)):
            self.captured.graph.erase_node(node)
        self.captured = captured
        self._segments.update(dict.fromkeys(splice.nodes, self._segments[root]))
        self.done.append(Replacement(rule.name, path, before, len(splice.nodes), error))
        return set(found.covered)

    def _match(self, found: Found) -> Match:
        values = {name: self._value(value) for name, value in found.values.items()}
        return Match({**values, **{name: duplicate(self.captured.modules[p]) for name, p in found.modules.items()}})

    def _value(self, value: Any) -> Any:
        if not isinstance(value, fx.Node) or value not in self._facts.constants:
            return value
        if value.op == "get_attr":
            return self.captured.constants[str(value.target)].detach().clone()
        return self._facts.constants.value(value).exact()


class _Splice:
    """The replacement's nodes in front of the root.

    nodes: the new ones.  result: what stands for the root.
    """

    def __init__(self, rule: RewriteRule, root: fx.Node, found: Found, captured: Captured, match: Match) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.constants: dict[str, Tensor] = {}
        self.nodes: list[fx.Node] = []
        self._rule, self._root, self._found, self._captured, self._match = rule, root, found, captured, match
        self._paths = dict(found.modules)
        with root.graph.inserting_before(root):
            try:
                result = self._copied()
                self.result = result if found.rest is None else self._with_rest(result, found.rest)
            except BaseException:
                self.undo()
                raise
        if not isinstance(self.result, fx.Node):
            raise RuleError(f"rewrite rule {rule.name!r}: its replacement is the number {self.result}")

    @property
    def classes(self) -> dict[str, type[nn.Module]]:
        """The torch.nn classes of the new modules that have one."""
        found = {path: torch_class(module) for path, module in self.modules.items()}
        return {path: cls for path, cls in found.items() if cls is not None}

    def undo(self) -> None:
        for node in reversed(self.nodes):
            node.graph.erase_node(node)
        self.nodes.clear()

    def _copied(self) -> Any:
        side = self._rule.replacement
        values: dict[fx.Node, Any] = {}
        for node in side.captured.graph.nodes:
            if node.op == "placeholder":
                values[node] = self._found.values.get(str(node.target))
            elif node.op == "get_attr" and str(node.target) in side.constants:
                values[node] = self._found.values[str(node.target)]
            elif node.op != "output":
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = self._new(node.op, self._target(node), args, kwargs)
        return values[side.root]

    def _new(self, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        node = self._root.graph.create_node(op, target, args, dict(kwargs))
        node.meta["path"] = target if op == "call_module" else self._root.meta.get("path", "")
        self.nodes.append(node)
        return node

    def _target(self, node: fx.Node) -> Any:
        name = str(node.target)
        if node.op == "call_module":
            if name not in self._paths:
                self._paths[name] = self._placed(name)
            return self._paths[name]
        if node.op == "get_attr":
            path = f"{KEPT}{self._rule.name}_{len(self._captured.constants) + len(self.constants)}"
            self.constants[path] = self._rule.replacement.captured.constants[name].detach().clone()
            return path
        return node.target

    def _placed(self, name: str) -> str:
        """Give a new module a path that nobody uses."""
        wish = f"{self._root.meta.get('path', '')}.{name}".lstrip(".")
        taken = {*self._captured.modules, *self._captured.constants}
        number = 0
        path = wish
        while any(path == other or other.startswith(f"{path}.") for other in taken):
            number += 1
            path = f"{wish}_{number}"
        self.modules[path] = self._module(name).eval()
        return path

    def _module(self, name: str) -> nn.Module:
        template = self._rule.replacement.modules[name]
        if isinstance(template, nn.Module):
            return duplicate(template)
        if not isinstance(template, Built):
            raise RuleError(f"rewrite rule {self._rule.name!r}: {name!r} stands for no module")
        module = _users(self._rule, template.function, self._match)
        if not isinstance(module, nn.Module):
            raise RuleError(f"rewrite rule {self._rule.name!r}: {name!r} was built as a {type(module).__name__}")
        return module

    def _with_rest(self, result: Any, rest: Flat) -> Any:
        """The terms that the pattern left over, added or multiplied to the replacement."""
        names = {("sum", 1): "add", ("sum", -1): "sub", ("product", 1): "mul", ("product", -1): "truediv"}
        for value, sign in rest.terms:
            result = self._new("call_function", getattr(operator, names[rest.name, sign]), (result, value), {})
        if rest.number != (0.0 if rest.name == "sum" else 1.0):
            result = self._new("call_function", getattr(operator, names[rest.name, 1]), (result, rest.number), {})
        return result


def _users(rule: RewriteRule, function: Any, match: Match) -> Any:
    """What the rule's own code returns; where it fails, it is named."""
    try:
        return function(match)
    except RepcompileError:
        raise
    except Exception as error:  # the rule's
        name = getattr(function, "__name__", "its code")
        raise RuleError(f"rewrite rule {rule.name!r}: {name} failed: {type(error).__name__}: {error}") from error


def _ordered(nodes: frozenset[fx.Node]) -> list[fx.Node]:
    graph = next(iter(nodes)).graph
    return [node for node in graph.nodes if node in nodes]


def _path(node: fx.Node) -> str:
    return str(node.meta.get("path") or node.name)
