"""How every value depends on the values before it: interpretation of the graph in the algebra.

Given: a canonical graph and the rules.  Result: for each node, the `Fact`s "I am this affine map of that earlier
value", nearest first, and the refusals. No weight is read: this is legality.

A fact may cross layouts: `path` lists the operators in between that only move positions. A pointwise map commutes with
them, so it can act at any place of the path; a map with a window stays where it is (`at`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from repcompile.affine import Affine, Map, Uniform
from repcompile.capture import Captured
from repcompile.constants import Constants
from repcompile.errors import Inexact, RepcompileError, RuleError
from repcompile.interpret import with_tensors
from repcompile.rules.ruleset import Rule, RuleSet
from repcompile.shapes import Layout, Shape, Size, broadcast, known_sizes, named, unknown
from repcompile.values import in_float64

HORIZON = 24  # sources kept per value; a longer chain of linear operators is collapsed in several rounds


@dataclass(frozen=True, slots=True)
class Step:
    """One operator on a path.  carry: input axis -> output axis.  key: equal for steps that do the same."""

    node: fx.Node
    layout: Layout
    rank: int
    key: Any


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """value = path[at:] . map . path[:at] (source)

    map: with as many axes as the layout at `at` has behind the channels.
    at: where the map stands; a pointwise map always stands at the end of the path.
    home: where the operator that weighs most stood, which is where a pointwise map is emitted.
    """

    source: fx.Node
    map: Map
    path: tuple[Step, ...] = ()
    at: int = 0
    home: int = 0


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
    constants: the nodes that depend on no input.  truncated: whether `HORIZON` cut something off.
    """

    maps: Mapping[fx.Node, tuple[Fact, ...]]
    refusals: Sequence[Refusal]
    shapes: Mapping[fx.Node, Shape | None]
    sizes: Mapping[fx.Node, Size]
    rules: Mapping[fx.Node, Rule]
    constants: Constants
    truncated: bool


def affine_facts(captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]] | None = None) -> Facts:
    """Interpret every node once, in order.

    known: shapes from a run on example inputs; only their ranks are used, so that no size is baked in.
    """
    interpreter = _Interpreter(captured, rules, known or {})
    for node in captured.graph.nodes:
        interpreter.visit(node)
    return interpreter.result()


