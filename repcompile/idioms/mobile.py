"""Blocks of networks for phones: sums of batch norms behind depthwise or pointwise convolutions."""

from __future__ import annotations

from repcompile.idioms.language import (
    Formula,
    channelwise,
    conv,
    depthwise,
    idiom,
    many,
    maybe,
    norm,
    perhaps,
    pointwise,
    scale,
)

MOBILE_ONE = "Vasu et al., MobileOne: An Improved One Millisecond Mobile Backbone, CVPR 2023, fig. 3"
FASTVIT = "Vasu et al., FastViT: A Fast Hybrid Vision Transformer, ICCV 2023"


@idiom("MobileOne", MOBILE_ONE, "MobileOne ({branches} branches)")
def mobile_one(x: Formula) -> Formula:
    """sum_k BN(Conv_k(x)) + BN(Conv1x1(x)) + BN(x)"""
    return many(norm(conv(x)), 2) + perhaps(norm(pointwise(x))) + perhaps(norm(x))


@idiom("MobileOne", MOBILE_ONE, "MobileOne ({branches} branches, pointwise)")
def mobile_one_pointwise(x: Formula) -> Formula:
    """sum_k BN(Conv1x1_k(x)) + BN(x)"""
    return many(norm(pointwise(x))) + perhaps(norm(x))


@idiom("MobileOne", MOBILE_ONE, "MobileOne ({branches} branches, depthwise)")
def mobile_one_depthwise(x: Formula) -> Formula:
    """sum_k BN(DWConv_k(x)) + BN(DWConv1x1(x)) + BN(x)"""
    return many(norm(depthwise(x))) + perhaps(norm(channelwise(x))) + perhaps(norm(x))


@idiom("RepMixer", f"{FASTVIT}, eq. 3")
def rep_mixer(x: Formula) -> Formula:
    """DWConv(BN(x)) + x"""
    return maybe(scale)(maybe(norm)((depthwise | channelwise)(norm(x)))) + x


@idiom("RepMixer", f"{FASTVIT}, as published in code")
def rep_mixer_as_published(x: Formula) -> Formula:
    """x + gamma (mixer(x) - norm(x)), where mixer is a MobileOne"""
    mixer = many(norm(maybe(depthwise | channelwise)(x)), 2)
    return x + maybe(scale)(mixer - norm(x))


@idiom("RepViT", "Wang et al., RepViT: Revisiting Mobile CNN From ViT Perspective, CVPR 2024, fig. 3")
def rep_vit(x: Formula) -> Formula:
    """BN(BN(DWConv(x)) + DWConv1x1(x) + x)"""
    return norm(norm(depthwise(x)) + channelwise(x) + x)


MOBILE = (mobile_one, mobile_one_pointwise, mobile_one_depthwise, rep_mixer, rep_mixer_as_published, rep_vit)
