"""Laws of the algebra, against torch's operators in float64."""

from __future__ import annotations

import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st
from torch import Tensor

from repcompile.affine import Affine, Axis, Uniform
from repcompile.errors import Inexact
from repcompile.fold import apply
from tests.strategies import affines, axes, images_for, tensors


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert (got - expected).abs().max().item() <= 1e-11 * scale


@given(outer=st.data())
def test_composition_is_application(outer: st.DataObject) -> None:
    first = outer.draw(affines())
    second = outer.draw(affines(len(first.axes), c_in=first.c_out))
    try:
        both = second @ first
    except Inexact:
        event("refused")
        return
    event(f"composed, border {both.has_border}")
    image = outer.draw(images_for(first))
    middle = apply(first, image)
    assume(all(axis.output_size(n) > 0 for axis, n in zip(second.axes, middle.shape[2:], strict=False)))
    assert_same(apply(both, image), apply(second, middle))


@given(data=st.data())
def test_sum_is_application(data: st.DataObject) -> None:
    left = data.draw(affines())
    like = tuple(
        Axis(a.size, a.stride, a.dilation, a.lo + s, a.hi - s) for a in left.axes for s in [data.draw(st.integers(-1, 1))]
    )
    right = data.draw(affines(len(left.axes), left.c_in, left.c_out, like))
    try:
        both = left + right
    except Inexact:
        event("refused")
        return
    event(f"added, border {both.has_border}")
    image = data.draw(images_for(left))
    assert_same(apply(both, image), apply(left, image) + apply(right, image))


if __name__ == "__main__":
    pass
