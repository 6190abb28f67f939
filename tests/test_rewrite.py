"""The new module: what it shares with the model (nothing), what it is called, its dtypes, and how long chains end."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import compile_model, explain, fuse
from repcompile.emit import cast
from repcompile.modules import ChannelAffine, FixedDtype
from repcompile.testing import randomize
from tests.test_hostile import (
    Net,
    NetOfTwo,
    Undecided,
    assert_close,
    assert_same_call,
    bottleneck,
    check,
    conv,
    gain,
    image,
    images,
    made,
    norm,
    parts,
    repmixer,
    run_by,
    twin,
)


def storages(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


@pytest.mark.parametrize(
    "build", [bottleneck, repmixer, twin, lambda: nn.Sequential(Undecided(), conv(), nn.LayerNorm(6))]
)
def test_nothing_is_shared_with_the_model(build: Any) -> None:
    model = made(build)
    fused = fuse(model)
    assert not storages(model) & storages(fused)
    assert not set(map(id, model.modules())) & set(map(id, fused.modules()))
    x = images()[0]
    expected = model(*x)
    with torch.no_grad():
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.zero_()
    assert torch.equal(model(*x), expected)


def test_training_the_model_later_does_not_reach_the_fused_one() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), nn.LayerNorm(6)))
    fused = fuse(model)
    expected = fused(*images()[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(fused(*images()[0]), expected)


def test_tied_parameters_that_stay_stay_tied() -> None:
    def build() -> nn.Module:
        first, second = nn.LayerNorm(6), nn.LayerNorm(6)
        second.weight = first.weight
        return nn.Sequential(conv(), norm(), first, nn.ReLU(), second)

    model = made(build)
    fused = check(model, images()[0])
    norms = [module for module in fused.modules() if isinstance(module, nn.LayerNorm)]
    assert norms[0].weight is norms[1].weight


def test_names_are_those_of_the_places() -> None:
    model = made(
        lambda: nn.Sequential(nn.Sequential(conv(), norm()), nn.ReLU(), nn.ModuleDict({"a": conv()})["a"], norm())
    )
    fused = check(model, *images(), operators=3)
    assert sorted(fused.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_a_module_that_a_region_crosses_keeps_its_place() -> None:
    """The shortcut of ResNet-D: the pool in front of the new operator is a module inside the place of all three."""
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    shortcut = nn.Sequential(pool, nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), shortcut, nn.ReLU())).eval().double()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    fused = fuse(model)
    assert {"2.0", "2.1"} <= dict(fused.named_modules()).keys()
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_one_module_at_two_sites_is_folded_at_each() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.norm1(m.conv(x))) + torch.tanh(m.norm2(m.conv(x * x)))

    fused = check(made(lambda: Net(twice, conv=conv(), norm1=norm(), norm2=norm())), *images())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 2


def test_a_module_that_is_folded_here_and_stays_there() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.conv(x)) + m.norm(m.conv(torch.relu(x)))

    check(made(lambda: Net(both, **parts())), *images(), operators=5)


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_weights_keep_their_dtype(dtype: torch.dtype, tolerance: float) -> None:
    model = made(lambda: nn.Sequential(norm(), conv(), norm(), nn.ReLU(), conv(groups=4), norm())).to(dtype)
    fused, x = fuse(model), image(2, 4, 9, 8).to(dtype)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert_close(fused(x).double(), exact, tolerance)


def test_norm_in_float32_behind_conv_in_bfloat16() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm())).float()
    for index in (0, 3):
        model[index].bfloat16()  # type: ignore[index, operator]
    x = image(1, 4, 7, 6).bfloat16()
    fused = fuse(model)
    assert fused(x).dtype == model(x).dtype
    assert_close(fused(x).double(), model(x).double(), 0.05)


def test_double_norm_behind_a_cast() -> None:
    def cast(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x).double())

    model = made(lambda: Net(cast, **parts()))
    model.conv.float()  # type: ignore[union-attr, operator]
    assert_same_call(model, fuse(model), (image(1, 4, 6, 6).float(),))


def test_values_that_do_not_fit_are_left_as_they_are() -> None:
    model = made(lambda: nn.Sequential(conv(), norm())).half()
    with torch.no_grad():
        model[1].running_var.fill_(1e-7)  # type: ignore[index, union-attr]
        model[1].eps = 0.0  # type: ignore[index]
        model[1].weight.fill_(6e4)  # type: ignore[index, union-attr]
        model[0].weight.mul_(1e-3)  # type: ignore[index, union-attr, operator]
    compilation = compile_model(model)
    assert "fit" in compilation.rollbacks[0].reason
    assert len(run_by(compilation.module)) == 2


def test_weights_that_do_not_learn_make_weights_that_do_not() -> None:
    fused = fuse(made(lambda: nn.Sequential(conv(), norm()).requires_grad_(False)))
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    fused = fuse(made(lambda: nn.Sequential(conv(), norm())))
    assert all(parameter.requires_grad for parameter in fused.parameters())


def test_a_model_with_nan_or_zero_variance() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()))
    with torch.no_grad():
        model[1].running_var.zero_()  # type: ignore[index, union-attr]
    check(model, *images(), operators=3)
    with torch.no_grad():
        model[0].weight[0] = float("nan")  # type: ignore[index, union-attr, operator]
    fused, (x,) = fuse(model), images()[0]
    assert torch.equal(fused(x).isnan(), model(x).isnan())


# -- long chains -------------------------------------------------------------------------------------------------------


def test_a_long_network() -> None:
    def build() -> nn.Module:
        blocks = (nn.Sequential(conv(), norm(), nn.ReLU()) for _ in range(500))
        return nn.Sequential(*blocks)

    check(made(build), (image(1, 4, 3, 3),), operators=1000, examples=(False,))


def _stable_1x1() -> nn.Module:
    layer = conv(size=1)
    nn.init.orthogonal_(layer.weight)
    return layer


@pytest.mark.parametrize("count", [23, 24, 25, 26, 100, 300])
@pytest.mark.parametrize("kind", ["pointwise", "scales", "norms"])
def test_a_chain_longer_than_the_horizon(count: int, kind: str) -> None:
    """Right, one operator, and a second fuse finds nothing."""

    def scaled(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        for _ in range(count):
            y = y * 1.01 + m.shift
        return y

    def build() -> nn.Module:
        if kind == "scales":
            return Net(scaled, conv=conv(), shift=gain(4, 1, 1))
        return nn.Sequential(conv(), *(_stable_1x1() if kind == "pointwise" else norm() for _ in range(count)))

    model = made(build)
    fused = check(model, *images(), examples=(False,))
    assert len(run_by(fused)) == 1
    assert explain(fused).fused == ()


def test_a_chain_of_residuals_longer_than_the_horizon() -> None:
    def residual(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = x + layer(x) * 0.1
        return x

    model = made(lambda: Net(residual, layers=nn.ModuleList(_stable_1x1() for _ in range(40))))
    fused = check(model, *images(), examples=(False,))
    assert explain(fused).fused == ()


# -- what users do next ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [bottleneck, repmixer, lambda: nn.Sequential(norm(), conv(), Undecided())])
def test_the_fused_model_can_be_copied_and_stored(build: Any) -> None:
    model = made(build)
    fused = fuse(model)
    assert_same_call(model, copy.deepcopy(fused), images()[1])
    again = fuse(model)
    again.load_state_dict(fused.state_dict())
    if build is not bottleneck:
        return
    assert_same_call(fused, again, images()[0])


def test_the_fused_model_can_be_pickled() -> None:
    model = made(lambda: nn.Sequential(norm(), conv(), norm(), nn.ReLU(inplace=True), conv(stride=2)))
    assert_same_call(model, pickle.loads(pickle.dumps(fuse(model))), images()[0])


def test_gradients_flow() -> None:
    model = made(lambda: nn.Sequential(norm(), conv(), norm(), nn.ReLU(inplace=True), conv(), norm()))
    fused = fuse(model)
    (x,) = images()[0]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    model(a).square().sum().backward()
    fused(b).square().sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert_close(b.grad, a.grad)
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_channels_last_input() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)).flatten(2), **parts()))
    check(model, (image(2, 4, 7, 6).to(memory_format=torch.channels_last),))


def test_expanded_input() -> None:
    check(made(lambda: nn.Sequential(norm(), conv(), nn.ReLU(inplace=True))), (image(1, 4, 5, 1).expand(2, 4, 5, 6),))


# -- what stays around the regions -------------------------------------------------------------------------------------


def test_a_question_about_a_value_that_is_gone() -> None:
    def batches(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.relu(m.norm(y)).flatten(1) * y.shape[0]

    check(made(lambda: Net(batches, **parts())), *images())


def test_a_tensor_that_nobody_registers_stays_one() -> None:
    table = torch.rand(4, 1, 1, dtype=torch.float64)
    model = made(lambda: Net(lambda m, x: torch.maximum(m.norm(m.conv(x)), table), **parts()))
    fused = check(model, *images())
    assert sorted(fused.state_dict()) == ["conv.bias", "conv.weight"]
    assert fused.float()(image(2, 4, 7, 6).float()).dtype == torch.float64, "as of the model"
    assert not list(fused.buffers())


def test_what_is_not_stored_is_not_stored_afterwards() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.rand(4, 1, 1))
            self.register_buffer("made", torch.rand(4, 1, 1), persistent=False)
            self.kept: Tensor
            self.made: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(torch.minimum(x, self.kept), self.made)

    model = made(lambda: nn.Sequential(conv(), norm(), nn.Sequential(Table())))
    fused = check(model, *images())
    assert sorted(fused.state_dict()) == ["0.bias", "0.weight", "2.0.kept"]
    assert dict(fused.named_buffers()).keys() == {"2.0.kept", "2.0.made"}


def test_the_fused_model_is_called_what_the_model_is() -> None:
    assert type(fuse(made(lambda: Net(lambda m, x: m.norm(m.conv(x)), **parts())))).__name__ == "Net"


def test_what_undoes_itself_is_a_copy() -> None:
    model = made(lambda: Net(lambda m, x: torch.tanh(x) * 2.0 * 0.5))
    result = compile_model(model)
    x = image(2, 4, 7, 6)
    assert [item.made.module for item in result.rewritten] == [None]
    assert torch.equal(result.module(x), model(x))
    both = fuse(made(lambda: Net(lambda m, x: (y := torch.tanh(x), y * 2.0 * 0.5))))
    kept, copied = both(x)
    copied.zero_()
    assert torch.equal(kept, torch.tanh(x))


def test_a_copy_that_is_asked_for_is_made() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)).transpose(2, 3).contiguous() * 2.0, **parts()))
    fused = check(model, *images())
    for call in images():
        assert fused(*call).is_contiguous()


def test_where_python_looks_values_lie_as_they_did() -> None:
    """Element by element, torch keeps the strides of its operand; a convolution has its own."""

    class Strides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.stride()[3])

    def forward(m: Any, x: Tensor) -> Tensor:
        values = (m.norm(m.norm2(x)), m.scale(m.conv(x)), x * m.gain + m.shift)
        return torch.stack([m.strides(value) for value in values])

    more = {"strides": Strides(), "norm2": norm(), "scale": norm(), "gain": gain(4, 1, 1), "shift": gain(4, 1, 1)}
    model = made(lambda: Net(forward, **more, **parts()))
    fused = fuse(model)
    assert sum(isinstance(module, ChannelAffine) for module in fused.modules()) == 2
    for (x,) in images():
        assert_close(fused(x), model(x))
        assert_close(fused(x.transpose(2, 3)), model(x.transpose(2, 3)))


def inplace(model: nn.Module) -> bool:
    return any(isinstance(module, nn.ReLU) and module.inplace for module in model.modules())


def test_what_is_written_in_place_is_nobody_elses() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        before = torch.tanh(y)
        return m.act(y) + before

    fused = check(made(lambda: Net(twice, act=nn.ReLU(inplace=True), **parts())), *images())
    assert not inplace(fused)
    for model in (
        nn.Sequential(conv(), norm(), nn.ReLU(inplace=True)),
        Net(lambda m, x: m.act(F.conv2d(x, m.weight) + x), act=nn.ReLU(inplace=True), weight=gain(4, 4, 1, 1)),
    ):
        assert inplace(check(made(lambda model=model: model), *images())), "which saves memory"


def test_a_weight_that_is_computed_learns_where_an_operator_reads_it() -> None:
    def masked(m: Any, x: Tensor) -> Tensor:
        return torch.relu(F.conv2d(x, m.weight * 2.0, m.bias, padding=1))

    bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    weight = nn.Parameter(torch.rand(4, 4, 3, 3, dtype=torch.float64))
    fused = check(made(lambda: Net(masked, weight=weight, bias=bias)), *images())
    assert [parameter.requires_grad for parameter in fused.parameters()] == [True, True]


def test_a_region_without_weights_has_the_dtype_of_the_models() -> None:
    def pooled(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.conv(x))
        return torch.relu(F.avg_pool2d(y, 3, 1, 1) + y)

    model = made(lambda: Net(pooled, conv=conv())).float()
    result = compile_model(model)
    (item,) = result.rewritten
    assert {parameter.dtype for parameter in item.made.module.parameters()} == {torch.float32}  # type: ignore[union-attr]
    assert item.made.rounded is not None
    assert item.made.rounded.passed


def test_what_runs_for_its_effect_stays() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> None:
            if float(x.sum()) == 0.0:
                raise ValueError("nothing to see")

    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        m.refusing(x)
        return m.norm(m.conv(x))

    fused = fuse(made(lambda: NetOfTwo(forward, refusing=Refusing(), **parts())))
    x = image(2, 4, 7, 6)
    assert_close(fused(x, x), fused(x, 2 * x))
    with pytest.raises(ValueError, match="nothing to see"):
        fused(0 * x, x)


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of three positions are rounded to other ones, so that their regions are rolled back."""

    def wrongly(module: nn.Module, like: Any) -> nn.Module:
        module = cast(module, like)
        for parameter in module.parameters():
            parameter.data *= 1.5 if parameter.shape[-1] == 3 else 1.0
        return module

    monkeypatch.setattr("repcompile.rewrite.cast", wrongly)


