"""Programs of torch.export as captured graphs, in the spelling that rules know, and what they take for granted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from repcompile.arguments import Arguments
from repcompile.capture import Captured, placed, transient
from repcompile.copies import plain_attributes
from repcompile.errors import Untraceable
from repcompile.exported import module_of
from repcompile.inplace import Unprovable, functionalized, mutates
from repcompile.spelling import respell
from repcompile.tracing import KEPT

aten = torch.ops.aten
FREE = re.compile(r"L\['\w+'\]\[(\d+)\]\.size\(\)\[(\d+)\]")  # a size, as guards call it
SETTLED = (aten.lift_fresh_copy.default, aten.detach_.default, aten.detach.default)  # of a constant: the constant
CLAIMS = (aten._assert_tensor_metadata.default,)  # which conditions compare
CHECKS = ("_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size", "item")


def captured_program(program: ExportedProgram, module: nn.Module, inside: str, ranks: Sequence[int | None]) -> Captured:
    """The graph of a program that takes tensors alone, with the weights of `module`.

    inside: the name of `module` in what was exported.  ranks: of its inputs, None of one that stands for an integer.
    Raises Untraceable if something in the program has no place in a graph of ours.
    """
    whole = module_of(program)
    graph, constants = _translated(whole, module, f"{inside}.")
    for number, node in enumerate([node for node in graph.nodes if node.op == "placeholder"]):
        if ranks[number] is None:
            _make_integer(node)
        else:
            node.meta["rank"] = ranks[number]
    graph.eliminate_dead_code(is_impure_node=_is_seen)
    respell(graph)
    try:
        graph = placed(functionalized(graph, {}, {}))
    except Unprovable as error:
        raise Untraceable(str(error)) from error
    names = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
    kept = {name for name in constants if name.startswith(KEPT)}
    return Captured(
        graph,
        {},
        constants,
        transient=transient(module) | kept,
        name=type(module).__name__,
        arguments=Arguments(names, names, {}),
        attributes=plain_attributes(module),
    )


def _is_seen(node: fx.Node) -> bool:
    """Whether somebody notices that `node` runs although nothing reads its value: it may write to an input."""
    return mutates(node) or node.op in ("placeholder", "output")


def freezes_kinds(program: ExportedProgram) -> bool:
    """Whether the program names a dtype or a device, which the forward may have worked out."""
    for node in program.graph.nodes:
        if node.op == "call_function":
            leaves = pytree.tree_leaves((node.args, dict(node.kwargs)))
            if any(isinstance(leaf, torch.dtype | torch.device) for leaf in leaves):
                return True
    return False


def guards_of(program: ExportedProgram) -> tuple[str, ...]:
    """What the program takes for granted of `n[i][j]`, the size of axis j of input i.

    Raises Untraceable if torch does not tell, or tells it about something else.
    """
    code: list[str] | None = getattr(program, "_guards_code", None)
    if code is None:
        raise Untraceable("this version of torch does not tell what torch.export takes for granted")
    guards = dict.fromkeys(FREE.sub(r"n[\1][\2]", guard) for guard in code)
    guards |= dict.fromkeys(_of_placeholders(program))
    strange = next((guard for guard in guards if "L[" in guard), None)
    if strange is not None:
        raise Untraceable(f"it takes for granted that {strange}")
    return tuple(guards)


def _of_placeholders(program: ExportedProgram) -> Iterator[str]:
    """Sizes that are fixed, equal, or in a range."""
    inputs = set(map(str, program.graph_signature.user_inputs))
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    sizes = [(i, j, size) for i, value in enumerate(values) for j, size in enumerate(value.shape)]
    names: dict[str, str] = {}
    for i, j, size in sizes:
        here, text = f"n[{i}][{j}]", str(size)
        if text.isdigit():
            yield f"{here} == {size}"
        elif not text.isidentifier():
            raise Untraceable(f"one size depends on another one: {text}")
        elif names.setdefault(text, here) != here:
            yield f"{here} == {names[text]}"
    for symbol, range_ in program.range_constraints.items():
        place = names.get(str(symbol))
        if place is None:
            raise Untraceable("it has sizes that depend on numbers in tensors")
        if range_.lower > 1:
            yield f"{place} >= {int(range_.lower)}"
        if range_.upper < BOUND:
            yield f"{place} <= {int(range_.upper)}"


BOUND = 2**31


def _translated(whole: fx.GraphModule, module: nn.Module, prefix: str) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph, and what its `get_attr` nodes name: the module's own tensors, where they are."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    graph, constants, values = fx.Graph(), dict[str, Tensor](), dict[fx.Node, Any]()
    for node in whole.graph.nodes:
        if node.op == "get_attr":
            path = str(node.target).removeprefix(prefix)
            tensor = tensors[path] if path in tensors else _constant(attrgetter(str(node.target))(whole))
            name = path if path in tensors else f"{KEPT}{len(constants)}"
            constants[name] = tensor
            values[node] = graph.create_node("get_attr", name)
            values[node].meta["path"] = name.rpartition(".")[0]
        elif node.target in CLAIMS or (node.target in SETTLED and values[node.args[0]].op == "get_attr"):
            values[node] = values[node.args[0]]
        else:
            _require_known(node)
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = graph.create_node(node.op, node.target, args, kwargs, node.name)
            values[node].meta["path"] = _path(node, prefix)
    return graph, constants


def _constant(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise Untraceable("it runs a part of its forward under other gradients, autocast or control flow")
    if type(value).__name__ == "FakeTensor":
        raise Untraceable("it keeps a tensor of the run that was followed")
    return value


def _require_known(node: fx.Node) -> None:
    name = getattr(node.target, "__name__", str(node.target))
    if isinstance(node.target, HigherOrderOperator):
        raise Untraceable("it runs a part of its forward under other gradients, autocast or control flow")
    if name.partition(".")[0] in CHECKS:
        raise Untraceable("it checks, or reads, numbers in tensors")


def _path(node: fx.Node, prefix: str) -> str:
    """The module whose forward made the call."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    last = list(stack.values())[-1][0] if stack else ""
    return last.partition("@")[0].removeprefix(prefix) if last.startswith(prefix) else ""


def _make_integer(node: fx.Node) -> None:
    """Let the input be the integer whose size the program asks for."""
    for user in list(node.users):
        if user.target is not aten.sym_size.int:
            raise Untraceable("it does something to an integer that a graph cannot")
        user.replace_all_uses_with(node)
        user.graph.erase_node(user)
