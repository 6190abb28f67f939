"""The laws that our own rules pass, for rules of one's own: one line in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repcompile.affine import Affine
from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.compare import compare, largest_of
from repcompile.compiler import compile_model
from repcompile.copies import duplicate
from repcompile.errors import Inexact, RuleError
from repcompile.facts import Fact, Facts, affine_facts
from repcompile.fold import apply
from repcompile.rules import DEFAULT, RewriteRule, Rule, RuleSet, shape_rule
from repcompile.rules.wildcards import AnyModule
from repcompile.shapes import Shape, Size, unknown
from repcompile.trial import Trial

Operator = Callable[[Tensor], Tensor]
MORE = 3  # positions along each axis of the second input
TOLERANCE = torch.finfo(torch.float64).eps ** 0.75  # three quarters of the digits


def check_affine_rule(
    rule: Rule, operator: Operator, shape: Sequence[int], channel_axis: int = 1, rules: RuleSet = DEFAULT
) -> Affine | None:
    """What `rule` says of `operator` is what it computes; returns the map, None where the number of channels is free.

    operator: a module, of which a copy in eval mode is used, or a function that calls what the rule is for.
    shape: of an input; `channel_axis` is the axis whose size the rule gets to know.
    In float64 on inputs of two sizes and of a batch of one, in the interior and at the border; the dtype is kept, the
    module is not changed, and the second time the rule says the same.
    Raises RuleError if one of these does not hold, or if the rule refuses.
    """
    model = _Behind(operator if isinstance(operator, nn.Module) else _Function(operator)).eval()
    given = _telling(shape, channel_axis)
    known = rules + [rule] + RuleSet((given,)).trusting()
    found = [_understood(model, known) for _ in range(2)]
    nodes = [_node_of(rule, known, captured, facts) for captured, facts in found]
    captured, facts = found[0]
    try:
        Trial(captured, facts, known).of_node(nodes[0], rule)
    except Inexact as reason:
        raise RuleError(f"rule {rule.name!r}: {reason}") from reason
    maps = [facts.maps[node][0].map for node, (_, facts) in zip(nodes, found, strict=True)]
    first, second = maps
    if not isinstance(first, Affine) or not isinstance(second, Affine):
        return None
    if _is_whole(facts.maps[nodes[0]][0], nodes[0], captured):
        _require_equal(rule.name, model, first, shape, channel_axis)
        _require_same(rule.name, first, second, shape, channel_axis)
    return first


def check_rewrite_rule(
    rule: RewriteRule,
    shape: Sequence[int] | Mapping[str, Sequence[int]],
    channel_axis: int = 1,
    rules: RuleSet = DEFAULT,
    **examples: Any,
) -> None:
    """The replacement of `rule` is what its pattern computes, and the pattern finds itself.

    shape: of every value, or by the name of the pattern's parameter; all axes but the first and `channel_axis` vary.
    examples: modules and constants for its wildcards, by name; usual layers are made where none is given.
    In float64 on inputs of two sizes, and in float32 for the dtype.  Raises RuleError if one of these does not hold.
    """
    model = _pattern_of(rule, shape, examples)
    report = compile_model(model, rules=rules + [rule]).report
    if not any(item.rule == rule.name for item in report.rewritten):
        reasons = [left.reason for left in report.left if rule.name in left.reason]
        raise RuleError(f"rewrite rule {rule.name!r} is not applied to its own pattern: {(*reasons, 'no match')[0]}")
    names = [str(node.target) for node in model.graph.nodes if node.op == "placeholder"]
    module = compile_model(model, rules=rules + [rule]).module
    for dtype in (torch.float64, torch.float32):
        old, new = (duplicate(part).to(dtype) for part in (model, module))
        for more in (0, MORE):
            values = [
                _image(_shape_of(shape, name), more, channel_axis, index).to(dtype) for index, name in enumerate(names)
            ]
            with torch.no_grad():
                expected, got = old(*values), new(*values)
            if got.dtype != expected.dtype:
                raise RuleError(
                    f"rewrite rule {rule.name!r} makes {got.dtype} of {dtype}, its pattern {expected.dtype}"
                )
            scale = max(1.0, largest_of(expected))
            check = compare(got.double(), expected.double(), torch.finfo(dtype).eps ** 0.5 * scale)
            if not check.passed:
                raise RuleError(f"rewrite rule {rule.name!r} differs by {check.error:.1e} at {check.place}")


# -- affine rules ------------------------------------------------------------------------------------------------------


class _Given(nn.Module):
    """The input, of which the number of channels is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Function(nn.Module):
    def __init__(self, function: Operator) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Behind(nn.Module):
    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.given = _Given()
        self.operator = duplicate(operator)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.given(x))


def _telling(shape: Sequence[int], channel_axis: int) -> Rule:
    def given(before: Shape | None, module: nn.Module, owner: str = "") -> Shape:
        place = channel_axis % len(shape)
        return tuple(Size(size) if axis == place else unknown(owner, axis) for axis, size in enumerate(shape))

    return shape_rule(_Given)(given)


