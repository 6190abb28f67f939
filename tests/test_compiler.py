"""`fuse`, `explain`, `verify` and `compile_model`: what they accept, what they refuse, and what they keep."""

import contextlib
import copy
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile import (
    DEFAULT,
    Affine,
    Cost,
    Inexact,
    Macs,
    ModelError,
    RepcompileError,
    RuleError,
    RuleSet,
    Uniform,
    VerificationError,
    affine_rule,
    compile_model,
    explain,
    fuse,
    verify,
)
from repcompile.rules import NORM, Rule
from repcompile.testing import randomize


class Stem(nn.Module):
    """conv, batch norm, relu; then conv, batch norm, and a scale of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.norm(self.conv(x)))) * self.scale


class Gate(nn.Module):
    """y = exp(log) x, one number per channel: tracing could look into it, a rule keeps it whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.linspace(-0.5, 0.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log.exp()[:, None, None]


class Sharpen(nn.Module):
    """The row above, less twice the image, by slices: no operator that the compiler knows, but affine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[..., 1:, :] = x[..., :-1, :]
        return y - 2 * x


SHARPEN = torch.tensor([[1.0], [-2.0]])  # the row above, the row itself


@affine_rule(Sharpen)
def sharpen(x: Affine | Uniform, layer: Sharpen) -> Affine:
    kernel = SHARPEN.expand(layer.channels, 1, 2, 1)
    return Affine.conv(kernel, padding=((1, 0), 0), groups=layer.channels) @ x


@affine_rule(Sharpen)
def upside_down(x: Affine | Uniform, layer: Sharpen) -> Affine:
    """Wrong: it looks the other way."""
    kernel = SHARPEN.flip(0).expand(layer.channels, 1, 2, 1)
    return Affine.conv(kernel, padding=((0, 1), 0), groups=layer.channels) @ x


def with_rules(*rules: Rule) -> RuleSet:
    """The default ones and a user's."""
    return DEFAULT + list(rules)


def stem(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(Stem(), seed).eval()


def sharpened(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 4, 1), Sharpen(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    return randomize(nn.Sequential(*layers), seed).eval()


def image(channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def graph_of(module: nn.Module) -> fx.Graph:
    assert isinstance(module, fx.GraphModule)
    return module.graph


def assert_equal(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """In float64, with float64 copies of the weights: what remains is the rounding of the folded ones."""
    with torch.no_grad():
        expected, got = copy.deepcopy(model).double()(x.double()), copy.deepcopy(fused).double()(x.double())
    assert (got - expected).abs().max() < 1e-6 * expected.abs().max()


# -- with and without example inputs -----------------------------------------------------------------------------------


def test_without_example_inputs() -> None:
    model = stem()
    compilation = compile_model(model)
    assert_equal(model, compilation.module, image())
    assert compilation.checks is None
    assert compilation.report == explain(model)
    assert "largest difference, relative" not in str(compilation.report)


def test_with_example_inputs_the_whole_model_is_checked() -> None:
    model = stem()
    compilation = compile_model(model, (image(),))
    assert compilation.checks is not None
    exact, native = compilation.checks
    assert exact.passed
    assert native.passed
    assert 0 < exact.relative < 1e-6
    assert compilation.report.checks == compilation.checks
    assert "largest difference, relative" in str(explain(model, (image(),)))


def test_example_inputs_bake_no_size_in() -> None:
    model = stem()
    fused = fuse(model, (image(),))
    assert_equal(model, fused, image(3, 5, 11))
    assert_equal(model, fused, image(3, 16, 6)[:1])


def test_example_inputs_make_costs_exact() -> None:
    """A depthwise 3x3 and a 1x1 as one dense 3x3: a launch fewer on a small image, too much work on a large one."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)).eval()
    small, large = (image(8, 4, 4),), (image(8, 96, 96),)
    assert len(explain(model, small).fused) == 1
    assert not explain(model, large).fused
    assert_equal(model, fuse(model, small), *large)


def test_every_stage_is_kept() -> None:
    compilation = compile_model(stem())
    assert isinstance(compilation.module, fx.GraphModule)
    assert len(compilation.plan.chosen) == len(compilation.rewritten) == 2
    assert compilation.plan.saving > 0
    assert not compilation.rollbacks
    assert all(item.made.check is not None and item.made.check.passed for item in compilation.rewritten)
    assert compilation.captured.name == "Stem"


def test_several_inputs_and_outputs() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"near": self.block(x), "far": -self.block(y)}

    model = randomize(Siamese()).eval()
    fused = fuse(model, (image(), 2 * image()))
    with torch.no_grad():
        expected, got = model(image(), 2 * image()), fused(image(), 2 * image())
    assert list(got) == list(expected)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-5)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fuse, explain, compile_model])
def test_training_mode_is_an_error(function: Callable[[nn.Module], object]) -> None:
    model = stem().train()
    with pytest.raises(ModelError, match=r"Stem is in training mode.*model\.eval\(\)"):
        function(model)
    assert model.training


@pytest.mark.parametrize("thing", [F.relu, nn.ReLU, {"weight": 1}, None])
def test_only_modules_can_be_fused(thing: Any) -> None:
    with pytest.raises(ModelError, match=r"takes a torch\.nn\.Module; got"):
        fuse(thing)


@pytest.mark.parametrize("given", [0, 2])
def test_number_of_example_inputs(given: int) -> None:
    with pytest.raises(ModelError, match=rf"Stem\.forward takes 1 .*has {given}"):
        fuse(stem(), (image(),) * given)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_tensor_is_not_a_tuple_of_example_inputs(batch: int) -> None:
    """Iterating over it would take images for arguments; with a batch of one even their number is right."""
    with pytest.raises(ModelError, match=r"example_inputs.*tuple"):
        fuse(stem(), image()[:batch])  # type: ignore[arg-type]


def test_every_error_is_of_one_family() -> None:
    for error in (Inexact, ModelError, RuleError, VerificationError):
        assert issubclass(error, RepcompileError)


def test_what_cannot_be_traced_stays_python_and_its_children_are_fused() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x[..., 1:-1, 1:-1]

    layers = (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), Picky())
    model = randomize(nn.Sequential(*layers)).eval()
    fused = fuse(model)
    assert [item.path for item in explain(model).left if item.reason.startswith("stays Python: ")] == ["3"]
    assert_equal(model, fused, image())
    assert_equal(model, fused, -image())
    assert not [path for path, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]


# -- verification ------------------------------------------------------------------------------------------------------


def test_verify_passes_on_equal_models() -> None:
    exact, native = verify(stem(), fuse(stem()), (image(),))
    assert exact.passed
    assert native.passed
    assert exact.error <= native.error < 1e-4


def test_verify_finds_the_place_of_a_difference() -> None:
    model, fused = stem(), fuse(stem())
    with torch.no_grad():
        fused.get_parameter("project.0.bias")[2] += 0.5
    exact, native = verify(model, fused, (image(),))
    for check in (exact, native):
        assert not check.passed
        assert check.error == pytest.approx(0.5, rel=1e-3)
        assert check.place[1] == 2


def test_verify_changes_neither_model() -> None:
    model, fused = stem(), fuse(stem())
    before = snapshot(model), snapshot(fused)
    verify(model, fused, (image(),))
    assert before == (snapshot(model), snapshot(fused))


@pytest.mark.parametrize("example", [False, True])
def test_what_is_fused_in_inference_mode_learns_outside_of_it(example: bool) -> None:
    """As the model does; torch refuses gradients of tensors that were made in inference mode."""
    model = randomize(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 4, 5, 6)
    with torch.inference_mode():
        fused = fuse(model, (torch.randn(2, 4, 5, 6),)) if example else fuse(model)
        assert torch.is_inference_mode_enabled()
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    assert not any(tensor.is_inference() for tensor in fused.state_dict().values())
    fused(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_verify_refuses_another_structure() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(VerificationError, match="the model returns"):
        verify(nn.Identity().eval(), Twice().eval(), (image(),))


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan")])
def test_a_special_value_hides_no_difference(special: float) -> None:
    """Masked logits are -inf; the other ones still count, and equal special values are no difference."""

    class Masked(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(shift))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.full_like(x, special), x + self.shift], 1)

    for check in verify(Masked(0.5), Masked(0.5), (image(),)):
        assert check.passed
    for check in verify(Masked(0.5), Masked(1.0), (image(),)):
        assert not check.passed


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_outputs_that_are_not_real_numbers_are_compared(kind: torch.dtype) -> None:
    class Cast(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(scale))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).round().clamp(min=0).to(kind)

    for check in verify(Cast(3.0), Cast(3.0), (image(),)):
        assert check.passed
    for check in verify(Cast(3.0), Cast(-3.0), (image(),)):
        assert not check.passed


def test_a_model_that_differs_from_its_capture_is_an_error() -> None:
    """State that tracing cannot see: a counter outside the module, which is the same in its first two calls."""
    calls = count()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + min(next(calls) // 2, 1)

    with pytest.raises(VerificationError, match="captured graph of Counting differs from the model"):
        fuse(Counting().eval(), (image(),))


def test_a_fused_model_that_differs_is_an_error() -> None:
    """A rule that is right on small images only, and trusted: the region's own check is on a small one."""

    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[-1] < 12 else x * 3

    @affine_rule(Moody)
    def doubled(x: Affine | Uniform, layer: Moody) -> Affine | Uniform:
        return 2.0 * x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Moody()).eval()
    rules = DEFAULT + RuleSet((doubled,)).trusting()
    assert_equal(model, fuse(model, (image(3, 9, 7),), rules=rules), image(3, 9, 7))
    with pytest.raises(VerificationError, match=r"the fused model differs in float64 .* nothing is returned"):
        fuse(model, (image(3, 9, 20),), rules=rules)


# -- rules -------------------------------------------------------------------------------------------------------------


def test_fewer_rules_fuse_less() -> None:
    model = stem()
    without = DEFAULT - NORM
    assert isinstance(without, RuleSet)
    assert len(without) == len(DEFAULT) - len(NORM)
    fused = fuse(model, rules=without)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 2
    assert_equal(model, fused, image())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fuse(model).modules()) == 0


def test_minus_takes_a_list() -> None:
    assert len(explain(stem(), rules=DEFAULT - list(DEFAULT)).fused) == 0
    assert len(DEFAULT) > 0


def test_a_rule_for_a_module_of_the_users() -> None:
    """Conv and Sharpen become one conv; without the rule they stay apart."""
    model = sharpened()
    fused = fuse(model, rules=with_rules(sharpen))
    assert_equal(model, fused, image())
    assert not [module for module in fused.modules() if isinstance(module, Sharpen)]
    assert len(explain(model, rules=with_rules(sharpen)).fused) == len(explain(model).fused) + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_constant_of_a_rule_decides_no_dtype(dtype: torch.dtype) -> None:
    """The kernel of `sharpen` is float32; the model's parameters say in which dtype it runs."""
    model = sharpened().to(dtype)
    fused = fuse(model, rules=with_rules(sharpen))
    assert not [str(left) for left in explain(model, rules=with_rules(sharpen)).left if "rolled back" in left.reason]
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


def test_the_textbook_formula_is_a_rule() -> None:
    """Written with torch, on parameters in float32: folded in float64 all the same, and not rolled back."""

    @affine_rule(Gate)
    def gate(x: Affine | Uniform, layer: Gate) -> Affine | Uniform:
        return x * layer.log.exp()[:, None, None]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Gate(4)).eval()
    report = explain(model, rules=with_rules(gate))
    assert not [str(left) for left in report.left]
    assert len(report.fused) == 1
    assert_equal(model, fuse(model, rules=with_rules(gate)), image())


def test_the_later_rule_wins() -> None:
    model = sharpened()
    right = explain(model, rules=with_rules(upside_down, sharpen))
    assert not [left for left in right.left if "rolled back" in left.reason]
    with pytest.raises(RuleError, match="rule 'upside_down' is wrong about '1' "):
        explain(model, rules=with_rules(sharpen, upside_down))


def test_a_wrong_rule_that_is_trusted_is_rolled_back_and_reported() -> None:
    """The result stays right, and so do the other regions."""
    model, rules = sharpened(), DEFAULT + RuleSet((upside_down,)).trusting()
    batch = image().repeat(8, 1, 1, 1)  # beside which a border map costs little
    compilation = compile_model(model, (batch,), rules=rules)
    assert_equal(model, compilation.module, image())
    (rollback,) = compilation.rollbacks
    assert "differs by" in rollback.reason
    (left,) = [left for left in compilation.report.left if left.reason.startswith("rolled back: ")]
    assert left.path == "1"
    assert "rolled back: differs by" in str(compilation.report)
    assert [item.path for item in compilation.report.fused] == ["3"]


def test_a_rule_that_refuses_gives_its_reason() -> None:
    @affine_rule(Sharpen)
    def shy(x: Affine | Uniform, layer: Sharpen) -> Affine:
        raise Inexact("not on Sundays")

    model = sharpened()
    report = explain(model, rules=with_rules(shy))
    assert [left.path for left in report.left if left.reason == "not on Sundays"] == ["1"]
    assert_equal(model, fuse(model, rules=with_rules(shy)), image())


def test_a_rule_that_returns_no_map_is_an_error() -> None:
    @affine_rule(Sharpen)
    def forgetful(x: Affine | Uniform, layer: Sharpen) -> None:
        return None

    with pytest.raises(RuleError, match=r"forgetful.*NoneType"):
        fuse(sharpened(), rules=with_rules(forgetful))


def test_a_rule_that_raises_is_named() -> None:
    @affine_rule(Sharpen)
    def clumsy(x: Affine | Uniform, layer: Sharpen) -> Affine:
        raise KeyError("sigma")

    with pytest.raises(RuleError, match="clumsy"):
        fuse(sharpened(), rules=with_rules(clumsy))


# -- costs -------------------------------------------------------------------------------------------------------------


def test_macs_as_the_cost() -> None:
    """A bottleneck 32 -> 2 -> 32 is 16 times cheaper as it stands; 4 -> 32 -> 4 is 16 times cheaper as one."""
    narrow = nn.Sequential(nn.Conv2d(32, 2, 1), nn.Conv2d(2, 32, 1)).eval()
    wide = nn.Sequential(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1)).eval()
    assert not explain(narrow, cost=Macs()).fused
    (left,) = explain(narrow, cost=Macs()).left
    assert left.factor == pytest.approx(32 * 32 / (2 * 64))
    fused = fuse(wide, cost=Macs())
    assert sum(node.op == "call_module" for node in graph_of(fused).nodes) == 1
    assert_equal(wide, fused, image(4))


def test_a_cost_of_the_users() -> None:
    """Any function of a `Cost`: here launches alone, for which everything legal pays."""

    def launches(cost: Cost) -> float:
        return cost.launches

    model = nn.Sequential(nn.Conv2d(32, 2, 1), nn.Conv2d(2, 32, 1)).eval()
    fused = fuse(model, cost=launches)
    assert sum(node.op == "call_module" for node in graph_of(fused).nodes) == 1
    assert_equal(model, fused, image(32))


# -- what the fused model keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    fused = fuse(stem().to(dtype))
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    with torch.no_grad():
        assert fused(image().to(dtype)).dtype == dtype


def test_device_is_kept() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu", 0)
    fused = fuse(stem().to(device))
    assert {parameter.device for parameter in fused.parameters()} == {next(stem().to(device).parameters()).device}


def test_requires_grad_is_kept() -> None:
    """Of the weights that an operator came from: frozen if all were."""
    model = stem()
    for module in (model.conv, model.norm):
        assert isinstance(module, nn.Module)
        module.requires_grad_(False)
    learns = {name: parameter.requires_grad for name, parameter in fuse(model).named_parameters()}
    assert learns == {"conv.weight": False, "conv.bias": False, "project.0.weight": True, "project.0.bias": True}


def test_modes_are_kept() -> None:
    assert not any(module.training for module in fuse(stem()).modules())


def test_names_are_at_the_places_of_what_was_replaced() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.act = nn.ReLU()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(self.act(self.stem(x))))
            return self.head(F.relu(x).mean((2, 3)))

    model = randomize(Tower()).eval()
    names = ("stem", "conv", "head")  # a module as a whole; the heaviest of those side by side; one that stays
    assert sorted(fuse(model).state_dict()) == sorted(f"{n}.{field}" for n in names for field in ("weight", "bias"))
    assert [item.path for item in explain(model).fused] == ["stem", "conv"]
    assert_equal(model, fuse(model), image())


def test_nothing_is_shared_with_the_model() -> None:
    model = stem()
    fused = fuse(model)
    with torch.no_grad():
        before = fused(image())
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
        assert torch.equal(fused(image()), before)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in fused.parameters()}


@pytest.mark.parametrize("example_inputs", [None, (image(),)])
def test_the_model_is_not_touched(example_inputs: tuple[Tensor] | None) -> None:
    for model, rules in ((stem(), DEFAULT), (sharpened(), with_rules(upside_down))):
        before = snapshot(model)
        with contextlib.suppress(RuleError):
            compile_model(model, example_inputs, rules=rules)
        assert snapshot(model) == before


def snapshot(model: nn.Module) -> list[object]:
    """Everything that a careless compiler might change: bits, objects, flags, hooks, attributes."""
    seen: list[object] = []
    for path, module in model.named_modules():
        seen.append((path, id(module), type(module), module.training, sorted(module.__dict__)))
        seen.append([len(module.__dict__[key]) for key in sorted(module.__dict__) if key.endswith("_hooks")])
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        seen.append((path, id(tensor), tensor.dtype, tensor.requires_grad, tensor.grad is None, tensor._version))
        seen.append(tensor.detach().numpy().tobytes())
    return seen
