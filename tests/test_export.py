"""What one does with a model after fusing: store, copy, cast, export, train, and fuse again."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastvit_zoo import create_model
from repcompile import explain, fuse
from repcompile.modules import BorderConv
from repcompile.testing import randomize


class LiteralRepMixer(nn.Module):
    """DWConv(BN(x)) + x, as the paper prints it: the norm's shift meets the padding, so that a border map is needed."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.act = nn.GELU()
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(self.norm(x)) + x))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "literal": (LiteralRepMixer, (2, 8, 9, 7)),
    "fastvit_t8": (partial(create_model, "fastvit_t8", num_classes=10), (2, 3, 64, 64)),
}
both = pytest.mark.parametrize("name", MODELS)


@cache
def training_form(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(MODELS[name][0](), seed=seed).eval()


def fused_model(name: str, seed: int = 0) -> fx.GraphModule:
    """A fresh one: tests change it."""
    return fused_again(training_form(name, seed))


def fused_again(model: nn.Module) -> fx.GraphModule:
    fused = fuse(model)
    assert isinstance(fused, fx.GraphModule)
    return fused


def image(name: str, seed: int = 0) -> Tensor:
    return torch.randn(MODELS[name][1], generator=torch.Generator().manual_seed(seed))


def expected(name: str) -> Tensor:
    with torch.no_grad():
        return training_form(name)(image(name))


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < tolerance * wanted.abs().max()


def test_the_literal_form_has_a_border_map() -> None:
    fused = fused_model("literal")
    assert isinstance(fused.conv, BorderConv)
    assert_close(fused(image("literal")), expected("literal"))


# -- stored and copied -------------------------------------------------------------------------------------------------


@both
def test_pickle(name: str) -> None:
    fused = fused_model(name)
    fused(image(name))  # whatever it remembers must not disturb
    again = pickle.loads(pickle.dumps(fused))
    assert_same_bits(again, fused)
    assert torch.equal(again(image(name)), fused(image(name)))


@both
def test_save_and_load(name: str) -> None:
    fused, file = fused_model(name), io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(image(name)), fused(image(name)))


@both
def test_deepcopy_is_independent(name: str) -> None:
    fused = fused_model(name)
    before = fused(image(name))
    other = copy.deepcopy(fused)
    assert torch.equal(other(image(name)), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(image(name)).any()
    assert torch.equal(fused(image(name)), before)


@both
def test_state_dict_into_another_fused_model(name: str) -> None:
    """Also when the other one ran before: nothing that it remembers may be stale."""
    source, target = fused_model(name), fused_model(name, seed=1)
    with torch.no_grad():
        stale = target(image(name))
        target.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(target(image(name)), source(image(name)))
    assert not torch.equal(target(image(name)), stale)


@both
def test_state_dict_as_a_file_of_tensors(name: str) -> None:
    source, target, file = fused_model(name), fused_model(name, seed=1), io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_bits(target, source)


def assert_same_bits(model: nn.Module, other: nn.Module) -> None:
    assert list(model.state_dict()) == list(other.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


# -- other dtypes ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("cast", [nn.Module.double, lambda model: model.to(torch.float64)])
def test_double(name: str, cast: Callable[[nn.Module], nn.Module]) -> None:
    """After a run in float32: the same weights, the rest of the computation in float64."""
    fused = fused_model(name)
    single = fused(image(name))
    double = cast(fused)(image(name).double())
    assert double.dtype == torch.float64
    assert_close(double.float(), single)


@both
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half(name: str, dtype: torch.dtype, tolerance: float) -> None:
    fused = fused_model(name)
    single = fused(image(name))
    cast = fused.half() if dtype == torch.float16 else fused.to(dtype)
    assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
    assert not list(cast.buffers())
    got = cast(image(name).to(dtype))
    assert got.dtype == dtype
    assert_close(got.float(), single, tolerance)


# -- exported ----------------------------------------------------------------------------------------------------------


@both
def test_torch_export(name: str) -> None:
    exported = torch.export.export(fused_model(name), (image(name),))
    assert_close(exported.module()(image(name)), expected(name))


@both
def test_torch_export_at_other_sizes(name: str) -> None:
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    fused = fused_model(name)
    exported = torch.export.export(fused, (image(name),), dynamic_shapes={"x": dims})
    channels = image(name).shape[1]
    larger = torch.randn(3, channels, 96, 128, generator=torch.Generator().manual_seed(1))
    assert_close(exported.module()(larger), fused(larger))


@both
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_jit_trace(name: str) -> None:
    fused = fused_model(name)
    fused(image(name))
    assert_close(traced(fused, image(name))(image(name)), expected(name))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_jit_trace_bakes_no_border_in() -> None:
    fused = fused_model("literal")
    other = torch.randn(1, 8, 5, 12, generator=torch.Generator().manual_seed(1))
    assert_close(traced(fused, image("literal"))(other), fused(other))


@both
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:The TorchScript type system")
def test_jit_script(name: str) -> None:
    """What the error for a scripted model advises: compile, then script the result."""
    fused = fused_model(name)
    for _ in range(2):  # also once it has run, and remembers border maps
        scripted: Any = torch.jit.script(fused)
        assert_close(scripted(image(name)), expected(name))
        with torch.no_grad():
            fused(image(name))


def traced(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    result: Any = torch.jit.trace(module, x)
    return result


@both
def test_onnx(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    program = torch.onnx.export(fused_model(name), (image(name),), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert not [node.op_type for node in onnx.load(file).graph.node if "BatchNorm" in node.op_type]
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image(name).numpy()})
    assert_close(torch.from_numpy(result), expected(name))


@both
def test_torch_compile(name: str) -> None:
    torch.compiler.reset()
    fused = fused_model(name)
    fused(image(name))
    with torch.no_grad():
        assert_close(torch.compile(fused, backend="aot_eager", fullgraph=True)(image(name)), expected(name))


# -- trained and fused again -------------------------------------------------------------------------------------------


@both
def test_backward(name: str) -> None:
    """Every parameter learns, and the gradient of the input is the training form's."""
    fused, x, y = fused_model(name), image(name).requires_grad_(), image(name).requires_grad_()
    with torch.no_grad():
        fused(x)
    fused(x).square().sum().backward()
    training_form(name)(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert_close(x.grad, y.grad, 1e-4)
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in fused.parameters())


@both
def test_a_step_of_training_is_seen(name: str) -> None:
    """Nothing computed from the parameters may be remembered across an update."""
    fused = fused_model(name)
    with torch.no_grad():
        before = fused(image(name))
    fused(image(name)).square().mean().backward()
    torch.optim.SGD(fused.parameters(), lr=1e-3).step()
    with torch.no_grad():
        after = fused(image(name))
        assert torch.equal(after, copy.deepcopy(fused)(image(name)))  # a copy has nothing to remember
    assert not torch.equal(after, before)


@both
def test_fusing_again_changes_nothing(name: str) -> None:
    fused = fused_model(name)
    again = fused_again(fused)
    assert [(node.op, node.target) for node in again.graph.nodes] == [(n.op, n.target) for n in fused.graph.nodes]
    assert_same_bits(again, fused)
    report = explain(fused)
    assert not report.fused
    assert str(report).startswith(f"{type(training_form(name)).__name__}: 0 regions fused")


@both
def test_fusing_again_gives_the_same_code(name: str) -> None:
    """Down to the names of values: what is shown does not depend on what was there before."""
    fused = fused_model(name)
    assert fused_again(fused).code == fused.code
