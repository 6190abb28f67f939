"""From a plan to a new module.

Given: a captured graph, facts and a plan.  Result: a `GraphModule` in which each chosen region is one operator, folded
in float64, checked against the nodes that it replaces, and rounded once. A region that fails is left as it was.
"""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.compare import Check, has_finite_sum
from repcompile.copies import duplicate
from repcompile.emit import cast, emit
from repcompile.errors import Inexact
from repcompile.facts import Facts
from repcompile.fold import fold, leaves_of
from repcompile.graphs import Fused, keep
from repcompile.heap import allocated
from repcompile.inplace import is_fresh, returned, write_again
from repcompile.inquiries import ASKED, question_of
from repcompile.interpret import Remembering
from repcompile.modules import ChannelAffine, FixedDtype, of_rank
from repcompile.names import names_of_regions, names_of_tensors, places_of, rename_arguments
from repcompile.outcomes import outcome_of
from repcompile.paths import Fact, Step
from repcompile.plan import Plan
from repcompile.ranges import Ranges, ranges_of
from repcompile.ranks import ranks_to_check
from repcompile.regions import Region, answered, is_slice
from repcompile.regroup import TWIN
from repcompile.rules.ruleset import RuleSet
from repcompile.spelling import name_of
from repcompile.tracing import KEPT
from repcompile.trial import Trial
from repcompile.values import Values

WEIGHTED = (*(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),)

STORED = "stored"  # in a node's `meta`: it returns a constant, and computes nothing


@dataclass(frozen=True, slots=True)
class Emitted:
    """The operator for a region, None for an identity.

    check: against the nodes that it replaces, in float64.  rounded: after its weights were rounded to their dtype.
    ranges: of the weights, before and after.
    """

    module: nn.Module | None = None
    check: Check | None = None
    rounded: Check | None = None
    ranges: Ranges | None = None


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A region and what took its place.

    path: name of the new module, "" where the region was an identity.
    rank: the number of axes that the source is checked to have, None where no other can come.
    """

    region: Region
    path: str
    made: Emitted
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """A region that was chosen and not rewritten, and why."""

    region: Region
    reason: str


Emission = Emitted | str  # or the reason why not


def rewrite(
    captured: Captured,
    facts: Facts,
    plan: Plan,
    rules: RuleSet,
    inner: Mapping[str, nn.Module] | None = None,
    known: dict[Region, Emission] | None = None,
) -> tuple[fx.GraphModule, tuple[Rewritten, ...], tuple[Rollback, ...]]:
    """(module, rewritten regions, rolled-back regions).  Nothing of the user's is shared with the new module.

    Raises RuleError if a rule on trial is wrong about a region.

    inner: what stands for modules inside those that stay Python, by path.
    known: what became of regions in an earlier plan; it gets what becomes of these.
    """
    emitted: list[tuple[Region, Emitted]] = []
    rollbacks: list[Rollback] = []
    known, trial = {} if known is None else known, Trial(captured, facts, rules)
    for region in plan.chosen:
        if region not in known:
            known[region] = _tried(region, captured, facts, trial)
            allocated(_bytes_of(known[region]))
        result = known[region]
        if isinstance(result, str):
            rollbacks.append(Rollback(region, result))
        else:
            emitted.append((region, result))
    regions = [region for region, _ in emitted]
    names, ranks = names_of_regions(regions, captured, facts), ranks_to_check(regions, captured, facts)
    done = tuple(
        Rewritten(region, name, made, ranks.get(region)) for (region, made), name in zip(emitted, names, strict=True)
    )
    return _assembled(captured, facts, done, inner or {}), done, tuple(rollbacks)


def _tried(region: Region, captured: Captured, facts: Facts, trial: Trial) -> Emission:
    try:
        trial.of_region(region)
        return _emitted(region, captured, facts)
    except Inexact as reason:
        return str(reason)


def _bytes_of(emission: Emission) -> int:
    module = None if isinstance(emission, str) else emission.module
    return 0 if module is None else sum(parameter.nbytes for parameter in module.parameters())


def _emitted(region: Region, captured: Captured, facts: Facts) -> Emitted:
    """Raises Inexact, with the reason, if the nodes have to stay."""
    x = region.fact.map
    if not isinstance(x, Affine):
        return Emitted()
    read = Remembering()
    try:
        with torch.no_grad():  # as the model runs: torch has kernels that round differently with gradients
            values = fold(x, read)
            _require_finite(values, x)
            module = emit(x, values)
            outcome = outcome_of(region, module, captured, facts, read)
            check = outcome.check
            _require(check, "differs")
            ranges = ranges_of(x, values, read)
            module = cast(module, _weights(region, captured, facts))
            rounded = outcome.rounded(module)
            _require(rounded, "with its weights rounded once it differs")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # an operator of the user's, on our random image
        raise Inexact(f"it could not be checked: {error}") from error
    return Emitted(module, check, rounded, ranges)


def _require_finite(values: Values, x: Affine) -> None:
    """Raises Inexact where NaN and infinity would meet others than they do in the operators one by one."""
    parts = [part for part in (values.kernel, values.bias, values.border) if part is not None]
    if all(has_finite_sum(part) or part.isfinite().all() for part in parts):
        return
    constants = (constant for _, leaf in leaves_of(x) for constant in (leaf.kernel, leaf.bias, leaf.border))
    given = [tensor for constant in constants if constant is not None for tensor in constant.tensors]
    finite = all(tensor.isfinite().all() for tensor in given)
    raise Inexact("it folds to values that are not finite" if finite else "its weights hold NaN or infinity")


def _require(check: Check, differs: str) -> None:
    if not check.passed:
        raise Inexact(f"{differs} by {check.error:.2e} at {check.place}, where rounding explains {check.bound:.2e}")


def _weights(region: Region, captured: Captured, facts: Facts) -> tuple[Tensor, ...]:
    """The floating-point weights of the nodes that `region` replaces; all of the model's if these have none."""
    modules = [captured.module(node) for node in region.nodes if node.op == "call_module"]
    inputs = {operand for node in region.nodes for operand in node.all_input_nodes if operand in facts.constants}
    named = [tensor for node in inputs for tensor in facts.constants.tensors(node)]
    return _floating(modules, named) or _floating(captured.modules.values(), captured.constants.values())


