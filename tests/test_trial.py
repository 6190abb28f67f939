"""Rules on trial: ten ways to be wrong, each told at once, by name, with the place and the difference."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import DEFAULT, Affine, Inexact, Macs, RuleError, RuleSet, affine_rule, explain, fuse, layout_rule
from repcompile import shape_rule as declare_shape
from repcompile.affine import Map
from repcompile.rules import Rule
from repcompile.shapes import Layout, Shape
from repcompile.testing import randomize

FOUND = re.compile(
    r"rule '(?P<rule>\w+)' is wrong about '(?P<path>[\w.]*)' \(\w+\): it differs by (?P<size>\d\.\de[-+]\d\d) "
    r"(?P<where>at the border only|in the interior), most at \(.*\), for an input of shape \(.*\); nothing is returned"
)


class Blur(nn.Module):
    """A fixed kernel on every channel, rows unlike columns, by a formula that tracing could look into."""

    kernel: Tensor

    def __init__(self, channels: int, stride: int = 1, mode: str = "constant") -> None:
        super().__init__()
        self.channels, self.stride, self.mode = channels, stride, mode
        self.register_buffer("kernel", torch.tensor([[1.0, 2.0, 1.0], [2.0, 5.0, 3.0], [0.0, 2.0, 1.0]]) / 17)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.expand(self.channels, 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), self.mode), weight, None, self.stride, 0, 1, self.channels)


def blurred(layer: Blur, kernel: Tensor, stride: int | None = None, mode: str = "zeros") -> Affine:
    weight = kernel.expand(layer.channels, 1, 3, 3)
    return Affine.conv(weight, None, stride or layer.stride, 1, 1, layer.channels, mode)


class Gained(nn.Module):
    """A convolution with groups whose gains `forward` computes."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gain.exp()[:, None, None]


def gained(m: Gained, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Affine:
    return Affine.conv(weight, bias, 1, 1, 1, m.conv.groups if groups is None else groups)


class Normed(nn.Module):
    """y = x / sqrt(var + eps)"""

    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-3
        self.register_buffer("var", torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x / (self.var + self.eps).sqrt()[:, None, None]


class Average(nn.Module):
    """Divided by how long a row is."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[-1]


class Half(nn.Module):
    """Computes in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.half()


@affine_rule(Blur)
def right(x: Map, m: Blur) -> Map:
    return blurred(m, m.kernel, mode={"constant": "zeros"}.get(m.mode, m.mode)) @ x


@affine_rule(Blur)
def transposed_kernel(x: Map, m: Blur) -> Map:
    return blurred(m, m.kernel.T) @ x


@affine_rule(Blur)
def wrong_stride(x: Map, m: Blur) -> Map:
    return blurred(m, m.kernel, stride=1) @ x


@affine_rule(Blur)
def wrong_on_the_border(x: Map, m: Blur) -> Map:
    return blurred(m, m.kernel) @ x


@affine_rule(Gained)
def bias_forgotten(x: Map, m: Gained) -> Map:
    return gained(m, m.conv.weight * m.gain.exp()[:, None, None, None], None) @ x


@affine_rule(Gained)
def wrong_for_groups(x: Map, m: Gained) -> Map:
    """The order of the groups: every second channel, instead of one half and the other."""
    gain = m.gain.exp()
    weight = (m.conv.weight * gain[:, None, None, None]).repeat(1, m.conv.groups, 1, 1)
    mask = torch.arange(4)[:, None] % m.conv.groups == torch.arange(4) % m.conv.groups
    assert m.conv.bias is not None
    return gained(m, weight * mask[..., None, None], m.conv.bias * gain, groups=1) @ x


@affine_rule(Normed)
def off_by_an_epsilon(x: Map, m: Normed) -> Map:
    return x * m.var.rsqrt()[:, None, None]


@affine_rule(Average)
def size_dependent(x: Map, m: Average) -> Map:
    return x * (1 / 9)


@affine_rule(Half)
def wrong_dtype(x: Map, m: Half) -> Map:
    return 2.0 * x


@affine_rule(Gained)
def mutating(x: Map, m: Gained) -> Map:
    with torch.no_grad():
        m.conv.weight.mul_(m.gain.exp()[:, None, None, None])
    assert m.conv.bias is not None
    return gained(m, m.conv.weight, m.conv.bias * m.gain.exp()) @ x


@affine_rule(Gained, late=True)
def mutating_late(x: Map, m: Gained) -> Map:
    m.scaled = True  # type: ignore[assignment]
    return gained(m, m.conv.weight, m.conv.bias) @ x


def behind_a_conv(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 1), module)
    return randomize(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), body)).eval().to(dtype)


