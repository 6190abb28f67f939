"""timm: the first three models of each of its model files that have up to 60 M parameters."""

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from tests.sweep.subject import Subject, images

timm: Any = importlib.import_module("timm")
registry: Any = importlib.import_module("timm.models._registry")

EACH = 3
MOST_PARAMETERS = 60e6
SIZES = ((96, 128), (160, 192))
TOO_LARGE = ("_xxlarge", "_giant", "_gigantic", "_huge", "_7b", "_1b", "_2b", "_3b", "_5b", "_6b")  # too long to count


def names() -> Iterator[tuple[str, str]]:
    """(model file, model)"""
    for file in sorted(registry._module_to_models):
        fitting = (name for name in timm.list_models(module=file) if _parameters(name) <= MOST_PARAMETERS)
        yield from ((file, name) for name in islice(fitting, EACH))


def build(name: str) -> Subject:
    model = timm.create_model(name, pretrained=False)
    return Subject(model, [(images(batch, *shape),) for batch, shape in _shapes(model.default_cfg)])


def _shapes(settings: Any) -> Iterable[tuple[int, tuple[int, ...]]]:
    """(batch, shape): two that are smaller than the published one, then that."""
    channels, *published = settings["input_size"]
    fixed = settings.get("fixed_input_size", False)
    smaller = () if fixed else ((batch, (channels, *size)) for batch, size in zip((2, 1), SIZES, strict=True))
    return [*smaller, (1, (channels, *published))]


def _parameters(name: str) -> float:
    if any(word in name for word in TOO_LARGE):
        return float("inf")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError):  # its constructor computes with values
        model = timm.create_model(name, pretrained=False)
    return sum(parameter.numel() for parameter in model.parameters())
