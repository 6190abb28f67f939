"""The picture, its preparation, the names; and what is said where a library for them is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastvit_zoo
from fastvit_zoo.data import class_names, photograph, preprocess

pytest.importorskip("timm")
pytestmark = pytest.mark.timm


def test_photograph_is_the_same_every_time() -> None:
    picture = photograph()
    assert (picture.mode, picture.size) == ("RGB", (451, 300))
    assert picture.tobytes() == photograph().tobytes()


@pytest.mark.parametrize("size", [256, 96])
def test_preprocess_gives_one_image(size: int) -> None:
    x = preprocess(photograph(), size)
    assert x.shape == (1, 3, size, size)
    assert x.dtype == torch.float32


def test_preprocess_is_resize_crop_normalise() -> None:
    """284 = floor(256 / 0.9) on the shorter side, and its central 256 x 256."""
    width = int(284 * 451 / 300)
    resized = photograph().resize((width, 284), Image.Resampling.BICUBIC)
    left, top = round((width - 256) / 2), 14
    cropped = resized.crop((left, top, left + 256, top + 256))
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).reshape(256, 256, 3)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((pixels / 255 - mean) / deviation).permute(2, 0, 1)
    torch.testing.assert_close(preprocess(photograph())[0], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_preprocess_takes_any_mode(mode: str) -> None:
    assert preprocess(photograph().convert(mode), 64).shape == (1, 3, 64, 64)


def test_class_names() -> None:
    names = class_names()
    assert len(names) == 1000
    assert (names[0], names[281], names[999]) == ("tench, Tinca tinca", "tabby, tabby cat", TISSUE)


TISSUE = "toilet tissue, toilet paper, bathroom tissue"

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["skimage", "timm", "safetensors", "huggingface_hub"]))  # importing them fails
import fastvit_zoo as zoo
from fastvit_zoo import data
assert zoo.create_model("fastvit_t8").training
for use in (
    data.photograph,
    lambda: data.preprocess(None),
    data.class_names,
    lambda: zoo.create_model("fastvit_t8", checkpoint=sys.argv[1]),
    lambda: zoo.create_model("fastvit_t8", checkpoint="hf-hub:org/fastvit"),
):
    try:
        use()
    except zoo.ZooError as error:
        print(error)
"""


def test_missing_libraries_are_named_when_they_are_needed(tmp_path: Path) -> None:
    (path := tmp_path / "t8.safetensors").touch()
    root = Path(fastvit_zoo.__file__).parents[1]
    run = [sys.executable, "-c", WITHOUT, str(path)]
    said = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    advice = "pip install repcompile[zoo]"
    assert said == [
        f"photograph() needs scikit-image and pillow: {advice}",
        f"preprocess() needs timm: {advice}",
        f"class_names() needs timm: {advice}",
        f"checkpoint '{path}' needs safetensors: {advice}",
        f"checkpoint 'hf-hub:org/fastvit' needs huggingface_hub: {advice}",
    ]
