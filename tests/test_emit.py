"""The module that is emitted computes the map, in the right dtype, on the right device, with the right gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import compile_model
from repcompile.affine import Affine
from repcompile.axis import Axis
from repcompile.emit import cast, emit
from repcompile.errors import Inexact
from repcompile.fold import apply, fold
from repcompile.modules import BorderConv, ChannelAffine, ValuePad
from repcompile.testing.strategies import images_for, leaves, whole
from tests.strategies import assert_equal, expressions, window
from tests.test_hostile import Net


def assert_computes(module: nn.Module, x: Affine, image: Tensor) -> None:
    """To the last bit; a value outside comes from a division."""
    if any(isinstance(part, ValuePad) for part in module.modules()):
        torch.testing.assert_close(module(image), apply(x, image), rtol=1e-10, atol=1e-10)
    else:
        assert_equal(module(image), apply(x, image))


def emitted(x: Affine) -> nn.Module:
    """Of maps on inputs that are spread out, torch has only some."""
    try:
        return emit(x, fold(x))
    except Inexact:
        assume(all(axis.up == 1 for axis in x.axes))
        raise


@given(data=st.data(), n=st.integers(1, 3), bordered=st.booleans())
def test_transposed_convolutions(data: st.DataObject, n: int, bordered: bool) -> None:
    axes = [data.draw(_upwards()) for _ in range(n)]
    x = replace(data.draw(leaves(n, 4, 6, like=[Axis(a.size) for a in axes])), axes=tuple(axes), mode="zeros")
    x = x if not bordered else x @ Affine.diagonal(4, n, None, data.draw(whole(4)))
    image = data.draw(images_for(x))
    module = emitted(x)
    event(type(module).__name__)
    with torch.no_grad():
        assert_equal(module(image), apply(x, image))


@st.composite
def _upwards(draw: st.DrawFn) -> Axis:
    size, up = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    lo = draw(st.integers(0, size - 1))
    hi = draw(st.integers(0, size - 1) if draw(st.booleans()) else st.integers(lo, min(lo + up, size) - 1))
    return Axis(size, 1, 1, lo, hi, up)


@given(data=st.data())
def test_the_module_computes_the_map(data: st.DataObject) -> None:
    x = data.draw(expressions())
    module = emitted(x)
    event(type(module).__name__)
    image = data.draw(images_for(x))
    with torch.no_grad():
        assert_computes(module, x, image)
        assert_computes(module, x, image)  # what it remembers is right too


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_a_value_outside_is_cheaper_than_a_border_map_where_the_input_is_small(
    n: int, groups: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(n)
    gain, shift = torch.rand(2, generator=generator).double() + 0.5, torch.randn(2, generator=generator).double()
    kernel = torch.randn(12, 2 // groups, *[3] * n, dtype=torch.float64, generator=generator)
    conv = Affine.conv(kernel, torch.ones(12) if biased else None, 1, [(1, 2)] * n, groups=groups)
    x = conv @ Affine.diagonal(2, n, gain, shift)
    module = emitted(x)
    assert isinstance(module, nn.Sequential)
    assert isinstance(module[0], ValuePad)
    for size in (4, 7):
        image = torch.randn(2, 2, *[size] * n, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(module(image), apply(x, image), rtol=0, atol=1e-12)
    again = Affine.pad(2, [(1, 2)] * n, value=next(module.parameters()).detach())
    torch.testing.assert_close(apply(again, image), module[0](image), rtol=0, atol=1e-12)


def test_a_border_term_that_no_value_outside_explains_is_a_map() -> None:
    kernel, border = torch.ones(12, 1, 3).double(), torch.arange(36.0).reshape(12, 1, 3).double()
    x = Affine.conv(kernel, padding=1, border=border)
    module, image = emitted(x), torch.ones(1, 1, 5).double()
    assert isinstance(module, BorderConv)
    assert_equal(module(image), apply(x, image))


@given(data=st.data())
def test_casting_keeps_the_function(data: st.DataObject) -> None:
    x = data.draw(expressions())
    module = cast(emitted(x), (torch.zeros((), dtype=torch.float64),))
    image = data.draw(images_for(x))
    with torch.no_grad():
        assert_computes(module, x, image)


@given(data=st.data())
def test_what_a_map_becomes_is_left_as_it_is(data: st.DataObject) -> None:
    """Its price is that of its operators, also where some of them pad and crop first."""
    x = data.draw(expressions())
    model = Net(lambda m, image: torch.tanh(m.made(torch.tanh(image))), made=emitted(x)).eval()
    for inputs in (None, (data.draw(images_for(x)),)):
        assert not compile_model(model, inputs).plan.chosen


@given(data=st.data())
def test_one_kernel_where_torch_has_one(data: st.DataObject) -> None:
    x = data.draw(leaves())
    assume(not x.has_border and all(axis.up == 1 for axis in x.axes))
    alike = all(axis.lo == axis.hi >= 0 for axis in x.axes)
    expected = ChannelAffine if x.is_diagonal else nn.Linear if not x.axes else nn.modules.conv._ConvNd
    assert isinstance(emitted(x), expected if alike else nn.Sequential)


def test_a_border_term_without_padding_meets_another_padding_mode() -> None:
    """A shift, zero padding, and a crop of all of it: a map that reads nothing outside and still has a border term."""
    shift = Affine.diagonal(2, 1, None, torch.tensor([1.0, 2.0]))
    inside = window(2, [(-1, -1)]) @ (window(2, [(1, 1)]) @ shift)
    assert inside.has_border
    ones = torch.ones(2, 2, 3, dtype=torch.float64)
    for pads in ([(1, 1)], [(2, 1)]):
        x = Affine.conv(ones, None, padding=pads, mode="replicate") @ inside
        image = torch.arange(10.0).double().reshape(1, 2, 5)
        with torch.no_grad():
            assert_equal(emitted(x)(image), apply(x, image))


@pytest.mark.parametrize(
    ("pads", "mode", "expected"),
    [
        ([(-1, -1), (1, 1)], "zeros", nn.ConvTranspose2d),
        ([(-1, -1), (1, 1)], "replicate", nn.Sequential),
        ([(-1, -1), (2, 1)], "zeros", nn.Sequential),
        ([(-1, -1), (3, 3)], "zeros", nn.Sequential),
        ([(1, 1), (1, 1)], "zeros", nn.Conv2d),
    ],
)
def test_one_kernel_where_one_axis_is_cropped_and_the_other_padded(pads: Any, mode: str, expected: type) -> None:
    x = Affine.conv(torch.arange(36.0).reshape(2, 2, 3, 3).double(), padding=pads, mode=mode)
    module, image = emitted(x), torch.arange(2 * 36.0).reshape(1, 2, 6, 6).double()
    assert type(module) is expected
    assert_equal(module(image), apply(x, image))


@pytest.mark.parametrize(
    ("pads", "expected"),
    [
        ([(2, 2), (2, 2)], nn.ConvTranspose2d),
        ([(1, 1), (2, 2)], nn.ConvTranspose2d),
        ([(1, 1), (1, 1)], nn.Conv2d),
        ([(0, 0), (2, 2)], nn.Conv2d),
        ([(2, 2), (1, 2)], nn.Sequential),
        ([(3, 3), (2, 2)], nn.Conv2d),
    ],
)
def test_a_transposed_convolution_stays_one_where_it_returns_more(pads: Any, expected: type) -> None:
    kernel, image = torch.arange(36.0).reshape(2, 2, 3, 3).double(), torch.arange(24.0).reshape(1, 2, 3, 4).double()
    plain = Affine.conv(kernel, padding=pads)
    point = Affine.conv_transpose(torch.ones(2, 2, 1, 1))
    for x in (plain @ point, point @ plain, plain + point @ plain):
        module = emitted(x)
        assert type(module) is expected
        assert_equal(module(image), apply(x, image))
    assert type(emitted(plain)) is (nn.Sequential if expected is nn.Sequential else nn.Conv2d)


def test_a_border_term_meets_none_in_a_sum() -> None:
    bordered = Affine.conv(torch.ones(2, 2, 3), padding=1) @ Affine.diagonal(2, 1, None, torch.tensor([1.0, 2.0]))
    image = torch.arange(10.0).double().reshape(1, 2, 5)
    for x in (bordered + Affine.identity(2, 1), Affine.identity(2, 1) + bordered):
        assert x.has_border
        assert fold(x).border is not None
        assert_equal(emitted(x)(image), apply(x, image))


def test_a_border_term_that_nothing_outside_meets_adds_to_the_bias() -> None:
    border, bias = torch.arange(6.0).double().reshape(2, 1, 3), torch.tensor([1.0, -2.0]).double()
    x = Affine.conv(torch.ones(2, 2, 3).double(), bias, border=border)
    module = emitted(x)
    assert isinstance(module, nn.Conv1d)
    assert_equal(module.bias.data, torch.tensor([4.0, 10.0]).double())  # type: ignore[union-attr]


def test_padding_is_one_layer_and_a_crop_another() -> None:
    kernel = torch.ones(2, 2, 3, 3).double()
    for pads, mode, expected in (
        ([(0, 1), (1, 1)], "zeros", [nn.ZeroPad2d]),
        ([(0, 1), (1, 1)], "reflect", [nn.ReflectionPad2d]),
        ([(-1, 1), (1, 1)], "replicate", [nn.ReplicationPad2d, nn.ZeroPad2d]),
        ([(-1, 0), (0, -1)], "zeros", [nn.ZeroPad2d]),
        ([(-1, 0), (1, 0)], "zeros", [nn.ZeroPad2d]),
        ([(-1, 1), (0, 0)], "zeros", [nn.ZeroPad2d, nn.ZeroPad2d]),
    ):
        module: Any = emitted(Affine.conv(kernel, padding=pads, mode=mode))
        layers = list(module[0]) if isinstance(module[0], nn.Sequential) else [module[0]]
        assert [type(layer) for layer in layers] == expected


def test_an_image_may_be_padded_and_cropped_by_more_than_it_is_large() -> None:
    """Which torch's padding by negative numbers cannot."""
    x = Affine.conv(torch.ones(2, 2, 1).double(), padding=[(3, -2)])
    assert_equal(emitted(x)(torch.ones(1, 2, 1).double()), torch.zeros(1, 2, 2).double())


