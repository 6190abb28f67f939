"""`randomize`: nothing that it touches stays as in a fresh model, and nothing else changes."""

import operator
import subprocess
import sys
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import repcompile.testing
from repcompile import DEFAULT, RuleError, affine_rule, any_constant, any_module, fuse
from repcompile.fold import apply
from repcompile.modules import ChannelAffine, ValuePad
from repcompile.rules import RewriteRule, Rule
from repcompile.testing import affines, blocks, check_affine_rule, check_rewrite_rule, graphs, images_for, randomize
from tests.strategies import assert_equal, direct
from tests.test_rewrites import HardSwish, ToQuickGELU, TwoLinears, lying
from tests.test_trial import (
    Average,
    Blur,
    Gained,
    Half,
    Normed,
    bias_forgotten,
    mutating,
    off_by_an_epsilon,
    size_dependent,
    transposed_kernel,
    wrong_dtype,
    wrong_for_groups,
    wrong_on_the_border,
    wrong_stride,
)


class Scaled(nn.Module):
    """A layer scale, a table of positions, and a counter beside layers of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-5))
        self.table = nn.Parameter(torch.zeros(4, 5))
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.norm(self.conv(x))


def test_statistics_gains_and_shifts_are_drawn() -> None:
    norm = nn.BatchNorm2d(64)
    assert randomize(norm) is norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert tensor.unique().numel() == 64
    assert 0.5 <= norm.running_var.min() < 0.7 < 1.3 < norm.running_var.max() <= 1.5
    assert 0.5 <= norm.weight.min() < 0.7 < 1.3 < norm.weight.max() <= 1.5
    assert 0.1 < norm.running_mean.std() < 0.5
    assert 0.1 < norm.bias.std() < 0.5


def test_layer_scales_are_drawn_and_nothing_else() -> None:
    model = Scaled()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    randomize(model)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"norm.weight", "norm.bias", "scale"}
    assert 0.25 <= model.scale.min() < model.scale.max() <= 0.75


def test_every_kind_of_batch_norm() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        norm = randomize(kind(4))
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_mean.abs().min() > 0


def test_a_norm_without_weights_or_statistics() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    randomize(norm)
    assert norm.running_mean is not None
    assert norm.running_mean.abs().min() > 0
    bare = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    assert randomize(bare) is bare


def test_the_seed_decides() -> None:
    same, other = randomize(Scaled(), 1).state_dict(), randomize(Scaled(), 2).state_dict()
    again = randomize(Scaled(), 1).state_dict()
    for key in ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "scale"):
        assert torch.equal(again[key], same[key])
        assert not torch.equal(other[key], same[key])


def test_the_global_generator_is_left_alone() -> None:
    model = Scaled()
    before = torch.random.get_rng_state()
    randomize(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradients_and_modes_stay() -> None:
    model = randomize(Scaled())
    assert model.training
    assert model.get_parameter("norm.weight").requires_grad
    assert model.get_parameter("norm.weight").grad_fn is None


def test_an_error_shows_in_a_randomized_model() -> None:
    """Dropping the norm and the scale goes unnoticed in a fresh model only."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fresh, drawn = Scaled().eval(), randomize(Scaled()).eval()
    with torch.no_grad():
        assert (fresh(x) - 1e-5 * fresh.conv(x)).abs().max() < 1e-9
        assert (drawn(x) - drawn.get_submodule("conv")(x)).abs().max() > 0.1
        assert (drawn(x) - fuse(drawn)(x)).abs().max() < 1e-5


# -- laws of rules -----------------------------------------------------------------------------------------------------


def own(target: Any, kind: str = "affine") -> Any:
    """The rule that DEFAULT has for a target."""
    return DEFAULT.tables[kind][target]


def normed(norm: nn.Module) -> nn.Module:
    return randomize(norm).eval()


