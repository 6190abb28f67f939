"""The check finds what is wrong, where it is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import Macs, VerificationError, fuse, verify
from repcompile.affine import Affine
from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.compare import Check, compare, largest_of
from repcompile.emit import emit
from repcompile.facts import Facts, affine_facts
from repcompile.fold import fold
from repcompile.interpret import Remembering
from repcompile.modules import BorderConv
from repcompile.outcomes import Outcome, outcome_of
from repcompile.regions import Region, candidate_regions
from repcompile.rules import DEFAULT, RuleSet
from repcompile.testing import randomize
from repcompile.testing.strategies import normal
from repcompile.values import Values
from repcompile.verify import compare_outputs, same_results

INF, NAN = float("inf"), float("nan")

# -- two tensors -------------------------------------------------------------------------------------------------------


@given(data=st.data(), shape=st.lists(st.integers(1, 4), max_size=4))
def test_the_place_of_the_largest_difference(data: st.DataObject, shape: list[int]) -> None:
    expected = data.draw(normal(*shape))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    got = expected + 0.1
    got[place] += 1.0
    check = compare(got, expected, 0.5)
    assert check.place == place
    assert check.error == pytest.approx(1.1)
    assert check.scale == expected.abs().max().item()
    assert not check.passed
    assert compare(expected, expected, 0.0).passed
    assert compare(got, expected, 1.2).passed


def test_a_difference_of_either_sign() -> None:
    assert compare(torch.tensor([0.0, -3.0]), torch.tensor([1.0, 0.0]), 1.0) == Check(3.0, 1.0, 1.0, (1,))


@pytest.mark.parametrize(
    ("got", "expected", "passes", "place"),
    [
        ([NAN, 1.0], [NAN, 1.0], True, None),
        ([NAN, 1.0], [0.0, 1.0], False, (0,)),
        ([0.0, 1.0], [0.0, NAN], False, (1,)),
        ([INF, 1.0], [INF, 1.0], True, None),
        ([INF, 1.0], [-INF, 1.0], False, (0,)),
        ([1.0, INF], [1.0, 2.0], False, (1,)),
        ([1.0, 2.0], [1.0, INF], False, (1,)),
        ([INF, 1.0], [INF, 2.0], False, (1,)),
        ([NAN, 1.0], [NAN, 2.0], False, (1,)),
    ],
)
def test_nan_and_infinity(got: list[float], expected: list[float], passes: bool, place: tuple[int] | None) -> None:
    check = compare(torch.tensor(got), torch.tensor(expected), 0.5)
    assert check.passed == passes
    assert place is None or check.place == place


def test_shapes_that_differ_fail_and_nothing_is_equal_to_nothing() -> None:
    assert not compare(torch.zeros(2, 3), torch.zeros(3, 2), 1.0).passed
    assert not compare(torch.zeros(1, 3), torch.zeros(3), 1e9).passed
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3), 0.0).passed


def test_the_inputs_are_not_written() -> None:
    got, expected = torch.tensor([NAN, 1.0]), torch.tensor([0.0, 1.0])
    compare(got, expected, 0.0)
    assert got.isnan().tolist() == [True, False]
    assert expected.tolist() == [0.0, 1.0]


def test_relative_errors() -> None:
    assert Check(1.0, 4.0, 0.0).relative == 0.25
    assert Check(1.0, 0.0, 0.0).relative == 1.0


# -- two results -------------------------------------------------------------------------------------------------------


def test_results_of_any_structure() -> None:
    a = {"features": [torch.ones(2), torch.zeros(3)], "name": "x"}
    assert compare_outputs(a, a).passed
    worse = {"features": [torch.ones(2), torch.tensor([0.0, 0.0, 1.0])], "name": "x"}
    assert not compare_outputs(a, worse).passed
    assert compare_outputs(a, worse).place == (2,)
    with pytest.raises(VerificationError, match=r"(?s)the model returns .* the other one"):
        compare_outputs(a, [torch.ones(2), torch.zeros(3)])


def test_results_without_entries_are_equal() -> None:
    assert compare_outputs(torch.zeros(0, 3), torch.zeros(0, 3)).passed
    assert largest_of(torch.zeros(0, 3)) == 0.0


def test_results_are_the_same_for_whoever_called() -> None:
    model, x = nn.Linear(2, 2), torch.ones(2)
    assert same_results({"y": x}, {"y": x * (1 + 1e-6)}, model)
    assert not same_results({"y": x}, {"y": x + 1}, model)
    assert not same_results({"y": x}, {"z": x}, model)
    assert not same_results((x, 1), [x, 1], model)
    assert not same_results((x, 1), (x, 2), model)
    assert not same_results(x, x.double(), model)


def test_an_infinite_output_excuses_nothing() -> None:
    assert not compare_outputs(torch.tensor([-INF, 1.0]), torch.tensor([-INF, 5.0])).passed
    assert compare_outputs(torch.tensor([-INF, 1.0]), torch.tensor([-INF, 1.0])).passed
    assert compare_outputs(torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0])).passed


def test_integers_are_compared_too() -> None:
    assert compare_outputs(torch.tensor([1, 2]), torch.tensor([1, 2])).passed
    assert not compare_outputs(torch.tensor([1, 2]), torch.tensor([1, 3])).passed


# -- two models --------------------------------------------------------------------------------------------------------


def block() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return randomize(model).eval()  # type: ignore[return-value]


def test_a_fused_model_passes_and_neither_is_changed() -> None:
    model = block()
    fused = fuse(model)
    before = {name: tensor.clone() for name, tensor in [*model.state_dict().items(), *fused.state_dict().items()]}
    exact, native = verify(model, fused, (torch.randn(2, 3, 6, 5),))
    assert exact.passed
    assert native.passed
    after = dict([*model.state_dict().items(), *fused.state_dict().items()])
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_a_model_that_runs_in_its_own_dtype_alone() -> None:
    """Its forward makes tensors of float32, so that a copy in float64 does not run: torchvision's RAFT does this."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) @ torch.eye(4, dtype=torch.float32)

    model = randomize(Single()).eval()
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    exact, native = verify(model, fuse(model, (x,)), (x,))
    assert exact == native
    assert native.passed
    assert 0 < native.relative < 1e-5


