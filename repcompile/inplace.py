"""In-place operators made out of place, where that is provably the same.

Given: a traced graph.  Result: a graph of pure operators; nodes whose original wrote to their input carry
`meta["inplace"]`, so that `rewrite` may write in place again where nobody looks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from types import NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from repcompile.factories import SILENT
from repcompile.modules import MODULES, overwritten, put
from repcompile.spelling import name_of, parameters

Classes = Mapping[str, type[nn.Module]]


DROPOUTS = (nn.modules.dropout._DropoutNd,)
DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
HORIZON = 64  # values that are looked at in search of a cast
CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16")


class Unprovable(Exception):
    """Something else may look at the tensor that is written to.  paths: the module that does it."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"{node.target} changes a tensor in place that others may see")
        self.paths = (str(node.meta.get("path", "")),)


def functionalized(
    graph: fx.Graph, modules: Mapping[str, nn.Module], classes: Classes, mixed: bool = False
) -> fx.Graph:
    """The graph without writes.  Raises Unprovable if a written tensor has, or may have, other names.

    classes: of the modules that compute what their torch.nn class computes; the others may do anything, and are left.
    mixed: whether the weights have several dtypes.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = _written(node, modules, classes)
        if written is None:
            continue
        _require_unseen(node, written, order, classes)
        users = [user for user in written.users if order[user] > order[node]]
        _make_pure(node)
        result = _as_written(node, written) if mixed or _is_cast(node) else node
        for user in users:
            user.replace_input_with(written, result)
        if result is not node:
            order[result] = order[node]
            for user in [user for user in node.users if user is not result]:
                user.replace_input_with(node, result)
    return graph


def drop_names(graph: fx.Graph, modules: Mapping[str, nn.Module], classes: Classes, kept: Container[str]) -> None:
    """Let everybody read what a node that returns its operand itself was given.

    kept: paths of modules in which every operator stays as it is.
    """
    for node in list(graph.nodes):
        place = str(node.target) if node.op == "call_module" else str(node.meta.get("path", ""))
        if place not in kept and is_name(node, modules, classes):
            (operand,) = node.all_input_nodes
            node.replace_all_uses_with(operand)
            graph.erase_node(node)


def is_name(node: fx.Node, modules: Mapping[str, nn.Module], classes: Classes) -> bool:
    """Whether it returns its operand itself, and not an equal tensor."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        cls = classes.get(str(node.target)) or NoneType
        return issubclass(cls, nn.Identity) or (issubclass(cls, DROPOUTS) and not modules[str(node.target)].training)
    if node.op != "call_function" or node.target not in DROPOUT_FUNCTIONS:
        return False
    return node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True) is False


def _is_cast(node: fx.Node) -> bool:
    """Whether a dtype was asked for on the way to what `node` reads, since a module with weights made it."""
    stack, seen = list(node.all_input_nodes), set[fx.Node]()
    while stack and len(seen) < HORIZON:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        asked = (*value.args, *value.kwargs.values())
        if name_of(value) in CASTS or any(isinstance(each, torch.dtype) for each in asked):
            return True
        if value.op != "call_module":
            stack += value.all_input_nodes
    return False


def _as_written(node: fx.Node, written: fx.Node) -> fx.Node:
    """What `node` computes of several values, in the dtype of the tensor that it was written to."""
    if len(node.all_input_nodes) < 2 or node.target is put:
        return node
    with node.graph.inserting_after(node):
        result = node.graph.call_method("type_as", (node, written))
    result.meta = {**node.meta, "inplace": False}
    return result


def write_again(graph: fx.Graph, classes: Classes) -> None:
    """Let assignments write in place, as their originals did, where nobody reads what they write to any more."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        value = node.args[0] if node.target is put and node.meta.get("inplace") else None
        if not isinstance(value, fx.Node) or any(order[user] > order[node] for user in value.users):
            continue
        if _is_unseen(value, node, order, classes):
            node.target = overwritten


def exposed(graph: fx.Graph, opaque: Container[str], classes: Classes) -> frozenset[fx.Node]:
    """The values that modules which stay Python read, perhaps by another name, so that these may write to them."""
    return _held(graph, classes, lambda user: is_opaque(user, opaque))


def returned(graph: fx.Graph, classes: Classes) -> frozenset[fx.Node]:
    """The values that the caller gets, as they are or as views."""
    return _held(graph, classes, lambda user: user.op == "output")


def _held(graph: fx.Graph, classes: Classes, holds: Callable[[fx.Node], bool]) -> frozenset[fx.Node]:
    """The values that one of the nodes which hold something reads, perhaps by another name."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(holds(user) or (user in found and not is_fresh(user, classes)) for user in node.users):
            found.add(node)
    return frozenset(found)


def is_opaque(node: fx.Node, opaque: Container[str]) -> bool:
    """Whether `node` calls one of the modules that stay Python."""
    return node.op == "call_module" and str(node.target) in opaque


