"""Writes to tensors that others read."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repcompile import fuse
from repcompile.capture import capture
from repcompile.factories import SILENT
from repcompile.inplace import FRESH_FUNCTIONS, FRESH_METHODS, FRESH_MODULES
from repcompile.modules import BorderConv, ChannelAffine, ValuePad, put
from tests.test_hostile import (
    Net,
    Undecided,
    assert_close,
    check,
    conv,
    copied,
    image,
    images,
    made,
    norm,
    parts,
    refusal,
    run_by,
)


def _alias_after_sum(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y
    y += m.norm(y)
    return m.conv(z) + y


def _alias_after_power(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(x)
    a = m.conv(y)
    y **= 2
    return m.norm(a) + y


def _alias_after_remainder(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(x)
    z, a = y, m.conv(y)
    y %= 0.5
    return m.norm(a) + z


def _alias_after_floor(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y
    y //= 0.25
    return m.norm(z)


def _product_of_matrices(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y
    y @= torch.eye(x.shape[-1], dtype=x.dtype) * 2.0
    return m.norm(z)


def _relu_of_a_skip(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(F.relu(y, inplace=True)) + y


def _relu_method_of_a_skip(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    y.relu_()
    return z + y


def _relu_positional(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.relu(y, True)
    return m.norm(y)


def _leaky_positional(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.leaky_relu(y, 0.2, True)
    return m.norm(y)


def _rrelu_positional(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    a = m.conv2(y)
    F.rrelu(y, 0.1, 0.3, False, True)
    return m.norm(a) + y


def _leaky_by_name(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    a = m.conv2(y)
    F.leaky_relu(y, inplace=True)
    return m.norm(a) + y


def _operator_of_aten(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    a = m.conv2(y)
    torch.ops.aten.relu_.default(y)
    return m.norm(a) + y


def _view_of_the_old_value(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    view = y.flatten(1)
    y += 1.0
    return view.sum(1), m.norm(y)


def _write_to_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.view(y.shape[0], -1).mul_(2.0)
    return m.norm(y)


def _write_to_a_chunk(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    a, b = y.chunk(2, 1)
    a += b
    return m.norm(y)


def _write_to_a_slice(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 1:3].mul_(0.5)
    return m.norm(y)


def _setitem(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 0] = 0.0
    return m.norm(y)


def _slice_sum(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, :2] += y[:, 2:]
    return m.norm(y)


def _out(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    torch.add(y, 1.0, out=y)
    return m.norm(y)


def _copy(m: Any, x: Tensor) -> Tensor:
    y, z = m.conv(x), m.norm(x)
    y.copy_(z)
    return m.norm(y)


def _masked(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    y.masked_fill_(y < 0, 0.5)
    return z + y


def _relu_behind_dropout(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.relu(m.drop(y)) + y


def _relu_behind_identity(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.relu(m.identity(y)) + m.norm(y)


def _relu_behind_contiguous(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.relu(y.contiguous()) + m.norm(y)


def _relu_behind_to(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.relu(y.to(torch.float64)) + m.norm(y)


def _relu_behind_expand(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.relu(y.reshape(y.shape)) + m.norm(y)


def _negated_twice(m: Any, x: Tensor) -> Tensor:
    return m.relu(torch.neg(torch.neg(x))) + x


def _times_one(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y * 1.0
    z += 1.0
    return m.norm(y) + z


def _three_times(m: Any, x: Tensor) -> Tensor:
    return m.relu(m.conv(m.relu(m.norm(m.relu(m.conv2(x))))))


def _sum_in_a_list(m: Any, x: Tensor) -> list[Tensor]:
    features = [m.conv(x)]
    y = features[0]
    y += 1.0
    features.append(m.norm(y))
    return features


def _read_of_the_source_moves(m: Any, x: Tensor) -> Tensor:
    """The region conv -> norm reads y; between its two operators y is overwritten."""
    y = torch.tanh(x)
    a = m.conv(y)
    y.mul_(0.0)
    return m.norm(a) + y


def _threshold(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    F.threshold(y, 0.1, 20.0, True)
    return z + y


def _sum_of_two_names(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = F.dropout(y, 0.5, False)
    z += y
    return m.norm(z)


def _sum_of_three_names(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.identity(m.drop(y))
    z += 1.0
    return m.norm(z) + m.norm(y)


def _dropout_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(F.dropout(y, 0.5, False, True)) + y


FUNCTIONS: list[Callable[..., Any]] = [
    *(_sum_of_two_names, _sum_of_three_names, _dropout_in_place),
    *(_alias_after_sum, _alias_after_power, _alias_after_remainder, _alias_after_floor, _product_of_matrices),
    *(_relu_of_a_skip, _relu_method_of_a_skip, _relu_positional, _leaky_positional, _rrelu_positional, _threshold),
    *(
        _view_of_the_old_value,
        _write_to_a_view,
        _write_to_a_chunk,
        _write_to_a_slice,
        _setitem,
        _slice_sum,
        _out,
        _copy,
    ),
    *(_masked, _relu_behind_dropout, _relu_behind_identity, _relu_behind_contiguous, _relu_behind_to),
    *(_leaky_by_name, _operator_of_aten),
    *(_relu_behind_expand, _negated_twice, _times_one, _three_times, _sum_in_a_list, _read_of_the_source_moves),
]


def _build(function: Callable[..., Any]) -> nn.Module:
    more = {"relu": nn.ReLU(inplace=True), "drop": nn.Dropout(), "identity": nn.Identity(), "conv2": conv()}
    return Net(function, **parts(**more))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__.strip("_"))
def test_a_write_in_a_child_is_seen_by_whoever_saw_it(function: Callable[..., Any]) -> None:
    model = made(lambda: Net(lambda m, x: m.child(m.norm(m.conv(x))), child=_build(function), **parts()))
    fused = check(model, *images())
    assert sum(name == "norm" for name in run_by(fused)) == 0, "what is around the child is fused"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__.strip("_"))
def test_a_write_at_the_root_is_seen_or_refused(function: Callable[..., Any]) -> None:
    reason = refusal(made(lambda: _build(function)), *images())
    assert not reason or "cannot" in reason


PROVABLE = [
    *(_alias_after_sum, _relu_of_a_skip, _relu_method_of_a_skip, _relu_positional, _three_times, _times_one),
    *(_sum_of_two_names, _sum_of_three_names, _dropout_in_place),
]


@pytest.mark.parametrize("function", PROVABLE, ids=lambda function: function.__name__.strip("_"))
def test_a_write_that_is_provably_harmless_does_not_stop_fusing(function: Callable[..., Any]) -> None:
    captured = capture(made(lambda: _build(function)))
    assert not captured.opaque


def test_model_that_starts_in_place_writes_to_its_input_or_is_left() -> None:
    """nn.ReLU(inplace=True) in front: the model runs, so it must compile; the write to the input is part of it."""
    check(made(lambda: nn.Sequential(nn.ReLU(inplace=True), conv(), norm())), *images())


def test_block_that_starts_in_place_while_its_parent_still_reads() -> None:
    block = nn.Sequential(nn.ReLU(inplace=True), conv(), norm())
    check(made(lambda: Net(lambda m, x: m.block(y := m.conv(x)) + m.norm(y), block=block, **parts())), *images())
    block = nn.Sequential(nn.ReLU(inplace=True), conv(), norm())
    check(made(lambda: Net(lambda m, x: m.block(x) + x, block=block)), *images())


# -- opaque modules ----------------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """Doubles its input in place, behind a branch that tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) >= 0.0:
            x.mul_(2.0)
        return x


