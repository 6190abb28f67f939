"""Each kind of problem is found, and nothing else."""

from dataclasses import replace

import pytest

from repcompile.facts import UNPREPARED
from tests.sweep.judge import problems_of
from tests.sweep.result import Counts, Result

BEFORE, AFTER = Counts(10, 2, 100, 1.0), Counts(8, 0, 100, 0.9)
UNFOLDED = replace(AFTER, norms=2)
FINE = Result("fine", before=BEFORE, plain=AFTER, informed=AFTER, rounded=1e-7, exact=1e-15)


def test_nothing_is_wrong() -> None:
    assert problems_of(FINE).problems == ()
    assert problems_of(replace(FINE, rounded=1e-5, explained=5e-6)).problems == ()
    assert problems_of(replace(FINE, exact=1e-9, explained=1e-1)).problems == ()
    assert problems_of(replace(FINE, plain=UNFOLDED)).problems == ()  # example inputs fold them


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (replace(FINE, rounded=1e-5), "float32 model: relative error 1.0e-05, rounding explains 0.0e+00"),
        (replace(FINE, rounded=float("nan")), "float32 model: relative error nan, rounding explains 0.0e+00"),
        (replace(FINE, exact=1e-9), "float64 model: relative error 1.0e-09"),
        (replace(FINE, plain=replace(AFTER, operators=11)), "fuse(model): 10 operators became 11"),
        (replace(FINE, informed=replace(AFTER, price=1.01)), "fuse(model, inputs): the estimated cost rose by 1.00%"),
        (replace(FINE, plain=UNFOLDED, informed=UNFOLDED), "none of the 2 batch norms was folded"),
        (replace(FINE, silent=("a.bn",)), "1 batch norms left without a reason, for example a.bn"),
        (replace(FINE, left={f"{UNPREPARED} TypeError": 1}), f"a rule failed: {UNPREPARED} TypeError"),
        (replace(FINE, touched=("a.weight",)), "the user's model was touched: a.weight"),
    ],
)
def test_what_is_wrong_is_said(result: Result, problem: str) -> None:
    assert problems_of(result).problems == (problem,)


def test_an_error_of_ours_is_a_problem() -> None:
    assert problems_of(FINE, "ModelError: no").problems == ("with inputs, ModelError: no",)
