"""One layer and what scales it."""

from __future__ import annotations

from repcompile.idioms.language import (
    Formula,
    channelwise,
    conv,
    depthwise,
    idiom,
    layer,
    linear,
    maybe,
    norm,
    pointwise,
    scale,
    shift,
)

BATCH_NORM = "Ioffe & Szegedy, Batch Normalization, ICML 2015"


@idiom("ConvBN", BATCH_NORM)
def conv_norm(x: Formula) -> Formula:
    """BN(Conv(x))"""
    return norm(maybe(shift)(layer(x)))


@idiom("LayerScale", "Touvron et al., Going Deeper with Image Transformers (CaiT), ICCV 2021, eq. 4")
def layer_scale(x: Formula) -> Formula:
    """gamma Conv(x)"""
    return scale(maybe(norm)(layer(x)))


@idiom("BNConv", "He et al., Identity Mappings in Deep Residual Networks, ECCV 2016: the order of pre-activation")
def norm_conv(x: Formula) -> Formula:
    """Conv(BN(x))"""
    return (conv | depthwise | channelwise | pointwise)(norm(x))


@idiom("BNLinear", BATCH_NORM)
def norm_linear(x: Formula) -> Formula:
    """Linear(BN(x))"""
    return linear(norm(x))


LAYERS = (conv_norm, layer_scale, norm_conv, norm_linear)
