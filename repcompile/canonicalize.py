"""Many spellings to one.

Given: a captured graph, which this stage takes over.  Result: the same graph without operators that do nothing in eval
mode, with questions about shapes asked as early as possible (an interior value that only tells its size need not
exist), each question asked once.
"""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from repcompile.borders import surround
from repcompile.capture import Captured
from repcompile.inplace import PADS, exposed, is_fresh, is_name, returned
from repcompile.inquiries import ASKED, RANK_QUESTIONS, question_of
from repcompile.spelling import name_of, target_of

KEEP_RANK = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d),
)
NORMS = (nn.modules.batchnorm._BatchNorm,)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU),
)
KEEP_SIZE_MODULES = (*NORMS, nn.GroupNorm, nn.LayerNorm, *ACTIVATIONS)
FLOATING_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
FLOATING_FUNCTIONS = (F.batch_norm, F.layer_norm, F.group_norm)
COMMON_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, F.linear)  # of the weight's dtype
AS_ANOTHER = ("view_as", "reshape_as")
NEUTRAL = {"mul": 1, "truediv": 1, "div": 1, "add": 0, "sub": 0}
KEEP_SIZE_FUNCTIONS = (F.batch_norm, F.relu, F.gelu, F.silu, F.sigmoid, torch.relu, torch.sigmoid, F.group_norm)


def canonicalize(captured: Captured) -> Captured:
    """The captured graph in canonical form; its `graph` is the one of `captured`, which must not be used any more."""
    surround(captured.graph)
    _respell_views(captured.graph)
    seen: dict[Any, fx.Node] = {}
    written = exposed(captured.graph, captured.opaque, captured.classes)
    given = returned(captured.graph, captured.classes)
    for node in list(captured.graph.nodes):
        if captured.stays(node):
            continue
        if _does_nothing(node, captured) and (_is_name(node, captured) or not _is_copy_of(node, written, captured)):
            if node in given and not _is_name(node, captured) and not _is_spare(_operand(node), captured):
                continue  # the caller may write to it
            node.replace_all_uses_with(_operand(node))
            captured.graph.erase_node(node)
        elif question_of(node) is not None:
            _ask_earlier(node, captured)
            _ask_once(node, seen)
        elif _about_questions(node):
            _ask_once(node, seen)
    captured.graph.eliminate_dead_code(is_impure_node=lambda node: not _droppable(node, captured))
    return captured


def _respell_views(graph: fx.Graph) -> None:
    """A view becomes a reshape, which is the same also where strides turn out other than they were.

    Of the value whose shape it takes, if any, only the shape is asked for.
    """
    for node in list(graph.nodes):
        if node.op != "call_method" or node.kwargs:
            continue
        if node.target == "view" and _of_sizes(node):
            node.target = "reshape"
        elif node.target in AS_ANOTHER and len(node.args) == 2 and isinstance(node.args[1], fx.Node):
            with graph.inserting_before(node):
                shape = graph.call_method("size", (node.args[1],))
            shape.meta["path"] = node.meta.get("path", "")
            node.target, node.args = "reshape", (node.args[0], shape)


def _of_sizes(view: fx.Node) -> bool:
    """Whether a `view` is given sizes, and no dtype."""
    size = view.args[1] if len(view.args) == 2 else None
    return (not isinstance(size, fx.Node) or question_of(size) is not None) and not isinstance(size, torch.dtype)


def _droppable(node: fx.Node, captured: Captured) -> bool:
    """Whether nobody notices that `node` does not run."""
    if node.op == "get_attr" or _is_pure(node, captured) or question_of(node) is not None:
        return True
    return node.op == "call_function" and node.target in (getattr, operator.getitem, operator.eq)


def _is_pure(node: fx.Node, captured: Captured) -> bool:
    trains = node.op == "call_module" and captured.module(node).training
    return is_fresh(node, captured.classes) and not trains


def _does_nothing(node: fx.Node, captured: Captured) -> bool:
    if _is_name(node, captured):
        return True
    if node.op == "call_module":
        cls = captured.torch_class(node)
        module = captured.module(node)
        plain = isinstance(module, nn.LeakyReLU) and cls is nn.LeakyReLU and module.negative_slope == 1
        if isinstance(module, nn.PReLU) and cls is nn.PReLU:
            plain = bool((module.weight == 1).all())
        if issubclass(cls, PADS):
            plain = not any(module.padding)  # type: ignore[arg-type]
        return plain and len(node.all_input_nodes) == 1
    if node.target is F.pad:
        return len(node.all_input_nodes) == 1 and len(node.args) > 1 and _are_zeros(node.args[1])
    return (_neutral(node) and _floating(_operand(node), captured)) or _scaled_by_ones(node, captured)


def _is_copy_of(node: fx.Node, written: Container[fx.Node], captured: Captured) -> bool:
    """Whether the result, or what it is equal to, may be written to: then they are two tensors and stay two."""
    if node in written:
        return True
    value = _operand(node)
    while value not in written and not is_fresh(value, captured.classes) and value.all_input_nodes:
        value = value.all_input_nodes[0]
    return value in written


def _is_spare(value: fx.Node, captured: Captured) -> bool:
    """Whether nobody but its one reader has it."""
    return len(value.users) == 1 and is_fresh(value, captured.classes)


def _is_name(node: fx.Node, captured: Captured) -> bool:
    return is_name(node, captured.modules, captured.classes)


