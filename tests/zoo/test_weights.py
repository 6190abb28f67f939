"""Checkpoints: what is read, and what every refusal says."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastvit_zoo import ZooError, create_model
from fastvit_zoo.names import from_timm
from fastvit_zoo.weights import load_weights
from tests.zoo.synthetic import synthetic_state

huggingface_hub = pytest.importorskip("huggingface_hub")
save_file = pytest.importorskip("safetensors.torch").save_file
NAME = "fastvit_t8"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The synthetic weights of one variant, as files have them: float32."""
    wide = synthetic_state(create_model(NAME))
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in wide.items()}


def assert_has(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def refusal(checkpoint: str | Path, name: str = NAME, num_classes: int = 1000) -> str:
    with pytest.raises(ZooError) as caught:
        create_model(name, num_classes, checkpoint=checkpoint)
    assert str(checkpoint) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("as_text", [True, False])
def test_safetensors(tmp_path: Path, state: dict[str, Tensor], as_text: bool) -> None:
    save_file(state, path := tmp_path / "t8.safetensors")
    assert_has(create_model(NAME, checkpoint=str(path) if as_text else path), state)


@pytest.mark.parametrize(
    ("suffix", "nest"),
    [("pth", None), ("pt", None), ("pth.tar", "state_dict"), ("pth", "model"), ("pt", "state_dict_ema")],
)
def test_pickled(tmp_path: Path, state: dict[str, Tensor], suffix: str, nest: str | None) -> None:
    path = tmp_path / f"t8.{suffix}"
    torch.save(state if nest is None else {"epoch": 3, nest: state}, path)
    assert_has(create_model(NAME, checkpoint=path), state)


@pytest.mark.timm
def test_timm_names(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(NAME).state_dict()
    save_file(theirs, path := tmp_path / "model.safetensors")
    assert_has(create_model(NAME, checkpoint=path), from_timm(theirs))


def test_no_such_file(tmp_path: Path) -> None:
    assert "there is no such file; give a path" in refusal(tmp_path / "none.pth")
    assert "there is no such file" in refusal(tmp_path)


def test_unknown_suffix(tmp_path: Path) -> None:
    (path := tmp_path / "t8.onnx").touch()
    assert "the name must end in .safetensors, .pth, .pt, .pth.tar" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04broken"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    for suffix, words in (("pth", "cannot read it"), ("safetensors", "not a readable safetensors file")):
        (path := tmp_path / f"t8.{suffix}").write_bytes(content)
        assert words in refusal(path)


def test_a_pickled_model_is_not_run(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), path := tmp_path / "t8.pt")
    message = refusal(path)
    assert "tensors and plain containers only. Save the model's state_dict()." in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [3, [1], {}, {"epoch": 3}, {"state_dict": 3}, {1: torch.zeros(1)}])
def test_no_state_dict_inside(tmp_path: Path, content: object) -> None:
    torch.save(content, path := tmp_path / "t8.pth")
    assert "no state dict in it; needed is a dict from names to tensors" in refusal(path)


def test_deployed_form(tmp_path: Path, state: dict[str, Tensor]) -> None:
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("patch_embed.0")}
    torch.save({**kept, "patch_embed.0.reparam_conv.weight": torch.zeros(48, 3, 3, 3)}, path := tmp_path / "t8.pth")
    message = refusal(path)
    assert "is the deployed form, its branches already merged (patch_embed.0.reparam_conv.weight)" in message
    assert "the training form is needed" in message


def test_other_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("head")}
    torch.save({**kept, "classifier.weight": torch.zeros(1)}, path := tmp_path / "t8.pth")
    assert "missing head.weight, head.bias; unexpected classifier.weight." in refusal(path)


def test_other_variant(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path := tmp_path / "t8.safetensors")
    message = refusal(path, "fastvit_t12")
    assert re.search(r"missing network\.4\.4\.\S+, \S+, \S+ and \d+ more; unexpected none\. Is it", message)


def test_other_shapes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = "patch_embed.2.rbr_skip.weight"
    save_file({**state, key: torch.zeros(5)}, path := tmp_path / "t8.safetensors")
    assert f"other shapes than the model: {key} is (5,), needed (48,). Is it of another variant?" in refusal(path)


def test_other_head(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path := tmp_path / "t8.safetensors")
    message = refusal(path, num_classes=10)
    assert "head.weight is (1000, 768), needed (10, 768)" in message
    assert "Pass num_classes=1000." in message


def test_a_refused_checkpoint_leaves_the_model_as_it_was(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = create_model(NAME)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    save_file({**state, "head.bias": torch.zeros(5)}, path := tmp_path / "t8.safetensors")
    with pytest.raises(ZooError):
        load_weights(model, path)
    assert_has(model, before)


@pytest.mark.parametrize("checkpoint", ["hf-hub:", "hf-hub:fastvit", "hf-hub:/fastvit", "hf-hub:org/"])
def test_a_hub_needs_organisation_and_name(checkpoint: str) -> None:
    assert "the form is 'hf-hub:org/repo' or 'hf-hub:org/repo/file'" in refusal(checkpoint)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub without a network, and its cache; returns the folder of org/fastvit's files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--org--fastvit", "0" * 40
    (refs := repo / "refs").mkdir(parents=True)
    (refs / "main").write_text(commit)
    (files := repo / "snapshots" / commit).mkdir(parents=True)
    return files


def test_hub(offline_hub: Path, state: dict[str, Tensor]) -> None:
    save_file(state, offline_hub / "model.safetensors")
    torch.save(state, offline_hub / "t8.pth")
    assert_has(create_model(NAME, checkpoint="hf-hub:org/fastvit"), state)
    assert_has(create_model(NAME, checkpoint="hf-hub:org/fastvit/t8.pth"), state)


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("checkpoint", ["hf-hub:org/fastvit/none.pth", "hf-hub:org/other", "hf-hub:or g/fast vit"])
def test_hub_without_the_file(checkpoint: str) -> None:
    assert "the hub did not give the file; it says: " in refusal(checkpoint)
