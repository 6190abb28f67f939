"""From a map to its numbers: the same function as its parts one after another, which the definition gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from repcompile.affine import Affine
from repcompile.axis import Axis
from repcompile.fold import apply, extended, fold
from repcompile.testing.strategies import MODES, images_for, leaves, whole
from repcompile.values import as_constant
from tests.strategies import assert_close, assert_equal, direct, expressions, law


@given(data=st.data())
def test_a_map_is_what_its_definition_says(data: st.DataObject) -> None:
    x = data.draw(leaves())
    image = data.draw(images_for(x))
    assert_equal(apply(x, image), direct(x, image))


@given(data=st.data())
def test_folding_changes_nothing(data: st.DataObject) -> None:
    x = data.draw(expressions())
    event(f"{type(x.parts).__name__}, border {x.has_border}")
    image = data.draw(images_for(x))
    assert_equal(apply(x, image), direct(x, image))


@given(data=st.data())
def test_the_numbers_have_the_shapes_that_the_map_announces(data: st.DataObject) -> None:
    x = data.draw(expressions())
    values = fold(x)
    sizes = [axis.size for axis in x.axes]
    assert values.kernel.shape == (x.c_out, x.c_in // x.groups, *sizes)
    assert values.kernel.numel() == x.weights
    assert (values.bias is not None) == x.has_bias
    assert (values.border is not None) == x.has_border
    assert values.bias is None or values.bias.shape == (x.c_out,)
    assert values.border is None or values.border.shape == (x.c_out, 1, *sizes)
    numbers = [v for v in (values.kernel, values.bias, values.border) if v is not None]
    assert all(v.dtype == torch.float64 and not v.requires_grad for v in numbers)


@law(least=1.0, data=st.data())
def test_fewer_groups_are_the_same_map(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 3))
    like = [Axis(data.draw(st.integers(1, 2))) for _ in range(n)]
    grouped = Affine.conv(data.draw(whole(12, 2, *[axis.size for axis in like])), groups=6)
    fewer = data.draw(st.sampled_from([1, 2, 3, 6, 4]))
    zero = Affine.conv(torch.zeros(12, 12 // fewer, *[axis.size for axis in like]), groups=fewer)
    regrouped = grouped + zero
    assert regrouped.groups == {1: 1, 2: 2, 3: 3, 6: 6, 4: 2}[fewer]
    image = data.draw(images_for(grouped))
    assert_equal(apply(regrouped, image), apply(grouped, image))


@given(data=st.data(), mode=st.sampled_from(MODES))
def test_the_image_is_extended_as_torch_does(data: st.DataObject, mode: str) -> None:
    lo, hi = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    x = Affine.conv(torch.ones(1, 1, 1, 1), padding=[(lo, hi), (hi, lo)], mode=mode)
    image = data.draw(whole(2, 1, 4, 5))
    expected = F.pad(image, (hi, lo, lo, hi), mode="constant" if mode == "zeros" else mode)
    assert_equal(extended(x, image), expected)


def test_cropping_comes_after_padding() -> None:
    x = Affine.conv(torch.ones(1, 1, 1), padding=[(2, -1)], mode="circular")
    assert_equal(apply(x, torch.tensor([[[1.0, 2.0, 3.0]]]).double()), torch.tensor([[[2.0, 3.0, 1.0, 2.0]]]).double())


def test_batch_norm_in_front_of_a_padded_convolution_is_exact_where_the_naive_folding_is_not() -> None:
    torch.manual_seed(0)
    conv, image = nn.Conv2d(3, 4, 3, padding=1).double(), torch.randn(2, 3, 5, 6).double()
    gain, shift = torch.rand(3).double() + 0.5, torch.randn(3).double()
    x = Affine.conv(conv.weight, conv.bias, padding=1) @ Affine.diagonal(3, 2, gain, shift)
    expected = conv(image * gain[:, None, None] + shift[:, None, None])
    assert_close(apply(x, image), expected.detach())
    values = fold(x)
    assert values.bias is not None
    assert values.border is not None
    naive = F.conv2d(image, values.kernel, values.bias + values.border.sum((1, 2, 3)), padding=1)
    assert_close(naive[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1].detach())
    assert (naive - expected)[:, :, 0].abs().max() > 0.1


def test_a_part_that_is_used_twice_is_evaluated_once() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64)
    reads: list[Tensor] = []

    def read(tensor: Tensor) -> Tensor:
        reads.append(tensor)
        return tensor

    x = Affine.linear(weight)
    for _ in range(60):  # 2 ** 60 summands if written out
        x = x + x
    assert_equal(fold(x, read).kernel, 2.0**60 * weight)
    assert len(reads) == 1


def test_folding_is_in_float64_whatever_the_weights_are() -> None:
    large, small = torch.tensor([[4096.0]]).half(), torch.tensor([[1.0]]).half()
    x = Affine.linear(large) + Affine.linear(small) - Affine.linear(large)
    assert fold(x).kernel.item() == 1.0  # in float16, 4096 + 1 is 4096


@pytest.mark.parametrize(
    "combine",
    [
        lambda conv: conv + Affine.identity(2, 1),
        lambda conv: conv @ Affine.diagonal(2, 1, None, 1.0),
        lambda conv: -conv,
    ],
    ids=["skip", "shift", "number"],
)
def test_weights_on_a_gpu_meet_numbers_of_our_own(combine: Callable[[Affine], Affine]) -> None:
    with FakeTensorMode():  # knows of devices that are not there
        x = combine(Affine.conv(torch.ones(2, 2, 3, device="cuda"), padding=1))
        assert fold(x).kernel.shape == (2, 2, 3)


def test_constants_are_weights_too() -> None:
    x = Affine.linear(as_constant(torch.eye(2)), as_constant(torch.ones(2)))
    assert_equal(apply(x, torch.zeros(1, 2).double()), torch.ones(1, 2).double())