IMAGE, SIGNAL, VIDEO, TOKENS = (2, 4, 7, 8), (2, 4, 11), (2, 4, 4, 5, 6), (2, 5, 4)
CONSTANT = torch.rand(4, 1, 1, dtype=torch.float64) + 0.5
OURS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (nn.Conv1d, nn.Conv1d(4, 6, 3, 2, 1), SIGNAL),
    (nn.Conv2d, nn.Conv2d(4, 6, (3, 2), 2, (1, 0), 2, 2), IMAGE),
    (nn.Conv2d, nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), IMAGE),
    (nn.Conv3d, nn.Conv3d(4, 4, 2, padding=1, groups=4), VIDEO),
    (nn.ConvTranspose2d, nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), IMAGE),
    (nn.Linear, nn.Linear(4, 3), (2, 4)),
    (nn.BatchNorm1d, normed(nn.BatchNorm1d(4)), SIGNAL),
    (nn.BatchNorm2d, normed(nn.BatchNorm2d(4)), IMAGE),
    (nn.BatchNorm3d, normed(nn.BatchNorm3d(4)), VIDEO),
    (nn.AvgPool2d, nn.AvgPool2d(3, 2, 1), IMAGE),
    (nn.AvgPool1d, nn.AvgPool1d(2), SIGNAL),
    (nn.ZeroPad2d, nn.ZeroPad2d((1, 2, 0, -1)), IMAGE),
    (nn.ConstantPad1d, nn.ConstantPad1d(2, 3.5), SIGNAL),
    (nn.ReflectionPad2d, nn.ReflectionPad2d(2), IMAGE),
    (nn.ReplicationPad1d, nn.ReplicationPad1d((1, 2)), SIGNAL),
    (nn.CircularPad2d, nn.CircularPad2d(1), IMAGE),
    (F.pad, lambda x: F.pad(x, (1, 1), "circular"), SIGNAL),
    (F.avg_pool2d, lambda x: F.avg_pool2d(x, 2, 1), IMAGE),
    (F.conv2d, nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)).eval(), IMAGE),
    (operator.add, lambda x: x + CONSTANT, IMAGE),
    (operator.sub, lambda x: CONSTANT - x, IMAGE),
    (operator.mul, lambda x: CONSTANT * x, IMAGE),
    (operator.truediv, lambda x: x / CONSTANT, IMAGE),
    (torch.addcmul, lambda x: torch.addcmul(CONSTANT, x, CONSTANT), IMAGE),
    (operator.neg, lambda x: -x, IMAGE),
    (operator.matmul, lambda x: x @ WEIGHT.T, (2, 4)),
    (torch.einsum, lambda x: torch.einsum("bchw,oc->bohw", x, WEIGHT), IMAGE),
    (operator.getitem, lambda x: x[:, [2, 0, 1]], IMAGE),
    (operator.getitem, lambda x: x[..., 1:, ::2], IMAGE),
    (torch.flip, lambda x: torch.flip(x, (1,)), IMAGE),
    (torch.narrow, lambda x: torch.narrow(x, 1, 1, 2), IMAGE),
    (torch.cat, lambda x: torch.cat([x, 2 * x], 1), IMAGE),
    (ChannelAffine, ChannelAffine(CONSTANT, -CONSTANT).eval(), IMAGE),
    (ValuePad, ValuePad(CONSTANT, (1, 2, 0, 1)).eval(), IMAGE),
]
WEIGHT = torch.rand(3, 4, dtype=torch.float64)


@pytest.mark.parametrize(("target", "operator_", "shape"), OURS, ids=[f"{i}" for i in range(len(OURS))])
def test_our_own_rules(target: Any, operator_: Any, shape: tuple[int, ...]) -> None:
    check_affine_rule(own(target), operator_, shape)


def test_a_rule_that_passes_returns_its_map() -> None:
    found = check_affine_rule(own(nn.Conv2d), nn.Conv2d(4, 6, 3), IMAGE)
    assert found is not None
    assert (found.c_in, found.c_out) == (4, 6)
    assert check_affine_rule(own(operator.neg), lambda x: -x, IMAGE) is None


