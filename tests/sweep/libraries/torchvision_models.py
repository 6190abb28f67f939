"""torchvision: everything that builds without weights, but for the quantized models."""

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.sweep.subject import Inputs, Subject, images

torchvision: Any = importlib.import_module("torchvision")

TASKS = ("detection", "segmentation", "optical_flow", "video")
SMALL = {"min_size": 128, "max_size": 192}  # what detectors resize their images to
FEW_BOXES = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}


def names() -> Iterator[tuple[str, str]]:
    """(task, model)"""
    for name in torchvision.models.list_models(exclude="quantized_*"):
        yield _task(name), name


def build(name: str) -> Subject:
    task = _task(name)
    model = torchvision.models.get_model(name, weights=None, **_options(name, task))
    return Subject(model, list(_candidates(task)))


def _options(name: str, task: str) -> dict[str, Any]:
    with_backbone = {"weights_backbone": None} if task in ("detection", "segmentation") else {}
    resizing = SMALL if task == "detection" and not name.startswith("ssd") else {}
    boxes = FEW_BOXES if "rcnn" in name else {}
    return {**with_backbone, **resizing, **boxes}


def _task(name: str) -> str:
    """The folder that the model's builder is in."""
    folder = torchvision.models.get_model_builder(name).__module__.split(".")[2]
    return folder if folder in TASKS else "classification"


def _candidates(task: str) -> Iterator[Inputs]:
    if task == "detection":
        yield ([torch.sigmoid(images(3, 96, 128)), torch.sigmoid(images(3, 120, 88))],)
        yield ([torch.sigmoid(images(3, 160, 96))],)
    elif task == "optical_flow":
        yield images(1, 3, 128, 136), images(1, 3, 128, 136, seed=1)
        yield images(1, 3, 144, 128), images(1, 3, 144, 128, seed=1)
    elif task == "video":
        yield (images(1, 3, 16, 64, 96),)
        yield (images(1, 3, 18, 96, 64),)
        yield (images(1, 3, 16, 224, 224),)
    else:
        yield (images(2, 3, 96, 128),)
        yield (images(1, 3, 160, 192),)
        yield (images(1, 3, 224, 224),)
