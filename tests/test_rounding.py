"""The bound on rounding is one, in every dtype, and not an empty one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile.affine import Affine, Compose, Concat, Leaf, Select, Sum, Uniform
from repcompile.emit import cast, emit
from repcompile.fold import applied, fold, leaves_of, magnitude
from repcompile.rounding import explained, growth, terms_of, unit
from repcompile.rules.norm import fold_norm
from repcompile.testing.strategies import images_for, normal
from repcompile.values import Reader, computed, filled
from tests.strategies import expressions, law
from tests.test_verify import MODELS, largest_region

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def weights_in(dtype: torch.dtype, seed: int) -> Reader:
    """Turns whole numbers into others, the same ones every time, that `dtype` holds; none of them is small."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)

    def read(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = tensor, numbers(tensor.shape, dtype, generator)
        return known[id(tensor)][1]

    return read


def numbers(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Between 1/4 and 1, of both signs, in float64, such as `dtype` holds."""
    size = torch.empty(shape, dtype=torch.float64).uniform_(0.25, 1.0, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (size * sign).to(dtype).double()


def by_operators(x: Affine, image: Tensor, read: Reader) -> Tensor:
    """`x(image)` in the dtype of the image, one operator of torch's after the other."""
    match x.parts:
        case Compose(outer, inner):
            return by_operators(outer, by_operators(inner, image, read), read)
        case Sum(left, right):
            return by_operators(left, image, read) + by_operators(right, image, read)
        case Select(index):
            return image.index_select(image.dim() - 1 - len(x.axes), torch.tensor(index))
        case Concat(maps):
            return torch.cat([by_operators(part, image, read) for part in maps], image.dim() - 1 - len(x.axes))
        case _:
            return as_module(x, image.dtype, read)(image)


def as_module(x: Affine, dtype: torch.dtype, read: Reader) -> nn.Module:
    """Folded in float64, and rounded once."""
    return cast(emit(x, fold(x, read)), (torch.zeros(1, dtype=dtype),))


def operators(x: Affine) -> int:
    """How many operators there are in a row at most."""
    match x.parts:
        case Compose(outer, inner):
            return operators(outer) + operators(inner)
        case Sum(left, right):
            return 1 + max(operators(left), operators(right))
        case Concat(maps):
            return max(map(operators, maps))
        case _:
            return 1


# -- the bound holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_evaluations_stay_within_the_bound(dtype: torch.dtype) -> None:
    """Operator by operator in `dtype`, and folded in float64 and rounded once, against the fold in float64."""

    @law(least=0.5, x=expressions(), data=st.data(), seed=st.integers(0, 2**16))
    def holds(x: Affine, data: st.DataObject, seed: int) -> None:
        read = weights_in(dtype, seed)
        shape = data.draw(images_for(x)).shape
        image = numbers(shape, dtype, torch.Generator().manual_seed(seed + 1))
        exact = applied(x, fold(x, read), image)
        most = magnitude(x, image.abs(), read)
        bound = explained(x, most, dtype, operators(x))
        bound += 2 * explained(x, most, torch.float64, operators(x))  # of the reference
        for got in (
            by_operators(x, image.to(dtype), read),
            as_module(x, dtype, read)(image.to(dtype)),
        ):
            assume(got.isfinite().all())
            assert ((got.double() - exact).abs() <= bound).all()

    holds()


@given(x=expressions(), data=st.data())
def test_magnitudes_are_never_less_than_values(x: Affine, data: st.DataObject) -> None:
    read = weights_in(torch.float64, data.draw(st.integers(0, 2**16)))
    image = data.draw(images_for(x))
    values = applied(x, fold(x, read), image)
    assert (values.abs() <= magnitude(x, image.abs(), read) * (1 + 1e-9)).all()


@given(data=st.data(), channels=st.integers(1, 5))
def test_what_cancels_inside_a_batch_norm_counts(data: st.DataObject, channels: int) -> None:
    mean, weight, bias = (data.draw(normal(channels)) for _ in range(3))
    var = data.draw(normal(channels)).square()
    gain, shift = fold_norm(mean, var, weight, bias, 1e-5)
    root = (var + 1e-5).rsqrt()
    torch.testing.assert_close(gain.magnitude(), (weight * root).abs())
    torch.testing.assert_close(shift.magnitude(), bias.abs() + (mean * weight * root).abs())


@given(numbers=st.lists(st.floats(-4, 4), min_size=1, max_size=5))
def test_what_cancels_among_numbers_counts(numbers: list[float]) -> None:
    x = Uniform()
    for number in numbers:
        y = (x + number) * number - number
        assert isinstance(y, Uniform)
        x = y
    positive = Uniform()
    for number in numbers:
        y = (positive + abs(number)) * abs(number) + abs(number)
        assert isinstance(y, Uniform)
        positive = y
    assert x.magnitudes == pytest.approx((positive.gain, positive.shift))
    assert (-x).magnitudes == x.magnitudes
    placed, shift = x.placed(1, 2), positive.shift
    for value in (0.0, 1.0):
        image = torch.full((1, 2, 3), value, dtype=torch.float64)
        expected = image * positive.gain + (shift if placed.has_bias else 0.0)  # what has cancelled is no bias
        torch.testing.assert_close(magnitude(placed, image), expected)


def test_magnitudes_of_constants() -> None:
    weight = torch.tensor([3.0, -4.0])
    assert filled(-2.0, 3, (3,)).magnitude().tolist() == [2.0] * 3
    assert filled(weight, 2, (2,)).magnitude().tolist() == [3.0, 4.0]
    assert (-filled(weight, 2, (2,))).magnitude().tolist() == [3.0, 4.0]
    assert computed(torch.diff, weight, shape=(1,)).magnitude().tolist() == [7.0]


# -- the counts ------------------------------------------------------------------------------------------------------


def test_terms_along_the_longest_way() -> None:
    conv = Affine.conv(torch.zeros(4, 4, 3, 3), torch.zeros(4), padding=1)
    assert terms_of(conv) == 37
    assert terms_of(Affine.identity(4, 2) @ conv) == 39
    assert terms_of(conv + Affine.identity(4, 2)) == 38
    assert terms_of(Affine.select(4, [1, 0, 2, 3], 2) @ conv) == 37
    assert terms_of(Affine.cat([conv, Affine.identity(4, 2)])) == 37
    assert terms_of(conv.linear_part) == 37
    assert terms_of(Affine.pad(4, [(1, 1), (1, 1)], value=1.0)) == 3


def test_growth_is_that_of_higham() -> None:
    """gamma_n = n u / (1 - n u), up to second order; and never infinite."""
    assert unit(torch.float32) == 2.0**-24
    assert growth(torch.float32, 100) == pytest.approx(100 * 2.0**-24, rel=1e-4)
    assert growth(torch.bfloat16, 100, 2) == pytest.approx(2 * 2.0**-8, rel=0.02)
    assert 1.0 < growth(torch.bfloat16, 0, 300) < 10.0


# -- and it is not empty ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@given(data=st.data())
def test_a_fold_that_is_slightly_off_is_caught(model: Callable[[], nn.Module], data: st.DataObject) -> None:
    """By 1e-9 of one channel's kernel in float64; by 1e-3 where the weights are rounded to float32."""
    emitted = largest_region(model())
    channel = data.draw(st.integers(0, emitted.values.kernel.shape[0] - 1))

    def off(amount: float) -> nn.Module:
        kernel = emitted.values.kernel.clone()
        kernel[channel] *= 1.0 + amount
        return emit(emitted.x, replace(emitted.values, kernel=kernel))

    assert emitted.outcome(off(0.0)).check.passed
    assert not emitted.outcome(off(1e-9)).check.passed
    outcome = emitted.outcome(off(0.0))
    assert outcome.rounded(off(0.0).float()).passed
    assert not outcome.rounded(off(1e-3).float()).passed


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_weights_once_passes(model: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    emitted = largest_region(model())
    module = emit(emitted.x, emitted.values)
    outcome = emitted.outcome(module)
    check = outcome.rounded(cast(module, (torch.zeros(1, dtype=dtype),)))
    assert check.passed
    assert dtype == torch.float64 or check.error > outcome.check.bound
    assert check.bound < 2 * 8 * torch.finfo(dtype).eps * max(check.scale, 1.0) + 1e-9


def test_leaves_are_found_once() -> None:
    conv = Affine.conv(torch.zeros(2, 2))
    found = leaves_of(Affine.cat([conv, conv]) + Affine.cat([conv, conv @ conv]))
    assert [leaf for leaf, _ in found] == [conv]
    assert all(isinstance(parts, Leaf) for _, parts in found)