class Flagged(Doubling):
    """Has an attribute `inplace`, as activations do, but returns something new."""

    inplace = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


class FlaggedInVain(Undecided):
    inplace = True


class Passing(nn.ReLU):
    """Called an activation; returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        return input if float(input.detach().abs().sum()) >= 0.0 else input * 2.0


def _opaque_then_skip(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.opaque(y)
    return m.norm(y) + z


def _opaque_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    a = m.conv2(y)
    m.opaque(y)
    return m.norm(a) + y


def _opaque_then_sum(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.opaque(y)
    z += 1.0
    return m.norm(y) + z


def _opaque_on_a_clone(m: Any, x: Tensor) -> Tensor:
    return m.opaque(x.clone() * 1.0) + x


def _opaque_on_negated_twice(m: Any, x: Tensor) -> Tensor:
    return m.opaque(torch.neg(torch.neg(x))) + x


def _opaque_on_plus_zero(m: Any, x: Tensor) -> Tensor:
    return m.opaque((x + 1.0) - 1.0) + m.norm(x)


def _opaque_on_the_skip(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.opaque(y + m.norm(y) * 0.0) + y


READERS: list[Callable[..., Any]] = [
    *(_opaque_then_skip, _opaque_between, _opaque_then_sum, _opaque_on_a_clone, _opaque_on_negated_twice),
    *(_opaque_on_plus_zero, _opaque_on_the_skip),
]


@pytest.mark.parametrize("opaque", [Doubling, Flagged, FlaggedInVain, Passing])
@pytest.mark.parametrize("function", READERS, ids=lambda function: function.__name__.strip("_"))
@pytest.mark.parametrize("nested", [False, True])
def test_an_opaque_module_that_may_write(opaque: type[nn.Module], function: Callable[..., Any], nested: bool) -> None:
    model = made(lambda: Net(function, opaque=opaque(), conv2=conv(), **parts()))
    reason = refusal(nn.Sequential(model).eval() if nested else model, *images())
    assert not reason or (not nested and "cannot follow" in reason), reason


def test_an_opaque_module_writes_to_the_example_input_of_nobody() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(m.opaque(x))), opaque=Doubling(), **parts()))
    (x,) = images()[0]
    mine = x.clone()
    fuse(model, (mine,))
    assert torch.equal(mine, x), "fusing wrote to the example input"
    check(model, *images())


@pytest.mark.parametrize("pre", [False, True])
def test_hook_on_an_activation_in_place(pre: bool) -> None:
    """A hook that returns something else: the write and the result are two tensors."""
    model = made(lambda: _build(_three_times))
    skip = made(lambda: Net(_opaque_then_skip, opaque=nn.ReLU(inplace=True), **parts()))
    for module in (model.relu, skip.opaque):
        if pre:
            module.register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))  # type: ignore[union-attr]
        else:
            module.register_forward_hook(lambda module, args, output: output * 2.0)  # type: ignore[union-attr]
    check(nn.Sequential(model).eval(), *images())
    check(nn.Sequential(skip).eval(), *images())


def test_identity_that_vanishes_does_not_hand_out_the_input() -> None:
    """-(-x) is x, but not the same tensor: a user may write to the output."""
    model = made(lambda: Net(lambda m, x: torch.neg(torch.neg(x)), conv=conv()))
    fused, x = fuse(model), image(1, 4, 3, 3)
    y = x.clone()
    assert (fused(y).data_ptr() == y.data_ptr()) == (model(y).data_ptr() == y.data_ptr())


def test_fused_model_does_not_write_to_its_input() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True), nn.Dropout(inplace=True), norm()))
    (x,) = images()[0]
    mine = copied(x)
    fuse(model)(mine)
    assert torch.equal(mine, x)


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "ifloordiv", "ipow", "imod"])
@pytest.mark.parametrize("nested", [False, True])
def test_augmented_assignment_to_a_size_is_not_in_place(name: str, nested: bool) -> None:
    """A size is a number: who knew it by another name still sees the old one."""
    function = getattr(operator, name)

    def sized(m: Any, x: Tensor) -> Tensor:
        height = x.shape[2]
        other = function(height, 2)
        return m.norm(m.conv(x)).reshape(x.shape[0], -1, height) + other

    model = made(lambda: Net(sized, **parts()))
    check(nn.Sequential(model).eval() if nested else model, *images())


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod"])
def test_every_augmented_assignment_writes(name: str) -> None:
    function = getattr(operator, name)

    def assigned(m: Any, x: Tensor) -> Tensor:
        y = m.act(x)
        a = m.conv(y)
        function(y, 0.5)
        return m.norm(a) + y

    check(nn.Sequential(made(lambda: Net(assigned, act=nn.Sigmoid(), **parts()))).eval(), *images())


X = torch.ones(1, 1, 1, 1, dtype=torch.float64)
MATRIX = X[0, 0]
CALLED: dict[Any, tuple[Any, ...]] = {  # arguments with which there is least to do
    **dict.fromkeys((operator.add, operator.sub, torch.add, torch.sub, torch.rsub, "add", "sub", "__add__"), (X, 0.0)),
    **dict.fromkeys((operator.mul, operator.truediv, operator.pow, torch.mul, torch.div, torch.multiply), (X, 1.0)),
    **dict.fromkeys((torch.true_divide, "mul", "multiply", "div", "pow", "__mul__", "__rmul__"), (X, 1.0)),
    **dict.fromkeys((operator.floordiv, operator.mod), (X, 1.0)),
    **dict.fromkeys((operator.and_, operator.or_, operator.xor), (X.long(), 0)),
    **dict.fromkeys((operator.lshift, operator.rshift), (X.long(), 0)),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm, "matmul", "mm", "__matmul__"), (MATRIX, MATRIX)),
    **dict.fromkeys((torch.bmm, "bmm"), (X[0], X[0])),
    **dict.fromkeys((torch.maximum, torch.minimum), (X, X)),
    **dict.fromkeys((torch.addcmul, "addcmul"), (X, X, 0.0 * X)),
    **dict.fromkeys((torch.lerp, "lerp"), (X, X, 0.0)),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack), ([X],)),
    **dict.fromkeys((torch.flip, "flip", torch.roll, "roll"), (X, (0,))),
    **dict.fromkeys((torch.index_select, "index_select"), (X, 0, torch.tensor([0]))),
    **dict.fromkeys((torch.clamp, "clamp"), (X, 0, 2)),
    **dict.fromkeys((torch.mean, torch.sum, "mean", "sum", torch.softmax, "softmax", F.softmax), (X, 1)),
    **dict.fromkeys((F.conv1d, F.conv_transpose1d), (X[0], X[0])),
    **dict.fromkeys((F.conv2d, F.conv_transpose2d), (X, X)),
    **dict.fromkeys((F.conv3d, F.conv_transpose3d), (X[None], X[None])),
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d), (X[0], 1)),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d), (X, 1)),
    **dict.fromkeys((F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d), (X[None], 1)),
    F.linear: (X, MATRIX),
    F.batch_norm: (X, torch.zeros(1).double(), torch.ones(1).double(), None, None, False, 0.1, 0.0),
    F.layer_norm: (X, (1,)),
    F.group_norm: (torch.cat([X, X]), 1),
    F.prelu: (X, torch.ones(1).double()),
    F.pad: (X, (0, 0)),
    F.interpolate: (X, None, 1),
    put: (X, 0, X[0]),
    "repeat": (X, 1, 1, 1, 1),
    "__radd__": (X, 0.0),
}
MODULES_MADE: dict[type, Callable[[int], nn.Module]] = {  # spatial axes -> a module that has least to do
    nn.modules.batchnorm._BatchNorm: lambda n: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1](1, eps=0.0),
    nn.GroupNorm: lambda n: nn.GroupNorm(1, 1),
    nn.LayerNorm: lambda n: nn.LayerNorm(1),
    nn.LocalResponseNorm: lambda n: nn.LocalResponseNorm(1, 0.0),
    nn.Linear: lambda n: nn.Linear(1, 1, bias=False),
    nn.Softmax: lambda n: nn.Softmax(1),
    nn.Upsample: lambda n: nn.Upsample(scale_factor=1),
    ChannelAffine: lambda n: ChannelAffine(torch.ones(1, *[1] * n), torch.zeros(1, *[1] * n)),
}


def _calls() -> dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]]:
    """Name -> (function, arguments) of everything that is taken to make a tensor of its own."""
    functions = sorted(FRESH_FUNCTIONS - SILENT, key=lambda function: f"{function.__module__}.{function.__name__}")
    calls = {f"{f.__module__}.{f.__name__} {i}": (f, CALLED.get(f, (X,))) for i, f in enumerate(functions)}
    for name in sorted(FRESH_METHODS):
        calls[name] = (operator.methodcaller(name, *CALLED.get(name, (X,))[1:]), CALLED.get(name, (X,))[:1])
    for cls in FRESH_MODULES:
        if cls not in (ValuePad, BorderConv):  # what they call is among the others
            n = next((n for n in (1, 3) if f"{n}d" in cls.__name__), 2)
            module = MODULES_MADE[cls](n) if cls in MODULES_MADE else _smallest(cls, n)
            calls[cls.__name__] = (module.double().eval(), (torch.ones(2, *[1] * (n + 1)).double(),))
    return calls


def _smallest(cls: type[nn.Module], n: int) -> nn.Module:
    sized = f"{n}d" in cls.__name__
    arguments = (1, 1, 1) if "Conv" in cls.__name__ else ((0,) if "Pad" in cls.__name__ else (1,)) if sized else ()
    return cls(*arguments, 0.0) if cls.__name__.startswith("ConstantPad") else cls(*arguments)


CALLS = _calls()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_taken_to_be_fresh_shares_no_memory(name: str) -> None:
    function, arguments = CALLS[name]
    made = function(*arguments)
    tensors = [tensor for tensor in tree_leaves(arguments) if isinstance(tensor, Tensor)]
    assert made.numel()
    assert made.untyped_storage().data_ptr() not in [tensor.untyped_storage().data_ptr() for tensor in tensors]


@pytest.mark.parametrize("equation", ["oc,bchw->bohw", "oc,bchw->bochw", "bc,bc->bc", "oc,bchw"])
@pytest.mark.parametrize("listed", [False, True])
def test_an_einsum_of_two_tensors_shares_no_memory(equation: str, listed: bool) -> None:
    left, *right = equation.split("->")[0].split(",")
    operands = [torch.ones([1] * len(letters)) for letters in (left, *right)]
    made = torch.einsum(equation, operands) if listed else torch.einsum(equation, *operands)
    assert made.untyped_storage().data_ptr() not in [tensor.untyped_storage().data_ptr() for tensor in operands]


@pytest.mark.parametrize("listed", [False, True])
def test_a_write_to_a_product(listed: bool) -> None:
    def written(m: Any, x: Tensor) -> Tensor:
        operands = (m.weight, m.conv(x))
        y = torch.einsum("oc,bchw->bohw", list(operands)) if listed else torch.einsum("oc,bchw->bohw", *operands)
        y.sub_(y * 0.5)
        return m.norm(y)

    model = made(lambda: Net(written, weight=nn.Parameter(torch.randn(4, 4)), **parts()))
    check(nn.Sequential(model).eval(), *images(), operators=1)


def test_a_write_to_an_einsum_that_may_be_a_view() -> None:
    def written(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        torch.einsum("bchw->bhwc", y).mul_(2.0)
        return m.norm(y)

    check(nn.Sequential(made(lambda: Net(written, **parts()))).eval(), *images())


@torch.library.custom_op("repcompile_tests::doubled", mutates_args={"x"})
def doubled(x: Tensor) -> None:
    """An operator of somebody's library, that writes to its argument."""
    x.mul_(2.0)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "to the tensors of a list": lambda y: cast(Any, torch)._foreach_mul_([y], 2.0),
    "to views in a list": lambda y: cast(Any, torch)._foreach_copy_(
        list(y.unbind(1)), [2.0 * part for part in y.unbind(1)]
    ),
    "to an argument by a name of its own": lambda y: nn.init.zeros_(tensor=y),
    "to an argument by name": lambda y: F.relu_(input=y),
    "out, of a function in Python": lambda y: F.normalize(y, out=y),
    "out, a part": lambda y: torch.norm(y, dim=1, out=y[:, 0]),
    "out, of ATen": lambda y: torch.ops.aten.mul(y, y, out=y),
    "by an operator of ATen": lambda y: torch.ops.aten.mul_(y, 2.0),
    "by an operator of ATen, to a list": lambda y: torch.ops.aten._foreach_mul_([y], 2.0),
    "by a function with a schema": doubled,
    "by an operator of a library": lambda y: torch.ops.repcompile_tests.doubled(y),
    "by an overload of a library": lambda y: torch.ops.repcompile_tests.doubled.default(y),
    "to statistics": lambda y: F.batch_norm(y, y[0, :, 0, 0], y[0, :, 0, 1], training=True, momentum=0.5),
    "to statistics of an instance norm": lambda y: F.instance_norm(y, y[0, :, 0, 0], y[0, :, 0, 1], momentum=0.5),
    "to statistics in ATen's order": lambda y: torch.instance_norm(
        *(y, None, None, y[0, :, 0, 0], y[0, :, 0, 1], True, 0.5, 1e-5, False)
    ),
    "to rows that are too long": lambda y: F.embedding(torch.tensor([0, 1]), y[0, 0], max_norm=0.1),
    "to rows of a bag": lambda y: F.embedding_bag(torch.tensor([[0, 1]]), y[0, 0], max_norm=0.1),
}
SEEN: dict[str, Callable[[Any, Tensor, Callable[[Tensor], Any]], Tensor]] = {
    "before and after": lambda m, x, write: (lambda y: m.norm2(y) + (write(y), m.norm(y))[1])(m.conv(x)),
    "after": lambda m, x, write: (lambda y: (write(y), m.norm2(y))[1])(m.norm(m.conv(x))),
    "by a view": lambda m, x, write: (lambda y: (lambda v: (write(y), m.norm(v))[1])(y.transpose(2, 3)))(m.conv(x)),
    "before": lambda m, x, write: (lambda y: (lambda a: (write(y), a + m.conv2(y))[1])(m.norm(m.conv(y))))(x * 1.0),
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_known_whatever_it_is_called(name: str, seen: str) -> None:
    def build() -> nn.Module:
        return Net(lambda m, x: SEEN[seen](m, x, WRITES[name]), conv=conv(), conv2=conv(), norm=norm(), norm2=norm())

    check(made(build), *images())


def test_statistics_of_nobody_are_not_written_to() -> None:
    """Weights are standardized like this."""

    def forward(m: Any, x: Tensor) -> Tensor:
        weight = F.batch_norm(m.conv.weight.reshape(1, 4, -1), None, None, training=True, eps=1e-6)
        return m.norm(F.conv2d(x, weight.reshape_as(m.conv.weight), m.conv.bias, padding=1))

    check(made(lambda: Net(forward, conv=conv(), norm=norm())), *images(), operators=1)


def test_statistics_that_nobody_else_reads_may_be_written_to() -> None:
    """The fused model has its own, and updates them as the model does."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.batch_norm(m.conv(x), m.mean, m.var, training=True)
        return m.norm(m.conv2(torch.relu(y)))

    def build() -> nn.Module:
        return Net(forward, conv=conv(), conv2=conv(), norm=norm(), mean=torch.zeros(4), var=torch.ones(4))

    check(made(build), *images(), *images(), operators=4)


def test_statistics_that_no_module_registers_may_be_read_while_tracing() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.batch_norm(m.conv(x), m.statistics[0], m.statistics[1], training=True)
        return m.norm(m.conv2(y)) + m.statistics[0].mean()

    def build() -> nn.Module:
        return Net(forward, conv=conv(), conv2=conv(), norm=norm(), statistics=[torch.zeros(4), torch.ones(4)])

    model: Any = made(build)
    model.statistics = [tensor.double() for tensor in model.statistics]
    for example in (False, True):
        mine, (x,) = copy.deepcopy(model), images()[0]
        fused = fuse(mine, (x,)) if example else fuse(mine)
        for _ in range(3):
            assert_close(fused(x), mine(x))


def test_statistics_that_a_layer_uses_too_are_updated_for_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return y + F.batch_norm(y, m.norm.running_mean, m.norm.running_var, training=True)

    check(made(lambda: Net(forward, conv=conv(), norm=norm())), *images(), *images())


def test_an_embedding_that_shortens_its_rows_may_write_to_what_others_read() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x)).mean((2, 3))
        before = F.linear(y, m.rows.weight)
        m.rows(torch.tensor([0, 1]))
        return before + F.linear(y, m.rows.weight * 2.0)

    def build() -> nn.Module:
        return Net(forward, conv=conv(), norm=norm(), rows=nn.Embedding(5, 4, max_norm=0.1))

    fused = check(made(build), *images())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