@pytest.mark.usefixtures("spoiled")
def test_weights_that_rounding_spoils_are_rolled_back_with_the_error() -> None:
    (left,) = compile_model(made(lambda: nn.Sequential(conv(), norm()))).rollbacks
    assert left.reason.startswith("with its weights rounded once it differs by ")


@pytest.mark.usefixtures("spoiled")
def test_what_was_there_for_each_of_its_readers_is_one_again_when_they_cannot_have_it() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y, z = m.norm(torch.relu(x)), m.norm2(torch.abs(x))
        return torch.tanh(m.q(y)), torch.sin(m.k(y)), torch.exp(m.v(z)), torch.erf(m.w(z))

    narrow = {"v": conv(size=1), "w": conv(size=1)}
    wide = {"q": conv(padding=0), "k": conv(padding=0)}
    result = compile_model(made(lambda: Net(forward, norm=norm(), norm2=norm(), **wide, **narrow)))
    assert len(result.rollbacks) == 2
    expected = ["abs", "erf", "exp", "k", "norm", "q", "relu", "sin", "tanh", "v", "w"]
    assert sorted(run_by(result.module)) == expected


def test_only_a_slice_of_an_image_is_laid_out_anew_for_a_linear() -> None:
    """Rows that lie apart in memory cost a matrix with more axes a second operator, and a plain one nothing."""
    plain = made(lambda: Net(lambda m, x: F.linear(x[:, :4], m.w, m.b) * 2.0, w=gain(4, 4), b=gain(4)))
    check(plain, (image(3, 6),), (image(5, 6),), operators=1, examples=(True,))
    image_of_rows = made(lambda: Net(lambda m, x: F.linear(x[:, :, :4], m.w, m.b) * 2.0, w=gain(4, 4), b=gain(4)))
    check(image_of_rows, (image(3, 5, 6),), (image(5, 2, 6),), operators=2, examples=(True,))


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 0, 1)])
def test_an_entry_is_overwritten_where_nobody_else_sees_it(pads: tuple[int, ...]) -> None:
    """The convolution's result is its own, with and without a padding in front."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(F.pad(x, pads, mode="replicate")))
        y[:, 0] = 0.0
        return y.relu()

    fused: Any = check(made(lambda: Net(forward, conv=conv(padding=0), norm=norm())), *images())
    assert any(isinstance(part, nn.Sequential) for part in fused.modules()) == any(pads)
    assert "overwritten" in fused.code


def test_a_size_is_asked_of_what_is_left_and_what_is_gone_stays_gone() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.relu(m.norm(y)).reshape(y.shape[0], -1)

    check(made(lambda: Net(forward, **parts())), *images(), operators=3)

    def behind(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return torch.relu(y).reshape(y.shape[0], y.shape[2], -1)

    check(made(lambda: Net(behind, **parts())), *images(), operators=3)


def test_an_image_alone_is_refused_where_its_positions_would_be_channels() -> None:
    model = made(lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)))
    fused = check(model, (image(2, 4, 7),), (image(1, 4, 9),))
    assert model(image(4, 4)).shape == (4, 4)
    with pytest.raises(ValueError, match="3"):
        fused(image(4, 4))


def test_a_constant_of_a_fixed_dtype_stands_where_it_is_made() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.maximum(m.norm(m.conv(x)), m.table.double() * 2.0)

    model = made(lambda: Net(forward, table=torch.rand(4, 1, 1), **parts())).float()
    fused = check(model, (image(2, 4, 7, 6).float(),), (image(1, 4, 10, 9).float(),), tolerance=1e-4)
    (place,) = [name for name, module in fused.named_modules() if isinstance(module, FixedDtype)]
    assert place == "mul_settled"
    again = fuse(fused)
    assert [name for name, module in again.named_modules() if isinstance(module, FixedDtype)] == [place]


@pytest.mark.parametrize("informed", [False, True])
def test_a_module_that_stays_python_runs_although_nobody_needs_its_value(informed: bool) -> None:
    """It may do more than return one; only what is computed from it goes, and a view of that."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.norm(m.conv2(m.opaque(x))).narrow(1, 0, 1)
        return m.conv(x)

    seen: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    model = made(lambda: Net(forward, opaque=Undecided(note), conv=conv(), conv2=conv(), norm=norm()))
    fused = fuse(model, images()[0] if informed else None)
    for module in (model, fused):
        seen.clear()
        module(*images()[1])
        assert len(seen) == 1
    check(model, *images(), operators=2)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("padding", [2, 3])
def test_a_wide_border_is_checked_on_an_image_that_has_it(mode: Any, size: int, padding: int) -> None:
    wide = nn.Conv2d(4, 6, size, padding=padding, padding_mode=mode)
    model = made(lambda: nn.Sequential(conv(size=1), wide, nn.BatchNorm2d(6)))
    check(model, *images(), operators=1)
    assert not compile_model(model).rollbacks