def _understood(model: nn.Module, rules: RuleSet) -> tuple[Captured, Facts]:
    captured = canonicalize(capture(model, rules.module_classes))
    return captured, affine_facts(captured, rules)


def _node_of(rule: Rule, rules: RuleSet, captured: Captured, facts: Facts) -> fx.Node:
    """The node that the rule says something about.  Raises RuleError if there is none, or if it refuses."""
    nodes = [node for node in captured.graph.nodes if rules.find(node, captured, "affine") is rule]
    if not nodes:
        raise RuleError(f"rule {rule.name!r} is for nothing that is called here")
    if not facts.maps.get(nodes[0]):
        reasons = [refusal.reason for refusal in facts.refusals if refusal.node is nodes[0]]
        raise RuleError(f"rule {rule.name!r} refuses: {(*reasons, 'it says nothing')[0]}")
    return nodes[0]


def _is_whole(fact: Fact, node: fx.Node, captured: Captured) -> bool:
    """Whether a map of `node` leads from the model's input to its output."""
    given = fact.source.op == "call_module" and isinstance(captured.module(fact.source), _Given)
    return given and not fact.path and all(user.op == "output" for user in node.users)


def _require_equal(name: str, model: nn.Module, x: Affine, shape: Sequence[int], channel_axis: int) -> None:
    exact = duplicate(model).double()
    for more, batch in ((0, shape[0]), (MORE, shape[0]), (0, 1)):
        image = _image((batch, *shape[1:]), more, channel_axis, more)
        with torch.no_grad():
            expected = exact(image)
        got = apply(x, image)
        check = compare(got, expected, TOLERANCE * max(1.0, largest_of(expected)))
        if not check.passed:
            differs = f"it differs by {check.error:.1e} at {check.place}, for an input of shape {tuple(image.shape)}"
            raise RuleError(f"rule {name!r} is wrong: {differs}")


def _require_same(name: str, first: Affine, second: Affine, shape: Sequence[int], channel_axis: int) -> None:
    image = _image(shape, 0, channel_axis, 0)
    if not torch.equal(apply(first, image), apply(second, image)):
        raise RuleError(f"rule {name!r} says something else the second time")


def _image(shape: Sequence[int], more: int, channel_axis: int, seed: int) -> Tensor:
    """Normal numbers; `more` positions along all axes but the batch and the channels."""
    kept = {0, channel_axis % len(shape)}
    sizes = [size if axis in kept else size + more for axis, size in enumerate(shape)]
    return torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- rewrite rules -----------------------------------------------------------------------------------------------------


def _shape_of(shape: Sequence[int] | Mapping[str, Sequence[int]], name: str) -> Sequence[int]:
    return shape[name] if isinstance(shape, Mapping) else shape


def _pattern_of(
    rule: RewriteRule, shape: Sequence[int] | Mapping[str, Sequence[int]], examples: Mapping[str, Any]
) -> fx.GraphModule:
    """The pattern as a model, with an example for each wildcard."""
    side, graph, root = rule.pattern, fx.Graph(), nn.Module()
    values: dict[fx.Node, Any] = {}
    some = next(iter(shape.values())) if isinstance(shape, Mapping) else shape
    for name, wild in side.modules.items():
        example = examples.get(name)
        root.add_module(name, _example(rule, name, wild, some) if example is None else duplicate(example))
    for node in side.captured.graph.nodes:
        if (
            node.op == "get_attr"
            and node.target in side.constants
            and not isinstance(examples.get(str(node.target), 0.7), Tensor)
        ):
            values[node] = examples.get(str(node.target), 0.7)
            continue
        if node.op == "get_attr":
            given = examples.get(str(node.target), side.captured.constants.get(str(node.target)))
            root.register_buffer(f"given_{node.target}", given)
            values[node] = graph.get_attr(f"given_{node.target}")
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    model = fx.GraphModule(root, graph)
    return model.eval()


def _example(rule: RewriteRule, name: str, wild: Any, shape: Sequence[int]) -> nn.Module:
    """A usual layer that the wildcard accepts."""
    for cls in wild.classes if isinstance(wild, AnyModule) else ():
        wanted = {key: value for key, value in wild.attributes.items() if isinstance(value, int | float | str | tuple)}
        for arguments in _usual(cls, shape):
            try:
                module = cls(*arguments, **wanted)
            except TypeError:
                continue
            if wild.accepts(module):
                return module
    raise RuleError(f"rewrite rule {rule.name!r}: give an example of {name!r}: check_rewrite_rule(..., {name}=module)")


def _usual(cls: type[nn.Module], shape: Sequence[int]) -> Sequence[tuple[Any, ...]]:
    channels = shape[1] if len(shape) > 1 else shape[-1]
    return {"Linear": [(shape[-1], shape[-1])]}.get(
        cls.__name__, [(channels, channels), (channels, channels, 3), (channels,), ()]
    )