def message(rule: Rule, model: nn.Module) -> str:
    with pytest.raises(RuleError) as error:
        fuse(model, rules=DEFAULT + [rule])
    with pytest.raises(RuleError):
        explain(model, rules=DEFAULT + [rule])
    return str(error.value)


@pytest.mark.parametrize(
    ("rule", "module", "where", "least"),
    [
        (transposed_kernel, Blur(4), "in the interior", 0.01),
        (bias_forgotten, Gained(), "in the interior", 0.01),
        (wrong_on_the_border, Blur(4, mode="reflect"), "at the border only", 0.01),
        (wrong_on_the_border, Blur(4, mode="circular"), "at the border only", 0.01),
        (wrong_for_groups, Gained(2), "in the interior", 0.01),
        (off_by_an_epsilon, Normed(), "in the interior", 1e-4),
    ],
)
def test_a_rule_that_differs(rule: Rule, module: nn.Module, where: str, least: float) -> None:
    found = FOUND.fullmatch(message(rule, behind_a_conv(module)))
    assert found is not None
    assert (found["rule"], found["path"], found["where"]) == (rule.name, "2.1", where)
    assert float(found["size"]) > least


def test_a_wrong_stride() -> None:
    text = message(wrong_stride, behind_a_conv(Blur(4, stride=2)))
    assert "rule 'wrong_stride' is wrong about '2.1' (Blur): its map makes an output of shape (2, 4, " in text
    assert "the operator one of shape (2, 4, " in text


def test_a_rule_that_depends_on_the_size_of_the_input() -> None:
    """Its factor is right for rows of nine."""
    text = message(size_dependent, behind_a_conv(Average()))
    assert "rule 'size_dependent' is wrong about '2.1' (Average): it differs by " in text


def test_a_rule_that_is_right_for_one_size() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[-1] < 12 else x * 3

    @affine_rule(Moody)
    def doubled(x: Map, layer: Moody) -> Map:
        return 2.0 * x

    assert "while it is right for one of shape (2, 4, 7, 8)" in message(doubled, behind_a_conv(Moody()))


def test_a_wrong_dtype() -> None:
    text = message(wrong_dtype, behind_a_conv(Half()))
    assert text == (
        "rule 'wrong_dtype' is wrong about '2.1' (Half): its map keeps the dtype, and the operator makes "
        "torch.float16 of torch.float64, for an input of shape (2, 4, 7, 8); nothing is returned"
    )


def test_a_dtype_that_only_shows_in_single_precision() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.double()

    @affine_rule(Double)
    def plain(x: Map, layer: Double) -> Map:
        return 2.0 * x

    assert "the operator makes torch.float64 of torch.float32, and its map keeps the dtype" in message(
        plain, behind_a_conv(Double())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [mutating, mutating_late])
def test_a_rule_that_changes_the_module(rule: Rule, dtype: torch.dtype) -> None:
    """It is told, and it was a copy that it changed."""
    model = behind_a_conv(Gained(), dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert message(rule, model) == f"rule '{rule.name}' changes '2.1' (Gained); rules only read"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model[2][1], "scaled")  # type: ignore[index]


def test_a_rule_that_raises() -> None:
    @affine_rule(Average)
    def clumsy(x: Map, layer: Average) -> Map:
        raise KeyError("sigma")

    assert message(clumsy, behind_a_conv(Average())) == "rule 'clumsy' failed on '2.1' (Average): KeyError: 'sigma'"


