"""Blocks that train a chain or a low-rank product where one convolution or one Linear runs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks.cases import ROWS, TOKENS, Case, holds, table, weights
from tests.test_hostile import Net, conv, norm

# -- expansion ---------------------------------------------------------------------------------------------------------


def expanded() -> nn.Module:
    """W1 Wk W1 x without inner biases (Guo et al. 2020, ExpandNets)."""
    return nn.Sequential(conv(4, 16, 1, bias=False), conv(16, 16, bias=False), conv(16, 4, 1))


def expanded_padding_first() -> nn.Module:
    """W1 Wk pad W1 x with biases: nobody pads behind a bias (ExpandNets)."""
    return nn.Sequential(nn.ZeroPad2d(1), conv(4, 16, 1), conv(16, 16, padding=0), conv(16, 4, 1))


def expanded_padding_inside_first() -> nn.Module:
    """The 1x1 convolution itself pads, so that its bias is outside the image too."""
    return nn.Sequential(conv(4, 16, 1, padding=1), conv(16, 16, padding=0), conv(16, 4, 1))


def expanded_with_biases() -> nn.Module:
    """W1 Wk pad(W1 x + b1): the padding cuts off b1."""
    return nn.Sequential(conv(4, 16, 1), conv(16, 16), conv(16, 4, 1))


def expanded_windows() -> nn.Module:
    """W3 W3 x as one 5x5, without padding (ExpandNets-CK)."""
    return nn.Sequential(conv(4, 12, padding=0), conv(12, 4, padding=0))


def linear_chain(depth: int = 3) -> nn.Module:
    """W_n .. W_1 x with biases (Arora et al. 2018)."""
    widths = [4, *[16] * (depth - 1), 4]
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


# -- adapters ----------------------------------------------------------------------------------------------------------


def lora() -> nn.Module:
    """W x + b + s B A x (Hu et al. 2022, LoRA)."""
    return Net(
        lambda m, x: m.base(x) + m.up(m.down(m.dropout(x))) * 2.0,
        base=nn.Linear(4, 6),
        down=nn.Linear(4, 2, bias=False),
        up=nn.Linear(2, 6, bias=False),
        dropout=nn.Dropout(0.1),
    )


def lora_by_matrices() -> nn.Module:
    """The same with `x A^T B^T` of bare parameters, as loralib writes it."""
    return Net(
        lambda m, x: m.base(x) + (x @ m.down.transpose(0, 1) @ m.up.transpose(0, 1)) * 2.0,
        base=nn.Linear(4, 6),
        down=weights(2, 4),
        up=weights(6, 2),
    )


def lora_on_conv() -> nn.Module:
    """Wk x + b + s W1 (Ak x): a k x k convolution to few channels, and a 1x1 back."""
    return Net(
        lambda m, x: m.base(x) + m.up(m.down(x)) * 0.5,
        base=conv(),
        down=conv(4, 2, bias=False),
        up=conv(2, 4, 1, bias=False),
    )


def lora_in_the_kernel() -> nn.Module:
    """BN((W + s (B A)) x): loralib's convolution adds the product to the kernel in forward."""
    return Net(
        lambda m, x: m.norm(F.conv2d(x, m.weight + (m.up @ m.down).view(m.weight.shape) * 0.5, m.bias, padding=1)),
        weight=weights(4, 4, 3, 3),
        bias=weights(4),
        up=weights(12, 6),
        down=weights(6, 12),
        norm=norm(),
    )


def repadapter() -> nn.Module:
    """W (s B A x + x), A and B grouped 1x1 convolutions over transposed tokens (Luo et al. 2023, RepAdapter)."""

    def function(m: Any, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = m.up(m.dropout(m.down(x))) * 0.5 + x
        return m.proj(x.transpose(1, 2).contiguous())

    return Net(
        function,
        down=nn.Conv1d(4, 2, 1),
        up=nn.Conv1d(2, 4, 1, groups=2),
        dropout=nn.Dropout(0.1),
        proj=nn.Linear(4, 6),
    )


CASES = {
    "ExpandNets": Case(expanded),
    "ExpandNets, padding in front": Case(expanded_padding_first, blind=False),
    "ExpandNets, padding in the first 1x1": Case(expanded_padding_inside_first),
    "ExpandNets, biases and zero padding": Case(expanded_with_biases, operators=2),
    "ExpandNets, 5x5 of 3x3": Case(expanded_windows),
    "Linear chain": Case(linear_chain, ROWS),
    "Linear chain on tokens": Case(partial(linear_chain, 5), TOKENS),
    "LoRA": Case(lora, ROWS),
    "LoRA on tokens": Case(lora, TOKENS),
    "LoRA by matrices": Case(lora_by_matrices, TOKENS),
    "LoRA on a convolution": Case(lora_on_conv),
    "LoRA in the kernel": Case(lora_in_the_kernel),
    "RepAdapter": Case(repadapter, TOKENS),
}


@table(CASES)
def test_chains_and_products_are_one_operator(case: Case) -> None:
    holds(case)
