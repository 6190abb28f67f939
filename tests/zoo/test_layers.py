"""The convolutional parts: which branches there are, and what they sum to."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastvit_zoo.layers import LargeKernelConv, MobileOneBlock, PatchEmbed, PositionalEncoding, SEBlock
from tests.zoo.synthetic import synthetic_model


def images(channels: int, height: int = 9, width: int = 6) -> torch.Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=40)
@given(
    widens=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    depthwise=st.booleans(),
    use_scale_branch=st.booleans(),
    num_conv_branches=st.integers(1, 3),
)
def test_mobile_one_is_the_sum_of_its_branches(
    widens: bool, kernel: int, stride: int, depthwise: bool, use_scale_branch: bool, num_conv_branches: int
) -> None:
    block = MobileOneBlock(
        4,
        8 if widens else 4,
        kernel,
        stride,
        kernel // 2,
        groups=4 if depthwise else 1,
        use_scale_branch=use_scale_branch,
        num_conv_branches=num_conv_branches,
    )
    synthetic_model(block)
    assert (block.rbr_skip is not None) == (not widens and stride == 1)
    assert (block.rbr_scale is not None) == (use_scale_branch and kernel > 1)
    x = images(4)
    expected = sum((conv(x) for conv in block.rbr_conv), torch.zeros(()))
    expected = expected + (0 if block.rbr_skip is None else block.rbr_skip(x))
    expected = expected + (0 if block.rbr_scale is None else block.rbr_scale(x))
    torch.testing.assert_close(block(x), F.gelu(expected))


def test_mobile_one_without_convolutions_is_its_batch_norm() -> None:
    block = MobileOneBlock(4, 4, 3, 1, 1, 4, use_act=False, use_scale_branch=False, num_conv_branches=0)
    synthetic_model(block)
    assert isinstance(block.rbr_skip, nn.BatchNorm2d)
    assert torch.equal(block(images(4)), block.rbr_skip(images(4)))


def test_mobile_one_squeezes_before_it_activates() -> None:
    block = synthetic_model(MobileOneBlock(32, 32, 1, use_se=True))
    assert isinstance(block.se, SEBlock)
    assert block.rbr_skip is not None
    x = images(32)
    torch.testing.assert_close(block(x), F.gelu(block.se(block.rbr_skip(x) + block.rbr_conv[0](x))))


def test_squeeze_and_excite_gates_each_channel_of_each_image() -> None:
    block, x = synthetic_model(SEBlock(32)), images(32)
    gate = torch.sigmoid(block.expand(F.relu(block.reduce(x.mean((2, 3), keepdim=True)))))
    assert block.reduce.out_channels == 2
    assert gate.shape == (2, 32, 1, 1)
    torch.testing.assert_close(block(x), x * gate)


def test_a_large_kernel_has_no_activation() -> None:
    """The layer is affine: f(2 x) - f(x) == f(x) - f(0)."""
    layer, x = synthetic_model(LargeKernelConv(4, 8, kernel=7, stride=2)), images(4)
    torch.testing.assert_close(layer(2 * x) - layer(x), layer(x) - layer(0 * x))


@pytest.mark.parametrize(("height", "width"), [(8, 6), (9, 7)])
def test_patch_embed_halves_and_widens(height: int, width: int) -> None:
    y = synthetic_model(PatchEmbed(4, 8))(images(4, height, width))
    assert y.shape == (2, 8, (height + 1) // 2, (width + 1) // 2)


def test_positional_encoding_adds_its_input() -> None:
    layer, x = synthetic_model(PositionalEncoding(4)), images(4)
    torch.testing.assert_close(layer(x) - x, layer.pe(x))
