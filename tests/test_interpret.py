"""Nodes in float64, and the convolution that goes tap by tap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile.capture import capture
from repcompile.facts import affine_facts
from repcompile.interpret import (
    DEFAULT_SIZE,
    Interpreter,
    Remembering,
    TapByTap,
    depthwise_convolution,
    evaluated,
    evaluated_shape,
    with_tensors,
)
from repcompile.rules import DEFAULT
from repcompile.shapes import Size, unknown
from repcompile.testing.strategies import whole
from tests.strategies import assert_close, assert_equal

FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)


@given(data=st.data(), n=st.integers(1, 3), channels=st.integers(1, 4), multiplier=st.integers(1, 3))
def test_tap_by_tap_is_torchs_convolution(data: st.DataObject, n: int, channels: int, multiplier: int) -> None:
    def each(low: int, high: int) -> Any:
        drawn = tuple(data.draw(st.integers(low, high)) for _ in range(n))
        return data.draw(st.sampled_from([drawn, drawn[0]]))

    weight = data.draw(whole(channels * multiplier, 1, *[data.draw(st.integers(1, 3)) for _ in range(n)]))
    bias = data.draw(st.none() | whole(channels * multiplier))
    image = data.draw(whole(2, channels, *[data.draw(st.integers(6, 8)) for _ in range(n)]))
    stride, padding = data.draw(st.sampled_from([(1, "same"), (1, "valid"), (each(1, 3), each(0, 3))]))
    arguments = (image, weight, bias, stride, padding, each(1, 2), channels)
    expected = FUNCTIONS[n - 1](*arguments)
    assert_equal(depthwise_convolution(*arguments), expected)
    with TapByTap():
        assert_equal(FUNCTIONS[n - 1](*arguments), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_other_convolutions_stay_torchs(groups: int) -> None:
    image, weight = torch.randn(1, 4, 5, 6).double(), torch.randn(8, 4 // groups, 3, 3).double()
    expected = F.conv2d(image, weight, groups=groups)
    with TapByTap():
        assert_close(F.conv2d(image, weight, groups=groups), expected)
        assert_close(F.conv2d(image[0], weight, groups=groups), expected[0])
        assert_close(F.conv2d(image, weight=weight, groups=groups), expected)


def test_sizes_become_integers() -> None:
    h, w = unknown("x", 2), unknown("x", 3)
    assert evaluated(Size(6), {}) == 6
    assert evaluated(Size(2) * h * h, {"x.2": 5}) == 50
    assert evaluated(w, {}) == DEFAULT_SIZE
    assert evaluated_shape((Size(2), h * w), {"x.2": 4, "x.3": 5}) == (2, 20)


def test_a_copy_in_float64_leaves_the_module_alone() -> None:
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    module = nn.Sequential(conv, norm).half().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    copy = with_tensors(module, lambda tensor: tensor.detach().double())
    image = torch.randn(1, 2, 3, 3).double()
    assert copy(image).dtype == torch.float64
    assert copy.get_buffer("1.num_batches_tracked").dtype == torch.int64
    assert all(tensor.dtype == before[name].dtype for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert copy.get_submodule("0") is not conv
    assert module[0] is conv


def test_each_tensor_is_converted_once() -> None:
    read, weight = Remembering(), nn.Parameter(torch.ones(2))
    assert read(weight) is read(weight)
    assert read(weight).dtype == torch.float64
    assert read(torch.zeros(2)) is not read(weight)


class Everything(nn.Module):
    """Modules, functions, methods, parameters, and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.scale.exp()[:, None, None]
        return torch.sub(y, x, alpha=2).reshape(x.shape[0], 4, x.shape[2] * x.shape[3]).transpose(1, 2)


def test_nodes_compute_what_the_model_does() -> None:
    model = Everything().eval()
    captured = capture(model, DEFAULT.module_classes)
    facts = affine_facts(captured, DEFAULT)
    image = torch.randn(2, 4, 5, 6).double()
    assigned = {"x.0": 2, "x.1": 4, "x.2": 5, "x.3": 6}
    interpreter = Interpreter(captured, facts.sizes, facts.asked, facts.shapes, assigned, Remembering())
    values: dict[Any, Any] = {}
    with torch.no_grad(), TapByTap():
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                values[node] = image
            elif node in facts.maps:
                values[node] = interpreter.run(node, values)
    (result,) = captured.graph.output_node().args
    assert_close(values[result], model.double()(image).detach())