@pytest.mark.parametrize(
    ("rule", "module", "message"),
    [
        (transposed_kernel, Blur(4), "rule 'transposed_kernel' is wrong about 'operator' .*: it differs by"),
        (bias_forgotten, Gained(), "rule 'bias_forgotten' is wrong"),
        (wrong_stride, Blur(4, stride=2), "rule 'wrong_stride' is wrong .* output of shape"),
        (wrong_on_the_border, Blur(4, mode="reflect"), "at the border only"),
        (wrong_for_groups, Gained(2), "rule 'wrong_for_groups' is wrong"),
        (off_by_an_epsilon, Normed(), "rule 'off_by_an_epsilon' is wrong"),
        (size_dependent, Average(), "rule 'size_dependent' is wrong"),
        (wrong_dtype, Half(), "the operator makes torch.float16 of torch.float64"),
        (mutating, Gained(), "rule 'mutating' changes 'operator'"),
        (bias_forgotten, Blur(4), "rule 'bias_forgotten' is for nothing that is called here"),
    ],
)
def test_a_wrong_rule_does_not_pass(rule: Rule, module: nn.Module, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        check_affine_rule(rule, module.eval(), IMAGE)


def test_a_rule_that_refuses_does_not_pass() -> None:
    with pytest.raises(RuleError, match="refuses: batch norm without running statistics depends on the batch"):
        check_affine_rule(own(nn.BatchNorm2d), nn.BatchNorm2d(4, track_running_stats=False).eval(), IMAGE)


def test_a_rule_that_changes_its_mind_does_not_pass() -> None:
    calls = count()

    @affine_rule(Normed)
    def moody(x: Any, m: Normed) -> Any:
        return x * ((m.var + m.eps).rsqrt() * (1 + 1e-14 * (next(calls) > 0)))[:, None, None]

    with pytest.raises(RuleError, match="says something else the second time"):
        check_affine_rule(moody, Normed().eval(), IMAGE)


def test_a_rule_behind_a_change_of_layout() -> None:
    found = check_affine_rule(own(F.linear), lambda x: F.linear(x.movedim(1, -1), WEIGHT), IMAGE)
    assert found is not None
    assert (found.c_in, found.c_out) == (4, 3)


def test_a_rule_between_other_operators() -> None:
    for operator_ in (lambda x: torch.exp(F.avg_pool2d(x, 2, 1)), lambda x: F.avg_pool2d(torch.exp(x), 2, 1)):
        assert check_affine_rule(own(F.avg_pool2d), operator_, IMAGE) is not None


class Doubling(nn.Module):
    """Doubles large images only."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if x.shape[-1] > 40 else 1)


def test_a_rule_that_is_wrong_for_the_given_shape_does_not_pass() -> None:
    @affine_rule(Doubling)
    def same(x: Any, m: Doubling) -> Any:
        return x * torch.ones(4, 1, 1, dtype=torch.float64)

    assert check_affine_rule(same, Doubling(), IMAGE) is not None
    with pytest.raises(
        RuleError, match=r"rule 'same' is wrong: it differs by .*, for an input of shape \(1, 4, 5, 50\)"
    ):
        check_affine_rule(same, Doubling(), (1, 4, 5, 50))


@pytest.mark.parametrize("rule", [HardSwish, ToQuickGELU])
def test_rewrite_rules(rule: RewriteRule) -> None:
    check_rewrite_rule(rule, IMAGE)
    check_rewrite_rule(rule, (3, 5))


def test_a_rewrite_rule_with_wildcards() -> None:
    check_rewrite_rule(TwoLinears, TOKENS, -1)
    check_rewrite_rule(TwoLinears, TOKENS, -1, a=nn.Linear(4, 2, bias=False), b=nn.Linear(4, 7, bias=False))
    with pytest.raises(RuleError, match=r"not applied to its own pattern: .*only one of the two has a bias"):
        check_rewrite_rule(TwoLinears, TOKENS, -1, a=nn.Linear(4, 2, bias=False))


def test_a_lying_rewrite_rule_does_not_pass() -> None:
    with pytest.raises(RuleError, match=r"rewrite rule 'Lying' is wrong about .*: its replacement differs by"):
        check_rewrite_rule(lying(lambda x: x * torch.sigmoid(x), lambda x: F.gelu(x)), IMAGE)


def test_a_rewrite_rule_that_is_wrong_for_the_given_shape_does_not_pass() -> None:
    rule = lying(lambda x: x * torch.sigmoid(x), lambda x: F.silu(x) * (x.shape[1] // 4))
    check_rewrite_rule(rule, IMAGE)
    with pytest.raises(RuleError, match=r"rewrite rule 'Lying' differs by \d\.\de[-+]\d\d at \("):
        check_rewrite_rule(rule, (2, 8, 5, 6))


def test_a_rewrite_rule_that_makes_another_dtype_of_the_given_shape_does_not_pass() -> None:
    rule = lying(lambda x: x * torch.sigmoid(x), lambda x: F.silu(x) + 0.0 * x.double()[0, 0, 0, 0])
    check_rewrite_rule(rule, IMAGE)
    message = r"rewrite rule 'Lying' makes torch\.float64 of torch\.float32, its pattern torch\.float32"
    with pytest.raises(RuleError, match=message):
        check_rewrite_rule(rule, VIDEO)


def test_a_rewrite_rule_with_constants() -> None:
    def pattern(x: Any, c: Any = any_constant()) -> Any:
        return torch.sin(x) * c * torch.tensor([0.5])

    rule = lying(pattern, lambda x, c: c * (torch.tensor([0.5]) * torch.sin(x)))
    check_rewrite_rule(rule, IMAGE)
    check_rewrite_rule(rule, {"x": IMAGE}, c=-2.5)
    check_rewrite_rule(rule, IMAGE, c=torch.rand(4, 1, 1, dtype=torch.float64))


def test_a_rewrite_rule_that_needs_an_example() -> None:
    def pattern(x: Any, layer: Any = any_module(nn.Conv2d, kernel_size=lambda size: size == (5, 5))) -> Any:
        return torch.sin(layer(x))

    rule = lying(pattern, lambda x, layer: 1.0 * torch.sin(layer(x)))
    message = r"rewrite rule 'Lying': give an example of 'layer': check_rewrite_rule\(..., layer=module\)"
    with pytest.raises(RuleError, match=message):
        check_rewrite_rule(rule, IMAGE)
    check_rewrite_rule(rule, IMAGE, layer=nn.Conv2d(4, 3, 5, padding=2))


# -- strategies --------------------------------------------------------------------------------------------------------


@given(model=blocks() | graphs(), seed=st.integers(0, 99))
def test_drawn_models_are_fused_to_equal_ones(model: nn.Module, seed: int) -> None:
    fused = fuse(model)
    for size in ((6, 7), (9, 8)):
        x = torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(fused(x), expected, rtol=0.0, atol=1e-9 * max(1.0, expected.abs().max().item()))


@given(data=st.data())
def test_drawn_maps_are_what_they_are_applied_to(data: st.DataObject) -> None:
    x = data.draw(affines())
    image = data.draw(images_for(x))
    assert_equal(apply(x, image), direct(x, image))


def test_hypothesis_is_imported_when_it_is_needed() -> None:
    code = "import sys, repcompile.testing as t; assert 'hypothesis' not in sys.modules; t.affines"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        repcompile.testing.nothing  # type: ignore[attr-defined] # noqa: B018