def test_a_wrong_model_fails_where_it_is_wrong() -> None:
    model = block()
    fused = fuse(model)
    with torch.no_grad():
        next(module for module in fused.modules() if isinstance(module, nn.Conv2d)).bias[2] += 10.0  # type: ignore[index]
    for check in verify(model, fused, (torch.randn(2, 3, 6, 5),)):
        assert not check.passed
        assert check.place[1] == 2


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@given(seed=st.integers(0, 999))
def test_a_model_that_is_slightly_wrong_fails(dtype: torch.dtype, off: float, seed: int) -> None:
    """One channel's weights off by some hundred roundings."""
    model = block().to(dtype)
    fused = fuse(model)
    image = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert all(check.passed for check in verify(model, fused, (image,)))
    with torch.no_grad():
        next(module for module in fused.modules() if isinstance(module, nn.Conv2d)).weight[1] *= 1.0 + off
    assert not any(check.passed for check in verify(model, fused, (image,)))


class Steep(nn.Module):
    """What rounding leaves of its input, magnified."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.block, self.slope = block(), slope

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * self.block(x)).sin()


@pytest.mark.parametrize("slope", [1.0, 1e5])
def test_a_model_is_held_to_its_own_rounding(slope: float) -> None:
    """Half of the digits would be too much to ask of a steep one, and too little of a flat one."""
    model, image = Steep(slope), torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    exact, native = verify(model.eval(), fuse(model.eval()), (image,))
    assert exact.passed
    assert native.passed
    half = torch.finfo(torch.float32).eps ** 0.5
    assert (native.bound < 0.1 * half) == (slope == 1.0)
    assert (native.bound > half) == (slope > 1.0)


def test_what_a_norm_rounds_inside_is_the_models_own_rounding() -> None:
    """Of two values it returns the same, whatever they are off by: larger disturbances show nothing."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    norm.register_buffer("running_mean", torch.empty(8).uniform_(-3e4, 3e4))
    layers = nn.Conv1d(4, 8, 4, stride=2, padding=1), norm, nn.Conv1d(8, 6, 1), nn.GroupNorm(6, 6)
    model = nn.Sequential(*layers).double().eval()
    for x in torch.randn(20, 1, 4, 5, dtype=torch.float64):
        assert verify(model, fuse(model), (x,))[0].passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_without_weights(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2)).eval()
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    for check in verify(model, fuse(model, (image,)), (image,)):
        assert check.passed
        assert 0 < check.bound < 1e3 * torch.finfo(dtype).eps


