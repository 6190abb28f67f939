"""Laws of the algebra, and its refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile.affine import Affine, Map, Uniform
from repcompile.axis import Axis
from repcompile.errors import Inexact
from repcompile.fold import apply
from repcompile.testing.strategies import affines, axes, diagonals, images_for, leaves, selections, upward_axes, whole
from repcompile.values import as_constant
from tests.strategies import assert_equal, direct, law, summands

# -- composition -------------------------------------------------------------------------------------------------------


@law(least=0.25, data=st.data())
def test_composition_is_application(data: st.DataObject) -> None:
    inner = data.draw(affines())
    outer = data.draw(affines(len(inner.axes), c_in=inner.c_out))
    both = outer @ inner
    image = data.draw(images_for(inner, outer))
    assert_equal(apply(both, image), apply(outer, apply(inner, image)))


@law(least=0.1, data=st.data())
def test_composition_is_associative(data: st.DataObject) -> None:
    a = data.draw(affines())
    b = data.draw(affines(len(a.axes), c_in=a.c_out))
    c = data.draw(affines(len(a.axes), c_in=b.c_out))
    left, right = (c @ b) @ a, c @ (b @ a)
    assert left.axes == right.axes
    assert left.groups == right.groups
    image = data.draw(images_for(a, b, c))
    assert_equal(apply(left, image), apply(right, image))


@law(least=1.0, data=st.data())
def test_identity_is_neutral(data: st.DataObject) -> None:
    x = data.draw(affines())
    n = len(x.axes)
    behind, before = Affine.identity(x.c_out, n) @ x, x @ Affine.identity(x.c_in, n)
    assert behind.axes == before.axes == x.axes
    assert behind.groups == before.groups == x.groups
    image = data.draw(images_for(x))
    assert_equal(apply(behind, image), apply(x, image))
    assert_equal(apply(before, image), apply(x, image))


@law(least=1.0, data=st.data())
def test_a_pointwise_map_composes_behind_everything(data: st.DataObject) -> None:
    inner = data.draw(affines())
    outer = data.draw(leaves(len(inner.axes), inner.c_out, like=[Axis()] * len(inner.axes)))
    both = outer @ inner
    image = data.draw(images_for(inner, outer))
    assert_equal(apply(both, image), apply(outer, apply(inner, image)))


@law(least=1.0, data=st.data())
def test_a_shift_in_front_of_zero_padding_is_exact_up_to_the_corners(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    conv = data.draw(leaves(n, like=[Axis(3, data.draw(st.integers(1, 2)), 1, 1, data.draw(st.integers(0, 2)))] * n))
    norm = Affine.diagonal(conv.c_in, n, data.draw(whole(conv.c_in)), torch.ones(conv.c_in))
    both = conv @ norm
    assert both.has_border == (conv.mode == "zeros")
    image = data.draw(images_for(norm, conv))
    gain, shift = (apply(norm, torch.full_like(image[:1], k)) for k in (1.0, 0.0))
    assert_equal(apply(both, image), apply(conv, image * (gain - shift) + shift))


@law(least=0.1, data=st.data())
def test_border_terms_compose_and_add(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 2))
    conv = replace(data.draw(leaves(n, 2, 4, like=[Axis(2, 1, 1, 1, 1)] * n)), mode="zeros")
    left = conv @ Affine.diagonal(2, n, None, data.draw(whole(2)))
    right = data.draw(summands(left))
    like = [Axis(data.draw(st.integers(1, 3)))] * n if data.draw(st.booleans()) else None
    outer = replace(data.draw(leaves(n, c_in=4, like=like)), mode="zeros")
    both = outer @ (left + right)
    image = data.draw(images_for(left + right, outer))
    assert_equal(apply(both, image), apply(outer, apply(left, image) + apply(right, image)))


# -- sums --------------------------------------------------------------------------------------------------------------


@law(least=0.5, data=st.data())
def test_sum_is_application(data: st.DataObject) -> None:
    left = data.draw(affines())
    right = data.draw(summands(left))
    both = left + right
    image = data.draw(images_for(both))
    expected = apply(left, image) + apply(right, image)
    assert_equal(apply(both, image), expected)
    assert_equal(apply(right + left, image), expected)


@law(least=0.3, data=st.data())
def test_addition_is_associative(data: st.DataObject) -> None:
    a = data.draw(affines())
    b, c = data.draw(summands(a)), data.draw(summands(a))
    left, right = (a + b) + c, a + (b + c)
    assert left.groups == right.groups
    image = data.draw(images_for(left))
    assert_equal(apply(left, image), apply(right, image))


@law(least=0.1, data=st.data())
def test_composition_distributes_over_sums_in_front(data: st.DataObject) -> None:
    a = data.draw(affines())
    b = data.draw(summands(a))
    linear = data.draw(leaves(len(a.axes), a.c_out, linear=True))
    together, apart = linear @ (a + b), linear @ a + linear @ b
    image = data.draw(images_for(a + b, linear))
    assert_equal(apply(together, image), apply(apart, image))


@law(least=0.1, data=st.data())
def test_composition_distributes_over_sums_behind(data: st.DataObject) -> None:
    a = data.draw(affines())
    b = data.draw(summands(a))
    inner = data.draw(affines(len(a.axes), c_out=a.c_in))
    together, apart = (a + b) @ inner, a @ inner + b @ inner
    image = data.draw(images_for(inner, a + b))
    assert_equal(apply(together, image), apply(apart, image))


@law(least=1.0, data=st.data())
def test_subtraction_and_negation(data: st.DataObject) -> None:
    x = data.draw(affines())
    image = data.draw(images_for(x))
    y = apply(x, image)
    assert_equal(apply(-x, image), -y)
    assert_equal(apply(x - x, image), torch.zeros_like(y))
    assert_equal(apply(x + -x, image), torch.zeros_like(y))
    assert_equal(apply(2 - x, image), 2 - y)
    assert_equal(apply(x - 2, image), y - 2)


@law(least=1.0, data=st.data())
def test_a_depthwise_map_and_a_skip_stay_depthwise(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    conv = data.draw(leaves(n, 6, 6, like=[Axis(3, 1, data.draw(st.integers(1, 2)))] * n))
    depthwise = Affine.conv(torch.ones(6, 1, *[3] * n, dtype=torch.float64), padding=1, groups=6)
    assert (depthwise + Affine.identity(6, n)).groups == 6
    assert (conv + conv).groups == conv.groups
    assert (Affine.identity(6, n) @ conv).groups == conv.groups


# -- arithmetic with numbers and tensors -------------------------------------------------------------------------------


@law(least=1.0, data=st.data(), number=st.integers(-3, 3))
def test_numbers_scale_and_shift(data: st.DataObject, number: int) -> None:
    x = data.draw(affines())
    image = data.draw(images_for(x))
    y = apply(x, image)
    assert_equal(apply(number * x, image), number * y)
    assert_equal(apply(x * float(number), image), number * y)
    assert_equal(apply(x + number, image), y + number)
    assert_equal(apply(number + x, image), y + number)


@given(data=st.data())
def test_a_tensor_is_accepted_if_torch_broadcasts_it_along_the_channels(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 2))
    x = data.draw(affines(n, c_out=4))
    rank = data.draw(st.integers(0, n + 2))
    shape = [data.draw(st.sampled_from([1, 1, 4])) for _ in range(rank)]
    tensor = data.draw(whole(*shape))
    image = data.draw(images_for(x))
    image = image if n or image.dim() > 1 else image[None]
    y = apply(x, image)
    channel = rank - 1 - n
    per_channel = all(size == 1 or place == channel for place, size in enumerate(shape))
    event(f"per channel: {per_channel}")
    if per_channel and (rank <= n + 1 or n > 0):
        assert_equal(apply(tensor * x, image), tensor * y)
        assert_equal(apply(x + tensor, image), y + tensor)
        assert_equal(apply(tensor - x, image), tensor - y)
        assert_equal(apply(x - as_constant(tensor), image), y - tensor)
    elif not per_channel:
        with pytest.raises(Inexact, match="not one number for each of 4 channels"):
            _ = tensor * x
        with pytest.raises(Inexact, match="not one number for each of 4 channels"):
            _ = x + tensor


@pytest.mark.parametrize("n", [1, 2])
def test_one_number_may_have_an_axis_for_the_batch(n: int) -> None:
    x, image = Affine.identity(4, n), torch.arange(4.0).double().reshape(1, 4, *[1] * n)
    assert_equal(apply(x + torch.full([1] * (n + 2), 3.0), image), image + 3)
    with pytest.raises(Inexact, match="is not one number for each of 4 channels"):
        _ = Affine.identity(4, 0) + torch.ones(1, 1)  # which would give a vector an axis more


def test_a_tensor_of_one_axis_multiplies_the_last_axis_also_when_sizes_agree() -> None:
    gain = torch.arange(4.0)
    assert_equal(apply(gain * Affine.identity(4, 0), torch.ones(4).double()), gain.double())
    with pytest.raises(Inexact, match=r"shape \(4,\) is not one number for each of 4 channels before 2 axes"):
        _ = gain * Affine.identity(4, 2)
    with pytest.raises(Inexact, match=r"shape \(4, 1\) is not one number for each of 4 channels before 2 axes"):
        _ = Affine.identity(4, 2) + gain[:, None]


def test_what_a_map_does_with_positions() -> None:
    """A matrix does nothing with them; a side without padding has no value around it, and hinders none elsewhere."""
    matrix = Affine.linear(torch.ones(4, 4))
    assert (matrix.crops_and_pads, matrix.widens, matrix.spreads) == (False, False, False)
    wide = torch.ones(5, 1, 3, 1)
    assert Affine.conv(wide, padding=[1, 0]).reads_less
    assert not Affine.conv(wide, padding=[1, -1]).reads_less
    x = Affine.conv(wide, padding=[1, 0]) @ Affine.diagonal(1, 2, 2.0, 1.0)
    assert x.has_border
    linear = x.linear_part
    assert (linear.has_bias, linear.has_border) == (False, False)
    image = torch.arange(12.0).double().reshape(1, 1, 4, 3)
    assert_equal(apply(linear, image), apply(x, image) - apply(x, 0 * image))


# -- refusals ----------------------------------------------------------------------------------------------------------


def conv(size: int = 3, padding: Any = 1, mode: str = "zeros", **options: Any) -> Affine:
    return Affine.conv(torch.ones(2, 2, size, size), torch.ones(2), padding=padding, mode=mode, **options)


def up() -> Affine:
    return Affine.conv_transpose(torch.ones(2, 2, 2, 2), stride=2)


SHIFT = Affine.diagonal(2, 2, None, 1.0)


@pytest.mark.parametrize(
    ("combine", "reason"),
    [
        (lambda: conv() @ conv(), "zero padding between two operators that mix positions"),
        (lambda: conv() @ conv(1, -1), "zero padding between two operators that mix positions"),
        (lambda: conv() @ conv(1, 1), "a bias meets zero padding behind an operator with a window of its own"),
        (lambda: conv() @ conv(mode="reflect"), "padding mode 'zeros' meets 'reflect'"),
        (lambda: conv(mode="reflect") @ conv(padding=0), "padding mode 'reflect' behind an operator with a window"),
        (lambda: conv(mode="circular") @ conv(1, 0, stride=2), "padding mode 'circular' behind an operator with a w"),
        (lambda: conv() + conv(mode="circular"), "padding mode 'zeros' does not add to 'circular'"),
        (lambda: conv() + conv(stride=2), "the summands differ in stride or output size"),
        (lambda: conv() + conv(padding=0), "the summands differ in stride or output size"),
        (lambda: conv() + Affine.identity(3, 2), "cannot be added"),
        (lambda: conv() + Affine.identity(2, 1), "cannot be added"),
        (lambda: conv() @ Affine.identity(3, 2), "a map of 2 to 2 channels with a window of 3x3 cannot read the outp"),
        (lambda: up() @ conv(), "^a transposed convolution behind an operator with a window or a stride$"),
        (lambda: conv(1, 0, stride=2) @ up(), "^a stride behind a transposed convolution$"),
        (lambda: conv() @ Affine.identity(2, 1), "cannot read the output of a map of 2 to 2 channels"),
        (lambda: conv().spread(1), "a map of 2 to 2 channels with a window of 3x3 mixes positions"),
        (lambda: conv(1, 0, stride=2).spread(1), "mixes positions and keeps its layout"),
        (lambda: conv(padding="full"), "padding 'full' is neither 'same' nor 'valid'"),
        (lambda: Affine.linear(torch.ones(2, 2, dtype=torch.int64)), "dtype torch.int64 cannot be folded"),
        (lambda: Affine.linear(torch.ones(2, 2, dtype=torch.complex64)), "complex64 cannot be folded"),
        (lambda: conv().gathered([1, 0], 2), "a map of 2 to 2 channels with a window of 3x3 mixes channels"),
        (lambda: Affine.select(2, [0, 2], 1), r"channels \(0, 2\) of 2"),
        (lambda: Affine.select(2, [], 1), r"channels \(\) of 2"),
        (lambda: Uniform(2.0).placed(2), "the number of channels is not known here"),
        (lambda: Uniform(2.0, sizes=(None, None, 3, 3)).placed(2), "the number of channels is not known here"),
        (lambda: Uniform(2.0, sizes=(3, 3)).placed(2), "the number of channels is not known here"),
        (lambda: conv() + Uniform(sizes=(1, 5, 3, 3)), "5 channels meet 2"),
        (lambda: Uniform(sizes=(1, 2, 3, 3)) * torch.ones(2, 3, 1), r"shape \(2, 3, 1\) is not one number per channel"),
    ],
)
def test_refusals_say_why(combine: Callable[[], Any], reason: str) -> None:
    with pytest.raises(Inexact, match=reason):
        combine()


def test_what_is_refused_for_its_bias_composes_without() -> None:
    inner = Affine.conv(torch.ones(2, 2, 1, 1, dtype=torch.float64), padding=1)
    image = torch.arange(2 * 2 * 4 * 5).reshape(2, 2, 4, 5).double()
    assert_equal(apply(conv() @ inner, image), apply(conv(), apply(inner, image)))


@given(data=st.data())
def test_a_refused_composition_is_no_convolution(data: st.DataObject) -> None:
    """Refusing is right: near the border the chain does something else than in the middle, which no kernel does."""
    outer = Affine.conv(data.draw(whole(1, 1, 3)).abs() + 1, padding=1)
    inner = Affine.conv(data.draw(whole(1, 1, 3)).abs() + 1, padding=1)
    with pytest.raises(Inexact):
        _ = outer @ inner
    images = torch.eye(7, dtype=torch.float64)[:, None]
    responses = apply(outer, apply(inner, images))[:, 0]  # row i: the answer to an impulse at i
    assert not torch.equal(responses[0, :3], responses[3, 3:6])


# -- transposed convolutions, channels, windows ------------------------------------------------------------------------


@given(data=st.data(), n=st.integers(1, 3))
def test_a_transposed_convolution_is_that_of_torch(data: st.DataObject, n: int) -> None:
    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(n)]

    groups = data.draw(st.sampled_from([1, 2]))
    sizes, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    padding = [data.draw(st.integers(0, d * (k - 1))) for k, d in zip(sizes, dilations, strict=True)]
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
    weight, bias = data.draw(whole(4, 3, *sizes)), data.draw(st.none() | whole(3 * groups))
    x = Affine.conv_transpose(weight, bias, strides, padding, extra, groups, dilations)
    image = data.draw(whole(2, 4, *each(2, 5)))
    assume(all(axis.output_size(size) > 0 for axis, size in zip(x.axes, image.shape[2:], strict=True)))
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    expected = function(image, weight, bias, strides, padding, extra, groups, dilations)
    assert [a.output_size(size) for a, size in zip(x.axes, image.shape[2:], strict=True)] == list(expected.shape[2:])
    assert (x.c_in, x.c_out, x.groups, x.has_bias) == (4, expected.shape[1], groups, bias is not None)
    assert x.pointwise == all(a == Axis() for a in x.axes)
    assert_equal(apply(x, image), expected)
    assert_equal(apply(Affine.conv_transpose(weight), image), function(image, weight))


def test_a_dilation_of_one_tap_is_none() -> None:
    ones = torch.ones(2, 2, 1)
    assert Affine.conv(ones, dilation=2).pointwise
    assert Affine.conv_transpose(ones, dilation=2).pointwise


@given(up=st.integers(1, 3), dilation=st.integers(1, 3), extra=st.integers(0, 4))
def test_what_torch_adds_behind_is_less_than_a_step(up: int, dilation: int, extra: int) -> None:
    x = Affine.conv_transpose(torch.ones(1, 1, 2), stride=up, output_padding=extra, dilation=dilation)
    module = nn.ConvTranspose1d(1, 1, 2, stride=up, output_padding=extra, dilation=dilation)
    accepted = contextlib.nullcontext() if x.ends_evenly else pytest.raises(RuntimeError, match="output padding")
    with accepted:
        module(torch.ones(1, 1, 4))


@law(least=0.9, data=st.data(), n=st.integers(1, 2))
def test_a_transposed_convolution_behind_a_norm(data: st.DataObject, n: int) -> None:
    axis = Axis(data.draw(st.integers(1, 4)), 1, 1, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)), 2)
    outer = data.draw(leaves(n, like=[axis] * n))
    inner = data.draw(leaves(n, c_out=outer.c_in, like=[Axis()] * n))
    image = data.draw(images_for(inner, outer))
    assert_equal(apply(outer @ inner, image), apply(outer, apply(inner, image)))


@law(least=1.0, data=st.data(), n=st.integers(0, 3))
def test_selections_pick_channels(data: st.DataObject, n: int) -> None:
    x = data.draw(selections(6, n))
    image = data.draw(images_for(x))
    assert_equal(apply(x, image), direct(x, image))
    shuffled = Affine.select(8, (1, 0, 3, 2, 5, 4, 7, 6), n)
    assert shuffled.groups == 4


@law(least=0.3, data=st.data())
def test_a_concatenation_is_one_behind_the_other(data: st.DataObject) -> None:
    left = data.draw(affines())
    right = data.draw(summands(left))
    both = Affine.cat([left, right, left])
    image = data.draw(images_for(both))
    a, b = apply(left, image), apply(right, image)
    assert_equal(apply(both, image), torch.cat([a, b, a], -1 - len(left.axes)))
    assert_equal(apply(Affine.cat([left]), image), a)


@law(least=0.5, data=st.data(), n=st.integers(1, 2))
def test_a_map_of_a_fixed_window_is_a_matrix(data: st.DataObject, n: int) -> None:
    x = data.draw(affines(n))
    image = data.draw(images_for(x))
    matrix = x.unrolled(image.shape[2:])
    assert type(matrix.c_in) is type(matrix.c_out) is type(x.weights) is int
    assert_equal(apply(matrix, image.flatten(1)), apply(x, image).flatten(1))


@law(least=1.0, data=st.data(), n=st.integers(0, 2))
def test_a_gathered_diagonal_map_has_the_numbers_of_other_channels(data: st.DataObject, n: int) -> None:
    x, index = data.draw(diagonals(4, 1)), data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    gathered = x.gathered(index, n)
    assert gathered.c_in == gathered.c_out == gathered.groups == len(index)
    image = data.draw(images_for(gathered))
    gain = apply(x, torch.ones(1, 4, 1).double()) - apply(x, torch.zeros(1, 4, 1).double())
    shift = apply(x, torch.zeros(1, 4, 1).double())
    shape = (-1, *[1] * n)
    assert_equal(apply(gathered, image), image * gain[0, index].reshape(shape) + shift[0, index].reshape(shape))


def test_a_diagonal_map_gathered_in_its_own_order_is_the_same() -> None:
    x, image = Affine.diagonal(3, 1, torch.tensor([1.0, 2.0, 3.0]), 0.5), torch.arange(6.0).double().reshape(2, 3, 1, 1)
    assert_equal(apply(x.gathered([0, 1, 2], 2), image), apply(x, image[..., 0])[..., None])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_is_that_of_torch(mode: str) -> None:
    image = torch.arange(2 * 3 * 4 * 5.0).double().reshape(2, 3, 4, 5)
    x = Affine.pad(3, [(1, 2), (3, 0)], mode)
    assert_equal(apply(x, image), F.pad(image, (3, 0, 1, 2), "constant" if mode == "zeros" else mode))


def test_padding_with_a_number_for_each_channel() -> None:
    image, value = torch.ones(1, 2, 3).double(), torch.tensor([5.0, 7.0]).double()
    x = Affine.pad(2, [(2, 1)], value=value)
    expected = torch.cat([value.expand(2, 2).T[None], image, value[None, :, None]], 2)
    assert_equal(apply(x, image), expected)
    behind = x @ Affine.diagonal(2, 1, 2.0, value)
    assert_equal(
        apply(behind, image),
        torch.cat([value.expand(2, 2).T[None], 2 * image + value[:, None], value[None, :, None]], 2),
    )


# -- numbers for every layout ------------------------------------------------------------------------------------------


@law(least=1.0, data=st.data(), gain=st.integers(-3, 3), shift=st.integers(-3, 3))
def test_uniform_is_the_same_in_every_layout(data: st.DataObject, gain: int, shift: int) -> None:
    uniform = Uniform(gain, shift)
    n = data.draw(st.integers(0, 3))
    image = data.draw(images_for(Affine.identity(4, n)))
    image = image if n or image.dim() > 1 else image[None]

    def at(x: Map) -> Tensor:
        assert isinstance(x, Uniform)
        return apply(x.placed(n, 4), image)

    expected = gain * image + shift
    assert_equal(at(uniform), expected)
    assert_equal(at(2 * uniform + 1 - uniform), expected + 1)
    assert_equal(at(3 - uniform), 3 - expected)
    assert_equal(at(-uniform), -expected)
    assert_equal(apply(Uniform(gain, shift, (None, 4, *[None] * n)).placed(n), image), expected)
    assert (gain, shift) == (1, 0) or not uniform.is_identity
    assert Uniform().is_identity


NUMBERS = st.integers(-3, 3)


@given(start=st.tuples(NUMBERS, NUMBERS), steps=st.lists(st.tuples(st.sampled_from("+*-u"), NUMBERS), max_size=6))
def test_magnitudes_are_what_came_out_if_every_number_were_positive(
    start: tuple[int, int], steps: list[tuple[str, int]]
) -> None:
    x: Any = Uniform(start[0], start[1])
    positive: Any = Uniform(abs(start[0]), abs(start[1]))
    for step, number in steps:
        if step == "+":
            x, positive = x + number, positive + abs(number)
        elif step == "*":
            x, positive = x * number, positive * abs(number)
        elif step == "-":
            x, positive = number - x, abs(number) + positive
        else:
            x, positive = x + Uniform(number, -number), positive + Uniform(abs(number), abs(number))
    assert x.magnitudes == (positive.gain, positive.shift)


def test_one_number_in_a_tensor_goes_with_any_layout() -> None:
    for rank in (1, 2, 3, 4):
        x = Uniform(sizes=(4,) * rank) * torch.ones(1)
        assert isinstance(x, Affine)
        assert len(x.axes) == max(rank - 2, 0)


@law(least=0.7, data=st.data())
def test_uniform_composes_and_adds_like_a_map(data: st.DataObject) -> None:
    x = data.draw(affines(c_in=4, c_out=4, like=[Axis(3, 1, 1, 1, 1)] * 2, n_axes=2))
    image = data.draw(images_for(x))
    uniform = Uniform(2.0, -1.0)
    assert_equal(apply(x + uniform, image), apply(x, image) + 2 * image - 1)
    difference = uniform - x
    assert isinstance(difference, Affine)
    assert_equal(apply(difference, image), 2 * image - 1 - apply(x, image))
    assert_equal(apply(x @ uniform, image), apply(x, 2 * image - 1))


@given(place=st.integers(0, 3), data=st.data())
def test_a_tensor_places_a_uniform_map_on_the_axis_along_which_it_varies(place: int, data: st.DataObject) -> None:
    image = data.draw(whole(2, 3, 4, 5))
    tensor = data.draw(whole(image.shape[place], *[1] * (3 - place)))
    x = Uniform(2.0, sizes=tuple(image.shape)) * tensor
    assert isinstance(x, Affine)
    assert (x.c_in, len(x.axes)) == (image.shape[place], 3 - place)
    if place == 1:
        assert_equal(apply(x, image), 2 * image * tensor)
        shifted = Uniform(2.0, sizes=tuple(image.shape)) + tensor
        assert isinstance(shifted, Affine)
        assert_equal(apply(shifted, image), 2 * image + tensor)


@law(least=0.6, data=st.data(), n=st.integers(0, 3))
def test_spread_acts_on_channels_only(data: st.DataObject, n: int) -> None:
    before = data.draw(st.integers(0, 3))
    x = (
        data.draw(diagonals(4, before))
        if data.draw(st.booleans())
        else data.draw(leaves(before, like=[Axis()] * before))
    )
    if not x.pointwise:
        raise Inexact("a border")
    wide = x.spread(n)
    image = data.draw(images_for(wide))
    rows = image if n == 0 else image.movedim(1, -1).reshape(-1, x.c_in)
    y = apply(x.spread(0), rows)
    expected = y if n == 0 else y.reshape(image.shape[0], *image.shape[2:], x.c_out).movedim(-1, 1)
    assert_equal(apply(wide, image), expected)


# -- geometry ----------------------------------------------------------------------------------------------------------


@given(axis=axes() | upward_axes(), size=st.integers(6, 20))
def test_output_size_is_that_of_torch(axis: Axis, size: int) -> None:
    spread = torch.zeros(1, 1, axis.up * (size - 1) + 1)
    image = F.pad(spread, (axis.lo, axis.hi))
    y = F.conv1d(image, torch.zeros(1, 1, axis.size), stride=axis.stride, dilation=axis.dilation)
    assert axis.output_size(size) == y.shape[-1]


@given(axis=axes() | upward_axes(), size=st.integers(1, 20))
def test_the_input_size_is_the_smallest_for_an_output_size(axis: Axis, size: int) -> None:
    least = axis.input_size(size)
    assert axis.output_size(least) >= size
    assert least == 1 or axis.output_size(least - 1) < size


@given(outer=axes() | upward_axes(), inner=axes(), size=st.integers(12, 40))
def test_sizes_and_taps_of_a_chain(outer: Axis, inner: Axis, size: int) -> None:
    assume(outer.up == 1 or inner == Axis())
    both = outer.after(inner)
    assert both.output_size(size) == outer.output_size(inner.output_size(size))
    assume(outer.up == 1)
    reached = {
        inner.stride * (outer.dilation * j - outer.lo) + inner.dilation * i - inner.lo
        for j in range(outer.size)
        for i in range(inner.size)
    }
    window = {both.dilation * j - both.lo for j in range(both.size)}
    assert reached <= window
    assert (min(reached), max(reached)) == (min(window), max(window))


@given(data=st.data(), axis=axes() | upward_axes())
def test_a_union_is_the_smallest_window_with_the_taps_of_both(data: st.DataObject, axis: Axis) -> None:
    left = replace(Affine.conv(torch.ones(1, 1, axis.size)), axes=(axis,))
    other = data.draw(summands(left)).axes[0]
    both = axis.united(other)
    assert (both.stride, both.growth) == (axis.stride, axis.growth)
    taps = {a.dilation * j - a.lo for a in (axis, other) for j in range(a.size)}
    window = {both.dilation * j - both.lo for j in range(both.size)}
    assert taps <= window
    assert (min(taps), max(taps)) == (min(window), max(window))
    assert axis.united(axis) == axis


@given(size=st.integers(1, 6), dilation=st.integers(1, 3))
def test_same_padding_is_that_of_torch(size: int, dilation: int) -> None:
    weight = torch.arange(1.0, size + 1).double().reshape(1, 1, size)
    image = torch.arange(1.0, 12.0).double().reshape(1, 1, -1)
    x = Affine.conv(weight, padding="same", dilation=dilation)
    assert_equal(apply(x, image), F.conv1d(image, weight, padding="same", dilation=dilation))


class CountingOperators(TorchDispatchMode):
    """Counts the torch operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_geometry_runs_no_torch_operator() -> None:
    weight, bias, gain = torch.ones(4, 4, 3, 3), torch.ones(4), torch.ones(4, 1, 1)
    with CountingOperators() as operators:
        x = Affine.identity(4, 2)
        for _ in range(100):
            x = Affine.conv(weight, bias) @ (gain * x + gain)
            x = -x + 2 * x - 0.5
        assert x.axes == (Axis(201), Axis(201))
        assert operators.count == 0
        _ = weight + weight
        assert operators.count == 1  # and it does count


def test_maps_are_compared_by_identity() -> None:
    x: Tensor = torch.ones(2, 2)
    assert Affine.linear(x) != Affine.linear(x)
    assert len({Affine.linear(x), Affine.linear(x)}) == 2
