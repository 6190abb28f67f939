"""Products of matrices: narrow beside wide, and wide in between."""

from __future__ import annotations

from repcompile.idioms.language import Formula, conv, idiom, linear, maybe, pad, pointwise, scale


@idiom("LoRA", "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, eq. 3")
def lora(x: Formula) -> Formula:
    """W x + (alpha / r) B A x"""
    return linear(x) + maybe(scale)((linear | pointwise)((linear | pointwise)(x)))


@idiom("LoRA", "the same, of a convolution")
def lora_of_convolution(x: Formula) -> Formula:
    """Conv(x) + (alpha / r) B A x, where A has the window"""
    return conv(x) + maybe(scale)(pointwise(conv(x)))


@idiom("ExpandNet", "Guo et al., ExpandNets: Linear Over-parameterization to Train Compact Networks, NeurIPS 2020")
def expand_net(x: Formula) -> Formula:
    """Conv1x1(Conv_kxk(Conv1x1(x)))"""
    return pointwise(conv(pointwise(maybe(pad)(x))))


@idiom("LinearChain", "Guo et al., ExpandNets, NeurIPS 2020, sec. 3.1")
def linear_chain(x: Formula) -> Formula:
    """W2 W1 x"""
    return maybe(linear)(maybe(linear)(linear(linear(x))))


LOW_RANK = (lora, lora_of_convolution, expand_net, linear_chain)