def test_a_model_that_objects_to_other_weights_is_compared_all_the_same() -> None:
    class Particular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block()
            self.known = float(self.block[0].weight.detach().double().sum())  # type: ignore[union-attr, operator]

        def forward(self, x: Tensor) -> Tensor:
            assert abs(float(self.block[0].weight.detach().double().sum()) - self.known) < 1e-9  # type: ignore[union-attr, operator]
            return self.block(x)

    model = Particular().eval()
    exact, native = verify(model, fuse(model), (torch.randn(1, 3, 6, 5),))
    assert exact.passed
    assert native.passed


def test_a_bound_for_each_entry() -> None:
    """The worst place is the one that is farthest beyond its own bound; one that is no number explains nothing."""
    got, expected = torch.tensor([1.1, 2.5, 0.0]), torch.tensor([1.0, 2.0, 0.0])
    bound = torch.tensor([0.01, 1.0, INF])
    assert compare(got, expected, bound).place == (0,)
    assert not compare(got, expected, bound).passed
    assert compare(got, expected, torch.tensor([0.2, 0.5, NAN])).passed
    assert not compare(torch.tensor([1.0, 2.0, 0.1]), expected, bound).passed
    assert not compare(got[:2], expected, bound).passed
    assert compare(expected, expected, torch.zeros(3)).passed


# -- a region ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Emitted:
    """A region on its way through the compiler, before it is checked."""

    captured: Captured
    facts: Facts
    region: Region
    x: Affine
    values: Values

    def check(self, values: Values | None = None) -> Check:
        """Verify the module that has the numbers `values` instead of the right ones."""
        return self.outcome(emit(self.x, values or self.values)).check

    def outcome(self, module: nn.Module) -> Outcome:
        """What `module` makes of the probe."""
        return outcome_of(self.region, module, self.captured, self.facts, Remembering())


def largest_region(model: nn.Module) -> Emitted:
    """The region of the most operators."""
    captured = canonicalize(capture(randomize(model).eval(), DEFAULT.module_classes))
    facts = affine_facts(captured, DEFAULT)
    region = max(candidate_regions(captured, facts), key=lambda region: len(region.nodes))
    x = region.fact.map
    assert isinstance(x, Affine)
    return Emitted(captured, facts, region, x, fold(x))


