"""The zoo computes what the authors' code computes, under the same names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvit_zoo import create_model, list_models
from fastvit_zoo.names import deployed, from_timm
from tests.zoo.synthetic import synthetic_images, synthetic_model, synthetic_state

RECORDS = Path(__file__).parents[1] / "data" / "conformance"
RECORDED = ["fastvit_t8", "fastvit_sa12", "fastvit_ma36"]


def record(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_names_shapes_and_their_order(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    ours = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert ours == list(record(name)["train_keys"].items())


@pytest.mark.parametrize("name", RECORDED)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == record(name)["params_train"]


@pytest.mark.parametrize("name", RECORDED)
def test_logits(name: str) -> None:
    """Within 1e-9 of the published code, relative to the norm of the logits and to each recorded one."""
    expected = record(name)
    with torch.no_grad():
        logits = synthetic_model(create_model(name))(synthetic_images())
    assert_relatively_close(logits[:, :16], torch.tensor(expected["logits_first_16"], dtype=torch.float64))
    assert_relatively_close(logits.norm(dim=1), torch.tensor(expected["logits_l2"], dtype=torch.float64))


@pytest.mark.parametrize("name", RECORDED)
def test_deployed_names_are_recognised(name: str) -> None:
    expected = record(name)
    assert not any(map(deployed, expected["train_keys"]))
    assert all(deployed(key) == ("reparam" in key) for key in expected["deploy_keys"])
    assert any(map(deployed, expected["deploy_keys"]))


@pytest.mark.timm
@pytest.mark.parametrize("name", [name for name in list_models() if name not in RECORDED])
def test_logits_of_timm(name: str) -> None:
    """The variants without a record against an independent implementation, its weights renamed; not a square image."""
    timm = pytest.importorskip("timm")
    theirs, images = synthetic_model(timm.create_model(name)), synthetic_images(1, 64, 96)
    ours = create_model(name).double().eval()
    ours.load_state_dict(from_timm(theirs.state_dict()), strict=True)
    with torch.no_grad():
        assert_relatively_close(ours(images), theirs(images), 1e-8)


def test_synthetic_state_covers_the_model() -> None:
    with torch.device("meta"):
        model = create_model("fastvit_t8")
    state = synthetic_state(model)
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in model.state_dict().items()}


def assert_relatively_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0.0)
