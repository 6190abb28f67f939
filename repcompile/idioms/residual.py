"""Depthwise convolutions beside an identity or beside smaller ones."""

from __future__ import annotations

from repcompile.idioms.language import Formula, depthwise, idiom, many, norm


@idiom("CPE", "Chu et al., Conditional Positional Encodings for Vision Transformers, ICLR 2023, sec. 3.3")
def cpe(x: Formula) -> Formula:
    """DWConv(x) + x"""
    return depthwise(x) + x


@idiom("LargeKernel", "Ding et al., Scaling Up Your Kernels to 31x31 (RepLKNet), CVPR 2022, sec. 3.2")
def large_kernel(x: Formula) -> Formula:
    """BN(DWConv_large(x)) + BN(DWConv_small(x))"""
    return norm(depthwise.at_least(7)(x)) + norm(depthwise.of(3, 5)(x))


@idiom("LargeKernel", "the same, with 5x5 and 3x3")
def smaller_large_kernel(x: Formula) -> Formula:
    """BN(DWConv5x5(x)) + BN(DWConv3x3(x))"""
    return norm(depthwise.of(5)(x)) + norm(depthwise.of(3)(x))


@idiom("DilatedReparam", "Ding et al., UniRepLKNet, CVPR 2024, eq. 1")
def dilated(x: Formula) -> Formula:
    """BN(DWConv_large(x)) + sum_i BN(DWConv_i(x)), small and dilated"""
    return norm(depthwise.at_least(9)(x)) + many(norm(depthwise.of(3, 5, 7)(x)), 2)


RESIDUAL = (cpe, large_kernel, smaller_large_kernel, dilated)
