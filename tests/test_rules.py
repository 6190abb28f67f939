"""Every rule against torch's own operator, in float64: modules, functions and methods, as a graph spells them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import explain
from repcompile.affine import Affine, Map, Uniform
from repcompile.capture import capture
from repcompile.errors import Inexact
from repcompile.execute import execute
from repcompile.facts import Fact, affine_facts
from repcompile.fold import apply
from repcompile.modules import BorderConv, ChannelAffine, put
from repcompile.rules import CONV, DEFAULT, NORM, RuleSet, affine_rule
from repcompile.testing import randomize
from repcompile.testing.strategies import normal
from tests.claims import mapped
from tests.strategies import assert_close

CONVS: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: Sequence[Any] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS: Sequence[Any] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
PADS: Sequence[Any] = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
CONSTANT_PADS: Sequence[Any] = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


class Formula(nn.Module):
    """A `forward` given as a function of the module and the input, with parameters and modules by name."""

    def __init__(self, formula: Callable[[Any, Any], Any], **parts: Tensor | nn.Module) -> None:
        super().__init__()
        self.formula = formula
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


class Probe(nn.Module):
    """`body` behind a layer that tells how many channels there are."""

    def __init__(self, body: nn.Module, image: Tensor) -> None:
        super().__init__()
        n_axes = image.dim() - 2
        self.stem = (
            CONVS[n_axes - 1](image.shape[1], image.shape[1], 1)
            if n_axes
            else nn.Linear(image.shape[1], image.shape[1])
        )
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


def fact_of(module: nn.Module, image: Tensor) -> Fact:
    """What the output of `module` is of its input.  Raises Inexact with the reason if nothing is known."""
    captured = capture(Probe(module, image).to(image.dtype).eval(), DEFAULT.module_classes)
    facts = affine_facts(captured, DEFAULT, execute(captured, [image])[1])
    source = next(node for node in captured.graph.nodes if node.target == "stem")
    for fact in facts.maps[captured.graph.output_node().all_input_nodes[0]]:
        if fact.source is source:
            return fact
    raise Inexact("; ".join(refusal.reason for refusal in facts.refusals) or "no rule")


def map_of(module: nn.Module, image: Tensor) -> Map:
    fact = fact_of(module, image)
    assert not fact.path
    return fact.map


def assert_rule(module: nn.Module, image: Tensor) -> None:
    """The map computes what `module` computes."""
    with torch.no_grad():
        assert_close(mapped(map_of(module, image), image), module(image))


def image(n_axes: int, channels: int = 4) -> Tensor:
    """Odd and even sizes, different along each axis."""
    generator = torch.Generator().manual_seed(n_axes)
    return torch.randn(2, channels, *(7, 8, 5)[:n_axes], dtype=torch.float64, generator=generator)


def per_channel(*shape: int) -> Tensor:
    return torch.linspace(0.5, 1.5, 4, dtype=torch.float64).reshape(shape)


# -- convolutions ------------------------------------------------------------------------------------------------------


@given(data=st.data(), n=st.integers(1, 3))
def test_convolutions(data: st.DataObject, n: int) -> None:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(n))

    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    same = data.draw(st.booleans())
    module = CONVS[n - 1](
        4,
        data.draw(st.sampled_from([4, 8])),
        each(1, 3),
        stride=1 if same else each(1, 3),
        padding="same" if same else each(0, 2),
        dilation=each(1, 2),
        groups=data.draw(st.sampled_from([1, 2, 4])),
        bias=data.draw(st.booleans()),
        padding_mode=mode,
    )
    module.weight.data = data.draw(normal(*module.weight.shape))
    assert_rule(module, image(n))
    if mode == "zeros":
        function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        options = [module.stride, module.padding, module.dilation, module.groups]
        assert_rule(Formula(lambda m, x: function(x, m.conv.weight, m.conv.bias, *options), conv=module), image(n))


@pytest.mark.parametrize(
    "formula",
    [
        lambda m, x: F.conv2d(x, m.weight),
        lambda m, x: F.conv2d(input=x, weight=m.weight, padding="valid"),
        lambda m, x: F.conv2d(x, m.weight, stride=2, padding=(1, 0)),
        lambda m, x: F.conv2d(x, 2 * m.weight.flip(-1), padding="same"),
        lambda m, x: F.conv_transpose2d(x, m.weight),
    ],
)
def test_functional_convolutions(formula: Callable[..., Tensor]) -> None:
    assert_rule(Formula(formula, weight=torch.arange(4.0 * 4 * 2 * 2).reshape(4, 4, 2, 2)), image(2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_linear_layers_act_on_the_last_axis(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = nn.Linear(4, 6, bias), torch.randn(shape).double()
    assert_rule(layer, x)
    assert_rule(Formula(lambda m, x: F.linear(x, m.layer.weight, m.layer.bias), layer=layer), x)


def test_the_modules_that_we_emit() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, 2, bias=False)
    border = torch.randn(4, 1, 3, 3, generator=generator)
    assert_rule(BorderConv(conv, border, (1, 0, 2, 1)), image(2))
    assert_rule(BorderConv(nn.Conv2d(4, 4, 3, padding=1), border), image(2))
    assert_rule(ChannelAffine(per_channel(4, 1, 1), per_channel(4, 1, 1)), image(2))
    turned = BorderConv(nn.ConvTranspose2d(4, 4, 3, groups=4, bias=False), border)
    with pytest.raises(Inexact, match="a transposed convolution with a border map"):
        DEFAULT.tables["affine"][BorderConv](Affine.identity(4, 2), turned)


# -- batch norm --------------------------------------------------------------------------------------------------------


def statistics(x: Any) -> tuple[Any, Any]:
    return x.running_mean, x.running_var


@given(n=st.integers(1, 3), affine=st.booleans(), eps=st.sampled_from([1e-5, 1e-3, 0.5]), seed=st.integers(0, 99))
def test_batch_norm(n: int, affine: bool, eps: float, seed: int) -> None:
    module = randomize(NORMS[n - 1](4, eps, affine=affine), seed)
    assert_rule(module, image(n))
    weight: Callable[[Any], tuple[Any, Any]] = lambda m: (m.norm.weight, m.norm.bias)  # noqa: E731
    assert_rule(
        Formula(lambda m, x: F.batch_norm(x, *statistics(m.norm), *weight(m), False, 0.1, eps), norm=module), image(n)
    )
    assert_rule(
        Formula(lambda m, x: F.batch_norm(x, *statistics(m.norm), bias=m.norm.bias, eps=eps), norm=module), image(n)
    )


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 4), (5, 4, 3)])
def test_batch_norm_1d_normalizes_axis_1_in_every_rank(shape: tuple[int, ...]) -> None:
    assert_rule(randomize(nn.BatchNorm1d(4)), torch.randn(shape).double())


def test_batch_norm_1d_behind_a_linear_layer_with_as_many_tokens_as_channels() -> None:
    module = nn.Sequential(nn.Linear(4, 4), randomize(nn.BatchNorm1d(4)))
    assert_rule(module, torch.randn(5, 4).double())
    with pytest.raises(Inexact, match="cannot read the output"):
        map_of(module, torch.randn(5, 4, 4).double())


def test_batch_norm_whose_rank_the_window_tells() -> None:
    module = randomize(nn.BatchNorm1d(4)).double().eval()
    x = DEFAULT.tables["affine"][nn.BatchNorm1d](Affine.identity(4, 1), module)
    assert_close(apply(x, image(1)), module(image(1)))


def test_batch_norm_whose_rank_nobody_knows() -> None:
    with pytest.raises(Inexact, match="the rank of the input decides which axis holds the channels"):
        DEFAULT.table[nn.BatchNorm1d](Uniform(sizes=None), nn.BatchNorm1d(4).eval())


def test_keyword_arguments_are_torchs_own() -> None:
    norm = randomize(nn.BatchNorm2d(4))
    module = Formula(
        lambda m, x: F.batch_norm(x, running_mean=m.norm.running_mean, running_var=m.norm.running_var), norm=norm
    )
    assert_rule(module, image(2))
    gain = per_channel(4, 1, 1)
    assert_rule(Formula(lambda m, x: torch.addcmul(x, tensor1=m.gain, tensor2=2 * x), gain=gain), image(2))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), "batch norm without running statistics depends on the batch"),
        (Formula(lambda m, x: F.batch_norm(x, None, None, training=True)), "in training mode depends on the batch"),
        (
            Formula(lambda m, x: F.batch_norm(x, *statistics(m.norm), training=True), norm=nn.BatchNorm2d(4)),
            "batch norm in training mode depends on the batch",
        ),
    ],
)
def test_batch_norm_that_depends_on_the_batch(module: nn.Module, reason: str) -> None:
    with pytest.raises(Inexact, match=reason):
        map_of(module, image(2))


@torch.library.custom_op("repcompile_tests::scaled", mutates_args=())
def scaled(x: Tensor, gain: float) -> Tensor:
    return x * gain


@scaled.register_fake
def _(x: Tensor, gain: float) -> Tensor:
    return torch.empty_like(x)


PACKET: Any = torch.ops.repcompile_tests.scaled


@pytest.mark.parametrize("target", [PACKET, PACKET.default, scaled])
@pytest.mark.parametrize("called", [PACKET, PACKET.default, scaled])
def test_custom_operators_by_any_name(target: Any, called: Any) -> None:
    @affine_rule(target)
    def rule(x: Any, gain: float) -> Any:
        return gain * x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return called(self.conv(x), 2.0)

    assert len(explain(Model().eval(), rules=DEFAULT + [rule]).fused) == 1
    program = torch.export.export(Model().eval(), (image(2, channels=3).float(),))
    assert len(explain(program, rules=DEFAULT + [rule]).fused) == 1


def test_rules_look_at_the_flag_of_the_module_itself() -> None:
    rule = NORM.table[nn.BatchNorm2d]
    with pytest.raises(Inexact, match="batch norm in training mode depends on the batch"):
        rule(Affine.identity(4, 2), nn.BatchNorm2d(4).train())
    dropout = DEFAULT.table[nn.Dropout]
    with pytest.raises(Inexact, match="dropout in training mode is random"):
        dropout(Uniform(), nn.Dropout(0.5).train())
    assert dropout(Uniform(), nn.Dropout(0.5).eval()).is_identity


# -- arithmetic --------------------------------------------------------------------------------------------------------

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "x + 2": lambda m, x: x + 2,
    "2 + x": lambda m, x: 2 + x,
    "x - 2": lambda m, x: x - 2,
    "2 - x": lambda m, x: 2 - x,
    "x * 3": lambda m, x: x * 3,
    "3 * x": lambda m, x: 3 * x,
    "x / 4": lambda m, x: x / 4,
    "-x": lambda m, x: -x,
    "x + x": lambda m, x: x + x,
    "c + x": lambda m, x: m.c + x,
    "x - c": lambda m, x: x - m.c,
    "c - x": lambda m, x: m.c - x,
    "c x": lambda m, x: m.c * x,
    "x / c": lambda m, x: x / m.c,
    "flat c": lambda m, x: m.c.flatten()[:, None, None] * x,
    "torch.add": lambda m, x: torch.add(x, m.c, alpha=2),
    "torch.add, alpha": lambda m, x: torch.add(m.conv(x), x, alpha=3),
    "torch.add, keywords": lambda m, x: torch.add(input=m.conv(x), other=x, alpha=0.5),
    "torch.sub, alpha": lambda m, x: torch.sub(x, m.conv(x), alpha=2),
    "torch.sub, c": lambda m, x: torch.sub(m.c, x, alpha=2),
    "torch.mul": lambda m, x: torch.mul(x, m.c),
    "torch.multiply": lambda m, x: torch.multiply(m.c, x),
    "torch.div": lambda m, x: torch.div(x, m.c),
    "torch.true_divide": lambda m, x: torch.true_divide(x, 8),
    "torch.neg": lambda m, x: torch.neg(m.conv(x)),
    "torch.negative": lambda m, x: torch.negative(x),
    "x.add": lambda m, x: x.add(m.c, alpha=2),
    "x.sub": lambda m, x: x.sub(m.conv(x)),
    "x.mul": lambda m, x: x.mul(m.c),
    "x.div": lambda m, x: x.div(m.c),
    "x.neg": lambda m, x: x.neg(),
    "x.clone": lambda m, x: m.conv(x).clone().contiguous(),
    "operator": lambda m, x: operator.truediv(operator.neg(operator.sub(m.conv(x), x)), 2),
    "conv c": lambda m, x: m.conv(x) * m.c + m.c,
    "leading axis": lambda m, x: m.conv(x) * m.c[None],
    "leading axis, c x": lambda m, x: x * m.c[None],
    "identity": lambda m, x: m.identity(x) + m.dropout(x),
    "F.dropout": lambda m, x: F.dropout(x, 0.5, m.training) + F.dropout2d(x, 0.5, False),
}


@pytest.mark.parametrize("formula", ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic(formula: Callable[[Any, Any], Any]) -> None:
    parts = {"conv": nn.Conv2d(4, 4, 3, padding=1), "identity": nn.Identity(), "dropout": nn.Dropout2d(0.5)}
    assert_rule(Formula(formula, c=per_channel(4, 1, 1), **parts), image(2))


# The first reason: as a map of the conv's output, this acts on the last axis, whose size is not known.
LAST_AXIS = r"the number of channels is not known here|shape \(4,\) is not one number for each of 4 channels"


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda m, x: m.conv(x) * m.flat, LAST_AXIS),
        (lambda m, x: m.conv(x) + m.flat, LAST_AXIS),
        (lambda m, x: m.flat - m.conv(x), LAST_AXIS),
        (lambda m, x: m.conv(x) / m.flat, LAST_AXIS),
        (lambda m, x: x * m.conv(x), "a product of two values that depend on the input is not affine"),
        (lambda m, x: 1 / m.conv(x), "a quotient by a value that depends on the input is not affine"),
        (lambda m, x: m.flat / x, "a quotient by a value that depends on the input is not affine"),
        (lambda m, x: m.conv(x) / 0, "division by zero"),
        (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "a rounded quotient is not affine"),
        (lambda m, x: F.dropout(x, 0.5, True), "dropout in training mode is random"),
        (lambda m, x: F.dropout(x), "dropout in training mode is random"),
        (lambda m, x: m.conv(x) * x.shape[1], "arithmetic with a Size"),
        (lambda m, x: m.conv(x) / x.shape[1], "arithmetic with a Size"),
        (lambda m, x: m.conv(x) * 2j, "arithmetic with a complex"),
    ],
)
def test_arithmetic_that_is_refused(formula: Callable[[Any, Any], Any], reason: str) -> None:
    module = Formula(formula, conv=nn.Conv2d(4, 4, 1), flat=torch.ones(4))
    with pytest.raises(Inexact, match=reason):
        map_of(module, torch.ones(2, 4, 4, 4))  # as wide as it has channels


# -- what only looks like an operator that a rule knows ----------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a number of groups": (lambda m, x: F.conv2d(x, m.grouped, groups=x.shape[1]), "an argument that depends on"),
    "chosen channels written": (lambda m, x: put(x, (slice(None), [0, 1]), m.point(x)[:, :2]), "something else than"),
    "every other written": (lambda m, x: put(x, (slice(None), slice(0, 4, 2)), m.point(x)[:, :2]), "something else"),
    "two axes flipped": (lambda m, x: x.flip((2, 3)), "several axes are flipped"),
    "channels by a tensor": (lambda m, x: x.index_select(1, m.index), "weights of dtype torch.int64"),
    "a constant joined": (lambda m, x: torch.cat([x, m.fixed], 1), "does not depend on the input"),
    "positions by a list": (lambda m, x: x[:, :, [0, 1]], "positions picked one by one"),
    "positions by a size": (lambda m, x: x[:, :, : x.shape[2] - 1], "only the run will know"),
    "two images": (lambda m, x: torch.einsum("bchw,bchw->bchw", x, x), "an einsum of another form"),
    "ellipsis": (lambda m, x: torch.einsum("...hw,oh->...ow", x, m.wide), "an einsum of another form"),
    "more than a matrix": (lambda m, x: torch.einsum("bchw,ock->bohw", x, m.matrices), "an einsum of another form"),
    "transposed, too": (lambda m, x: torch.einsum("bchw,oc->bhwo", x, m.matrix), "exchange the channels"),
    "a sum, too": (lambda m, x: torch.einsum("bchw,oc->bo", x, m.matrix), "exchange the channels"),
    "padding by a size": (lambda m, x: F.pad(x, (x.shape[2], 0)), "padding that depends on the input's size"),
    "stacks of matrices": (
        lambda m, x: x @ m.stack,
        r"a product with a constant of shape \(2, 1, 8, 3\), not a matrix",
    ),
    "a third part of two": (lambda m, x: x.split(2, 1)[-1] + x.chunk(9, 1)[-1], "cannot|summands|channels|differ"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(name: str) -> None:
    formula, reason = REFUSED[name]
    matrices = {"matrix": torch.randn(3, 4), "wide": torch.randn(3, 7), "matrices": torch.randn(3, 4, 1)}
    matrices["stack"] = torch.randn(2, 1, 8, 3)
    module = Formula(
        formula, point=nn.Conv2d(4, 4, 1), fixed=torch.randn(2, 4, 7, 8), grouped=torch.ones(4, 1, 1, 1), **matrices
    )
    module.register_buffer("index", torch.tensor([0, 1]))
    with pytest.raises(Inexact, match=reason):
        fact_of(module, image(2))


# -- windows -----------------------------------------------------------------------------------------------------------


@given(data=st.data(), n=st.integers(1, 3))
def test_average_pooling(data: st.DataObject, n: int) -> None:
    size = [data.draw(st.integers(1, 3)) for _ in range(n)]
    stride = data.draw(st.none() | st.tuples(*[st.integers(1, 3)] * n))
    padding = [data.draw(st.integers(0, k // 2)) for k in size]
    if data.draw(st.booleans()):
        size, padding = [size[0]] * n, [padding[0]] * n
    module = POOLS[n - 1](size, stride, padding)
    assert_rule(module, image(n))
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    assert_rule(Formula(lambda m, x: function(x, size, stride, padding)), image(n))
    assert_rule(Formula(lambda m, x: function(x, kernel_size=size[0], stride=2)), image(n))


def test_pooling_with_a_divisor_of_its_own() -> None:
    assert_rule(nn.AvgPool2d(2, divisor_override=3), image(2))
    assert_rule(nn.AvgPool2d(3, 1, count_include_pad=False), image(2))  # nothing is padded


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ceil_mode": True}, "ceil_mode averages over windows that stick out"),
        ({"count_include_pad": False, "padding": 1}, "count_include_pad=False divides by less at the border"),
    ],
)
def test_pooling_that_no_kernel_equals(n: int, options: dict[str, Any], reason: str) -> None:
    """It still is a mean, which a pointwise map may cross."""
    module = POOLS[n - 1](3, **options)
    with pytest.raises(Inexact, match=reason):
        DEFAULT.tables["affine"][POOLS[n - 1]](Affine.identity(4, n), module)
    (step,) = fact_of(module, image(n)).path
    assert step.layout.carry[:2] == (0, 1)


@given(data=st.data(), n=st.integers(1, 3))
def test_zero_padding_and_crops(data: st.DataObject, n: int) -> None:
    pads = tuple(data.draw(st.integers(-1, 2)) for _ in range(2 * n))
    assert_rule(PADS[n - 1](pads), image(n))
    assert_rule(CONSTANT_PADS[n - 1](pads, 0.0), image(n))
    few = pads[: 2 * data.draw(st.integers(1, n))]
    assert_rule(Formula(lambda m, x: F.pad(x, few)), image(n))
    assert_rule(Formula(lambda m, x: F.pad(m.conv(x), few, value=0), conv=CONVS[n - 1](4, 6, 1, bias=False)), image(n))


@given(data=st.data(), n=st.integers(1, 3), mode=st.sampled_from(["constant", "reflect", "replicate", "circular"]))
def test_padding_of_every_mode(data: st.DataObject, n: int, mode: str) -> None:
    pads = tuple(data.draw(st.integers(0, 2)) for _ in range(2 * n))
    options: dict[str, Any] = {"value": 0.5} if mode == "constant" else {}
    assert_rule(Formula(lambda m, x: F.pad(x, pads, mode, **options)), image(n))
    names = {"constant": "Constant", "reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}
    module: Any = getattr(nn, f"{names[mode]}Pad{n}d")
    assert_rule(module(pads, *options.values()), image(n))
    assert_rule(nn.Sequential(randomize(NORMS[n - 1](4)), module(pads, *options.values())), image(n))


TRANSPOSED: Sequence[Any] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@given(data=st.data(), n=st.integers(1, 3))
def test_transposed_convolutions(data: st.DataObject, n: int) -> None:
    stride, size = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4))
    options = {"padding": data.draw(st.integers(0, 1)), "output_padding": data.draw(st.integers(0, stride - 1))}
    groups, bias = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
    module = TRANSPOSED[n - 1](4, 8, size, stride, groups=groups, bias=bias, **options)
    assert_rule(module, image(n))
    assert_rule(nn.Sequential(randomize(NORMS[n - 1](4)), module), image(n))
    assert_rule(nn.Sequential(module, randomize(NORMS[n - 1](8))), image(n))


def _halves(x: Any) -> tuple[Any, Any]:
    first, second = x.chunk(2, 1)
    return first, second


def _parts_added(first: Any, second: Any) -> Any:
    return first - 2 * second


CHANNELS: dict[str, Callable[[Any, Any], Any]] = {
    "slice": lambda m, x: x[:, 1:3],
    "slice of a step": lambda m, x: x[:, ::2],
    "list": lambda m, x: x[:, [2, 0, 1]],
    "flipped": lambda m, x: x.flip(1),
    "narrow": lambda m, x: x.narrow(1, 1, 2),
    "chunk": lambda m, x: x.chunk(2, 1)[1],
    "chunk by torch": lambda m, x: torch.chunk(m.conv(x), 3, dim=1)[-1],
    "split": lambda m, x: x.split([1, 3], 1)[1],
    "split evenly": lambda m, x: torch.split(m.conv(x), 3, 1)[1],
    "parts added": lambda m, x: _parts_added(*_halves(m.conv(x))),
    "joined again": lambda m, x: torch.cat([m.conv(x)[:, 2:], x, x[:, :1]], 1),
    "joined": lambda m, x: torch.cat((m.conv(x), m.conv(x) * 2), dim=-3),
    "crop": lambda m, x: x[:, :, 1:-1, 2:],
    "crop behind an ellipsis": lambda m, x: m.conv(x)[..., 1:-2],
    "every second": lambda m, x: x[:, :, ::2, 1::2],
    "crop and channels": lambda m, x: m.conv(x)[:, 1:, :, :-1],
    "shuffle": lambda m, x: nn.functional.channel_shuffle(m.conv(x), 2),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_picking_and_joining(name: str) -> None:
    module = Formula(CHANNELS[name], conv=nn.Conv2d(4, 4, 3, padding=1))
    assert_rule(module, image(2))


PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "x W": lambda m, x: x @ m.w,
    "torch.matmul": lambda m, x: torch.matmul(x, m.w),
    "einsum": lambda m, x: torch.einsum("bnc,cd->bnd", x, m.w),
    "einsum, turned": lambda m, x: torch.einsum("oc,bnc->bno", m.w.T, x),
    "einsum, middle": lambda m, x: torch.einsum("bcn,co->bon", x, m.w),
    "W x": lambda m, x: m.w.T @ x,
    "addcmul": lambda m, x: torch.addcmul(m.shift, x, m.gain, value=2),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_constant_matrices(name: str) -> None:
    weight = torch.arange(24.0).reshape(4, 6)
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    assert_rule(
        Formula(PRODUCTS[name], w=weight, shift=torch.arange(4.0)[:, None], gain=torch.arange(4.0)[:, None] - 1), x
    )


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (lambda m, x: m.w @ x, (2, 3, 4, 5)),
        (lambda m, x: m.w @ x, (4, 5)),
        (lambda m, x: torch.einsum("oi,bcih->bcoh", m.w, x), (2, 3, 4, 5)),
        (lambda m, x: torch.einsum("oi,ich->och", m.w, x), (4, 5, 3)),
    ],
)
def test_products_along_another_axis_than_the_channels(product: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """A convolution would need these axes to be (batch, channels, *spatial)."""
    with pytest.raises(Inexact, match="another axis than the channels"):
        map_of(Formula(product, w=torch.ones(6, 4)), torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Formula(lambda m, x: m.conv(F.pad(x, (2, -1, 0, 0), "reflect")), conv=nn.Conv2d(4, 4, 1)), "negative padding"),
        (Formula(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1))), "padding along the channels or the batch"),
        (Formula(lambda m, x: F.pad(x, (0, x.shape[3] % 2))), "only the run will know|depends on the input's size"),
    ],
)
def test_padding_that_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(Inexact, match=reason):
        map_of(module, image(2))


# -- layouts: their shapes are tested with test_shapes; here, how calls spell them -------------------------------------


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "x.flatten": lambda x: x.flatten(2),
    "torch.flatten": lambda x: torch.flatten(x, 2),
    "torch.flatten, start_dim": lambda x: torch.flatten(x, start_dim=2),
    "torch.flatten, input": lambda x: torch.flatten(input=x, start_dim=2),
    "x.reshape": lambda x: x.reshape(x.shape[0], 4, -1),
    "x.view": lambda x: x.view((x.shape[0], 4, 56)),
    "torch.reshape": lambda x: torch.reshape(x, (x.size(0), 4, -1)),
    "torch.reshape, shape": lambda x: torch.reshape(x, shape=(x.shape[0], 4, -1)),
    "x.permute": lambda x: x.permute(0, 1, 3, 2),
    "x.permute, tuple": lambda x: x.permute((0, 1, 3, 2)),
    "x.permute, dims": lambda x: x.permute(dims=(0, 1, 3, 2)),
    "torch.permute": lambda x: torch.permute(x, (0, 1, 3, 2)),
    "torch.permute, dims": lambda x: torch.permute(x, dims=(0, 1, 3, 2)),
    "x.transpose": lambda x: x.transpose(2, 3),
    "x.transpose, negative": lambda x: x.transpose(-1, -2),
    "x.transpose, dim0": lambda x: x.transpose(dim0=2, dim1=3),
    "torch.swapaxes": lambda x: torch.swapaxes(x, 2, 3),
    "nn.Unflatten": lambda x: nn.Unflatten(2, (1, -1))(x),
}


@pytest.mark.parametrize("formula", LAYOUTS.values(), ids=LAYOUTS)
def test_channels_cross_a_change_of_layout(formula: Callable[[Any], Any]) -> None:
    steps = fact_of(Formula(lambda m, x: formula(x)), image(2)).path
    assert [step.layout.carry[:2] for step in steps] == [(0, 1)]


def test_channels_cross_a_flatten_module() -> None:
    for module in (nn.Flatten(2), nn.Unflatten(2, (1, 7))):
        (step,) = fact_of(module, image(2)).path
        assert step.layout.carry[:2] == (0, 1)


# -- the table ---------------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@affine_rule(Gate)
def gate(x: Map, m: Gate) -> Map:
    return 2 * x


@affine_rule(nn.Conv2d)
def refused(x: Map, m: nn.Conv2d) -> Map:
    raise Inexact("not today")


def test_rule_sets_are_values() -> None:
    more = DEFAULT + RuleSet((gate,))
    assert len(more) == len(DEFAULT) + 1
    assert Gate in more.module_classes
    assert Gate not in DEFAULT.module_classes
    assert (more - RuleSet((gate,))).rules == DEFAULT.rules
    assert (RuleSet() + CONV).rules == CONV.rules
    assert gate.name == "gate"


def test_the_later_rule_wins() -> None:
    mine = RuleSet((refused,))
    assert (CONV + mine).table[nn.Conv2d] is refused
    assert (mine + CONV).table[nn.Conv2d] is not refused
    assert (CONV + mine - mine).table[nn.Conv2d] is CONV.table[nn.Conv2d]


class Quiet(nn.Conv2d):
    """A subclass that computes what its base class does."""


class Doubled(nn.Conv2d):
    """A subclass that does not."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_is_what_it_computes() -> None:
    assert_rule(Quiet(4, 4, 3), image(2))
    assert_rule(Doubled(4, 4, 3), image(2))
