"""The whole network: its size, its sizes of image, its modes, and the tools that must be able to read it."""

import ast
import logging
import warnings
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

import fastvit_zoo
from fastvit_zoo import ZooError, create_model, list_models
from fastvit_zoo.blocks import DropPath
from fastvit_zoo.config import config_of
from fastvit_zoo.model import drop_path_rates
from tests.zoo.synthetic import synthetic_images, synthetic_model

SMALL = ["fastvit_t8", "fastvit_sa12"]  # without and with attention

PAPER_GMACS = {  # arXiv 2303.14189, at 256 x 256
    "fastvit_t8": 0.7,
    "fastvit_t12": 1.4,
    "fastvit_s12": 1.8,
    "fastvit_sa12": 1.9,
    "fastvit_sa24": 3.8,
    "fastvit_sa36": 5.6,
    "fastvit_ma36": 7.9,
}
PARAMETERS = {  # of the training form, branches and all; the paper prints fewer
    "fastvit_t8": 4_026_232,
    "fastvit_t12": 7_553_704,
    "fastvit_s12": 9_473_576,
    "fastvit_sa12": 11_580_968,
    "fastvit_sa24": 21_554_216,
    "fastvit_sa36": 31_527_464,
    "fastvit_ma36": 44_068_004,
}


@pytest.mark.parametrize("name", list_models())
def test_multiply_accumulates_are_the_papers(name: str) -> None:
    """In the training form: its extra branches are all depthwise or on few channels."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model, image = create_model(name).eval(), torch.zeros(1, 3, 256, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gmacs = FlopCountAnalysis(model, image).unsupported_ops_warnings(False).total() / 1e9
    assert gmacs == pytest.approx(PAPER_GMACS[name], abs=0.1)


@pytest.mark.parametrize("name", list_models())
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 32)])
def test_any_multiple_of_32(name: str, height: int, width: int) -> None:
    logits = create_model(name, num_classes=7).eval()(torch.zeros(3, 3, height, width))
    assert logits.shape == (3, 7)


def test_other_images_than_rgb() -> None:
    assert create_model("fastvit_t8", num_classes=2, in_chans=5).eval()(torch.zeros(1, 5, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("name", SMALL)
def test_in_eval_mode_images_do_not_meet(name: str) -> None:
    """Nor does drop path act."""
    model, images = synthetic(name), synthetic_images(3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), torch.cat([model(image) for image in images.split(1)]))


@pytest.mark.parametrize("name", SMALL)
def test_training_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, drop_path_rate=0.1)
    assert model.training
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "value"), [("fastvit_sa24", 1e-5), ("fastvit_sa36", 1e-6), ("fastvit_ma36", 1e-6)])
def test_layer_scales_start_small(name: str, value: float) -> None:
    model = create_model(name)
    scales = [parameter for key, parameter in model.named_parameters() if "layer_scale" in key]
    assert len(scales) == 2 * sum(config_of(name).depths)
    assert all(bool((scale == torch.tensor(value)).all()) for scale in scales)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights(name: str) -> None:
    """Deviation 0.02 in every linear layer and feed-forward convolution, zero biases."""
    torch.manual_seed(0)
    for key, module in create_model(name).named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or ("convffn" not in key and isinstance(module, nn.Conv2d)):
            continue
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert module.bias is None or not module.bias.any()


def test_drop_path_rates_grow_linearly() -> None:
    rates = list(chain.from_iterable(drop_path_rates((2, 2, 4, 2), 0.9)))
    assert rates == pytest.approx([0.1 * i for i in range(10)])


@pytest.mark.parametrize("name", SMALL)
def test_drop_path_rates_reach_the_blocks(name: str) -> None:
    blocks = sum(config_of(name).depths)
    with torch.device("meta"):
        model = create_model(name, drop_path_rate=0.2)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.2 * i / (blocks - 1) for i in range(1, blocks)])  # the first has none


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_drop_path_rate_is_a_probability_below_one(rate: float) -> None:
    with pytest.raises(ZooError, match=rf"create_model\('fastvit_t8'\): drop_path_rate={rate}; .* \[0, 1\)"):
        create_model("fastvit_t8", drop_path_rate=rate)


@pytest.mark.parametrize("sizes", [{"num_classes": 0}, {"in_chans": -1}])
def test_sizes_are_positive(sizes: dict[str, int]) -> None:
    with pytest.raises(ZooError, match="must be at least 1"):
        create_model("fastvit_t8", num_classes=sizes.get("num_classes", 1000), in_chans=sizes.get("in_chans", 3))


@pytest.mark.parametrize("name", SMALL)
def test_fx_reads_it(name: str) -> None:
    model = synthetic(name)
    assert_same_function(torch.fx.symbolic_trace(model), model)


def test_jit_trace_reads_it() -> None:
    model = synthetic("fastvit_sa12")
    traced = torch.jit.trace(model, synthetic_images(1, 64, 64), check_trace=False)
    assert isinstance(traced, nn.Module)
    assert_same_function(traced, model)


def test_export_reads_it_at_every_size() -> None:
    """From 64 on: export takes a size of 1, here of the last stage's image, for a constant."""
    model = synthetic("fastvit_sa12")
    batch, height, width = (torch.export.Dim(name, min=2, max=32) for name in ("batch", "height", "width"))
    shapes = {"x": {0: batch, 2: 32 * height, 3: 32 * width}}
    exported = torch.export.export(model, (synthetic_images(2, 64, 96),), dynamic_shapes=shapes)
    assert_same_function(exported.module(), model)


@pytest.mark.parametrize("file", sorted(Path(fastvit_zoo.__file__).parent.glob("*.py")), ids=lambda file: file.name)
def test_the_zoo_has_never_heard_of_fusing(file: Path) -> None:
    """Training form only: no word of the compiler's, and timm only where pictures are prepared."""
    tree = ast.parse(file.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"hasattr", "getattr", "reparameterize", "inference_mode", "repcompile"}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert "repcompile" not in roots
    assert "timm" not in roots or file.name == "data.py"


@cache
def synthetic(name: str) -> nn.Module:
    """One model for all the tests that only read it."""
    return synthetic_model(create_model(name, drop_path_rate=0.5))


def assert_same_function(ours: nn.Module, model: nn.Module) -> None:
    """At two sizes and batches, neither the traced one."""
    for images in (synthetic_images(1, 96, 64), synthetic_images(3, 64, 64)):
        with torch.no_grad():
            expected: Tensor = model(images)
            torch.testing.assert_close(ours(images), expected)
