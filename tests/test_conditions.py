"""Which calls a program of torch.export answers."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from repcompile.conditions import Conditions, Leaf, condition, in_words, signature_of


def forward(x: Any, y: Any = 2, *more: Any, flag: Any = False, **rest: Any) -> Any:
    return x, y, more, flag, rest


NAMES = ("x", "y", "flag", "other")


@given(args=st.lists(st.integers(), max_size=4), kwargs=st.dictionaries(st.sampled_from(NAMES), st.integers()))
def test_arguments_are_arranged_as_python_does(args: Sequence[int], kwargs: Mapping[str, int]) -> None:
    arranged = signature_of(forward).arranged(args, kwargs)
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        assert arranged is None
        return
    bound.apply_defaults()
    assert arranged is not None
    assert forward(*arranged[0], **arranged[1]) == forward(*bound.args, **bound.kwargs)


@pytest.mark.parametrize("function", [forward, lambda x, y: x, lambda *x: x, lambda **x: x, lambda *, x, y=3: x])
def test_a_signature_is_spelt_as_python_does(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    plain = inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters])
    assert signature_of(function).spelt() == plain


def conditions(**options: Any) -> Conditions:
    """Of a call `forward(image, 3)` of which the batch may be anything but 2, and one if the image is not."""
    _, spec = pytree.tree_flatten(signature_of(forward).arranged((0, 3), {}))
    leaves = (Leaf(0, 2), Leaf(fixed=3), Leaf(fixed=False))
    given: dict[str, Any] = {
        **{"signature": signature_of(forward), "spec": spec, "leaves": leaves, "guards": ("n[0][0] != 2",)},
        **{"ones": frozenset([frozenset(), frozenset([(0, 0)])]), "kinds": None, "weights": frozenset()},
        **{"outputs": (Leaf(0), Leaf(fixed="text")), "structure": pytree.tree_flatten((0, 0))[1]},
    }
    return Conditions(**{**given, **options})


def answers(known: Conditions, *args: Any, **kwargs: Any) -> bool:
    return known.values(args, kwargs) is not None


def test_the_structure_must_be_the_same() -> None:
    known, x = conditions(), torch.ones(3, 4)
    assert answers(known, x, 3)
    assert answers(known, x=x, y=3, flag=False)
    assert not answers(known, x)
    assert not answers(known, x, 3, 4)
    assert not answers(known, x, 3.0)
    assert not answers(known, x, 3, flag=True)
    assert not answers(known, x, 3, other=1)
    assert not answers(known, torch.ones(3, 4, 1), 3)
    assert not answers(known, [x], 3)
    assert not answers(known, 3, 3)
    assert not answers(known, x.to_sparse(), 3)


def test_guards_and_sizes_of_one() -> None:
    known = conditions()
    sizes = [(1, 4), (2, 4), (3, 4), (3, 1), (1, 1), (0, 4)]
    assert [answers(known, torch.ones(size), 3) for size in sizes] == [True, False, True, False, False, False]
    assert not answers(conditions(guards=("1 // (n[0][0] - 3) == 0",)), torch.ones(3, 4), 3)


def test_one_tensor_and_two_are_different_calls() -> None:
    leaves = (Leaf(0, 1), Leaf(0, 1), Leaf(fixed=False))
    twice, x = conditions(leaves=leaves, guards=()), torch.ones(3)
    assert answers(twice, x, x)
    assert not answers(twice, x, x.clone())
    both = conditions(leaves=(Leaf(0, 1), Leaf(1, 1), Leaf(fixed=False)), guards=())
    assert answers(both, x, x.clone())
    assert not answers(both, x, x)


def test_kinds_matter_where_they_are_written_down() -> None:
    x, weights = torch.ones(3, 4), frozenset([(torch.float32, torch.device("cpu"))])
    known = conditions(kinds=((torch.float32, torch.device("cpu")),), weights=weights)
    assert answers(known, x, 3)
    assert not answers(known, x.double(), 3)
    assert known.fits(torch.nn.Linear(2, 2))
    assert not known.fits(torch.nn.Linear(2, 2).double())
    assert conditions().fits(torch.nn.Linear(2, 2).double())


def test_results_are_put_together_again() -> None:
    assert conditions().result([5]) == (5, "text")


def test_they_are_values() -> None:
    known = conditions()
    for other in (copy.deepcopy(known), pickle.loads(pickle.dumps(known))):
        assert other == known
        assert answers(other, torch.ones(1, 4), 3)


def test_guards_in_words() -> None:
    assert in_words("n[0][1]*n[1][0] == 3") == "input0.shape[1]*input1.shape[0] == 3"
    assert condition("n[0][1]*n[1][0] == 6")([(1, 2), (3,)])