def _floating(modules: Iterable[nn.Module], tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Those that decide the dtype of a result: numbers in a tensor without axes do not, where there are others."""
    owned = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    floating = tuple(tensor for tensor in (*owned, *tensors) if tensor.is_floating_point())
    return tuple(tensor for tensor in floating if tensor.dim()) or floating


# -- assembly ----------------------------------------------------------------------------------------------------------


def _assembled(
    captured: Captured, facts: Facts, done: Sequence[Rewritten], inner: Mapping[str, nn.Module]
) -> fx.GraphModule:
    graph, constants, fixed = _new_graph(captured, facts, {item.region.sink: item for item in done})
    new = {item.path: item.made.module for item in done if item.made.module is not None}
    write_again(graph, {**captured.classes, **{path: _class_of(module) for path, module in new.items()}})
    memo, place = dict[int, Any](), places_of(captured)
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
            _place(root, place(path), new[path] if path in new else _copied(captured, node, memo))
            node.target = place(path)
        elif node.op == "get_attr" and str(node.target) in fixed:
            _place(root, place(_holder(node)), FixedDtype(constants[str(node.target)].detach().clone()))
            node.op, node.target = "call_module", place(_holder(node))
            node.meta[STORED] = True
        elif node.op == "get_attr":
            path, node.target = str(node.target), place(str(node.target))
            _place(root, place(path), copy.deepcopy(constants[path], memo))
    for path, part in inner.items():
        root.set_submodule(place(path), part)
    module = Fused(root, graph, captured.name)
    keep(module, captured.attributes)
    for part in module.modules():  # the user's modules keep their own flags
        if part is module or type(part) is nn.Module:
            part.training = False
    buffers = {name for name, _ in module.named_buffers()}
    for path in buffers.intersection(map(place, captured.transient)):
        owner, _, field = path.rpartition(".")
        if path.startswith(KEPT):  # a plain tensor, which `.to` leaves alone
            object.__setattr__(module, path, module._buffers.pop(path))
        else:
            module.get_submodule(owner)._non_persistent_buffers_set.add(field)
    return module


def _new_graph(
    captured: Captured, facts: Facts, rewritten: dict[fx.Node, Rewritten]
) -> tuple[fx.Graph, Mapping[str, Tensor], Container[str]]:
    """(graph, what its `get_attr` nodes name, those of a fixed dtype): the old graph with one call for each region.

    What nobody reads any more is left out, and what depends on no input is evaluated.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    settled: dict[fx.Node, Tensor] = {}
    asked = _asked_elsewhere(captured.graph, facts, rewritten)
    given = returned(captured.graph, captured.classes)  # a new tensor in every call, which the caller may write to
    needed = _needed(captured, facts, rewritten, settled, asked, given)
    called = {str(node.target) for node in needed if node.op == "call_module" and node not in rewritten}
    called.update(item.path for item in rewritten.values() if item.made.module is not None)
    names = names_of_tensors(settled, captured, called)
    python = captured.asked_by_python()
    twins: dict[fx.Node, fx.Node] = {}  # the first of nodes that do the same -> their value
    for node in needed:
        first = node.meta.get(TWIN, node)
        if node in rewritten:
            values[node] = _call(graph, rewritten[node], values, facts, asked=node in python)
        elif node in settled:
            values[node] = graph.create_node("get_attr", names[node])
        elif node in asked:
            (subject,) = node.all_input_nodes
            values[node] = _same_node(graph, node, ChainMap({subject: values[asked[node]]}, values))
        elif first in twins:
            values[node] = twins[first]
        else:
            values[node] = twins[first] = _same_node(graph, node, values)
    rename_arguments(graph)
    constants = ChainMap({names[node]: tensor for node, tensor in settled.items()}, dict(captured.constants))
    fixed = {names[node] for node in settled if facts.constants.keeps_dtype(node)}
    return graph, constants, fixed | captured.fixed


def _holder(node: fx.Node) -> str:
    """Where the module stands that holds a constant of a fixed dtype; one that was fused before has it in `value`."""
    return str(node.target).removesuffix(".value")


def _asked_elsewhere(graph: fx.Graph, facts: Facts, rewritten: Mapping[fx.Node, Rewritten]) -> dict[fx.Node, fx.Node]:
    """Questions about values that are gone, and the value that answers instead."""
    source = {node: item.region.source for item in rewritten.values() for node in item.region.dying}
    questions = [(node, node.all_input_nodes[0]) for node in graph.nodes if question_of(node) is not None]
    found = {
        node: answered(node, subject, source[subject], facts, source)
        for node, subject in questions
        if subject in source
    }
    return {node: subject for node, subject in found.items() if subject is not None}


def _same_node(graph: fx.Graph, node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """A copy of `node` that reads the new `values`, named afresh, so that names do not tell what was there."""
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    name = "self_" if str(node.target) == "self" else None  # `self` is what the generated code calls the module
    copied = graph.create_node(node.op, node.target, args, kwargs, name=name)
    copied.meta = {name: value for name, value in node.meta.items() if name != ASKED}
    return copied


def _needed(
    captured: Captured,
    facts: Facts,
    rewritten: dict[fx.Node, Rewritten],
    settled: dict[fx.Node, Tensor],
    asked: Mapping[fx.Node, fx.Node],
    given: Container[fx.Node],
) -> list[fx.Node]:
    """The nodes that outputs and effects depend on once the sinks are computed from their sources, in order.

    settled: gets the values of the needed ones that depend on no input, but for those that the caller is given.
    """
    needed: set[fx.Node] = set()
    covered = {node for item in rewritten.values() for node in item.region.owned}
    for node in reversed(captured.graph.nodes):
        effect = node.op in ("placeholder", "output") or captured.may_write(node, facts.numbers)
        if not (effect or node in needed or (not node.users and node not in covered)):
            continue
        needed.add(node)
        known = node in facts.constants and node.op != "get_attr" and node not in given
        constant = facts.constants.evaluated(node) if known else None
        if constant is None or not _is_convertible(constant, node):
            needed.update({asked[node]} if node in asked else _reads(node, rewritten))
        else:
            settled[node] = constant if _is_weight(node) else constant.detach()
    return [node for node in captured.graph.nodes if node in needed]


def _is_convertible(value: Tensor, constant: fx.Node) -> bool:
    """Whether `module.to` does to it what it does to the weights that it is computed from.

    The imaginary part goes where a dtype is real, and `channels_last` takes four axes.
    """
    return not value.is_complex() and (value.dim() != 5 or _is_weight(constant))


def _is_weight(constant: fx.Node) -> bool:
    """Whether an operator with weights reads it as one; where a learning tensor is a mask, torch has slower kernels."""
    return any(user.target in WEIGHTED and user.args[1:2] == (constant,) for user in constant.users)


def _reads(node: fx.Node, rewritten: dict[fx.Node, Rewritten]) -> set[fx.Node]:
    if node not in rewritten:
        return set(node.all_input_nodes)
    fact = rewritten[node].region.fact
    arguments = {arg for step in fact.path for arg in step.node.all_input_nodes if arg is not step.node.args[0]}
    return arguments | {fact.source}


def _call(graph: fx.Graph, item: Rewritten, values: dict[fx.Node, fx.Node], facts: Facts, asked: bool) -> fx.Node:
    """asked: whether something that stays Python may depend on how the result lies in memory."""
    fact: Fact = item.region.fact
    value = values[fact.source]
    if item.rank is not None:
        value = graph.call_function(of_rank, (value, item.rank))
    value = _steps(graph, fact.path[: fact.at], value, values)
    if isinstance(item.made.module, nn.Linear) and (fact.at > 0 or _is_scattered(fact.source, facts)):
        value = graph.call_method("contiguous", (value,))  # one addmm, where other inputs take a mm and an add
    value = graph.call_method("clone", (value,)) if item.made.module is None else graph.call_module(item.path, (value,))
    value = _steps(graph, fact.path[fact.at :], value, values)
    contiguous = fact.path and any(name_of(node) == "contiguous" for node in item.region.nodes)
    if contiguous or (asked and _may_lie_otherwise(item, facts)):
        value = graph.call_method("contiguous", (value,))
    return value


def _may_lie_otherwise(item: Rewritten, facts: Facts) -> bool:
    """Whether the result may have other strides: what works element by element has those of its operand."""
    fact, elementwise = item.region.fact, isinstance(item.made.module, ChannelAffine | NoneType)
    others = [node for node in item.region.nodes if node not in facts.rules or not facts.rules[node].elementwise]
    return not fact.ends or (elementwise and bool(others))


def _is_scattered(value: fx.Node, facts: Facts) -> bool:
    """Whether it is cut out of an image, so that its rows lie apart in memory; those of a matrix may."""
    shape = facts.shapes.get(value)
    return is_slice(value) and shape is not None and len(shape) > 2


def _steps(graph: fx.Graph, path: Sequence[Step], value: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
    for step in path:
        (operand, *_) = step.node.all_input_nodes
        value = _same_node(graph, step.node, ChainMap({operand: value}, values))
    return value


def _class_of(module: nn.Module) -> type[nn.Module]:
    """The class of what makes the result."""
    return type(module[-1]) if isinstance(module, nn.Sequential) else type(module)


def _copied(captured: Captured, node: fx.Node, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module that stays; it writes in place only where the value it reads is nobody else's."""
    result = duplicate(captured.module(node), memo)
    operand = node.args[0] if node.args else None
    if node.meta.get("inplace") and isinstance(operand, fx.Node) and not _spare(operand, captured):
        result.__dict__["inplace"] = False
    return result


def _spare(value: fx.Node, captured: Captured) -> bool:
    """Whether nobody but its one reader can see what happens to `value`: it was just computed."""
    emitted = value.op == "call_module" and str(value.target) not in captured.modules and STORED not in value.meta
    return len(value.users) == 1 and (emitted or is_fresh(value, captured.classes))


def _place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a module, parameter or buffer at a dotted path, with plain modules on the way."""
    *owners, field = path.split(".")
    for owner in owners:
        if owner not in root._modules:
            root.add_module(owner, nn.Module())
        root = root.get_submodule(owner)
    if isinstance(value, nn.Module):
        root.add_module(field, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(field, value)
    else:
        root.register_buffer(field, value)
