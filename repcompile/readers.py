"""What the readers of a value expect of its shape, where nothing else tells it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from repcompile.capture import Captured
from repcompile.constants import Constants
from repcompile.errors import Inexact
from repcompile.modules import put
from repcompile.shapes import Shape, Size, named
from repcompile.spelling import ADDITIONS, DIVISIONS, MULTIPLICATIONS, SUBTRACTIONS, target_of

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
READERS = {  # spatial axes -> modules that tell how many axes and channels their input has
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
}

ALONG_THEIR_AXES = (  # one, two or three axes from the last, as their names say
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)
KEEP_CHANNELS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU)

KEEP_CHANNELS_FUNCTIONS = (
    put,
    "clone",
    "contiguous",
    F.relu,
    F.gelu,
    F.silu,
    F.sigmoid,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
)
ARITHMETIC = (*ADDITIONS, *SUBTRACTIONS, *MULTIPLICATIONS, *DIVISIONS)


def read_as(node: fx.Node, captured: Captured, constants: Constants) -> Shape | None:
    """The shape that a convolution or a batch norm expects of what it reads; they are taken to be called on batches."""
    for user in node.users:
        written = _written_out(user, node, constants)
        if written is not None:
            return written
    for user, padded in _readers(node, captured):
        expected = _expected(user, node, captured, constants)
        if expected is not None and padded <= expected[0]:
            n_axes, channels = expected
            return (*named(node.name, 1), Size(channels), *named(node.name, n_axes + 2)[2:])
    return None


def _expected(user: fx.Node, node: fx.Node, captured: Captured, constants: Constants) -> tuple[int, int] | None:
    """(spatial axes, channels) that `user` takes."""
    sizes = _sizes_of_weight(user, constants) if user.target in (*CONVOLUTIONS, *TRANSPOSED) else None
    if sizes is not None and user.target in TRANSPOSED:  # (c_in, c_out / groups, *kernel)
        return len(sizes) - 2, sizes[0]
    if sizes is not None:
        groups: Any = user.kwargs.get("groups", user.args[6] if len(user.args) > 6 else 1)
        return len(sizes) - 2, sizes[1] * groups
    cls = captured.torch_class(user) if user.op == "call_module" else type(None)
    for n_axes, classes in READERS.items():
        if issubclass(cls, classes):
            module: Any = captured.module(user)
            return n_axes, module.num_features if hasattr(module, "num_features") else module.in_channels
    return None


def _written_out(user: fx.Node, node: fx.Node, constants: Constants) -> Shape | None:
    """The shape that an einsum takes `node` to have: a letter for each axis, some of them axes of a constant too."""
    letters = letters_of(user)
    if node not in letters:
        return None
    known = dict[str, int]()
    for operand, axes in letters.items():
        if operand in constants:
            sizes = _sizes_of(operand, constants) or ()
            known |= {axis: size for axis, size in zip(axes, sizes, strict=False) if size != 1}  # 1 is broadcast
    axes = letters[node]
    return tuple(Size(known[a]) if a in known else s for a, s in zip(axes, named(node.name, len(axes)), strict=True))


def letters_of(node: fx.Node) -> dict[fx.Node, str]:
    """The letters of each operand's axes, if `node` is an einsum that names them all."""
    equation, *operands = node.args if node.target is torch.einsum else ("",)
    flat: Any = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or "." in equation:
        return {}
    return dict(zip(flat, equation.replace(" ", "").split("->")[0].split(","), strict=False))


def _sizes_of_weight(conv: fx.Node, constants: Constants) -> tuple[int, ...] | None:
    weight = conv.args[1] if len(conv.args) > 1 else None
    return _sizes_of(weight, constants) if isinstance(weight, fx.Node) and weight in constants else None


def _sizes_of(constant: fx.Node, constants: Constants) -> tuple[int, ...] | None:
    try:
        return tuple(constants.value(constant).shape)
    except Inexact:  # no tensor of floating-point numbers
        return None


def _readers(node: fx.Node, captured: Captured, depth: int = 3) -> list[tuple[fx.Node, int]]:
    """Who reads a value, or something with as many channels and axes; how many axes from the last are padded before."""
    users = [user for user in node.users if _reads_first(user, node)]
    found = [(user, 0) for user in users]
    for user in users if depth else ():
        padded = _axes_padded(user, captured)
        module = user.op == "call_module" and issubclass(captured.torch_class(user), KEEP_CHANNELS)
        if module or padded or target_of(user) in KEEP_CHANNELS_FUNCTIONS or _has_a_number(user):
            found += [(reader, max(padded, more)) for reader, more in _readers(user, captured, depth - 1)]
    return found


def _reads_first(user: fx.Node, node: fx.Node) -> bool:
    """Whether `node` is the image that `user` works on."""
    return (*user.args, user.kwargs.get("input"))[0] is node


def _has_a_number(user: fx.Node) -> bool:
    """Whether it is `x + 0.5` or the like."""
    return target_of(user) in ARITHMETIC and len(user.args) == 2 and isinstance(user.args[1], int | float)


def _axes_padded(user: fx.Node, captured: Captured) -> int:
    """How many axes, from the last, a padding or a pool may change; 0 if it is something else."""
    if user.op == "call_module":
        bases = captured.torch_class(user).__mro__
        return next((int(base.__name__[-2]) for base in bases if base in ALONG_THEIR_AXES), 0)
    pads: Any = (*user.args[1:], user.kwargs.get("pad"))[0] if user.target is F.pad else ()
    return (len(pads) + 1) // 2 if isinstance(pads, list | tuple) else 0