def mutates(node: fx.Node) -> bool:
    """Whether it calls an operator that writes to what it reads, as its schema says: torch's, or one of a library."""
    if not isinstance(node.target, OpOverloadPacket):
        return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
    overloads = [getattr(node.target, name) for name in node.target.overloads()]
    written = (argument for each in overloads for argument in each._schema.arguments if not argument.kwarg_only)
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in written)


def is_fresh(node: fx.Node, classes: Classes) -> bool:
    """Whether the value of `node` owns its memory: no other value shares it."""
    if node.op == "call_module":
        return issubclass(classes.get(str(node.target)) or NoneType, FRESH_MODULES)
    if node.op == "call_method":
        return node.target in FRESH_METHODS
    if node.op != "call_function":
        return False
    return node.target in FRESH_FUNCTIONS or bool(node.meta.get("inplace")) or _is_product(node)


def _is_product(node: fx.Node) -> bool:
    """Whether it is an einsum of two tensors or more; of one it may be a view."""
    if node.target is not torch.einsum or not isinstance(node.args[0], str) or node.kwargs:
        return False
    first, *others = node.args[1:]
    return bool(others) or (isinstance(first, list | tuple) and len(first) > 1)


def _written(node: fx.Node, modules: Mapping[str, nn.Module], classes: Classes) -> fx.Node | None:
    """The node whose tensor `node` writes to, if any.

    Raises Unprovable if it writes to another argument than its first, or to several tensors.
    """
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if mutates(node) or _given(node, "out") is not None or _updates(node, modules, classes):
        raise Unprovable(node)
    if not _writes(node, modules, classes):
        return None
    first = node.args[0] if node.args else node.kwargs.get("input")
    if isinstance(first, int | float | complex):
        return None
    if not isinstance(first, fx.Node):
        raise Unprovable(node)
    return first


def _writes(node: fx.Node, modules: Mapping[str, nn.Module], classes: Classes) -> bool:
    """Whether a call changes a tensor, as its name or its flag says."""
    if node.op == "call_module":
        path = str(node.target)
        return path in classes and getattr(modules[path], "inplace", False) is True
    name = name_of(node)
    if name.endswith("_") and not name.endswith("__"):
        return True
    return node.op == "call_function" and (node.target in PURE or _given(node, "inplace") is True)


def _updates(node: fx.Node, modules: Mapping[str, nn.Module], classes: Classes) -> bool:
    """Whether a call writes to statistics or weights, beside what it returns, that others may read."""
    if node.op == "call_module":
        path = str(node.target)
        return path in classes and getattr(modules[path], "max_norm", None) is not None
    asked, written = UPDATING.get(node.target, ({}, ())) if node.op == "call_function" else ({}, ())
    if any(_given(node, name, default) in (None, False) for name, default in asked.items()):
        return False
    return not all(_reads_alone(node, _given(node, name), modules) for name in written)