class RepVGG(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(4)
        self.large = nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1, bias=False), nn.BatchNorm2d(4))
        self.small = nn.Sequential(nn.Conv2d(4, 4, 1, stride, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.large(x) + self.small(x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = nn.BatchNorm2d(4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x).flatten(2).transpose(1, 2))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(6, 6, 5, 2, 2, 2, groups=6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": RepVGG,
    "stride": lambda: RepVGG(2),
    "tokens": Tokens,
    "depthwise": Depthwise,
    "linear": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)),
    "diagonal": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_right_module_passes(model: Callable[[], nn.Module]) -> None:
    check = largest_region(model()).check()
    assert check.passed
    assert 0 < check.bound < 1e-8


def tampered(tensor: Tensor, index: int, amount: float) -> Tensor:
    wrong = tensor.clone()
    wrong.view(-1)[index] += amount
    return wrong


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@given(data=st.data())
def test_one_wrong_weight_is_caught(model: Callable[[], nn.Module], data: st.DataObject) -> None:
    emitted = largest_region(model())
    index = data.draw(st.integers(0, emitted.values.kernel.numel() - 1))
    wrong = replace(emitted.values, kernel=tampered(emitted.values.kernel, index, 1e-3))
    assert not emitted.check(wrong).passed


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@given(data=st.data())
def test_one_wrong_bias_is_caught(model: Callable[[], nn.Module], data: st.DataObject) -> None:
    emitted = largest_region(model())
    assert emitted.values.bias is not None
    index = data.draw(st.integers(0, emitted.values.bias.numel() - 1))
    wrong = replace(emitted.values, bias=tampered(emitted.values.bias, index, 1e-6))
    assert not emitted.check(wrong).passed


@pytest.mark.parametrize("stride", [1, 2])
@given(data=st.data())
def test_a_wrong_border_alone_is_caught(stride: int, data: st.DataObject) -> None:
    """A tap that is wrong at the border only: what it adds there, the bias takes away inside."""
    emitted = largest_region(RepVGG(stride))
    assert isinstance(emit(emitted.x, emitted.values), BorderConv)
    assert emitted.values.border is not None
    assert emitted.values.bias is not None
    channel = data.draw(st.integers(0, 3))
    tap = data.draw(st.sampled_from([0, 1, 2, 3, 5, 6, 7, 8]))  # the one in the middle is never outside
    wrong = Values(
        emitted.values.kernel,
        tampered(emitted.values.bias, channel, -1e-3),
        tampered(emitted.values.border, channel * 9 + tap, 1e-3),
    )
    check = emitted.check(wrong)
    assert not check.passed
    assert check.place[1] == channel


def test_naive_folding_of_a_norm_in_front_of_padding_is_caught() -> None:
    emitted = largest_region(RepVGG())
    border, bias = emitted.values.border, emitted.values.bias
    assert border is not None
    assert bias is not None
    check = emitted.check(Values(emitted.values.kernel, bias + border.sum((1, 2, 3))))
    assert not check.passed
    assert check.place[1:] != (0, 0, 0)  # the worst place is found, not the first one


def test_a_region_behind_an_input_of_unknown_rank_can_be_checked() -> None:
    """Batch norm says how many axes its input has, and so must the probe."""
    fused = fuse(randomize(Tokens()).eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_swapped_channels_are_caught() -> None:
    emitted = largest_region(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))
    assert not emitted.check(replace(emitted.values, kernel=emitted.values.kernel.flip(0))).passed
    assert not emitted.check(replace(emitted.values, kernel=emitted.values.kernel.flip(1))).passed


def test_an_infinite_weight_excuses_no_other_channel() -> None:
    conv = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        conv.weight[0, 0] = INF
    emitted = largest_region(nn.Sequential(conv, nn.BatchNorm2d(4)))
    wrong = replace(emitted.values, kernel=tampered(emitted.values.kernel, 15, 1.0))
    assert not emitted.check(wrong).passed


def test_checking_leaves_the_users_modules_alone() -> None:
    model = RepVGG()
    emitted = largest_region(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    emitted.check()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())


def test_a_rule_that_lies_is_not_shipped() -> None:
    """The whole way: what the check refuses is left as it was, and says why."""
    from_rule: Any = DEFAULT.table[nn.BatchNorm2d]
    lying = replace(from_rule, function=lambda x, m, shape=None: from_rule(x, m, shape=shape) * 1.001)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    image = torch.randn(2, 3, 4, 5)
    fused = fuse(randomize(model).eval(), rules=DEFAULT + RuleSet((lying,)).trusting(), cost=Macs())
    assert any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(image), model(image))


def test_the_coarsest_dtype_on_the_way_sets_the_tolerance() -> None:
    """The weights are float64, the arithmetic in between is not: a fold rounds other numbers to float32."""

    class Casts(nn.Module):
        def __init__(self, gains: int) -> None:
            super().__init__()
            self.gains = nn.Parameter(torch.linspace(0.1, 3.0, 4 * gains, dtype=torch.float64).reshape(gains, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.float()
            for gain in self.gains:
                x = x * gain.float()
            return x.double()

    model, fused = Casts(7), Casts(1)
    fused.gains = nn.Parameter(model.gains.detach().prod(0, keepdim=True))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, native = verify(model, fused, (x,))
    assert exact.error > 0
    assert exact.passed
    assert native.passed
