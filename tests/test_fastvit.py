"""The zoo's training form through the compiler: what is left of every variant, and that it computes the same."""

import json
import operator
from collections import Counter
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastvit_zoo import create_model, list_models
from fastvit_zoo.blocks import AttentionBlock, RepMixerBlock
from fastvit_zoo.config import Config, config_of
from fastvit_zoo.layers import LargeKernelConv, MobileOneBlock, PositionalEncoding
from repcompile import Compilation, compile_model, fuse
from repcompile.measure import Measure, measure
from repcompile.modules import BorderConv, ChannelAffine
from repcompile.testing import randomize
from tests.zoo.synthetic import synthetic_images, synthetic_model

RECORDS = Path(__file__).parent / "data" / "conformance"
RECORDED = ["fastvit_t8", "fastvit_sa12", "fastvit_ma36"]
HAND_MADE = {"fastvit_t8": 85, "fastvit_sa12": 104}  # compute operators that a perfect conversion by hand leaves
MULTIPLICATIONS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")

every_variant = pytest.mark.parametrize("name", list_models())


@cache
def training_form(name: str) -> nn.Module:
    """In float64 and eval mode, with statistics and layer scales in which an error shows."""
    torch.manual_seed(0)
    return randomize(create_model(name, num_classes=10).double(), seed=1).eval()


@cache
def compiled(name: str) -> Compilation:
    return compile_model(training_form(name))


def graph_of(name: str) -> fx.Graph:
    module = compiled(name).module
    assert isinstance(module, fx.GraphModule)
    return module.graph


@cache
def counted(name: str) -> tuple[Measure, Measure]:
    """(training form, fused) on one image of 256 x 256."""
    image = [torch.zeros(1, 3, 256, 256, dtype=torch.float64)]
    return measure(training_form(name), image), measure(compiled(name).module, image)


def places(name: str, kind: type[nn.Module]) -> dict[str, Any]:
    """The training form's modules of a class, by path."""
    return {path: module for path, module in training_form(name).named_modules() if type(module) is kind}


def blocks(config: Config, mixer: str) -> int:
    return sum(depth for depth, kind in zip(config.depths, config.mixers, strict=True) if kind == mixer)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# -- it computes the same ----------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64)])
def test_the_fused_model_is_equal(name: str, height: int, width: int) -> None:
    images = synthetic_images(2, height, width)
    with torch.no_grad():
        expected, got = training_form(name)(images), compiled(name).module(images)
    assert (got - expected).abs().max() < 1e-10 * expected.abs().max()
    assert expected.std() > 1e-3  # the images matter: not the biases alone


@pytest.mark.parametrize("name", RECORDED)
def test_the_fused_model_has_the_published_logits(name: str) -> None:
    """The record was made by the authors' own code; the rule for the weights is in tests/data/conformance."""
    record = json.loads((RECORDS / f"{name}.json").read_text())
    with torch.no_grad():
        logits: Tensor = fuse(synthetic_model(create_model(name)))(synthetic_images())
    assert_relatively_close(logits[:, :16], torch.tensor(record["logits_first_16"], dtype=torch.float64))
    assert_relatively_close(logits.norm(dim=1), torch.tensor(record["logits_l2"], dtype=torch.float64))


def assert_relatively_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0.0)


# -- nothing of the training form is left ------------------------------------------------------------------------------


@every_variant
def test_no_norm_and_no_scale_among_the_modules(name: str) -> None:
    kinds = (nn.modules.batchnorm._BatchNorm, ChannelAffine, BorderConv)
    assert not [path for path, module in compiled(name).module.named_modules() if isinstance(module, kinds)]
    assert not [key for key in compiled(name).module.state_dict() if not key.endswith((".weight", ".bias"))]


@every_variant
def test_no_norm_and_no_scale_in_the_graph(name: str) -> None:
    graph = graph_of(name)
    assert not [node for node in graph.nodes if node.op == "get_attr" or "batch_norm" in str(node.target)]
    gates = [node for node in graph.nodes if node.target in MULTIPLICATIONS and "sigmoid" in map(str, node.args)]
    sizes = [n for n in graph.nodes if n.target in MULTIPLICATIONS and all("getitem" in str(arg) for arg in n.args)]
    assert len(gates) == 1  # of squeeze and excite
    assert {n for n in graph.nodes if n.target in MULTIPLICATIONS} == {*gates, *sizes}


@every_variant
def test_no_norm_and_no_scale_at_run_time(name: str) -> None:
    config, recorder = config_of(name), Recorder()
    with torch.no_grad(), recorder:
        compiled(name).module(synthetic_images(1, 64, 64))
    assert not [operator_name for operator_name in recorder.names if "norm" in operator_name]
    assert recorder.names["mul"] == 1  # squeeze and excite
    assert recorder.names["add"] == sum(config.depths) + blocks(config, "attention")  # residuals behind GELU or softmax


