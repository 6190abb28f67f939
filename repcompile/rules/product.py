"""Products with constant matrices that are a Linear or a 1x1 convolution."""

from __future__ import annotations

import operator
from typing import Any

import torch

from repcompile.affine import Affine, Map, Uniform
from repcompile.errors import Inexact
from repcompile.rules.ruleset import RuleSet, affine_rule
from repcompile.shapes import Shape
from repcompile.values import Constant, computed


@affine_rule(operator.matmul, torch.matmul, torch.mm, "matmul", "mm", "__matmul__", dtype="common")
def matmul(x: Any, y: Any, shape: Shape | None = None) -> Map:
    """x W acts on the last axis, W x on the one before it, which has to be the channels: (batch, channels, length)."""
    if isinstance(x, Affine | Uniform) and isinstance(y, Constant):
        return Affine.linear(_transposed(_matrix(y))) @ x
    if isinstance(x, Constant) and isinstance(y, Affine | Uniform):
        if shape is None:
            raise Inexact("the rank of the input is not known here; example_inputs may tell")
        if len(shape) != 3:
            raise Inexact("a matrix times another axis than the channels")
        rows, columns = _matrix(x).shape
        return Affine.conv(computed(lambda w: w[..., None], x, shape=(rows, columns, 1))) @ y
    raise Inexact("a product of two values that depend on the input is not affine")


@affine_rule(torch.einsum, dtype="common")
def einsum(equation: Any, *operands: Any, shape: Shape | None = None) -> Map:
    """One letter of the image's, along one axis, exchanged for one of a constant matrix's: 'bchw,oc->bohw'."""
    if not isinstance(equation, str) or "." in equation or equation.count(",") != 1 or "->" not in equation:
        raise Inexact("an einsum of another form than 'image,matrix->image'")
    flat = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    inputs, result = equation.replace(" ", "").split("->")
    pairs = dict(zip(inputs.split(","), flat, strict=True))
    image = next((w for w, value in pairs.items() if isinstance(value, Affine | Uniform)), None)
    matrix = next((w for w, value in pairs.items() if isinstance(value, Constant)), None)
    if image is None or matrix is None or len(matrix) != 2:
        raise Inexact("an einsum of another form than 'image,matrix->image'")
    return _exchanged(image, matrix, result, pairs[image], pairs[matrix])


def _exchanged(image: str, matrix: str, result: str, x: Map, weight: Constant) -> Map:
    old = [letter for letter in matrix if letter in image and letter not in result]
    new = [letter for letter in matrix if letter not in image and letter in result]
    if len(old) != 1 or len(new) != 1 or image.replace(old[0], new[0]) != result or len(set(image)) < len(image):
        raise Inexact("an einsum that does more than exchange the channels")
    n_axes = len(image) - 1 - image.index(old[0])
    if n_axes not in (0, len(image) - 2):
        raise Inexact("an einsum over another axis than the channels")
    if weight.shape[matrix.index(old[0])] == 1 and not isinstance(x, Affine):
        raise Inexact("an einsum that broadcasts its matrix")
    turned = weight if matrix == new[0] + old[0] else _transposed(weight)
    kernel = computed(lambda w: w.reshape(*w.shape, *[1] * n_axes), turned, shape=(*turned.shape, *[1] * n_axes))
    return Affine.conv(kernel) @ x


def _matrix(weight: Constant) -> Constant:
    if len(weight.shape) != 2:
        raise Inexact(f"a product with a constant of shape {weight.shape}, not a matrix")
    return weight


def _transposed(weight: Constant) -> Constant:
    rows, columns = weight.shape
    return computed(lambda w: w.T, weight, shape=(columns, rows))


PRODUCT = RuleSet((matmul, einsum)).trusting()
