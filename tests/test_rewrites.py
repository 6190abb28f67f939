"""Rewrite rules: what a pattern matches, what it leaves alone, and that a lie is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import (
    DEFAULT,
    Inexact,
    RepcompileError,
    RuleError,
    any_constant,
    any_module,
    build,
    compile_model,
    explain,
    fuse,
    rewrite_rule,
)
from repcompile.rules import RewriteRule
from repcompile.testing import blocks, graphs, randomize


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@rewrite_rule
class ToQuickGELU:
    @staticmethod
    def pattern(x: Any) -> Any:
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    def replacement(x: Any, act: Any = nn.SiLU()) -> Any:
        return act(1.702 * x) / 1.702


@rewrite_rule
class HardSwish:
    @staticmethod
    def pattern(x: Any) -> Any:
        return x * F.relu6(x + 3) / 6

    @staticmethod
    def replacement(x: Any) -> Any:
        return F.hardswish(x)


@rewrite_rule
class TwoLinears:
    """Two fully connected layers of one input, side by side, are one."""

    @staticmethod
    def pattern(x: Any, a: Any = any_module(nn.Linear), b: Any = any_module(nn.Linear)) -> Any:
        return torch.cat([a(x), b(x)], -1)

    @staticmethod
    def replacement(x: Any, both: Any = build(lambda match: joined(match["a"], match["b"]))) -> Any:
        return both(x)

    @staticmethod
    def where(match: Any) -> bool:
        if (match["a"].bias is None) != (match["b"].bias is None):
            raise Inexact("only one of the two has a bias")
        return True


def joined(a: nn.Linear, b: nn.Linear) -> nn.Linear:
    both = nn.Linear(a.in_features, a.out_features + b.out_features, bias=a.bias is not None)
    both.weight = nn.Parameter(torch.cat([a.weight, b.weight]))
    if a.bias is not None:
        both.bias = nn.Parameter(torch.cat([a.bias, b.bias]))
    return both


class Block(nn.Module):
    """Parts by name, and a formula for `forward`."""

    def __init__(self, formula: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.formula = formula
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.formula(self, *inputs)


class One(Block):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return self.formula(self, x)


IMAGE = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def times(model: nn.Module, rule: RewriteRule, image: Tensor = IMAGE) -> int:
    """How often the rule applied; the result is equal, and the model untouched."""
    model = model.eval().double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compile_model(model, rules=DEFAULT + [rule])
    torch.testing.assert_close(result.module(image), model(image), rtol=1e-9, atol=1e-9)
    shown = fuse(model, (image,), rules=DEFAULT + [rule])
    torch.testing.assert_close(shown(image), model(image), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(item.rule == rule.name for item in result.report.rewritten)
    return len(result.report.rewritten)


def formula(function: Callable[[Any], Any]) -> nn.Module:
    return One(lambda m, x: function(x))


# -- what matches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: F.relu6(3 + x) * x / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: (1 / 6) * x * F.relu6(x + 3.0),
        lambda x: x * nn.functional.relu6(x + 3, inplace=True) / 6.0,
        lambda x: x.mul(F.relu6(x.add(3))).div(6),
        lambda x: x * F.relu6(1 + x + 2) / 6,
        lambda x: torch.mul(x / 6, F.relu6(x - -3)),
        lambda x: 2 * (x * F.relu6(x + 3)) / 12,
    ],
)
def test_a_hard_swish_however_it_is_written(function: Callable[[Any], Any]) -> None:
    assert times(formula(function), HardSwish) == 1


def test_a_module_is_what_it_computes() -> None:
    assert times(One(lambda m, x: x * m.act(x + 3) / 6, act=nn.ReLU6(inplace=True)), HardSwish) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.relu6(x + 2) / 6,
        lambda x: x * F.relu6(x + 3) / 5,
        lambda x: x * F.relu(x + 3) / 6,
        lambda x: (x + 1) * F.relu6(x + 3) / 6,
        lambda x: F.relu6(x + 3) / 6 / x,
        lambda x: x * F.relu6(3 - x) / 6,
        lambda x: x + F.relu6(x + 3) / 6,
    ],
)
def test_what_is_no_hard_swish(function: Callable[[Any], Any]) -> None:
    model = formula(lambda x: function(x)).double()
    report = explain(model.eval(), rules=DEFAULT + [HardSwish])
    assert all(item.after > 1 for item in report.rewritten)  # a number may be left over
    torch.testing.assert_close(fuse(model, rules=DEFAULT + [HardSwish])(IMAGE), model(IMAGE))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.gamma * x * torch.sigmoid(1.702 * x),
        lambda m, x: x * (m.gamma * torch.sigmoid(x * 1.702)),
        lambda m, x: torch.sigmoid(1.702 * x) * 0.5 * x * m.gamma,
        lambda m, x: x * x.sigmoid() if False else x * (1.702 * x).sigmoid() / m.gamma,
        lambda m, x: -(x * m.act(1.702 * x)),
    ],
)
def test_a_part_of_a_longer_product(function: Callable[[Any, Any], Any]) -> None:
    """What is left over is multiplied to the replacement."""
    assert times(One(function, gamma=torch.rand(4, 1, 1) + 0.5, act=nn.Sigmoid()), ToQuickGELU) == 1


def test_every_place_of_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), QuickGELU(), nn.Conv2d(4, 4, 1), nn.Sequential(QuickGELU()))
    assert times(model, ToQuickGELU) == 2
    report = explain(model, rules=DEFAULT + [ToQuickGELU])
    assert [(item.rule, item.path, item.before) for item in report.rewritten][::-1] == [
        ("ToQuickGELU", "1", 3),
        ("ToQuickGELU", "3.0", 3),
    ]
    assert "ToQuickGELU" in str(report)
    assert sum(isinstance(part, nn.SiLU) for part in fuse(model, rules=DEFAULT + [ToQuickGELU]).modules()) == 2


@given(data=st.data())
def test_sums_match_in_any_order_and_nesting(data: st.DataObject) -> None:
    @rewrite_rule
    class Three:
        @staticmethod
        def pattern(x: Any, c: Any = any_constant()) -> Any:
            return torch.exp(x) + torch.tanh(x) - torch.sin(x) + c

        @staticmethod
        def replacement(x: Any, c: Any) -> Any:
            return torch.tanh(x) + (c - torch.sin(x)) + torch.exp(x)

    terms: list[Any] = data.draw(st.permutations([torch.exp, torch.tanh, "sin", "c", "extra"]))

    def summed(m: Any, x: Any) -> Any:
        parts = [-torch.sin(x) if t == "sin" else m.c if t == "c" else x if t == "extra" else t(x) for t in terms]
        while len(parts) > 1:
            place = places[len(parts) - 2] % (len(parts) - 1)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts[0] if isinstance(parts[0], Tensor) or parts else None

    places = data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=4))
    minus = terms.index("sin")
    assert 0 <= minus < 5
    model = One(summed, c=torch.rand(4, 1, 1)).eval().double()
    result = compile_model(model, rules=DEFAULT + [Three])
    torch.testing.assert_close(result.module(IMAGE), model(IMAGE))


# -- wildcards ---------------------------------------------------------------------------------------------------------


def test_modules_are_matched_and_built() -> None:
    class Own(nn.Linear):
        """Computes what nn.Linear does."""

    tokens = torch.randn(2, 5, 4, dtype=torch.float64)
    model = One(lambda m, x: torch.cat([m.q(x), m.k(x)], dim=-1).relu(), q=nn.Linear(4, 3), k=Own(4, 2))
    assert times(model, TwoLinears, tokens) == 1
    (linear,) = [part for part in fuse(model, rules=DEFAULT + [TwoLinears]).modules() if isinstance(part, nn.Linear)]
    assert linear.out_features == 5


def test_a_reason_not_to() -> None:
    model = One(lambda m, x: torch.cat([m.q(x), m.k(x)], -1), q=nn.Linear(4, 3), k=nn.Linear(4, 2, bias=False))
    report = explain(model.eval(), rules=DEFAULT + [TwoLinears])
    assert not report.rewritten
    assert "rewrite 'TwoLinears': only one of the two has a bias" in [item.reason for item in report.left]


def test_attributes_of_modules() -> None:
    @rewrite_rule
    class PointwiseTwice:
        @staticmethod
        def pattern(x: Any, a: Any = any_module(nn.Conv2d, kernel_size=1, out_channels=lambda c: c % 2 == 0)) -> Any:
            return torch.tanh(a(x))

        @staticmethod
        def replacement(x: Any, a: Any) -> Any:
            return torch.tanh(a(x) * 2 * 0.5)

    def model(kernel: int, channels: int) -> nn.Module:
        return One(lambda m, x: torch.tanh(m.conv(x)), conv=nn.Conv2d(4, channels, kernel))

    assert times(model(1, 6), PointwiseTwice) == 1
    assert times(model(3, 6), PointwiseTwice) == 0
    assert times(model(1, 5), PointwiseTwice) == 0


def test_what_an_attribute_has_to_be() -> None:
    conv = nn.Conv2d(4, 6, 3, padding="same")
    for attributes in ({"out_channels": 6}, {"kernel_size": 3}, {"kernel_size": (3, 3)}, {"padding": "same"}, {}):
        assert any_module(nn.Conv2d, **attributes).accepts(conv), attributes
    for attributes in ({"out_channels": 5}, {"kernel_size": 1}, {"kernel_size": (3, 1)}, {"depth": 1}):
        assert not any_module(nn.Conv2d, **attributes).accepts(conv), attributes


def test_one_wildcard_is_one_module_and_one_value() -> None:
    @rewrite_rule
    class Twice:
        @staticmethod
        def pattern(x: Any, a: Any = any_module(nn.PReLU, nn.LeakyReLU)) -> Any:
            return torch.exp(a(x)) + torch.sin(a(x))

        @staticmethod
        def replacement(x: Any, a: Any) -> Any:
            y = a(x)
            return torch.exp(y) + torch.sin(y)

    one = One(lambda m, x: torch.exp(m.a(x)) + torch.sin(m.a(x)), a=nn.LeakyReLU(0.1))
    two = One(lambda m, x: torch.exp(m.a(x)) + torch.sin(m.b(x)), a=nn.LeakyReLU(0.1), b=nn.LeakyReLU(0.1))
    assert (times(one, Twice), times(two, Twice)) == (1, 0)
    assert times(One(lambda m, x: m.a(x).exp() + m.a(x + 1).sin(), a=nn.LeakyReLU(0.1)), Twice) == 0


def test_constants_are_numbers_and_tensors() -> None:
    @rewrite_rule
    class Scaled:
        @staticmethod
        def pattern(x: Any, c: Any = any_constant()) -> Any:
            return x * torch.sigmoid(c * x)

        @staticmethod
        def replacement(x: Any, c: Any) -> Any:
            return F.silu(c * x) / c

    assert times(formula(lambda x: x * torch.sigmoid(1.702 * x)), Scaled) == 1
    beta = torch.rand(4, 1, 1) + 0.5
    assert times(One(lambda m, x: x * torch.sigmoid(x * m.beta), beta=beta), Scaled) == 1
    assert times(One(lambda m, x: x * torch.sigmoid(x * m.beta.exp()), beta=beta), Scaled) == 1
    assert times(formula(lambda x: x * torch.sigmoid(x * x.mean())), Scaled) == 0


def pairs(pattern: Callable[..., Any], replacement: Callable[..., Any], where: Any = None) -> RewriteRule:
    """A rule of two functions; it may be right."""
    return lying(pattern, replacement, where)


GAINS = torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1)


def test_a_tensor_in_a_pattern_is_those_numbers() -> None:
    def gained(x: Any) -> Any:
        return torch.sin(x) * GAINS

    def model(other: Any) -> nn.Module:
        return One(lambda m, x: torch.sin(x) * m.other + x, other=other)

    rule = pairs(gained, lambda x: GAINS * torch.sin(x))
    assert times(model(GAINS.clone()), rule) == 1
    assert times(model(GAINS + 1), rule) == 0
    assert times(model(GAINS.flatten()[:1]), rule) == 0
    assert times(formula(lambda x: torch.sin(x) * x), rule) == 0
    assert times(formula(lambda x: torch.sin(x) * 2.0), rule) == 0


def test_a_value_that_a_pattern_uses_twice_is_one_value() -> None:
    def twice(x: Any) -> Any:
        y = torch.sin(x)
        return torch.exp(y) + torch.tanh(y)

    rule = pairs(twice, lambda x: torch.tanh(torch.sin(x)) + torch.exp(torch.sin(x)))
    assert times(formula(lambda x: twice(x)), rule) == 1
    assert times(formula(lambda x: torch.exp(torch.sin(x)) + torch.tanh(torch.sin(x + 1))), rule) == 0


def approximately(x: Any) -> Any:
    return F.gelu(x, approximate="tanh")


def test_options_have_to_be_the_same() -> None:
    leaky = pairs(lambda x: torch.sin(F.leaky_relu(x, 0.2)), lambda x: torch.sin(torch.where(x > 0, x, 0.2 * x)))
    assert times(formula(lambda x: F.leaky_relu(x, 0.2).sin()), leaky) == 1
    assert times(formula(lambda x: F.leaky_relu(x, 0.1).sin()), leaky) == 0
    tanh = pairs(lambda x: torch.sin(approximately(x)), lambda x: torch.sin(1.0 * approximately(x)))
    assert times(formula(lambda x: approximately(x).sin()), tanh) == 1
    assert times(formula(lambda x: F.gelu(x, approximate="none").sin()), tanh) == 0
    clamp = pairs(lambda x: torch.clamp(x, -1.0, 1.0), lambda x: F.hardtanh(x))
    assert times(formula(lambda x: torch.sin(torch.clamp(x, -1.0, 1.0))), clamp) == 1
    assert times(formula(lambda x: torch.sin(torch.clamp(x, -1.0))), clamp) == 0


def test_a_replacement_names_its_constants_and_has_tensors_of_its_own() -> None:
    def pattern(x: Any, c: Any = any_constant()) -> Any:
        return torch.sin(x) * c

    def replacement(x: Any, c: Any = any_constant()) -> Any:
        return torch.sin(x) * (torch.tensor([0.5]) * c) * 2

    rule = pairs(pattern, replacement)
    assert times(formula(lambda x: torch.sin(x) * 3), rule) == 1
    assert times(One(lambda m, x: torch.sin(x) * m.gain, gain=torch.rand(4, 1, 1)), rule) == 1


def test_a_tensor_of_a_replacement_does_not_change_the_dtype() -> None:
    model = formula(lambda x: torch.sin(x) + 1).eval()
    rule = pairs(lambda x: torch.sin(x), lambda x: torch.sin(x) * torch.ones(1, dtype=torch.float64))
    message = r"its replacement makes torch\.float64 of torch\.float32, its pattern torch\.float32"
    with pytest.raises(RuleError, match=message):
        fuse(model, rules=DEFAULT + [rule])


def test_a_pattern_of_several_tensors_is_not_replaced() -> None:
    rule = pairs(lambda x: torch.chunk(x, 2, 1), lambda x: torch.tensor_split(x, 2, 1))
    model = formula(lambda x: torch.sin(torch.chunk(x, 2, 1)[1]))
    assert times(model, rule) == 0
    assert "rewrite 'Lying': it is no tensor" in [item.reason for item in explain(model, rules=DEFAULT + [rule]).left]


def test_a_division_by_zero_is_no_product() -> None:
    rule = pairs(lambda x: torch.exp(x) * 0.5, lambda x: torch.exp(x) / 2)
    assert times(formula(lambda x: torch.exp(x) / 0), rule) == 0
    assert times(formula(lambda x: torch.exp(x) / 4), rule) == 1


def test_a_rule_may_say_no_without_a_reason() -> None:
    rule = pairs(lambda x: torch.sin(x), lambda x: torch.cos(x), lambda match: False)
    assert times(formula(lambda x: torch.sin(x)), rule) == 0
    assert not explain(formula(lambda x: torch.sin(x)).eval(), rules=DEFAULT + [rule]).left


def test_a_class_of_ones_own_stays_whole() -> None:
    @rewrite_rule
    class Replaced:
        @staticmethod
        def pattern(x: Any, act: Any = any_module(QuickGELU)) -> Any:
            return act(x)

        @staticmethod
        def replacement(x: Any) -> Any:
            return F.silu(1.702 * x) / 1.702

    assert times(nn.Sequential(nn.Conv2d(4, 4, 1), QuickGELU()), Replaced) == 1


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_values_with_other_readers_stay() -> None:
    """Replacing the product would not save the gate, which somebody else reads."""

    def gated(m: Any, x: Any) -> Any:
        gate = torch.sigmoid(1.702 * x)
        return x * gate, gate.mean()

    model = One(gated).eval().double()
    report = explain(model, rules=DEFAULT + [ToQuickGELU])
    assert not report.rewritten
    assert "rewrite 'ToQuickGELU': a value inside has other readers" in [item.reason for item in report.left]
    torch.testing.assert_close(fuse(model, rules=DEFAULT + [ToQuickGELU])(IMAGE), model(IMAGE))


def test_the_callers_choice_counts() -> None:
    model = nn.Sequential(QuickGELU(), nn.Sequential(QuickGELU())).eval()
    report = explain(model, rules=DEFAULT + [ToQuickGELU], skip="1")
    assert [item.path for item in report.rewritten] == ["0"]
    report = explain(model, rules=DEFAULT + [ToQuickGELU], only="1")
    assert [item.path for item in report.rewritten] == ["1.0"]


def test_sizes_are_no_values() -> None:
    @rewrite_rule
    class Product:
        @staticmethod
        def pattern(a: Any, b: Any) -> Any:
            return a * b

        @staticmethod
        def replacement(a: Any, b: Any) -> Any:
            return b * a

    model = formula(lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]) * torch.sin(x.flatten(1, 2)))
    assert times(model, Product) == 1


def test_a_replacement_is_fused_further() -> None:
    """A Linear that a rule made takes the batch norm behind it in."""
    model = One(
        lambda m, x: m.norm(torch.cat([m.q(x), m.k(x)], -1)),
        q=nn.Linear(4, 3),
        k=nn.Linear(4, 2),
        norm=nn.BatchNorm1d(5),
    )
    randomize(model)
    assert times(model, TwoLinears, torch.randn(7, 4, dtype=torch.float64)) == 1
    fused = fuse(model, (torch.randn(7, 4, dtype=torch.float64),), rules=DEFAULT + [TwoLinears])
    assert [type(part) for part in fused.children() if list(part.parameters())] == [nn.Linear]


def test_inside_of_what_stays_python() -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = QuickGELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x) if x.sum() > 0 else x

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Undecided()).eval().double()
    assert times(model, ToQuickGELU) == 1


def test_nothing_is_read_later_than_a_module_runs_that_may_write_to_it() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.numel() and bool((x == x).all()):
                x.mul_(2)
            return x.clone()

    def around(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        gate = torch.sigmoid(1.702 * y)
        z = m.write(y)
        return y * gate + z

    model = One(around, conv=nn.Conv2d(4, 4, 1), write=Doubling()).eval().double()
    randomize(model)
    fused = fuse(model, rules=DEFAULT + [ToQuickGELU])
    for x in (torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(1, 4, 7, 6, dtype=torch.float64)):
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-12)


# -- wrong rules -------------------------------------------------------------------------------------------------------


def lying(pattern: Callable[..., Any], replacement: Callable[..., Any], where: Any = None) -> RewriteRule:
    parts = {"pattern": staticmethod(pattern), "replacement": staticmethod(replacement)}
    return rewrite_rule(type("Lying", (), parts if where is None else {**parts, "where": staticmethod(where)}))


def silu(x: Any) -> Any:
    return x * torch.sigmoid(x)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (
            lambda x: F.gelu(x),
            r"its replacement differs by \d\.\de[-+]\d\d in the interior, most at \(.*\), for inputs",
        ),
        (lambda x: F.silu(x) * 1.001, "its replacement differs by "),
        (lambda x: F.silu(x).flatten(1), "its replacement makes "),
        (lambda x: F.silu(x).float(), "its replacement makes torch.float32 of torch.float64"),
        (
            lambda x: F.silu(x).double(),
            "its replacement makes torch.float64 of torch.float32, its pattern torch.float32",
        ),
        (lambda x: F.silu(x).reshape(-1, 1000), "its replacement fails on inputs of shape"),
        (lambda x: F.pad(F.silu(x)[..., 1:-1, 1:-1], (1, 1, 1, 1)), "at the border only"),
    ],
)
def test_a_lying_pattern(replacement: Callable[[Any], Any], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), One(lambda m, x: x * torch.sigmoid(x))).eval()
    rule = lying(silu, replacement)
    with pytest.raises(RuleError, match=rf"rewrite rule 'Lying' is wrong about 'mul' in '1': .*{message}") as error:
        fuse(model, rules=DEFAULT + [rule])
    assert str(error.value).endswith("; nothing is returned")


def test_code_of_a_rule_that_fails() -> None:
    model = One(lambda m, x: x * torch.sigmoid(x)).eval()
    with pytest.raises(RuleError, match=r"rewrite rule 'Lying': clumsy failed: KeyError: 'y'"):
        fuse(model, rules=DEFAULT + [lying(silu, lambda x: F.silu(x), where=clumsy)])


def clumsy(match: Any) -> bool:
    return match["y"]


def scaled_sine(x: Any, c: Any = any_constant()) -> Any:
    return torch.sin(x) * c


def only_the_constant(x: Any, c: Any) -> Any:
    return c


def only_the_constant_of_its_own(x: Any, c: Any = any_constant()) -> Any:
    return c


def strange_module(x: Any, c: Any, layer: Any = any_module(nn.Linear)) -> Any:
    return layer(x) * c


def three(match: Any) -> Any:
    return 3


def built_as_a_number(x: Any, c: Any, layer: Any = build(three)) -> Any:
    return layer(x) * c


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (only_the_constant, "its replacement is the number 2.0"),
        (strange_module, "'layer' stands for no module"),
        (built_as_a_number, "'layer' was built as a int"),
    ],
)
def test_a_replacement_that_is_none(replacement: Callable[..., Any], message: str) -> None:
    model = formula(lambda x: torch.sin(x) * 2.0).eval()
    with pytest.raises(RuleError, match=rf"^rewrite rule 'Lying': {message}$"):
        fuse(model, rules=DEFAULT + [lying(scaled_sine, replacement)])


def test_a_rule_cannot_change_the_model() -> None:
    """It gets copies."""

    def careless(match: Any) -> bool:
        with torch.no_grad():
            match["a"].weight.zero_()
            match["c"].zero_()
        return True

    @rewrite_rule
    class Careless:
        @staticmethod
        def pattern(x: Any, a: Any = any_module(nn.Linear), c: Any = any_constant()) -> Any:
            return torch.sin(a(x)) * c

        @staticmethod
        def replacement(x: Any, a: Any, c: Any) -> Any:
            return c * torch.sin(a(x))

        where = staticmethod(careless)

    model = One(lambda m, x: torch.sin(m.a(x)) * m.c, a=nn.Linear(6, 6), c=torch.rand(6))
    assert times(model, Careless) == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pattern": silu}, "has no function 'replacement'"),
        ({"pattern": silu, "replacement": lambda y: y}, "its pattern has no 'y'"),
        ({"pattern": lambda x: x, "replacement": lambda x: x}, "has to return one value, and to compute it"),
        ({"pattern": lambda x: (x, x), "replacement": lambda x: x}, "has to return one value"),
        ({"pattern": only_the_constant_of_its_own, "replacement": lambda x: x}, "has to return one value, and to comp"),
        ({"pattern": lambda x, y=3: x + y, "replacement": lambda x: x}, "the default of 'y' is no wildcard"),
        ({"pattern": lambda: 1, "replacement": lambda x: x}, "it has no value among its parameters"),
        ({"pattern": lambda x: x if x.sum() > 0 else -x, "replacement": lambda x: x}, "cannot be traced"),
    ],
)
def test_rules_that_are_none(parts: dict[str, Any], message: str) -> None:
    parts = {name: staticmethod(part) for name, part in parts.items()}
    with pytest.raises(RuleError, match=message):
        rewrite_rule(type("Odd", (), parts))
    assert issubclass(RuleError, RepcompileError)


# -- any model ---------------------------------------------------------------------------------------------------------


@rewrite_rule
class Swapped:
    @staticmethod
    def pattern(a: Any, b: Any) -> Any:
        return a + b

    @staticmethod
    def replacement(a: Any, b: Any) -> Any:
        return b - (-a)


@rewrite_rule
class Halved:
    @staticmethod
    def pattern(x: Any) -> Any:
        return x * 0.5

    @staticmethod
    def replacement(x: Any) -> Any:
        return x / 2


@rewrite_rule
class Folded:
    """A 1x1 convolution behind a norm, written out: what the compiler would do by itself."""

    @staticmethod
    def pattern(
        x: Any, norm: Any = any_module(nn.BatchNorm2d), conv: Any = any_module(nn.Conv2d, kernel_size=1)
    ) -> Any:
        return conv(norm(x))

    @staticmethod
    def replacement(x: Any, norm: Any, scaled: Any = build(lambda match: with_bias(match["conv"]))) -> Any:
        return scaled(norm(x))


def with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels, dtype=conv.weight.dtype))
    return conv


@given(model=blocks() | graphs(), rules=st.lists(st.sampled_from([Swapped, Halved, Folded]), min_size=1, unique=True))
def test_drawn_models_stay_equal(model: nn.Module, rules: list[RewriteRule]) -> None:
    result = compile_model(model, rules=DEFAULT + rules)
    event(f"rewritten in {min(len(result.report.rewritten), 3)} places or more")
    with torch.no_grad():
        expected = model(IMAGE)
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(result.module(IMAGE), expected, rtol=0.0, atol=1e-9 * scale)