def _reads_alone(node: fx.Node, value: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether nobody but `node` reads a value: a parameter or buffer of a module that is not called itself."""
    if value is None:
        return True
    owner, _, name = str(value.target).rpartition(".")
    tensors = {**modules[owner]._parameters, **modules[owner]._buffers} if owner in modules else {}
    called = (other.op == "call_module" and other.target == owner for other in node.graph.nodes)
    return value.op == "get_attr" and name in tensors and len(value.users) == 1 and not any(called)


def _given(node: fx.Node, name: str, default: Any = None) -> Any:
    """The argument of that name, or its default."""
    place = _place_of(node, name)
    return node.kwargs.get(name, default) if place is None else node.args[place]


def _place_of(node: fx.Node, name: str) -> int | None:
    """Which of the positional arguments has that name, if one has."""
    names = parameters(node.target)[: len(node.args)]
    return names.index(name) if name in names else None


def _require_unseen(node: fx.Node, written: fx.Node, order: Mapping[fx.Node, int], classes: Classes) -> None:
    known = node.op == "call_module" or _pure_target(node) is not None
    if not known or not _is_unseen(written, node, order, classes):
        raise Unprovable(node)


def _is_unseen(written: fx.Node, node: fx.Node, order: Mapping[fx.Node, int], classes: Classes) -> bool:
    """Whether the tensor that `node` writes to is fresh, and whoever read it before kept no view of it."""
    earlier = [user for user in written.users if order[user] < order[node]]
    return _owned(written, classes) and all(_keeps_no_view(user, order[node], order, classes) for user in earlier)


def _keeps_no_view(user: fx.Node, write: int, order: Mapping[fx.Node, int], classes: Classes) -> bool:
    """Whether `user` made something of its own, or a view that only what came before the write has read."""
    if is_fresh(user, classes) or _reads_metadata(user):
        return True
    readers = user.users if _is_view(user, classes) else ()
    return bool(readers) and all(order[r] < write and _keeps_no_view(r, write, order, classes) for r in readers)


def _owned(value: fx.Node, classes: Classes) -> bool:
    """Fresh, or the only view of a fresh tensor that nobody else reads."""
    if is_fresh(value, classes):
        return True
    base = value.args[0] if value.args else None
    if not _is_view(value, classes) or not isinstance(base, fx.Node):
        return False
    return len(base.users) == 1 and _owned(base, classes)


def _is_view(value: fx.Node, classes: Classes) -> bool:
    if value.op == "call_module":
        return issubclass(classes.get(str(value.target)) or NoneType, VIEW_MODULES)
    return value.op in ("call_method", "call_function") and value.target in VIEWS


def _reads_metadata(user: fx.Node) -> bool:
    if user.op == "call_method":
        return user.target in ("size", "dim", "numel", "is_floating_point")
    return (
        user.op == "call_function" and user.target is getattr and user.args[1] in ("shape", "ndim", "dtype", "device")
    )


def _pure_target(node: fx.Node) -> Any:
    """What computes the same as `node` without writing; None if nobody knows."""
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        return name if hasattr(torch.Tensor, name) and name in FRESH_METHODS else None
    if node.target in PURE:
        return PURE[node.target]  # type: ignore[index]
    return node.target if _given(node, "inplace") is True else None


def _make_pure(node: fx.Node) -> None:
    node.meta["inplace"] = True
    if node.op == "call_module":
        return
    node.target = _pure_target(node)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    position = _place_of(node, "inplace")
    if position is not None:
        node.args = tuple(False if index == position else arg for index, arg in enumerate(node.args))


PURE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.ipow: operator.pow,
    operator.imod: operator.mod,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
    operator.setitem: put,
    overwritten: put,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    F.relu_: F.relu,
    F.leaky_relu_: F.leaky_relu,
    F.elu_: F.elu,
    F.hardtanh_: F.hardtanh,
}

STATISTICS = ("running_mean", "running_var")
UPDATING: dict[Any, tuple[dict[str, Any], tuple[str, ...]]] = {
    # function -> the arguments that make it write to others, with their defaults, and these others
    F.batch_norm: ({"running_mean": None, "training": False}, STATISTICS),
    F.instance_norm: ({"running_mean": None, "use_input_stats": True}, STATISTICS),
    torch.instance_norm: ({"running_mean": None, "use_input_stats": True}, STATISTICS),
    F.embedding: ({"max_norm": None}, ("weight",)),
    F.embedding_bag: ({"max_norm": None}, ("weight",)),
}

VIEWS: frozenset[Any] = frozenset(  # of the first argument, or else fresh
    [
        *"chunk contiguous flatten movedim narrow permute reshape reshape_as select split squeeze swapaxes".split(),
        *"transpose unbind unflatten unsqueeze view view_as".split(),
        *(torch.chunk, torch.flatten, torch.movedim, torch.narrow, torch.permute, torch.reshape, torch.select),
        *(torch.split, torch.squeeze, torch.swapaxes, torch.transpose, torch.unbind, torch.unflatten, torch.unsqueeze),
        *(F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, operator.getitem),
    ]
)

VIEW_MODULES = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *DROPOUTS,
)

PADS = (
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)

FRESH_MODULES = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
    *(nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.Softmax, nn.Softplus, nn.Upsample),
    *PADS,  # also where nothing is padded
    *MODULES,
)

FRESH_FUNCTIONS: frozenset[Any] = frozenset(
    [
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.matmul, operator.pow),
        *(operator.floordiv, operator.mod, operator.and_, operator.or_, operator.xor, put),
        *(operator.lshift, operator.rshift),
        *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.matmul, torch.mm, torch.bmm, torch.exp),
        *(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.flip, torch.index_select, torch.roll),
        *(torch.multiply, torch.true_divide, torch.negative, torch.addcmul, torch.lerp, torch.rsub, torch.clone),
        *(torch.abs, torch.square, torch.clamp, torch.maximum, torch.minimum, F.tanh, F.interpolate),
        *(torch.relu, torch.sigmoid, torch.tanh, torch.softmax, torch.mean, torch.sum, torch.rsqrt, torch.sqrt),
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(F.batch_norm, F.layer_norm, F.group_norm, F.relu, F.relu6, F.gelu, F.silu, F.mish, F.sigmoid, F.softmax),
        *(F.hardswish, F.hardsigmoid, F.hardtanh, F.elu, F.leaky_relu, F.celu, F.selu, F.softplus, F.prelu),
        F.pad,  # also where nothing is padded
        *SILENT,
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.normalize),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    ]
)

FRESH_METHODS = frozenset(
    "__add__ __matmul__ __mul__ __radd__ __rmul__ abs add addcmul bmm clamp clone div exp flip index_select lerp "
    "matmul mean mm mul multiply neg pow relu repeat roll rsqrt sigmoid softmax sqrt square sub sum tanh".split()
)
