"""`Affine.probe`: what is measured equals the module, and what is no convolution is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import Affine, Inexact
from repcompile.fold import apply, fold
from repcompile.testing import randomize

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    """Of one or two axes, with everything that torch's have."""
    n_axes = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    kernel = [draw(st.integers(1, 4)) for _ in range(n_axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(n_axes)]
    torch.manual_seed(draw(st.integers(0, 999)))
    return CONVOLUTIONS[n_axes](
        4,
        draw(st.sampled_from([4, 8])),
        kernel,
        [draw(st.integers(1, 3)) for _ in range(n_axes)],
        [draw(st.integers(0, 3)) for _ in range(n_axes)],
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


@given(conv=convolutions())
def test_a_convolution_is_found(conv: Any) -> None:
    """Stride, padding, padding mode, dilation and groups; then it equals the module on images of other sizes."""
    n_axes = conv.weight.dim() - 2
    found = Affine.probe(conv, 4, n_axes, window=9)
    assert found.weights <= conv.weight.numel()
    assert [axis.stride for axis in found.axes] == list(conv.stride)
    for sizes in ((11, 8), (13, 14)):
        image = torch.randn(2, 4, *sizes[:n_axes], dtype=torch.float64)
        torch.testing.assert_close(apply(found, image), conv.double()(image), rtol=0, atol=1e-10)


def test_a_linear() -> None:
    linear = nn.Linear(5, 3)
    found = Affine.probe(linear, 5, 0)
    values = fold(found)
    torch.testing.assert_close(values.kernel, linear.weight.detach().double())
    torch.testing.assert_close(values.bias, linear.bias.detach().double())


def test_groups_of_a_matrix() -> None:
    found = Affine.probe(lambda x: x * torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64), 3, 0)
    assert found.groups == 3


@pytest.mark.parametrize(
    ("function", "groups"),
    [
        (lambda x: F.avg_pool2d(x, 3, 2, 1), 4),
        (lambda x: F.pad(x, (1, 0, 2, 1))[..., ::2, :], 4),
        (lambda x: x[..., 1:, :-2], 4),
        (lambda x: x.flip(1), 1),
        (lambda x: 0 * x, 4),
        (lambda x: x.roll(1, 3) - x, 4),
        (lambda x: x + 1, 4),
    ],
)
def test_functions(function: Callable[[Tensor], Tensor], groups: int) -> None:
    found = Affine.probe(function, 4)
    assert found.groups == groups
    image = torch.randn(2, 4, 10, 13, dtype=torch.float64)
    torch.testing.assert_close(apply(found, image), function(image))


def test_a_window_of_one_is_pointwise() -> None:
    found = Affine.probe(randomize(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6))).eval(), 4)
    assert [axis.size for axis in found.axes] == [3, 3]
    assert Affine.probe(randomize(nn.BatchNorm2d(4)).eval(), 4).is_diagonal


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (F.relu, "it is not linear"),
        (lambda x: x.abs(), "it is not linear"),
        (lambda x: x**2, "it is not linear"),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "does not grow with its input"),
        (lambda x: F.interpolate(x, scale_factor=2), "does not grow with its input"),
        (lambda x: x - x.mean((2, 3), keepdim=True), "reads further than a window of 15"),
        (lambda x: x * torch.arange(x.shape[3]), "it is not shift-equivariant"),
        (lambda x: x.flip(3), "shift-equivariant"),
        (lambda x: x.flatten(2), "it does not make images of images"),
        (lambda x: x.float(), "it makes torch.float32 of torch.float64"),
        (lambda x: F.pad(x, (1, 1), value=2.0), "not the same everywhere"),
        (lambda x: F.conv2d(x, x.new_ones(4, 4, 19, 1)), "reads further than a window of 15"),
        (lambda x: x.reshape(1, 1, 7), "it could not be measured"),
        (lambda x: x.sum((0,), keepdim=True).expand_as(x) + 0, "shift-equivariant|linear"),
    ],
)
def test_what_is_no_convolution(function: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(Inexact, match=reason):
        Affine.probe(function, 4)


def test_the_module_is_left_alone() -> None:
    conv = nn.Conv2d(4, 4, 3)
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    Affine.probe(conv, 4)
    assert conv.weight.dtype is torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())


def test_depthwise_by_its_kernel() -> None:
    kernel, bias = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    image = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    found = Affine.depthwise(kernel, bias, (2, 1), 1)
    expected = F.conv2d(image, kernel[:, None], bias, (2, 1), 1, 1, 4)
    torch.testing.assert_close(apply(found, image), expected)
    assert found.groups == 4