class Recorder(TorchDispatchMode):
    """How often each ATen operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@every_variant
def test_parameters_become_fewer(name: str) -> None:
    assert parameters(compiled(name).module) < parameters(training_form(name))


@pytest.mark.parametrize("name", RECORDED)
def test_parameters_against_the_authors_deployed_form(name: str) -> None:
    """Theirs keeps, in every block, a batch norm and a layer scale (or two of each): 2 C numbers more than ours."""
    config, classes = config_of(name), 1000 - 10
    kept = 2 * sum(map(prod, zip(config.depths, config.dims, strict=True)))
    head = classes * (2 * config.dims[-1] + 1)
    theirs = json.loads((RECORDS / f"{name}.json").read_text())["params_deploy"]
    assert parameters(compiled(name).module) == theirs - kept - head


# -- how many operators ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), HAND_MADE.items())
def test_operators(name: str, most: int) -> None:
    before, after = counted(name)
    assert after.operators <= most < before.operators
    assert after.norms == 0 < before.norms
    assert after.macs <= before.macs


@pytest.mark.timm
@pytest.mark.parametrize("name", HAND_MADE)
def test_fewer_operators_than_timm_leaves(name: str) -> None:
    timm = pytest.importorskip("timm")
    converted = timm.utils.reparameterize_model(timm.create_model(name).eval())
    theirs = measure(converted, [torch.zeros(1, 3, 256, 256)])
    assert theirs.norms > 0
    assert counted(name)[1].operators < theirs.operators


# -- what the report calls it ------------------------------------------------------------------------------------------


@every_variant
def test_idioms(name: str) -> None:
    """Each block of the architecture is one region, under the name that people use for it."""
    config = config_of(name)
    attention, embeds = blocks(config, "attention"), len(config.dims) - 1
    expected = {
        "RepMixer": blocks(config, "repmixer"),
        "ConvBN": sum(config.depths),  # the feed-forward part's 7x7
        "LayerScale": sum(config.depths) + attention,  # into fc2, and into attention's projection
        "BNLinear": attention,  # the norm in front of attention, into qkv
        "CPE": sum(config.encodings),
        "LargeKernel": embeds,
        "MobileOne (2 branches, pointwise)": 1 + embeds,  # the stem's last, and one in each patch embedding
        "MobileOne (2 branches, depthwise)": 2,  # in the stem and before the head
        "RepVGG": 1,  # the stem's first: 3x3 and 1x1 of few channels
    }
    report = compiled(name).report
    assert dict(report.idioms) == {idiom: count for idiom, count in expected.items() if count}
    assert not [left for left in report.left if "rolled back" in left.reason or "Python" in left.reason]


@every_variant
def test_depthwise_and_pointwise_stay_two_operators(name: str) -> None:
    """Exact as one dense 7x7, and up to 49 times the work: legality is not profit."""
    config, report = config_of(name), compiled(name).report
    dear = {left.path: left for left in report.left if "more multiply-accumulates" in left.reason}
    pairs = [path for path in compiled(name).module.state_dict() if path.endswith("convffn.fc1.weight")]
    assert len(pairs) == sum(config.depths)
    for path in (pair.removesuffix(".weight") for pair in pairs):
        assert dear[path].reason.startswith("dw7x7 norm pw: ")
        hidden, channels = compiled(name).module.get_parameter(f"{path}.weight").shape[:2]
        whole, apart = 49 * hidden * channels, 49 * channels + hidden * channels + channels  # the norm: a channel's 1
        assert dear[path].factor == pytest.approx(whole / apart)
        assert f"x {whole / apart:.0f}" in str(dear[path])


# -- each block is one operator, at its place --------------------------------------------------------------------------


@every_variant
def test_each_repmixer_is_one_depthwise_convolution(name: str) -> None:
    found = {f"{path}.token_mixer": block for path, block in places(name, RepMixerBlock).items()}
    assert len(found) == blocks(config_of(name), "repmixer")
    for path, block in found.items():
        channels = block.layer_scale.shape[0]
        assert_convolution(fused_at(name, path), channels, channels, kernel=3, stride=1, groups=channels)


@every_variant
def test_each_positional_encoding_is_one_depthwise_convolution(name: str) -> None:
    found = places(name, PositionalEncoding)
    assert len(found) == sum(config_of(name).encodings)
    for path, encoding in found.items():
        channels = encoding.pe.in_channels
        assert_convolution(fused_at(name, path), channels, channels, kernel=7, stride=1, groups=channels)


@every_variant
def test_each_mobileone_block_is_one_convolution(name: str) -> None:
    found = {path: block for path, block in places(name, MobileOneBlock).items() if "token_mixer" not in path}
    assert len(found) == 3 + 3 + 1
    for path, block in found.items():
        conv = block.rbr_conv[0].conv
        fused = fused_at(name, f"{path}.rbr_conv.0.conv")
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        assert_convolution(fused, conv.in_channels, conv.out_channels, kernel, stride, conv.groups)
        calls = [node for node in graph_of(name).nodes if str(node.target).startswith(f"{path}.rbr_")]
        assert len(calls) == 1


@every_variant
def test_each_large_kernel_is_one_strided_depthwise_convolution(name: str) -> None:
    dims, found = config_of(name).dims, places(name, LargeKernelConv)
    assert len(found) == 3
    for path, c_in, c_out in zip(found, dims, dims[1:], strict=False):
        assert_convolution(fused_at(name, path), c_in, c_out, kernel=7, stride=2, groups=c_in)


@every_variant
def test_attention_takes_in_its_norm(name: str) -> None:
    """`qkv` has no bias in the training form; the norm's shift becomes one."""
    found = {f"{path}.token_mixer.qkv": block for path, block in places(name, AttentionBlock).items()}
    assert len(found) == blocks(config_of(name), "attention")
    for path, block in found.items():
        qkv = fused_at(name, path)
        assert type(qkv) is nn.Linear
        assert block.token_mixer.qkv.bias is None
        assert qkv.bias is not None
        assert qkv.bias.abs().max() > 0


def fused_at(name: str, path: str) -> nn.Module:
    """The module at a path, which the graph calls exactly once."""
    module = compiled(name).module
    assert sum(node.op == "call_module" and node.target == path for node in graph_of(name).nodes) == 1
    return module.get_submodule(path)


def assert_convolution(module: nn.Module, c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> None:
    assert type(module) is nn.Conv2d
    got = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding, module.groups)
    half = kernel // 2
    assert got == (c_in, c_out, (kernel, kernel), (stride, stride), (half, half), groups)
    assert module.bias is not None
