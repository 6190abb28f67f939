"""Operators that are not affine, but whose output's shape is known: so that the next region knows its channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repcompile.rules.ruleset import RuleSet, shape_rule
from repcompile.shapes import Shape, unknown


@shape_rule(
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.ELU,
    ),
    *(nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.Softmax, nn.Softplus, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d),
    *(
        F.relu,
        F.relu6,
        F.gelu,
        F.silu,
        F.mish,
        F.sigmoid,
        F.tanh,
        F.hardswish,
        F.hardsigmoid,
        F.hardtanh,
        F.elu,
        F.selu,
    ),
    *(F.celu, F.leaky_relu, F.prelu, F.softmax, F.softplus, F.layer_norm, F.group_norm, F.normalize),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.softmax, torch.clamp),
    *("relu", "sigmoid", "tanh", "exp", "softmax", "clamp", "square", "abs", "sqrt", "rsqrt"),
    keeps_rank=True,
)
def same(shape: Shape | None, *rest: Any, **options: Any) -> Shape | None:
    return shape


@shape_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d, keeps_rank=True)
def resized(shape: Shape | None, *rest: Any, owner: str = "", **options: Any) -> Shape | None:
    """Batch and channels stay; the positions are somebody else's business."""
    return shape and (*shape[:2], *(unknown(owner, axis) for axis in range(2, len(shape))))


SHAPE = RuleSet((same, resized)).trusting()