class _Interpreter:
    def __init__(self, captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]]) -> None:
        self._captured = captured
        self._rules = rules
        self._known = known
        self._constants = Constants(captured)
        self._facts: dict[fx.Node, tuple[Fact, ...]] = {}
        self._shapes: dict[fx.Node, Shape | None] = {}
        self._sizes: dict[fx.Node, Size] = {}
        self._asked: dict[fx.Node, fx.Node] = {}  # `x.shape` node -> x
        self._numbers: set[fx.Node] = set()  # whatever is computed from sizes, devices and dtypes: no tensors
        self._found: dict[fx.Node, Rule] = {}
        self._refusals: list[Refusal] = []
        self._copies: dict[int, nn.Module] = {}
        self._truncated = False

    def result(self) -> Facts:
        known = (self._shapes, self._sizes, self._found, self._constants)
        return Facts(self._facts, self._refusals, *known, self._truncated)

    def visit(self, node: fx.Node) -> None:
        """Facts and shape of one node, from those of its operands."""
        if node.op == "output" or node in self._constants:
            return
        if self._visit_size(node):
            self._numbers.add(node)
            return
        rule = self._rules.find(node, self._captured)
        operands = [operand for operand in node.all_input_nodes if operand not in self._constants]
        values = [operand for operand in operands if operand not in self._numbers]
        if rule is None or not values:
            self._visit_unknown(node, values)
        elif rule.kind == "layout":
            self._visit_layout(node, rule, values[0])
        elif rule.kind == "shape":
            self._shapes[node] = self._shape_of(node, rule)
        else:
            self._visit_affine(node, rule, values)
        if self._shapes.get(node) is None and node in self._known:
            self._shapes[node] = named(node.name, len(self._known[node]))

    # -- sizes -------------------------------------------------------------------------------------------------------

    def _visit_size(self, node: fx.Node) -> bool:
        """`x.shape`, `x.shape[i]`, `x.size(i)`, products of sizes.  True if `node` is one of them, or some number."""
        name = getattr(node.target, "__name__", node.target)
        if (name == "getattr" and node.args[1] == "shape") or (name == "size" and len(node.args) == 1):
            self._ask_shape(node)
        elif name == "size" and node.op == "call_method" and isinstance(node.args[1], int):
            self._sizes[node] = self._size_of(node.args[0], node.args[1])
        elif name == "getitem" and node.args[0] in self._asked and isinstance(node.args[1], int):
            self._sizes[node] = self._size_of(self._asked[node.args[0]], node.args[1])
        elif name == "mul" and all(self._as_size(arg) is not None for arg in node.args):
            self._sizes[node] = self._as_size(node.args[0]) * self._as_size(node.args[1])  # type: ignore[operator]
        else:
            question = (name == "getattr" and node.args[1] in ("ndim", "device", "dtype")) or name in ("dim", "numel")
            return question or (bool(node.all_input_nodes) and self._numbers.issuperset(node.all_input_nodes))
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

    def _as_size(self, arg: Any) -> Size | None:
        if isinstance(arg, int) and not isinstance(arg, bool) and arg > 0:
            return Size(arg)
        return self._sizes.get(arg) if isinstance(arg, fx.Node) else None

    # -- values ------------------------------------------------------------------------------------------------------

    def _visit_unknown(self, node: fx.Node, values: list[fx.Node]) -> None:
        self._shapes[node] = None

    def _shape_of(self, node: fx.Node, rule: Rule) -> Shape | None:
        shape = self._shapes.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        rest = (self._captured.module(node),) if node.op == "call_module" else node.args[1:]
        options = {"owner": node.name} if rule.wants("owner") else {}
        return rule(shape, *rest, **options)

    def _visit_layout(self, node: fx.Node, rule: Rule, operand: fx.Node) -> None:
        self._shapes[node] = None
        shape = self._shapes.get(operand)
        if node.args[0] is not operand:
            return
        arguments = (self._captured.module(node),) if node.op == "call_module" else node.args[1:]
        options = {**node.kwargs, "owner": node.name} if rule.wants("owner") else node.kwargs
        if not rule.accepts((shape, *arguments), options):
            return
        try:
            layout: Layout = rule(shape, *self._resolved(arguments), **self._resolved(options))
        except Inexact:
            return
        self._shapes[node] = layout.shape
        if shape is None:
            return
        self._found[node] = rule
        step = Step(node, layout, len(shape), (shape, layout.shape, layout.carry))
        moved = [_moved(fact, step) for fact in self._sources(operand)]
        self._facts[node] = tuple(fact for fact in moved if fact is not None)

    def _visit_affine(self, node: fx.Node, rule: Rule, values: list[fx.Node]) -> None:
        self._shapes[node] = None
        shapes = [self._shapes.get(value) for value in values]
        facts: list[Fact] = []
        refused: Refusal | None = None
        by_source = [{fact.source: fact for fact in self._sources(value)} for value in values]
        for source in by_source[0]:
            if not all(source in table for table in by_source[1:]):
                continue
            try:
                operands = {value: table[source] for value, table in zip(values, by_source, strict=True)}
                facts.append(self._applied(node, rule, operands, source))
            except Inexact as refusal:  # a farther source may do: there the layout may be known
                refused = refused or Refusal(node, source, str(refusal))
            if len(facts) == HORIZON:
                self._truncated = True
                break
        if refused is not None:
            self._refusals.append(refused)
        if facts or len(values) == 1:
            self._found[node] = rule
        self._facts[node] = tuple(facts)
        self._shapes[node] = self._affine_shape(node, facts, values, shapes)

    def _applied(self, node: fx.Node, rule: Rule, operands: dict[fx.Node, Fact], source: fx.Node) -> Fact:
        """The fact of `node` about `source`, from those of its operands."""
        facts = list(operands.values())
        first = facts[0]
        if any([s.key for s in fact.path] != [s.key for s in first.path] for fact in facts):
            raise Inexact("the operands are laid out differently")
        end = len(first.path)
        if all(fact.at == end for fact in facts):
            result = self._call(node, rule, {value: fact.map for value, fact in operands.items()})
            if not result.pointwise:
                return Fact(source, result, first.path, end, end)
            return Fact(source, result, first.path, end, _home(facts, result, end))
        if len(facts) > 1:
            raise Inexact("operators with a window are added behind a change of layout")
        (value,) = operands
        outer = self._call(node, rule, {value: Uniform()})
        return replace(first, map=_behind(outer, first))

    def _call(self, node: fx.Node, rule: Rule, maps: dict[fx.Node, Map]) -> Map:
        maps = {value: self._sized(value, x) for value, x in maps.items()}
        args, kwargs = self._arguments(node, rule)
        if rule.wants("shape"):
            kwargs = {**kwargs, "shape": self._shapes.get(next(iter(maps)))}
        if not rule.accepts(args, kwargs):
            raise Inexact("it is called with arguments that its rule does not know")
        args, kwargs = self._resolved(args, maps), self._resolved(kwargs, maps)
        try:
            result = rule(*args, **kwargs)
        except RepcompileError:
            raise
        except Exception as error:  # a rule of the user's
            raise RuleError(f"rule {rule.name!r} failed on {_called(node)}: {type(error).__name__}: {error}") from error
        if not isinstance(result, Affine | Uniform):
            raise RuleError(f"rule {rule.name!r} returned {type(result).__name__} for {_called(node)}, not a map")
        return result

    def _arguments(self, node: fx.Node, rule: Rule) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as the rule is called: operands first, then the module if it is one."""
        kwargs = dict(node.kwargs)
        args = (*node.args, *(kwargs.pop(name) for name in ("input", "other") if name in kwargs))
        if node.op != "call_module":
            return args, kwargs
        module = self._captured.module(node)
        return (*args, module if rule.late else self._exact(module)), kwargs

    def _exact(self, module: nn.Module) -> nn.Module:
        """A copy of the module with weights in float64."""
        if id(module) not in self._copies:
            self._copies[id(module)] = with_tensors(module, in_float64)
        return self._copies[id(module)]

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

    def _affine_shape(
        self, node: fx.Node, facts: Sequence[Fact], values: list[fx.Node], shapes: list[Shape | None]
    ) -> Shape | None:
        if not facts and len(values) > 1:
            return broadcast(shapes[0], shapes[1], node.name) if len(shapes) == 2 else None
        nearest = facts[0] if facts else None
        if nearest is None or len(values) > 1 or nearest.source is not values[0]:
            return next((shape for shape in shapes if shape is not None), None)
        return _mapped_shape(nearest.map, shapes[0], values[0].name, node.name)


def _called(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name!r} in {node.meta.get('path') or 'the model'!r}"


def _moved(fact: Fact, step: Step) -> Fact | None:
    """The fact behind one more step, None if the channels do not survive it."""
    path = (*fact.path, step)
    if fact.at < len(fact.path) or not fact.map.pointwise:
        return replace(fact, path=path)
    if isinstance(fact.map, Uniform):
        return replace(fact, path=path, at=len(path))
    n_axes = _carried(len(fact.map.axes), (step,))
    if n_axes is None:
        return None
    return replace(fact, path=path, at=len(path), map=fact.map.spread(n_axes))


def _carried(n_axes: int, steps: Sequence[Step]) -> int | None:
    """The number of axes behind the channels after `steps`, None if one of them loses the channel axis."""
    for step in steps:
        axis = step.rank - 1 - n_axes
        place = step.layout.carry[axis] if 0 <= axis < step.rank else None
        if place is None:
            return None
        n_axes = len(step.layout.shape) - 1 - place
    return n_axes


def at_home(fact: Fact) -> Fact:
    """The same fact with its map standing at `home`."""
    if fact.at == fact.home or isinstance(fact.map, Uniform):
        return replace(fact, at=fact.home)
    n_axes = _axes_before(fact.path[fact.home :], len(fact.map.axes))
    if n_axes is None:
        return replace(fact, home=fact.at)
    return replace(fact, at=fact.home, map=fact.map.spread(n_axes))


def _axes_before(steps: Sequence[Step], n_axes: int) -> int | None:
    """The number of axes behind the channels in front of `steps`, if there are `n_axes` behind them at the end."""
    return next((n for n in range(4) if _carried(n, steps) == n_axes), None)


def _behind(outer: Map, fact: Fact) -> Affine:
    """A pointwise map behind the path of `fact`, brought to where the map of `fact` stands."""
    assert isinstance(fact.map, Affine)
    if isinstance(outer, Uniform):
        return outer.placed(len(fact.map.axes), fact.map.c_out) @ fact.map
    if not outer.pointwise or _carried(len(fact.map.axes), fact.path[fact.at :]) != len(outer.axes):
        raise Inexact("two operators with a window, and a change of layout in between")
    return outer.spread(len(fact.map.axes)) @ fact.map


def _home(facts: Sequence[Fact], result: Map, end: int) -> int:
    """Where the heaviest operator stood: here, if the map grew."""
    before = max((fact.map.weights for fact in facts if isinstance(fact.map, Affine)), default=0)
    homes = [fact.home for fact in facts if isinstance(fact.map, Affine)]
    grew = isinstance(result, Affine) and result.weights > before
    return end if grew or not homes else max(homes)


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
        size if axis.stride == 1 and axis.growth == 0 else _resized(axis, size, owner, first + i)
        for i, (axis, size) in enumerate(zip(x.axes, before[first:], strict=True))
    ]
    return (*before[: first - 1], Size(x.c_out), *spatial)


def _resized(axis: Any, size: Size, owner: str, place: int) -> Size:
    return unknown(owner, place) if size.known is None else Size(axis.output_size(size.known))
