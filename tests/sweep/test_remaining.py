"""Batch norms that stay are found, whoever runs them."""

import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import compile_model
from tests.sweep.remaining import norms_left, norms_without_reason


class Functional(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False))


class Python(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if input.sum() != 0 else input


def test_norms_that_stay() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU(), Functional(3), Python(nn.BatchNorm2d(3)))
    compiled = compile_model(model.eval())
    assert norms_left(compiled.module) == {"1", "3", "4.0"}
    assert "4.0" not in norms_without_reason(compiled.module, compiled.report)


def test_a_copy_that_stands_by_does_not_count() -> None:
    class Optional(nn.Sequential):
        def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(input) if mask is None else super().forward(input * mask)

    compiled = compile_model(Optional(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    assert norms_left(compiled.module) == set()


def test_norms_that_are_gone() -> None:
    compiled = compile_model(nn.Sequential(nn.Conv2d(3, 4, 3), Functional(4)).eval())
    assert norms_left(compiled.module) == set()