def test_a_rule_that_claims_a_change_to_be_none() -> None:
    """An identity is never emitted, and tried all the same."""

    @affine_rule(Blur)
    def nothing(x: Map, layer: Blur) -> Map:
        return x

    assert FOUND.fullmatch(message(nothing, behind_a_conv(Blur(4)))) is not None


def test_a_shape_that_is_not_what_comes_out() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1).exp()

    @declare_shape(Turned)
    def unturned(shape: Shape | None, layer: Turned) -> Shape | None:
        return shape

    model = nn.Sequential(behind_a_conv(nn.ReLU()), Turned(), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    text = message(unturned, model)
    assert text.startswith("rule 'unturned' is wrong about '1' (Turned): of shape (6, 4, 7, 8) it says (6, 4, 7, ")


def test_a_layout_that_is_not_what_is_done() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1) + 0 * x.mean()

    @layout_rule(Mixed)
    def unmixed(shape: Shape | None, layer: Mixed) -> Layout:
        if shape is None:
            raise Inexact("no shape")
        return Layout(shape, (0, 1, 2, 3), ((shape, (0, 1, 2, 3)),), name="mixed")

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Mixed(), nn.BatchNorm2d(4), nn.ReLU()).eval()
    text = message(unmixed, randomize(model))
    assert "rule 'unmixed' is wrong about " in text


def test_a_region_of_several_rules_names_the_one_that_is_wrong() -> None:
    model = behind_a_conv(nn.Sequential(Normed(), Blur(4)))

    @affine_rule(Normed)
    def normed(x: Map, m: Normed) -> Map:
        return x * (m.var + m.eps).rsqrt()[:, None, None]

    with pytest.raises(RuleError, match=r"rule 'transposed_kernel' is wrong about '2\.1\.1'"):
        fuse(model, rules=DEFAULT + [normed, transposed_kernel])
    assert len(explain(model, rules=DEFAULT + [normed, right]).fused) == 1


# -- rules that pass ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["constant", "reflect", "circular"])
def test_a_right_rule_is_accepted(stride: int, mode: str) -> None:
    model = behind_a_conv(Blur(4, stride, mode)).double()
    fused = fuse(model, rules=DEFAULT + [right], cost=Macs())
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_refusal_is_in_the_report() -> None:
    @affine_rule(Average)
    def shy(x: Map, layer: Average) -> Map:
        raise Inexact("not on Sundays")

    report = explain(behind_a_conv(Average()), rules=DEFAULT + [shy])
    assert "2.1: not on Sundays" in map(str, report.left)


def test_an_operator_that_cannot_be_tried_is_left() -> None:
    """It fails on the random image; nobody knows whether the rule is right, so nothing is fused."""

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 4, 1000).reshape(x.shape) * 2

    @affine_rule(Picky)
    def doubled(x: Map, layer: Picky) -> Map:
        return 2.0 * x

    model = behind_a_conv(Picky())
    report = explain(model, rules=DEFAULT + [doubled])
    assert [left.path for left in report.left if "could not be checked" in left.reason] == ["2.1"]
    x = torch.randn(2, 3, 20, 50)
    torch.testing.assert_close(fuse(model, rules=DEFAULT + [doubled])(x), model(x))


def test_trusted_rules_are_not_tried() -> None:
    rules = DEFAULT + RuleSet((off_by_an_epsilon,)).trusting()
    assert DEFAULT.untried is False
    assert rules.untried is False
    assert (rules + [right]).untried is True
    report = explain(behind_a_conv(Normed()), rules=rules)
    assert [left.path for left in report.left if "rolled back: differs by" in left.reason] == ["2.1"]


@pytest.mark.parametrize("rule", [lambda x: x, 3, nn.ReLU])
def test_only_rules_are_rules(rule: Any) -> None:
    with pytest.raises(RuleError, match="a rule set holds what affine_rule and the like return"):
        DEFAULT + [rule]  # type: ignore[operator]


def test_rules_is_a_set() -> None:
    with pytest.raises(RuleError, match=r"rules is a RuleSet, as in DEFAULT \+ \[mine\], or a name; got list"):
        fuse(behind_a_conv(Average()), rules=[right])  # type: ignore[call-overload]
