"""Arithmetic between maps, numbers and per-channel constants; operators that do nothing in eval mode."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.shapes import Shape
from repcompile.values import Constant, computed, filled

Operand = Affine | Uniform | Constant | int | float


@affine_rule(operator.add, torch.add, "add", "__add__", "__radd__", elementwise=True, dtype="promoted", word="shift")
def add(x: Operand, y: Operand, alpha: float = 1, shape: Shape | None = None) -> Map:
    """x + alpha y"""
    right = y if alpha == 1 else _times(y, alpha, shape)
    return _plus(x, right, shape)


@affine_rule(operator.sub, torch.sub, "sub", elementwise=True, dtype="promoted", subtracts=True, word="shift")
def sub(x: Operand, y: Operand, alpha: float = 1, shape: Shape | None = None) -> Map:
    """x - alpha y"""
    return _plus(x, _times(y, -alpha, shape), shape)


@affine_rule(
    *(operator.mul, torch.mul, "mul", "__mul__", "__rmul__", torch.multiply, "multiply"),
    elementwise=True,
    dtype="promoted",
    word="scale",
)
def mul(x: Operand, y: Operand, shape: Shape | None = None) -> Map:
    """A number or one number per channel times a map."""
    if isinstance(x, Affine | Uniform) and isinstance(y, Affine | Uniform):
        raise Inexact("a product of two values that depend on the input is not affine")
    return _times(x, y, shape)


@affine_rule(operator.truediv, torch.div, "div", torch.true_divide, elementwise=True, dtype="made", word="scale")
def div(x: Operand, y: Operand, *, rounding_mode: str | None = None, shape: Shape | None = None) -> Map:
    """A map divided by a number or by one number per channel."""
    if isinstance(y, Affine | Uniform):
        raise Inexact("a quotient by a value that depends on the input is not affine")
    if rounding_mode is not None:
        raise Inexact("a rounded quotient is not affine")
    divisor = _fitting(y, shape)
    if isinstance(divisor, Constant):
        return _times(x, computed(torch.reciprocal, divisor, shape=divisor.shape), shape)
    if divisor == 0:
        raise Inexact("division by zero")
    return _times(x, 1.0 / divisor, shape)  # type: ignore[operator]


@affine_rule(torch.addcmul, "addcmul", elementwise=True, dtype="promoted")
def addcmul(x: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1, shape: Shape | None = None) -> Map:
    """x + value tensor1 tensor2"""
    return _plus(x, _times(_product(tensor1, tensor2, shape), value, shape), shape)


def _product(y: Operand, z: Operand, shape: Shape | None) -> Any:
    return (
        mul(y, z, shape) if isinstance(y, Affine | Uniform) or isinstance(z, Affine | Uniform) else _times(y, z, shape)
    )


@affine_rule(operator.neg, torch.neg, "neg", torch.negative, dtype="same")
def neg(x: Map) -> Map:
    return -x


@affine_rule(nn.Identity, late=True, dtype="same")
def identity(x: Map, module: nn.Module) -> Map:
    return x


@affine_rule(
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout), dtype="same"
)  # drop-path is plain arithmetic that tracing resolves
def dropout_module(x: Map, m: nn.Dropout) -> Map:
    if m.training:
        raise Inexact("dropout in training mode is random")
    return x


@affine_rule(
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), dtype="same"
)
def dropout(x: Map, p: float = 0.5, training: bool = True, inplace: bool = False) -> Map:
    if training and p != 0:
        raise Inexact("dropout in training mode is random")
    return x


@affine_rule("contiguous", "clone", torch.clone, dtype="same")
def same_values(x: Map, **options: Any) -> Map:
    return x


def _plus(x: Operand, y: Operand, shape: Shape | None) -> Map:
    result = _fitting(x, shape) + _fitting(y, shape)  # type: ignore[operator]
    return _map(result)


def _times(x: Operand, y: Operand, shape: Shape | None) -> Any:
    if isinstance(x, Constant) and isinstance(y, Constant | int | float):
        y = y if isinstance(y, Constant) else filled(y, 1, ())
        return computed(torch.mul, x, y, shape=tuple(torch.broadcast_shapes(x.shape, y.shape)))
    return _fitting(x, shape) * _fitting(y, shape)  # type: ignore[operator]


def _map(result: Any) -> Map:
    if not isinstance(result, Affine | Uniform):
        raise Inexact("none of the operands depends on an input")
    return result


def _fitting(operand: Operand, shape: Shape | None) -> Operand:
    """A constant without the leading axes of size 1 that broadcasting would drop, if the map's rank allows it."""
    if not isinstance(operand, Operand):
        raise Inexact(f"arithmetic with a {type(operand).__name__}")
    if not isinstance(operand, Constant) or shape is None or len(operand.shape) > len(shape):
        return operand
    wide = next((i for i, size in enumerate(operand.shape) if size != 1), len(operand.shape))
    return Constant(operand.shape[wide:], (operand,), lambda value: value)


POINTWISE = RuleSet((add, sub, mul, div, addcmul, neg, identity, dropout_module, dropout, same_values)).trusting()
