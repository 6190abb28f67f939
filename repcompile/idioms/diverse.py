"""Parallel branches that differ: wide, narrow, one behind another."""

from __future__ import annotations

from repcompile.idioms.language import (
    Formula,
    conv,
    depthwise,
    idiom,
    many,
    maybe,
    norm,
    pad,
    perhaps,
    pick,
    pointwise,
    pool,
)


@idiom("RepVGG", "Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, fig. 4")
def rep_vgg(x: Formula) -> Formula:
    """BN(Conv3x3(x)) + BN(Conv1x1(x)) + BN(x)"""
    return norm(conv(x)) + norm(pointwise(x)) + perhaps(norm(x))


@idiom("QARepVGG", "Chu et al., Make RepVGG Greater Again: A Quantization-aware Approach, AAAI 2024, fig. 3")
def qa_rep_vgg(x: Formula) -> Formula:
    """BN(BN(Conv3x3(x)) + Conv1x1(x) + x), and perhaps an average pool"""
    return norm(norm(conv(x)) + pointwise(x) + perhaps(x) + perhaps(pool(x)))


@idiom("ACNet", "Ding et al., ACNet: Strengthening the Kernel Skeletons, ICCV 2019, eq. 5")
def ac_net(x: Formula) -> Formula:
    """BN(Conv_kxk(x)) + BN(Conv_kx1(x)) + BN(Conv_1xk(x))"""
    tall, wide = (conv.of(*(side(k) for k in range(2, 12))) for side in ("{}x1".format, "1x{}".format))
    square = conv.of(*(f"{k}x{k}" for k in range(2, 12)))
    return norm(square(x)) + norm(tall(maybe(pick)(x))) + norm(wide(maybe(pick)(x)))


@idiom("DBB", "Ding et al., Diverse Branch Block: Building a Convolution as an Inception-like Unit, CVPR 2021, fig. 1")
def diverse_branch_block(x: Formula) -> Formula:
    """BN(Conv1x1(x)) + BN(Conv_kxk(x)) + BN(Conv_kxk(BN(Conv1x1(x)))) + BN(AvgPool(BN(Conv1x1(x))))"""
    inner = maybe(pad)(norm(pointwise(x)))
    return norm(pointwise(x)) + norm(conv(x)) + norm(conv(inner)) + norm(pool(inner))


@idiom("ECBSR", "Zhang et al., Edge-oriented Convolution Block for Real-time Super Resolution, ACM MM 2021, eq. 6")
def edge_oriented(x: Formula) -> Formula:
    """Conv3x3(x) + Conv3x3(Conv1x1(x)) + Sobel_x(Conv1x1(x)) + Sobel_y(Conv1x1(x)) + Laplacian(Conv1x1(x)) + x"""
    inner = maybe(pad)(pointwise(x))
    return conv(x) + conv(inner) + many(depthwise(inner), 3) + perhaps(x)


DIVERSE = (rep_vgg, qa_rep_vgg, ac_net, diverse_branch_block, edge_oriented)
