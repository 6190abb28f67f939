"""What touches a model shows."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.sweep.fingerprint import differences, fingerprint


def test_an_untouched_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = fingerprint(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 4, 4))
    assert differences(before, fingerprint(model)) == []


def last_bit(model: nn.Sequential) -> None:
    with torch.no_grad():
        next(model.parameters()).view(torch.int32)[0, 0, 0, 0] += 1


@pytest.mark.parametrize(
    ("touch", "name"),
    [
        (last_bit, "0.weight"),
        (lambda model: model[1].train(), "module 1"),
        (lambda model: setattr(model[0], "cache", 1), "module 0"),
        (lambda model: model[0].weight.requires_grad_(False), "0.weight"),
    ],
)
def test_a_touched_model(touch: Callable[[nn.Sequential], object], name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = fingerprint(model)
    touch(model)
    assert differences(before, fingerprint(model)) == [name]
