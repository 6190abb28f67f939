"""Fully connected layers: over the last axis, whatever stands in front of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.values import Weight


@affine_rule(nn.Linear, late=True, strict=True, word="linear")
def linear_module(x: Map, m: nn.Linear) -> Map:
    return Affine.linear(m.weight, m.bias) @ x


@affine_rule(F.linear, strict=True, dtype="common", word="linear")
def linear(x: Map, weight: Weight, bias: Weight | None = None) -> Map:
    """y = weight x + bias"""
    return Affine.linear(weight, bias) @ x


LINEAR = RuleSet((linear_module, linear)).trusting()