def test_what_torch_has_no_transposed_convolution_for() -> None:
    plain = Affine.conv(torch.ones(2, 2, 3))
    strided, cropped = (replace(plain, axes=(axis,)) for axis in (Axis(3, 2, 1, 1, 1, 2), Axis(3, 1, 1, 2, 0, 2)))
    with pytest.raises(Inexact, match=r"^no transposed convolution of torch's reads its input like that$"):
        emit(strided, fold(strided))
    behind = cropped @ Affine.diagonal(2, 1, None, torch.ones(2))
    with pytest.raises(Inexact, match=r"^a cropped transposed convolution behind a bias$"):
        emit(behind, fold(behind))


def test_grouped_maps_without_axes_become_one_dense_layer() -> None:
    x = Affine.conv(torch.ones(4, 2), groups=2)
    module = emitted(x)
    assert isinstance(module, nn.Linear)
    assert_equal(module.weight.data, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double())


def test_a_border_of_zeros_is_none() -> None:
    x = Affine.conv(torch.ones(2, 2, 3), padding=1) @ Affine.diagonal(2, 1, None, torch.zeros(2))
    assert x.has_border
    assert isinstance(emitted(x), nn.Conv1d)


def test_a_border_that_rounding_left_of_larger_constants_is_none() -> None:
    border = torch.full((2, 1, 3), 1e-15, dtype=torch.float64)
    for constant, expected in ((1.0, nn.Conv1d), (1e-15, BorderConv)):
        bias = torch.full((2,), constant, dtype=torch.float64)
        assert isinstance(emitted(Affine.conv(torch.ones(2, 2, 3), bias, padding=1, border=border)), expected)


