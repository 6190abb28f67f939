"""Networks of timm through the compiler, and our rounding against that of timm's own converter."""

import copy
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import explain, fuse
from repcompile.measure import measure
from repcompile.testing import randomize
from tests.zoo.synthetic import synthetic_images

timm: Any = pytest.importorskip("timm")
pytestmark = pytest.mark.timm

FASTVIT = ["fastvit_t8", "fastvit_sa12"]
OTHERS = {  # name: size of image
    "mobileone_s0": 64,
    "repvgg_a0": 64,
    "repghostnet_050": 64,
    "levit_128s": 224,
    "convnext_atto": 64,
    "mobilevit_xxs": 64,
    "ghostnet_100": 64,
}
FREE_OF_NORMS = {"mobileone_s0", "repvgg_a0", "repghostnet_050", "convnext_atto", "ghostnet_100"}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(timm.create_model(name), seed=1).eval()


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", FASTVIT)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.1), (torch.bfloat16, 1.0)])
def test_rounding_against_timms_converter(name: str, dtype: torch.dtype, most: float) -> None:
    """Both start from the same rounded weights; the truth is what those compute in float64."""
    model, images = network(name).to(dtype), synthetic_images(8, 64).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        theirs = relative_error(timm.utils.reparameterize_model(copy.deepcopy(model))(images), exact)
        ours = relative_error(fuse(model)(images), exact)
    assert 0 < ours < most * theirs


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_in_bfloat16_the_fused_model_is_closest_to_the_original(seed: int) -> None:
    """The original in float64; fused and then rounded, rounded as it is, and through timm's converter in bfloat16."""
    torch.manual_seed(seed)
    model = randomize(timm.create_model("fastvit_t8"), seed).eval().double()
    images = synthetic_images(8, 64).bfloat16()
    rounded = copy.deepcopy(model).bfloat16()
    models = (fuse(model).bfloat16(), rounded, timm.utils.reparameterize_model(copy.deepcopy(rounded)))
    with torch.no_grad():
        exact = model(images.double())
        ours, unfused, theirs = (median(map(relative_error, each(images), exact)) for each in models)
    assert 0 < ours < unfused
    assert ours < 0.7 * theirs


@pytest.mark.parametrize("name", FASTVIT)
def test_fastvit_is_equal_and_free_of_norms(name: str) -> None:
    """timm's batch norm inlines `F.batch_norm` and an activation, so that no class name gives it away."""
    model, images = network(name).double(), synthetic_images(2, 96, 64)
    fused = fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-10
    before, after = measure(model, [images]), measure(fused, [images])
    assert before.norms > 0 == after.norms
    assert 2 * after.operators < before.operators


@pytest.mark.parametrize("name", FASTVIT)
def test_fastvit_is_not_touched(name: str) -> None:
    model = network(name)
    state, config = copy.deepcopy(model.state_dict()), str(model)
    fuse(model)
    assert str(model) == config
    assert not model.training
    assert list(model.state_dict()) == list(state)
    for key, tensor in model.state_dict().items():
        assert tensor.numpy().tobytes() == state[key].numpy().tobytes(), key


@pytest.mark.parametrize(("name", "size"), OTHERS.items())
def test_other_networks_are_equal(name: str, size: int) -> None:
    model, images = network(name).double(), synthetic_images(2, size)
    fused = fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-10
    before, after = measure(model, [images]), measure(fused, [images])
    assert after.operators < before.operators
    assert after.norms == 0 or name not in FREE_OF_NORMS


def test_what_cannot_be_traced_says_why() -> None:
    assert any(item.reason.startswith("stays Python: ") for item in explain(network("mobilevit_xxs")).left)


def test_attention_biases_that_are_cached_by_device_are_seen_through() -> None:
    assert not any(item.reason.startswith("stays Python: ") for item in explain(network("levit_128s")).left)
