"""Operators that are not affine, but whose output's shape is known: so that the next region knows its channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repcompile.rules.ruleset import Rule, RuleSet, shape_rule
from repcompile.shapes import Shape, unknown


@shape_rule(
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU),
    *(nn.Softplus, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d),
    *(F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.elu, F.selu, F.celu, F.leaky_relu, F.prelu, F.softplus),
    *(F.layer_norm, F.group_norm),
    keeps_rank=True,
    dtype="floating",
)
def activation(shape: Shape | None, *rest: Any, **options: Any) -> Shape | None:
    return shape


@shape_rule(
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, F.relu, F.relu6, F.hardtanh, torch.relu, torch.abs, torch.square),
    *("relu", "abs", "square"),
    keeps_rank=True,
    dtype="same",
)
def cut(shape: Shape | None, *rest: Any, **options: Any) -> Shape | None:
    return shape


@shape_rule(
    *(nn.Sigmoid, nn.Tanh, nn.Softmax, F.sigmoid, F.tanh, F.softmax),
    *(torch.sigmoid, torch.tanh, torch.exp, torch.sqrt, torch.rsqrt, torch.softmax),
    *("sigmoid", "tanh", "exp", "sqrt", "rsqrt", "softmax"),
    keeps_rank=True,
    dtype="made",
)
def function(shape: Shape | None, *rest: Any, **options: Any) -> Shape | None:
    return shape


@shape_rule(torch.clamp, "clamp", F.normalize, keeps_rank=True, dtype="promoted")
def clamp(shape: Shape | None, *rest: Any, **options: Any) -> Shape | None:
    return shape


def _pool(n_axes: int) -> Rule:
    module = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[n_axes - 1]

    def resized(shape: Shape | None, *rest: Any, owner: str = "", **options: Any) -> Shape | None:
        """What is in front of the positions stays; these are somebody else's business."""
        if shape is None or len(shape) not in (n_axes + 1, n_axes + 2):
            return None
        first = len(shape) - n_axes
        return (*shape[:first], *(unknown(owner, axis) for axis in range(first, len(shape))))

    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n_axes - 1]
    return shape_rule(module, function, keeps_rank=True, dtype="same")(resized)


SHAPE = RuleSet((activation, cut, function, clamp, *map(_pool, (1, 2, 3)))).trusting()