def _scaled_by_ones(node: fx.Node, captured: Captured) -> bool:
    """Whether it is a product with a parameter of ones, one for each channel of what is known to have as many."""
    if target_of(node) not in (operator.mul, torch.mul, "mul") or len(node.args) != 2 or node.kwargs:
        return False
    value, gain = node.args
    if not isinstance(value, fx.Node) or not isinstance(gain, fx.Node) or gain.op != "get_attr":
        return False
    if str(gain.target) in captured.written:
        return False
    tensor, width = captured.constants[str(gain.target)], _width(value, captured)
    if width is None or not tensor.is_floating_point() or not bool((tensor == 1).all()):
        return False
    channels, n_axes, dtype = width
    alike = tensor.dtype == dtype or not tensor.dim()
    one = tensor.numel() == 1 and tensor.dim() <= n_axes + 1  # more axes would give an image alone a batch
    return alike and (one or tuple(tensor.shape) == (channels, *[1] * n_axes))


def _width(node: fx.Node, captured: Captured) -> tuple[int, int, torch.dtype] | None:
    """(channels, axes behind them, dtype) of what a convolution, a norm or a Linear made, or an activation of it."""
    while _same_answer(node, "shape", captured) and not isinstance(captured.modules.get(str(node.target)), NORMS):
        (node, *_) = node.all_input_nodes
    module: Any = captured.modules.get(str(node.target)) if node.op == "call_module" else None
    kinds = ((0, nn.Linear), (1, nn.Conv1d), (2, (nn.Conv2d, nn.BatchNorm2d)), (3, (nn.Conv3d, nn.BatchNorm3d)))
    cls = captured.torch_class(node) if module is not None else type(None)
    n_axes = next((n for n, classes in kinds if issubclass(cls, classes)), None)
    names = ("out_channels", "num_features", "out_features")
    channels = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    return None if n_axes is None or channels is None or weight is None else (channels, n_axes, weight.dtype)


def _are_zeros(sizes: Any) -> bool:
    return isinstance(sizes, list | tuple) and all(type(size) is int and size == 0 for size in sizes)


def _neutral(node: fx.Node) -> bool:
    """Whether it is `x * 1`, `x / 1`, `x + 0` or `x - 0`, either way round where the order does not matter."""
    if len(node.args) != 2 or node.kwargs or len(node.all_input_nodes) != 1:
        return False
    name = name_of(node)
    number = NEUTRAL.get(name)
    given = node.args[0 if isinstance(node.args[0], int | float) and name in ("add", "mul") else 1]
    return number is not None and isinstance(given, int | float) and type(given) is not bool and given == number


def _floating(node: fx.Node, captured: Captured, depth: int = 3) -> bool:
    """Whether a value surely has floating-point numbers, whose dtype a Python number leaves alone."""
    if node.op == "call_module":
        cls = captured.torch_class(node)
        passes = issubclass(cls, ACTIVATIONS) and len(node.all_input_nodes) == 1
        return issubclass(cls, FLOATING_MODULES) or (passes and _floating(_operand(node), captured, depth - 1))
    if node.op != "call_function" or depth == 0:
        return False
    if node.target in COMMON_FUNCTIONS:
        weight = captured.constants.get(str(getattr(node.args[1], "target", ""))) if len(node.args) > 1 else None
        return isinstance(weight, torch.Tensor) and weight.is_floating_point()
    arithmetic = node.target in (operator.add, operator.sub, operator.mul, *KEEP_SIZE_FUNCTIONS)
    operands = node.all_input_nodes if arithmetic else ()
    return node.target in FLOATING_FUNCTIONS or any(_floating(operand, captured, depth - 1) for operand in operands)


def _operand(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _ask_earlier(node: fx.Node, captured: Captured) -> None:
    """Ask the same question about the earliest value that has the same answer."""
    question, subject = question_of(node), node.args[0]
    chain: list[fx.Node] = []
    while isinstance(subject, fx.Node):
        chain.append(subject)
        subject = subject.args[0] if _same_answer(subject, question, captured) else None
    node.args = (chain[-1], *node.args[1:])
    node.meta[ASKED] = chain


def _same_answer(node: fx.Node, question: str | None, captured: Captured) -> bool:
    if node.op == "call_module":
        cls = captured.torch_class(node)
        if issubclass(cls, KEEP_SIZE_MODULES) and len(node.args) == 1:
            return True
        return question in RANK_QUESTIONS and issubclass(cls, KEEP_RANK) and len(node.args) == 1
    return node.op == "call_function" and node.target in KEEP_SIZE_FUNCTIONS


def _about_questions(node: fx.Node) -> bool:
    """Arithmetic on sizes, and assertions about them."""
    if node.op != "call_function" or node.target not in (operator.eq, operator.getitem, torch._assert):
        return False
    subject = node.args[0]
    return isinstance(subject, fx.Node) and (question_of(subject) is not None or subject.target is operator.eq)


def _ask_once(node: fx.Node, seen: dict[Any, fx.Node]) -> None:
    """Replace `node` by an earlier one that says the same."""
    message = 1 if node.target is torch._assert else len(node.args)
    key = (node.target, node.args[:message], tuple(node.kwargs.items()))
    try:
        first = seen.setdefault(key, node)
    except TypeError:  # arguments without a hash
        return
    if first is node:
        return
    if "unpacked" in node.meta:
        first.meta["unpacked"] = node.meta["unpacked"]
    node.replace_all_uses_with(first)
    node.graph.erase_node(node)