# -- cast --------------------------------------------------------------------------------------------------------------


def border_conv() -> nn.Module:
    return emitted(Affine.conv(torch.ones(2, 2, 3), padding=1) @ Affine.diagonal(2, 1, None, torch.ones(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("learns", [True, False])
def test_parameters_take_the_dtype_and_the_requires_grad_of_the_weights(dtype: torch.dtype, learns: bool) -> None:
    module = cast(border_conv(), (torch.zeros(1, dtype=dtype, requires_grad=learns), torch.zeros(1, dtype=dtype)))
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert {p.requires_grad for p in module.parameters()} == {learns}
    assert not any(part.training for part in module.modules())
    assert len(list(module.parameters())) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parameters_move_to_the_device_of_the_weights() -> None:
    weight = torch.ones(2, 2, 3, device="cuda")
    x = Affine.conv(weight, padding=1) @ Affine.diagonal(2, 1, None, 1.0) + Affine.identity(2, 1)
    module = cast(emitted(x), (weight,))
    assert {p.device.type for p in module.parameters()} == {"cuda"}


def test_weights_are_rounded_once() -> None:
    third = torch.tensor([[1.0]], dtype=torch.float64) / 3
    module = cast(emit(Affine.linear(third, third[0]), fold(Affine.linear(third, third[0]))), (torch.zeros(1),))
    assert {p.item() for p in module.parameters()} == {third.float().item()}


def test_the_parameters_are_its_own() -> None:
    weight = torch.ones(2, 2, dtype=torch.float64)
    x = Affine.linear(weight, torch.ones(2, dtype=torch.float64))
    module = cast(emitted(x), (weight,))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_equal(weight, torch.ones(2, 2).double())
    module = emitted(x)
    before = [parameter.data_ptr() for parameter in module.parameters()]
    assert not set(before) & {parameter.data_ptr() for parameter in cast(module, (weight,)).parameters()}


@pytest.mark.parametrize(
    "like",
    [(torch.zeros(1), torch.zeros(1).half()), (torch.zeros(1), torch.zeros(1, device="meta"))],
    ids=["dtypes", "devices"],
)
def test_weights_that_disagree_are_refused(like: tuple[Tensor, ...]) -> None:
    with pytest.raises(Inexact, match="its weights have 2 dtypes or devices"):
        cast(border_conv(), like)


def test_values_that_overflow_are_refused() -> None:
    for weight, bias in ((70000.0, 0.0), (1.0, -70000.0)):
        x = Affine.linear(torch.tensor([[weight]]), torch.tensor([bias]))
        with pytest.raises(Inexact, match=r"folded values do not fit torch\.float16"):
            cast(emitted(x), (torch.zeros(1).half(),))
        cast(emitted(x), (torch.zeros(1).bfloat16(),))


def test_values_below_the_normal_numbers_are_refused() -> None:
    normal = torch.finfo(torch.float16).tiny
    for value, fits in ((normal, True), (normal * (1 - 1e-6), False), (normal / 2, False), (0.0, True)):
        module = emitted(Affine.linear(torch.full((2, 2), value, dtype=torch.float64)))
        if fits:
            cast(module, (torch.zeros(1).half(),))
        else:
            with pytest.raises(Inexact, match=r"^folded values are all below the normal numbers of torch\.float16$"):
                cast(module, (torch.zeros(1).half(),))


def test_large_values_whose_sum_does_not_fit_are_fine() -> None:
    x = Affine.linear(torch.full((4, 4), 60000.0))
    module = cast(emitted(x), (torch.zeros(1).half(),))
    assert isinstance(module, nn.Linear)
    assert module.weight.isfinite().all()


def test_an_infinity_that_was_there_before_stays() -> None:
    x = Affine.linear(torch.tensor([[float("inf"), float("nan")]]))
    module = cast(emitted(x), (torch.zeros(1).half(),))
    assert isinstance(module, nn.Linear)
    assert module.weight.isinf().tolist() == [[True, False]]


def test_a_border_conv_is_emitted_where_a_shift_met_padding() -> None:
    assert isinstance(border_conv(), BorderConv)
