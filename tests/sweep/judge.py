"""What is wrong with a result."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from repcompile.facts import UNPREPARED
from tests.sweep.result import USUAL, Counts, Result

EXACT = 1e-10  # largest relative error of a model with float64 weights
ROUNDED = 1e-6  # and of one whose folded weights were rounded to float32
# Or, where more, this many times what one rounding of every weight does to the model itself: a fold rounds weights once
# in float32; in float64 every operator rounds its result too.
ROUNDINGS, ROUNDINGS_OF_OPERATORS = 4, 64
FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def usual(rounded: float | None, exact: float | None) -> bool:
    """Whether the errors pass whatever the model itself makes of rounding."""
    return (rounded or 0.0) <= ROUNDED and (exact or 0.0) <= EXACT


def problems_of(result: Result, complaint: str = "") -> Result:
    """The result with its problems.  complaint: of `fuse(model, inputs)`, where it raised."""
    return replace(result, problems=tuple(_problems(result, complaint)))


def _problems(result: Result, complaint: str) -> Iterator[str]:
    if result.touched:
        yield f"the user's model was touched: {', '.join(result.touched[:3])}"
    if complaint:
        yield f"with inputs, {complaint}"
    explained = result.explained or 0.0
    if result.rounded is not None and not result.rounded <= _most_rounded(result):
        yield f"float32 model: relative error {result.rounded:.1e}, rounding explains {explained:.1e}"
    if result.exact is not None and not result.exact <= _most_exact(result):
        yield f"float64 model: relative error {result.exact:.1e}"
    yield from _worse("fuse(model)", result.before, result.plain)
    yield from _worse("fuse(model, inputs)", result.before, result.informed)
    if result.before and result.before.norms == min((after.norms for after in _after(result)), default=0) > 0:
        yield f"none of the {result.before.norms} batch norms was folded"
    for reason in result.left:
        if reason.startswith(UNPREPARED):
            yield f"a rule failed: {reason}"
    if (result.seconds or 0.0) > USUAL:
        yield f"fuse(model) takes {result.seconds:.0f} s"
    if result.silent:
        yield f"{len(result.silent)} batch norms left without a reason, for example {result.silent[0]}"


def _after(result: Result) -> list[Counts]:
    """Of the fused models: a forward that only torch.export captures needs example inputs."""
    return [counts for counts in (result.plain, result.informed) if counts is not None]


def _most_rounded(result: Result) -> float:
    roundings = ROUNDINGS if result.float64 else ROUNDINGS_OF_OPERATORS
    return max(ROUNDED, roundings * (result.explained or 0.0))


def _most_exact(result: Result) -> float:
    finer = FINER if result.float64 else 1.0
    return max(EXACT, ROUNDINGS_OF_OPERATORS * finer * (result.explained or 0.0))


def _worse(what: str, before: Counts | None, after: Counts | None) -> Iterator[str]:
    if before is None or after is None:
        return
    if after.operators > before.operators:
        yield f"{what}: {before.operators} operators became {after.operators}"
    if after.price > before.price:
        yield f"{what}: the estimated cost rose by {after.price / before.price - 1:.2%}"
