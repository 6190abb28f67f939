"""From a module to a graph that tells the truth.

Given: any `nn.Module` in eval mode.  Result: a `Captured` graph that computes what the module computes; what cannot be
traced is a leaf of the graph, with the reason.  The module is not touched: `tracing` runs a copy of its structure.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn

from repcompile.arguments import Arguments, arguments_of
from repcompile.classes import hooked, torch_class, unconcerned
from repcompile.copies import plain_attributes
from repcompile.defaults import Specialized
from repcompile.errors import ModelError, Untraceable
from repcompile.inplace import Unprovable, drop_names, functionalized, is_opaque
from repcompile.memory import Remembers
from repcompile.modules import MODULES, FixedDtype
from repcompile.questions import asks_for_none
from repcompile.selection import NOTHING, SKIPPED, Selection
from repcompile.spelling import respell
from repcompile.statements import KeptStatement
from repcompile.tracing import KEPT, recorded, trace
from repcompile.wrappers import entry, own_call


@dataclass(frozen=True, slots=True)
class Captured:
    """A model as a graph of operators.

    graph: torch.fx's; every node's `meta["path"]` names the module of the user's that it belongs to.
    modules, constants: what `call_module` and `get_attr` targets mean: the user's own objects, only ever read.
    opaque: path of a module, or of a statement, that stays Python -> the reason.
    classes: path -> the torch.nn class, or our own, of a module that computes what that class computes; the others are
    opaque.
    transient: paths of tensors that `state_dict` leaves out.  fixed: of tensors whose dtype is not the weights'.
    written: of tensors that belong to opaque modules, which may write to them.
    arguments: the way of calling the model that the graph is.
    selection: what stays as it is, because the caller said so.
    attributes: numbers, texts and the like that the model has, and that others may read.
    """

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    constants: Mapping[str, Tensor]
    opaque: Mapping[str, str] = field(default_factory=dict[str, str])
    classes: Mapping[str, type[nn.Module]] = field(default_factory=dict[str, type[nn.Module]])
    transient: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    name: str = "Module"
    arguments: Arguments | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    selection: Selection = NOTHING

    def stays(self, node: fx.Node) -> bool:
        """Whether the caller wants `node` to stay as it is: it belongs to a kept module, or reads its weights."""
        kept = self.selection.kept
        if not kept:
            return False
        owners = [_owner(operand) for operand in node.all_input_nodes if operand.op == "get_attr"]
        place = str(node.target) if node.op == "call_module" else str(node.meta.get("path", ""))
        return place in kept or any(owner in kept for owner in owners)

    def may_write(self, node: fx.Node, numbers: Container[fx.Node]) -> bool:
        """Whether it stays Python, and may get hold of a tensor; a statement has nothing but what it is given.

        numbers: the nodes that are computed from sizes alone.
        """
        if not is_opaque(node, self.opaque):
            return False
        return not isinstance(self.module(node), KeptStatement) or any(o not in numbers for o in node.all_input_nodes)

    def asked_by_python(self) -> frozenset[fx.Node]:
        """The values from which something that stays Python computes: it may depend on how they lie in memory."""
        found = set[fx.Node]()
        for node in reversed(self.graph.nodes):
            if node in found or is_opaque(node, self.opaque):
                found.update(node.all_input_nodes)
        return frozenset(found)

    def segments(self, numbers: Container[fx.Node]) -> dict[fx.Node, int]:
        """How many nodes up to each one may write: where the count is the same, a read may move."""
        writers = accumulate(int(self.may_write(node, numbers)) for node in self.graph.nodes)
        return dict(zip(self.graph.nodes, writers, strict=True))

    def torch_class(self, node: fx.Node) -> type:
        """What a `call_module` node computes, NoneType if only its module knows."""
        return self.classes.get(str(node.target), NoneType)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a `call_module` node calls."""
        return self.modules[str(node.target)]


def capture(
    model: nn.Module,
    leaves: tuple[type[nn.Module], ...] = (),
    example_inputs: Sequence[Any] | None = None,
    selection: Selection = NOTHING,
    arguments: Arguments | None = None,
    made: bool = False,
) -> Captured:
    """The graph of `model`.

    leaves: classes that stay one node although their `forward` could be traced, because a rule knows them.
    example_inputs: the way in which it is called; without, every argument that has a default keeps it.
    selection: modules that stay one node, because the caller said so.  arguments: the way itself, where it is known.
    made: whether the compiler has just made the model, so that its graph is what it runs.
    Raises ModelError if `model` is not an nn.Module in eval mode or cannot be copied, Untraceable if its own forward
    cannot be traced.
    """
    _require_eval(model)
    if isinstance(model, Specialized):
        raise Untraceable("it is fused already, for one way of calling it")
    arguments = arguments or arguments_of(type(model).__name__, entry(model), example_inputs)
    if hooked(model) and (own_call(model) or not arguments.only_one or not unconcerned(model)):
        raise Untraceable("it has hooks, which see its inputs and outputs")
    modules = dict(model.named_modules())
    opaque = dict.fromkeys(selection.whole, SKIPPED)
    while True:  # ends: every round makes one more module a leaf
        try:
            ready = recorded(model, leaves) if made and not opaque and isinstance(model, fx.GraphModule) else None
            traced = ready or trace(model, arguments, leaves, opaque)
            respell(traced.graph)
            classes = _classes(traced.graph, modules, {**_unknown(opaque, modules), **traced.failures})
            drop_names(traced.graph, modules, classes, selection.kept)
            graph = placed(functionalized(traced.graph, modules, classes, _mixes(model)))
            break
        except (Remembers, Unprovable) as error:
            opaque[_smallest(error.paths, opaque, modules)] = str(error)
    opaque.update(traced.failures)
    modules = {**modules, **traced.statements}
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    opaque = {path: reason for path, reason in _unknown(opaque, modules).items() if path in used}
    theirs = {id(tensor) for path in opaque for tensor in _tensors(modules[path])}
    return Captured(
        graph,
        {path: modules[path] for path in modules if path in used},
        traced.constants,
        opaque,
        classes,
        transient(model) | {name for name in traced.constants if name.startswith(KEPT)},
        frozenset(f"{path}.value".lstrip(".") for path, module in modules.items() if isinstance(module, FixedDtype)),
        frozenset(name for name, tensor in traced.constants.items() if id(tensor) in theirs),
        type(model).__name__,
        _told(arguments, traced.asked, model),
        plain_attributes(model),
        selection,
    )


