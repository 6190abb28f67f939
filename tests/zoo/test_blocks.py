"""The blocks: their formulas, and drop path as a law."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastvit_zoo.blocks import Attention, AttentionBlock, ConvFFN, DropPath, RepMixer, RepMixerBlock
from tests.zoo.synthetic import synthetic_model


def images(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0.01, 0.99), batch=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_drop_path_keeps_or_drops_whole_images(rate: float, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    y = DropPath(rate).train()(torch.ones(batch, 3, 2, 2, dtype=torch.float64))
    for image in y:
        value = image[0, 0, 0].item()
        assert (image == value).all()
        assert value == 0 or value == pytest.approx(1 / (1 - rate))


def test_drop_path_keeps_the_expectation() -> None:
    """4000 images at rate 0.25: the mean of keep / 0.75 has deviation sqrt(0.25 / 0.75 / 4000) = 0.0091."""
    torch.manual_seed(0)
    mean = DropPath(0.25).train()(torch.ones(4000, 1, 1, 1)).mean().item()
    assert abs(mean - 1) < 4 * 0.0092


def test_drop_path_is_the_identity_in_eval_mode() -> None:
    x = images(3)
    assert DropPath(0.9).eval()(x) is x


@pytest.mark.parametrize("block", [RepMixerBlock, AttentionBlock])
def test_without_a_rate_there_is_no_drop_path(block: type[RepMixerBlock] | type[AttentionBlock]) -> None:
    assert isinstance(block(32, 64, 0.0, 1.0).drop_path, nn.Identity)
    assert isinstance(block(32, 64, 0.1, 1.0).drop_path, DropPath)


def test_rep_mixer_formula() -> None:
    block, x = synthetic_model(RepMixer(4, 1.0)), images(4)
    assert block.norm.rbr_skip is not None
    assert block.mixer.rbr_skip is not None
    assert block.mixer.rbr_scale is not None
    mixed = block.mixer.rbr_conv[0](x) + block.mixer.rbr_skip(x) + block.mixer.rbr_scale(x)
    torch.testing.assert_close(block(x), x + block.layer_scale * (mixed - block.norm.rbr_skip(x)))


def test_attention_is_scaled_dot_product_attention() -> None:
    block, x = synthetic_model(Attention(64)), images(64)
    q, k, v = block.qkv(x.flatten(2).mT).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
    tokens = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block(x), block.proj(tokens).mT.reshape(x.shape))


def test_attention_does_not_depend_on_the_order_of_positions() -> None:
    block, x = synthetic_model(Attention(64)), images(64)
    torch.testing.assert_close(block(x.flip(2, 3)), block(x).flip(2, 3))


def test_feed_forward_formula() -> None:
    block, x = synthetic_model(ConvFFN(4, 12)), images(4)
    torch.testing.assert_close(block(x), block.fc2(F.gelu(block.fc1(block.conv(x)))))


def test_rep_mixer_block_formula() -> None:
    block = synthetic_model(RepMixerBlock(4, 12, 0.1, 1.0))
    x = images(4)
    mixed = block.token_mixer(x)
    torch.testing.assert_close(block(x), mixed + block.layer_scale * block.convffn(mixed))


def test_attention_block_formula() -> None:
    block = synthetic_model(AttentionBlock(32, 64, 0.1, 1.0))
    x = images(32)
    mixed = x + block.layer_scale_1 * block.token_mixer(block.norm(x))
    torch.testing.assert_close(block(x), mixed + block.layer_scale_2 * block.convffn(mixed))
