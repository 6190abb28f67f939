"""Why something stays Python: the question it asked, and its own line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import explain
from repcompile.capture import capture
from tests.test_hostile import Net, Undecided, conv, image, made, norm, parts


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x.shape)


def test_the_reason_has_the_line() -> None:
    captured = capture(made(lambda: nn.Sequential(conv(), Counting())))
    (reason,) = captured.opaque.values()
    assert "the length of a value that only the run will know" in reason
    assert "test_reasons.py:" in reason
    assert reason.endswith(": return x * len(x.shape)")


def test_explain_shows_every_reason() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), Undecided(), nn.Sequential(Undecided(), Counting())))
    text = str(explain(model))
    assert "stays Python" in text
    assert "len(x.shape)" in text
    assert {item.path for item in explain(model).left} == {"2", "3.0", "3.1"}


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_named() -> None:
    linear = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    quantization: Any = torch.ao.quantization
    quantized = quantization.quantize_dynamic(linear.eval(), {nn.Linear})
    assert "packed" in str(explain(quantized))


def test_weights_of_a_librarys_class_are_left_alone() -> None:
    class Quantized(Tensor):
        def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
            return nn.Parameter(self.detach().clone().as_subclass(Quantized))

    model = made(lambda: nn.Sequential(conv(), norm()))
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Quantized))  # type: ignore[index]
    report = explain(model)
    assert not report.fused
    assert "weights of class Quantized cannot be folded" in str(report)


def test_mixed_dtypes_are_rolled_back() -> None:
    model = nn.Sequential(made(conv), made(norm).half()).eval()
    assert "2 dtypes" in str(explain(model))


def test_a_typed_question_is_named() -> None:
    model = made(lambda: nn.Sequential(Net(lambda m, x: m.conv(x) if type(x) is Tensor else x, **parts())))
    assert "compares the type" in str(explain(model))
    assert model(image(1, 4, 5, 5)).shape == (1, 4, 5, 5)
