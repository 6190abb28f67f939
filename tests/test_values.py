"""Numbers that are read late, once, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile.errors import Inexact
from repcompile.testing.strategies import whole
from repcompile.values import Constant, as_constant, computed, filled, in_float64
from tests.strategies import assert_equal


def test_reading_gives_float64_without_history() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16))
    value = in_float64(parameter)
    assert value.dtype == torch.float64
    assert not value.requires_grad
    assert_equal(as_constant(parameter).exact(), torch.tensor([1.0, 2.0]).double())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_only_real_floating_point_numbers_are_weights(dtype: torch.dtype) -> None:
    with pytest.raises(Inexact, match=f"weights of dtype {dtype} cannot be folded"):
        as_constant(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_point_dtype_is_read_exactly(dtype: torch.dtype) -> None:
    tensor = (torch.arange(5) / 3).to(dtype)
    assert_equal(as_constant(tensor).exact(), tensor.double())


def test_nothing_is_evaluated_before_it_is_asked_for() -> None:
    calls: list[Tensor] = []

    def doubled(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return 2 * tensor

    constant = computed(doubled, torch.ones(3), shape=(3,))
    assert constant.shape == (3,)
    assert not calls
    assert_equal(constant.exact(), torch.full((3,), 2.0).double())
    assert [call.dtype for call in calls] == [torch.float64]


def test_the_reader_sees_the_parameters_themselves() -> None:
    weight, bias = nn.Parameter(torch.ones(2)), torch.zeros(2)
    seen: list[Tensor] = []

    def read(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor.detach().double()

    nested = computed(torch.add, computed(torch.mul, weight, weight, shape=(2,)), bias, shape=(2,))
    assert_equal(nested.exact(read), torch.ones(2).double())
    expected = (weight, weight, bias)
    assert all(a is b for a, b in zip(seen, expected, strict=True))
    assert all(a is b for a, b in zip(nested.tensors, expected, strict=True))


@given(data=st.data(), count=st.integers(1, 5))
def test_filled_lays_out_one_number_for_each_or_one_for_all(data: st.DataObject, count: int) -> None:
    tensor = data.draw(whole(count))
    for spelled in (tensor, tensor[:, None, None], as_constant(tensor[None])):
        assert_equal(filled(spelled, count, (count, 1)).exact(), tensor[:, None])
    for number in (2, 2.0, torch.tensor(2.0), torch.tensor([[2.0]])):
        assert_equal(filled(number, count, (count, 1)).exact(), torch.full((count, 1), 2.0).double())


@given(tensor=whole(2, 3))
def test_negation(tensor: Tensor) -> None:
    constant = as_constant(tensor)
    assert (-constant).shape == (2, 3)
    assert_equal((-constant).exact(), -tensor)
    assert (-constant).tensors[0] is tensor


def test_a_constant_is_as_constant() -> None:
    constant = Constant((), (), lambda: torch.ones(()))
    assert as_constant(constant) is constant
    assert constant.tensors == ()