def _unknown(opaque: Mapping[str, str], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Those of which nobody knows what they do; a layer of torch's that is skipped is known all the same."""
    return {
        path: reason
        for path, reason in opaque.items()
        if reason != SKIPPED or (path in modules and torch_class(modules[path]) is None)
    }


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Those that the module has, registered or not."""
    yield from (*module.parameters(), *module.buffers())
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _owner(constant: fx.Node) -> str | None:
    """The path of the module that a `get_attr` node belongs to, None if no module registers it."""
    return None if str(constant.target).startswith(KEPT) else str(constant.target).rpartition(".")[0]


def called(node: fx.Node, captured: Captured) -> str:
    """A node in the user's words: the path of its module, and what it calls."""
    path = str(node.meta.get("path") or "")
    if node.op == "call_module":
        return f"{path!r} ({type(captured.module(node)).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name!r} in {path!r}" if path else f"{name!r} in {captured.name}"


def _told(arguments: Arguments, asked: frozenset[str], model: nn.Module) -> Arguments:
    """The call, with what the trace took for granted of its inputs."""
    sure = {*arguments.containers, *arguments.optional}  # compared with every call
    several = len(arguments.inputs) > 1 and any(map(asks_for_none, model.modules()))
    given = frozenset(arguments.inputs if several else ()) - sure
    return replace(arguments, tensors=asked - sure, given=given)


def _mixes(model: nn.Module) -> bool:
    """Whether the model has floating-point numbers of several dtypes."""
    tensors = (*model.parameters(), *model.buffers())
    return len({tensor.dtype for tensor in tensors if tensor.is_floating_point()}) > 1


def _classes(
    graph: fx.Graph, modules: Mapping[str, nn.Module], opaque: Mapping[str, str]
) -> dict[str, type[nn.Module]]:
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"} - set(opaque)
    found = {path: _class_of(modules[path]) for path in paths}
    return {path: cls for path, cls in found.items() if cls is not None}


def _class_of(module: nn.Module) -> type[nn.Module] | None:
    return type(module) if type(module) in MODULES else torch_class(module)


def placed(graph: fx.Graph) -> fx.Graph:
    """The graph, where calls in the root's forward belong to the module whose weights they take."""
    for node in graph.nodes:
        owners = [operand.meta.get("path") for operand in node.all_input_nodes if operand.op == "get_attr"]
        if node.op == "call_function" and not node.meta.get("path") and owners:
            node.meta["path"] = owners[0]
    return graph


def transient(model: nn.Module) -> frozenset[str]:
    return frozenset(
        f"{path}.{name}".lstrip(".") for path, m in model.named_modules() for name in m._non_persistent_buffers_set
    )


def _require_eval(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"repcompile takes a torch.nn.Module; got {type(model).__name__}")
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode, where batch norm depends on the batch and nothing folds: "
            "call model.eval() first"
        )
    tensors = (*model.parameters(), *model.buffers())
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise ModelError(f"{type(model).__name__} has lazy parameters: run it once, then compile it")
    if any(tensor.is_meta for tensor in tensors):
        raise ModelError(f"{type(model).__name__} is on the meta device and has no weights to fold: load them first")
    if any(type(tensor).__name__ == "FakeTensor" for tensor in tensors):
        raise ModelError(f"{type(model).__name__} has fake tensors, which hold no weights to fold")
    layouts = {tensor.layout for tensor in tensors} - {torch.strided}
    if layouts:
        kinds = ", ".join(sorted(map(str, layouts)))
        raise ModelError(f"{type(model).__name__} has weights of layout {kinds}; it takes torch.strided ones")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("a scripted module has no Python left to trace: compile the model, then script the result")


def _smallest(paths: tuple[str, ...], opaque: Mapping[str, str], modules: Mapping[str, nn.Module]) -> str:
    """The first of `paths` that is not a leaf yet, going outwards.  Raises Untraceable at the root."""
    for path in paths:
        while path and path in opaque:
            path = path.rpartition(".")[0]
            while path and path not in modules:
                path = path.rpartition(".")[0]
        if path:
            return path
    raise Untraceable("its forward changes tensors or attributes in a way that tracing cannot follow")
