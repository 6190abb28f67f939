"""Batch normalization with running statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile.affine import Affine, Map
from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.shapes import Shape
from repcompile.values import Constant, Weight, computed


@affine_rule(
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    late=True,
    strict=True,
    word="norm",
)
def batch_norm_module(x: Map, m: nn.BatchNorm2d, shape: Shape | None = None) -> Map:
    if m.running_mean is None or m.running_var is None:
        raise Inexact("batch norm without running statistics depends on the batch")
    if m.training:
        raise Inexact("batch norm in training mode depends on the batch")
    rank = 4 if isinstance(m, nn.BatchNorm2d) else 5 if isinstance(m, nn.BatchNorm3d) else _rank(x, shape)
    return _normalized(x, rank, m.running_mean, m.running_var, m.weight, m.bias, m.eps)


@affine_rule(F.batch_norm, strict=True, word="norm")
def batch_norm(
    x: Map,
    mean: Weight | None,
    var: Weight | None,
    weight: Weight | None = None,
    bias: Weight | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    shape: Shape | None = None,
) -> Map:
    """(x - mean) / sqrt(var + eps) weight + bias along axis 1 (Ioffe & Szegedy 2015, alg. 2)."""
    if training or mean is None or var is None:
        raise Inexact("batch norm in training mode depends on the batch")
    return _normalized(x, _rank(x, shape), mean, var, weight, bias, eps)


def fold_norm(
    mean: Weight, var: Weight, weight: Weight | None, bias: Weight | None, eps: float
) -> tuple[Constant, Constant]:
    """Gain and shift of batch normalization in eval mode: y = gain x + shift.

    mean, var, weight, bias: (c,), var >= 0.  eps: same unit as var, > 0.
    Source: Ioffe & Szegedy 2015, alg. 2.
    """
    shape = tuple(var.shape)
    affine = [tensor for tensor in (weight, bias) if tensor is not None]

    def gain(var: Tensor, *scale: Tensor) -> Tensor:
        root = torch.rsqrt(var + eps)
        return scale[0] * root if weight is not None else root

    def shift(mean: Tensor, var: Tensor, *rest: Tensor) -> Tensor:
        centre = -mean * gain(var, *rest)
        return centre + rest[-1] if bias is not None else centre

    def positive(mean: Tensor, *rest: Tensor) -> Tensor:
        return shift(-mean, *rest)

    scales = affine[:1] if weight is not None else []
    centred = computed(shift, mean, var, *affine, shape=shape, positive=positive)
    return computed(gain, var, *scales, shape=shape), centred


def _normalized(
    x: Map, rank: int, mean: Weight, var: Weight, weight: Weight | None, bias: Weight | None, eps: float
) -> Map:
    gain, shift = fold_norm(mean, var, weight, bias, eps)
    return Affine.diagonal(gain.shape[0], rank - 2, gain, shift) @ x


def _rank(x: Map, shape: Shape | None) -> int:
    """The rank of the input: channels are on axis 1, so it decides along which axis the norm runs."""
    if shape is not None:
        return len(shape)
    if isinstance(x, Affine) and x.axes:
        return len(x.axes) + 2
    raise Inexact("the rank of the input decides which axis holds the channels; example_inputs may tell")


NORM = RuleSet((batch_norm_module, batch_norm)).trusting()
