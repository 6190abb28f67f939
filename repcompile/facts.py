"""How every value depends on the values before it: interpretation of the graph in the algebra.

Given: a canonical graph and the rules.  Result: for each node, the `Fact`s "I am this affine map of that earlier
value", nearest first, and the refusals. No weight is read: this is legality.

A fact may cross layouts: `path` lists the operators in between that only move positions. A pointwise map commutes with
them, so it can act at any place of the path; a map with a window stays where it is (`at`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from repcompile.affine import Affine, Map, Uniform
from repcompile.axis import Axis
from repcompile.capture import Captured, called
from repcompile.constants import Constants
from repcompile.copies import duplicate, same_state
from repcompile.errors import Inexact, RepcompileError, RuleError
from repcompile.floats import floating_values
from repcompile.interpret import with_tensors
from repcompile.paths import Fact, Step, aligned, behind, stepped
from repcompile.readers import read_as
from repcompile.rules.ruleset import KINDS, Rule, RuleSet
from repcompile.shapes import Layout, Shape, Size, broadcast, known_sizes, named, unknown
from repcompile.spelling import name_of
from repcompile.values import in_float64

OPERANDS = ("input", "tensors", "other")  # torch's names for what an operator reads
BY_SIZE = "an argument that depends on the input's size"
UNPREPARED = "its rule is not prepared for such a call:"
JOINING = (operator.getitem, operator.add, operator.mul)  # of tuples
HORIZON = 24  # sources kept per value; a longer chain of linear operators is collapsed in several rounds


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why `node` is not one operator of `source`."""

    node: fx.Node
    source: fx.Node
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the graph's values.

    maps: facts of each node, nearest source first, without the trivial one.
    rules: the affine rule or layout rule of each node that has one.
    asked: the whole shapes that nodes ask for, where they are known.
    constants: the nodes that depend on no input.  steps: the nodes that only move positions.
    numbers: the nodes that are computed from sizes alone.
    alike: the nodes that are no map, and have as many axes as their operand.
    floating: the nodes whose values cannot be integers.
    truncated: whether `HORIZON` cut something off.
    """

    maps: Mapping[fx.Node, tuple[Fact, ...]]
    refusals: Sequence[Refusal]
    shapes: Mapping[fx.Node, Shape | None]
    sizes: Mapping[fx.Node, Size]
    asked: Mapping[fx.Node, Shape]
    rules: Mapping[fx.Node, Rule]
    constants: Constants
    steps: Mapping[fx.Node, Step]
    numbers: frozenset[fx.Node]
    alike: frozenset[fx.Node]
    floating: frozenset[fx.Node]
    truncated: bool

    def is_split(self, node: fx.Node) -> bool:
        """Whether the value is a tuple of parts of another one."""
        return node in self.rules and self.rules[node].wants("part") and node.target is not operator.getitem


def affine_facts(captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]] | None = None) -> Facts:
    """Interpret every node in order; and once more where a reader told what an earlier one would have needed.

    known: shapes from a run on example inputs; only their ranks are used, so that no size is baked in.
    """
    interpreter = _interpreted(captured, rules, known or {}, {})
    late = interpreter.told_late()
    return (_interpreted(captured, rules, known or {}, late) if late else interpreter).result()


def _interpreted(
    captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]], told: Mapping[fx.Node, Shape]
) -> _Interpreter:
    interpreter = _Interpreter(captured, rules, known, told)
    for node in captured.graph.nodes:
        interpreter.visit(node)
    return interpreter


class _Interpreter:
    def __init__(
        self,
        captured: Captured,
        rules: RuleSet,
        known: Mapping[fx.Node, tuple[int, ...]],
        told: Mapping[fx.Node, Shape],
    ) -> None:
        self._captured = captured
        self._rules = rules
        self._known = known
        self._told = told  # shapes that readers have told in a first pass
        self._first: dict[fx.Node, Shape | None] = {}  # what was known of each shape before its readers were visited
        self._constants = Constants(captured)
        self._facts: dict[fx.Node, tuple[Fact, ...]] = {}
        self._shapes: dict[fx.Node, Shape | None] = {}
        self._sizes: dict[fx.Node, Size] = {}
        self._asked: dict[fx.Node, fx.Node] = {}  # `x.shape` node -> x
        self._numbers: set[fx.Node] = set()  # whatever is computed from sizes, devices and dtypes: no tensors
        self._alike: set[fx.Node] = set()
        self._found: dict[fx.Node, Rule] = {}
        self._steps: dict[fx.Node, Step] = {}
        self._calls: dict[fx.Node, tuple[fx.Node, dict[str, Any]]] = {}  # a part of a tuple -> who made the tuple
        self._refusals: list[Refusal] = []
        self._copies: dict[tuple[int, bool], nn.Module] = {}
        self._tuples: set[fx.Node] = set()  # what is split, and what is made of its parts without looking at them
        self._truncated = False

    def result(self) -> Facts:
        shapes = ((node, self._shapes.get(subject)) for node, subject in self._asked.items())
        asked = {node: shape for node, shape in shapes if shape is not None}
        known = (self._shapes, self._sizes, asked, self._found, self._constants, self._steps)
        floating = floating_values(self._captured, self._rules, self._constants, self._numbers)
        sets = (frozenset(self._numbers), frozenset(self._alike), floating)
        return Facts(self._facts, self._refusals, *known, *sets, self._truncated)

    def told_late(self) -> dict[fx.Node, Shape]:
        """Shapes that became known only behind a reader that was refused."""
        refused = {refusal.node for refusal in self._refusals}
        changed = ((node, self._shapes[node]) for node, first in self._first.items() if self._shapes[node] != first)
        return {node: shape for node, shape in changed if shape is not None and not refused.isdisjoint(node.users)}

    def visit(self, node: fx.Node) -> None:
        """Facts and shape of one node, from those of its operands."""
        if node.op == "output" or node in self._constants:
            return
        if self._visit_size(node):
            self._numbers.add(node)
            return
        operands = [operand for operand in node.all_input_nodes if operand not in self._constants]
        values = [operand for operand in operands if operand not in self._numbers]
        self._shapes[node] = None
        if values:
            self._visit_value(node, values)
        if self._shapes.get(node) is None:
            self._shapes[node] = self._seen_as(node)
        self._first[node] = self._shapes[node] = self._told.get(node, self._shapes[node])

    def _visit_value(self, node: fx.Node, values: list[fx.Node]) -> None:
        """By the affine rule, where it refuses by the layout rule; the shape by its own rule where both are silent."""
        affine, layout, shape = (self._rules.find(node, self._captured, kind) for kind in KINDS)
        if affine is not None and affine.wants("part"):  # a tuple: its parts are picked by `getitem`
            self._facts[node], self._found[node] = (), affine
            self._tuples.add(node)
            self._learn_whole(node, values[0])
            return
        if not self._tuples.isdisjoint(values) and not self._is_part(node):
            if node.target in JOINING and not isinstance(node.args[1], int):
                self._tuples.add(node)
            return
        if self._is_part(node):
            call: Any = node.args[0]
            self._calls[node] = (call, {"part": node.args[1]})
            affine, values = self._found[call], [value for value in values[0].all_input_nodes if value in self._shapes]
        step = None if layout is None else self._step(node, layout, values)
        facts = () if step is None else tuple(stepped(fact, step) for fact in self._sources(values[0]))
        if step is not None and layout is not None:
            self._shapes[node], self._found[node], self._steps[node] = step.layout.shape, layout, step
        if affine is not None:
            facts = self._visit_affine(node, affine, values, facts)
        if facts or affine is not None:
            self._facts[node] = facts
        if self._shapes[node] is None and shape is not None:
            self._shapes[node] = self._shape_of(node, shape, values)
            if shape.keeps_rank:
                self._alike.add(node)

    def _learn_whole(self, split: fx.Node, operand: fx.Node) -> None:
        """The parts of a value tell what it is: how many axes it has, and how long the one is that was split."""
        picks: list[Any] = [user for user in split.users if self._is_part(user)]
        parts = {pick.args[1]: read_as(pick, self._captured, self._constants) for pick in picks}
        shapes = [shape for shape in parts.values() if shape is not None]
        shape = self._shapes.get(operand) or (named(operand.name, len(shapes[0])) if shapes else None)
        _, asked, *rest = (*split.args, None, None)
        axis: Any = next((each for each in rest if each is not None), split.kwargs.get("dim", 0))
        if shape is None or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
            return
        if shape[axis].known is not None:
            return
        self._shapes[operand] = shape
        sizes: Any = asked if isinstance(asked, list | tuple) else None
        chunks = split.target in ("chunk", torch.chunk)  # as many as asked for; of others, parts may have no reader
        if chunks and isinstance(asked, int) and set(parts) == set(range(asked)):
            sizes = [0 if each is None else each[axis].known for each in parts.values()]
        if sizes and all(isinstance(size, int) and size > 0 for size in sizes):
            whole = Size(sum(sizes))
            self._shapes[operand] = tuple(whole if i == axis % len(shape) else s for i, s in enumerate(shape))

    def _learn_channels(self, value: fx.Node, fact: Fact) -> None:
        """An operator that takes no other number of channels tells how many its operand has."""
        shape, x = self._shapes.get(value), fact.map
        if fact.source is not value or not isinstance(x, Affine):
            return
        if shape is None and x.axes:
            shape = named(value.name, len(x.axes) + 2)
        if shape is None or len(x.axes) >= len(shape):
            return
        place = len(shape) - 1 - len(x.axes)
        if shape[place].known is None:
            self._shapes[value] = (*shape[:place], Size(x.c_in), *shape[place + 1 :])

    def _learn_rank(self, node: fx.Node, operand: fx.Node) -> None:
        """A permutation has as many axes in front as behind: those that it names, or that its reader expects."""
        name = name_of(node)
        read = read_as(node, self._captured, self._constants) if name in ("transpose", "swapaxes") else None
        order = node.args[1] if len(node.args) == 2 else node.args[1:]
        named_all = name == "permute" and isinstance(order, tuple | list) and all(isinstance(i, int) for i in order)
        rank = len(order) if named_all and isinstance(order, tuple | list) else None if read is None else len(read)
        if rank is None:
            return
        shape = named(operand.name, rank)
        last = next((f.map for f in self._facts.get(operand, ()) if isinstance(f.map, Affine) and not f.map.axes), None)
        self._shapes[operand] = shape if last is None else (*shape[:-1], Size(last.c_out))

    def _is_part(self, node: fx.Node) -> bool:
        """Whether it is one part of a value that was split."""
        if node.target is not operator.getitem or not isinstance(node.args[1], int):
            return False
        whole: Any = node.args[0]
        return whole in self._found and self._found[whole].wants("part") and whole not in self._calls

    def _seen_as(self, node: fx.Node) -> Shape | None:
        """The rank from a run, and the shape that a reader expects, where the two agree."""
        read = read_as(node, self._captured, self._constants)
        if node not in self._known:
            return read
        rank = len(self._known[node])
        return read if read is not None and len(read) == rank else named(node.name, rank)

    # -- sizes -------------------------------------------------------------------------------------------------------

    def _visit_size(self, node: fx.Node) -> bool:
        """`x.shape`, `x.shape[i]`, `x.size(i)`, products of sizes.  True if `node` is one of them, or some number."""
        name = name_of(node)
        if (name == "getattr" and node.args[1] == "shape") or (name == "size" and len(node.args) == 1):
            self._ask_shape(node)
        elif name == "size" and node.op == "call_method" and isinstance(node.args[1], int):
            self._sizes[node] = self._size_of(node.args[0], node.args[1])
        elif name == "getitem" and node.args[0] in self._asked and isinstance(node.args[1], int):
            self._sizes[node] = self._size_of(self._asked[node.args[0]], node.args[1])
        elif name == "floordiv" and (quotient := self._quotient(*node.args)) is not None:
            self._sizes[node] = quotient
        elif name == "mul" and all(self._as_size(arg) is not None for arg in node.args):
            self._sizes[node] = self._as_size(node.args[0]) * self._as_size(node.args[1])  # type: ignore[operator]
        else:
            question = (name == "getattr" and node.args[1] in ("ndim", "device", "dtype")) or name in ("dim", "numel")
            computed = bool(node.all_input_nodes) and node.op != "call_module"  # a module may make tensors of numbers
            return question or (computed and self._numbers.issuperset(node.all_input_nodes))
        return True

    def _ask_shape(self, node: fx.Node) -> None:
        subject = node.args[0]
        assert isinstance(subject, fx.Node)
        self._asked[node] = subject
        if self._shapes.get(subject) is None and "unpacked" in node.meta:
            self._shapes[subject] = named(subject.name, node.meta["unpacked"])

    def _size_of(self, subject: Any, axis: int) -> Size:
        shape = self._shapes.get(subject)
        if shape is not None and -len(shape) <= axis < len(shape):
            return shape[axis]
        return unknown(subject.name, axis)

    def _quotient(self, dividend: Any, divisor: Any) -> Size | None:
        size, by = self._as_size(dividend), self._as_size(divisor)
        if size is None or by is None:
            return None
        if size.known and by.known and size.known >= by.known:
            return Size(size.known // by.known)
        return size.over(by) or Size(1, (f"{size.number} {size.names} over {by.number} {by.names}",))

    def _as_size(self, arg: Any) -> Size | None:
        if isinstance(arg, int) and not isinstance(arg, bool) and arg > 0:
            return Size(arg)
        return self._sizes.get(arg) if isinstance(arg, fx.Node) else None

    # -- values ------------------------------------------------------------------------------------------------------

    def _shape_of(self, node: fx.Node, rule: Rule, values: Sequence[fx.Node]) -> Shape | None:
        shape = self._shapes.get(values[0]) if node.args and node.args[0] is values[0] else None
        if shape is None and self._rules.on_trial(rule):  # nothing to compare it with
            return None
        return self._of_shape(node, rule, shape, values, self._resolved_sizes)

    def _of_shape(
        self, node: fx.Node, rule: Rule, shape: Shape | None, values: Sequence[fx.Node], resolved: Callable[[Any], Any]
    ) -> Any:
        """What a rule about shapes says of `node`, None if nothing.  resolved: its arguments behind the operand."""
        args, kwargs = self._arguments(node, None)
        options = {**kwargs, **self._extras(node, rule, values)}
        if not rule.accepts((shape, *args[1:]), options):
            return None
        try:
            return self._answer(node, rule, shape, *resolved(args[1:]), **self._resolved_sizes(options))
        except Inexact:
            return None

    def _extras(self, node: fx.Node, rule: Rule, values: Sequence[fx.Node]) -> dict[str, Any]:
        """What a rule asks for by the names of its parameters."""
        found: dict[str, Any] = {"owner": node.name} if rule.wants("owner") else {}
        if rule.wants("shapes"):  # of constants too, which have to be looked at
            leaves = (leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node))
            found["shapes"] = [self._shape_of_any(leaf) for leaf in leaves if leaf in values or leaf in self._constants]
        return found

    def _shape_of_any(self, node: fx.Node) -> Shape | None:
        """Of a value, or of a constant that is a tensor of floating-point numbers."""
        if node not in self._constants:
            return self._shapes.get(node)
        try:
            return tuple(map(Size, self._constants.value(node).shape))
        except Inexact:
            return None

    def _step(self, node: fx.Node, rule: Rule, values: Sequence[fx.Node]) -> Step | None:
        """The operator as a step of a path; the shape is known even where it is none."""
        args, _ = self._arguments(node, None)
        operand = values[0]
        if not args or args[0] is not operand:
            return None
        if self._shapes.get(operand) is None:
            self._learn_rank(node, operand)
        shape = self._shapes.get(operand)
        layout: Layout | None = self._of_shape(node, rule, shape, values, partial(self._resolved_shapes, rule=rule))
        if layout is None:
            return None
        if shape is None:
            self._shapes[node] = layout.shape
            return None
        return Step(node, layout, shape)

    def _visit_affine(
        self, node: fx.Node, rule: Rule, values: list[fx.Node], otherwise: Sequence[Fact]
    ) -> tuple[Fact, ...]:
        """Facts about every source that all operands share.  otherwise: those by the layout rule."""
        by_layout = {fact.source: fact for fact in otherwise}
        by_source = [{fact.source: fact for fact in self._sources(value)} for value in values]
        facts: list[Fact] = []
        affine, refused = False, None
        for source in by_source[0]:
            if not all(source in table for table in by_source[1:]):
                continue
            try:
                operands = {value: table[source] for value, table in zip(values, by_source, strict=True)}
                facts.append(self._applied(node, rule, operands, source))
                affine = True
            except Inexact as refusal:  # a farther source may do: there the layout may be known
                if source in by_layout:
                    facts.append(by_layout[source])
                else:
                    refused = refused or Refusal(node, source, str(refusal))
            if len(facts) == HORIZON:
                self._truncated = True
                break
        if refused is not None:
            self._refusals.append(refused)
        if facts and rule.strict:
            self._learn_channels(values[0], facts[0])
        if affine or (len(values) == 1 and node not in self._found):
            self._found[node] = rule
        if affine or not otherwise:
            self._shapes[node] = self._affine_shape(node, facts, values) or self._shapes[node]
        return tuple(facts)

    def _applied(self, node: fx.Node, rule: Rule, operands: dict[fx.Node, Fact], source: fx.Node) -> Fact:
        """The fact of `node` about `source`, from those of its operands."""
        facts = list(operands.values())
        if len(facts) == 1 and not facts[0].ends:
            return replace(facts[0], map=behind(self._call(node, rule, {next(iter(operands)): Uniform()}), facts[0]))
        leader, maps = aligned(facts)
        result = self._call(node, rule, dict(zip(operands, maps, strict=True)), at_home=leader.ends)
        if not leader.ends:
            return replace(leader, map=result)
        return Fact(source, result, leader.path, leader.at, _home(facts, result, leader.at))

    def _call(self, node: fx.Node, rule: Rule, maps: dict[fx.Node, Map], at_home: bool = True) -> Map:
        """The map that the rule makes of the operands' maps.  at_home: whether these stand where the operands are."""
        maps = {value: self._sized(value, x) if at_home else x for value, x in maps.items()}
        call, part = self._calls.get(node, (node, {}))
        args, kwargs = self._arguments(call, rule)
        kwargs = {**kwargs, **part}
        if rule.wants("shape"):
            kwargs = {**kwargs, "shape": self._shapes.get(next(iter(maps))) if at_home else None}
        if not rule.accepts(args, kwargs):
            raise Inexact("it is called with arguments that its rule does not know")
        args, kwargs = self._resolved(args, maps), self._resolved(kwargs, maps)
        result = self._answer(call, rule, *args, **kwargs)
        if call.op == "call_module" and self._rules.on_trial(rule):
            self._require_untouched(rule, call, args[-1])
        if not isinstance(result, Affine | Uniform):
            place = called(node, self._captured)
            raise RuleError(f"rule {rule.name!r} returned {type(result).__name__} for {place}, not a map")
        if isinstance(result, Affine) and self._takes_size(call) and any(map(_by_size, result.axes)):
            raise Inexact(BY_SIZE)
        return result

    def _answer(self, call: fx.Node, rule: Rule, *args: Any, **kwargs: Any) -> Any:
        """What the rule says of a call.

        Raises Inexact, of its own or because it fails on what runs; RuleError if it is on trial and fails.
        """
        try:
            return rule(*args, **kwargs)
        except RepcompileError:
            raise
        except Exception as error:
            if isinstance(error, TypeError) and self._takes_size(call):
                raise Inexact(BY_SIZE) from error
            if not self._rules.on_trial(rule):  # the model runs
                raise Inexact(f"{UNPREPARED} {type(error).__name__}") from error
            reason = f"{type(error).__name__}: {error}"
            raise RuleError(f"rule {rule.name!r} failed on {called(call, self._captured)}: {reason}") from error

    def _arguments(self, node: fx.Node, rule: Rule | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as a rule is called: operands first, then the module if it is one."""
        kwargs = dict(node.kwargs)
        args = (*node.args, *(kwargs.pop(name) for name in OPERANDS if name in kwargs))
        if node.op != "call_module":
            return args, kwargs
        module = self._captured.module(node)
        tried = rule is not None and self._rules.on_trial(rule)
        return (*args, module if rule is None or (rule.late and not tried) else self._copy(module, rule, tried)), kwargs

    def _copy(self, module: nn.Module, rule: Rule, tried: bool) -> nn.Module:
        """A copy of the module, with weights in float64 unless the rule does no arithmetic with them."""
        key = id(module), rule.late
        if key not in self._copies:
            copy = duplicate(module) if tried else module
            self._copies[key] = copy if rule.late else with_tensors(copy, in_float64)
        return self._copies[key]

    def _require_untouched(self, rule: Rule, node: fx.Node, copy: nn.Module) -> None:
        """A rule that is on trial gets a copy, which shows what it would have done to the user's module."""
        module = self._captured.module(node)
        if not same_state(copy, module if rule.late else with_tensors(module, in_float64)):
            raise RuleError(f"rule {rule.name!r} changes {called(node, self._captured)}; rules only read")

    def _sized(self, value: fx.Node, x: Map) -> Map:
        return replace(x, sizes=known_sizes(self._shapes.get(value))) if isinstance(x, Uniform) else x

    def _resolved(self, args: Any, maps: Mapping[fx.Node, Map] | None = None) -> Any:
        """Call arguments as rules see them: maps, constants, sizes, and everything else as it is."""
        return map_arg(args, lambda node: self._operand(node, maps or {}))

    def _operand(self, node: fx.Node, maps: Mapping[fx.Node, Map]) -> Any:
        if node in maps:
            return maps[node]
        if node in self._constants:
            return self._constants.value(node)
        if node in self._sizes:
            return self._sizes[node]
        raise Inexact("an argument that only the run will know")

    def _sources(self, value: fx.Node) -> tuple[Fact, ...]:
        trivial = Fact(value, Uniform(sizes=known_sizes(self._shapes.get(value))))
        return (trivial, *self._facts.get(value, ()))

    def _resolved_shapes(self, args: Any, rule: Rule) -> Any:
        """Arguments that are values are known by their shapes, which a rule that takes some has got already."""
        return map_arg(args, lambda node: None if rule.wants("shapes") else self._size_operand(node))

    def _resolved_sizes(self, args: Any) -> Any:
        """Arguments of a rule about shapes: sizes and whole shapes for the nodes that ask for them."""
        return map_arg(args, self._size_operand)

    def _takes_size(self, node: fx.Node) -> bool:
        """Whether one of its arguments is a size of some value: most rules know numbers only."""
        return any(operand in self._sizes or operand in self._asked for operand in node.all_input_nodes)

    def _size_operand(self, node: fx.Node) -> Any:
        if node in self._sizes:
            return self._sizes[node]
        shape = self._shape_of_any(self._asked[node]) if node in self._asked else None
        if shape is None:
            raise Inexact("an argument that only the run will know")
        return shape

    def _affine_shape(self, node: fx.Node, facts: Sequence[Fact], values: list[fx.Node]) -> Shape | None:
        """The operand's shape, with the map's channels and positions; None where nothing proves it."""
        shapes = [self._shapes.get(value) for value in values]
        near = next((fact.map for fact in facts if not fact.path), None)
        if near is None and len(values) == len(node.all_input_nodes) == 2 and self._elementwise(node):
            return broadcast(shapes[0], shapes[1], node.name)
        first = next((shape for shape in shapes if shape is not None), None)
        if near is None:
            last = next((fact.map for fact in facts if fact.ends and isinstance(fact.map, Affine)), None)
            return None if first is None or last is None or not last.pointwise else _widened(first, last)
        if isinstance(near, Uniform):
            return first
        if len(values) == 1 or first is None:
            source = next(fact.source for fact in facts if fact.map is near)
            return _mapped_shape(near, self._shapes.get(source), source.name, node.name)
        return _widened(first, near)

    def _elementwise(self, node: fx.Node) -> bool:
        rule = self._rules.find(node, self._captured, "affine")
        return rule is not None and rule.elementwise


def _widened(shape: Shape, x: Affine) -> Shape:
    """`shape` with as many channels as `x` has."""
    place = len(shape) - 1 - len(x.axes)
    return (*shape[:place], Size(x.c_out), *shape[place + 1 :])


def _by_size(axis: Axis) -> bool:
    """Whether a rule took a size for a number."""
    return any(isinstance(getattr(axis, part.name), Size) for part in fields(axis))


def _home(facts: Sequence[Fact], result: Map, end: int) -> int:
    """Where the heaviest operator stood: here, if the map grew."""
    before = max((fact.map.weights for fact in facts if isinstance(fact.map, Affine)), default=0)
    homes = [fact.home for fact in facts if isinstance(fact.map, Affine)]
    grew = isinstance(result, Affine) and result.weights > before
    return end if grew or not homes else min(max(homes), end)


def _mapped_shape(x: Map, shape: Shape | None, source: str, owner: str) -> Shape | None:
    """The shape behind a map.  A convolution's input is taken to be batched."""
    if isinstance(x, Uniform):
        return shape
    n_axes = len(x.axes)
    if shape is None and not n_axes:
        return None
    before = named(source, n_axes + 2) if shape is None else shape
    first = len(before) - n_axes
    spatial = [
        size if axis.stride == axis.up == 1 and axis.growth == 0 else _resized(axis, size, owner, first + i)
        for i, (axis, size) in enumerate(zip(x.axes, before[first:], strict=True))
    ]
    return (*before[: first - 1], Size(x.c_out), *spatial)


def _resized(axis: Any, size: Size, owner: str, place: int) -> Size:
    return unknown(owner, place) if size.known is None else Size(axis.output_size(size.known))
