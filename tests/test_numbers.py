"""NaN, infinity, overflow, underflow, zero variance: folded where nothing is lost, left with the reason elsewhere."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile import Report, compile_model, explain, fuse
from repcompile.cli import main
from repcompile.testing import randomize

INF, NAN = float("inf"), float("nan")
PLACES = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean")


def block(dtype: torch.dtype = torch.float32, eps: float = 1e-5) -> nn.Sequential:
    """conv, norm, and another pair behind an activation."""
    pairs = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    return randomize(nn.Sequential(*pairs)).eval().to(dtype)  # type: ignore[return-value]


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


def set_in(model: nn.Module, name: str, value: float, entry: int | None = None) -> None:
    tensor = model.state_dict()[name].view(-1)
    with torch.no_grad():
        tensor[slice(None) if entry is None else entry] = value


def reasons(model: nn.Module) -> list[str]:
    return [item.reason for item in explain(model).left]


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal up to some roundings of the largest value; NaN and infinity in the same places."""
    assert got.dtype == expected.dtype
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    limit = 32 * torch.finfo(got.dtype).eps * max(scale, 1.0)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0.0, atol=limit, equal_nan=True)


# -- what is not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", PLACES)
def test_weights_that_are_not_finite_stay_as_they_are(name: str, value: float) -> None:
    model = block()
    set_in(model, name, value, 1)
    compilation = compile_model(model)
    assert [r.reason for r in compilation.rollbacks] == ["its weights hold NaN or infinity"]
    assert "rolled back: its weights hold NaN or infinity" in reasons(model)
    assert len(compilation.rewritten) == 1  # the other pair
    assert_same(compilation.module(image()), model(image()))


def test_what_overflows_in_float64_stays() -> None:
    model = block(torch.float64)
    set_in(model, "0.weight", 1e200)
    set_in(model, "1.weight", 1e200)
    assert "rolled back: it folds to values that are not finite" in reasons(model)
    assert_same(fuse(model)(image(torch.float64)), model(image(torch.float64)))


@given(dead=st.integers(0, 3))
def test_zero_variance(dead: int) -> None:
    """With an epsilon it is a variance like any other; without, the norm divides by zero."""
    model = block()
    set_in(model, "1.running_var", 0.0, dead)
    assert not reasons(model)
    assert_same(fuse(model)(image()), model(image()))
    model = block(eps=0.0)
    set_in(model, "1.running_var", 0.0, dead)
    assert "rolled back: it folds to values that are not finite" in reasons(model)
    assert_same(fuse(model)(image()), model(image()))


# -- too large and too small -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_does_not_fit_the_dtype_stays(dtype: torch.dtype) -> None:
    model, large = block(dtype), 0.9 * torch.finfo(dtype).max ** 0.5
    set_in(model, "0.weight", large)
    set_in(model, "1.weight", large)
    set_in(model, "1.running_var", 1e-2)
    assert f"rolled back: folded values do not fit {dtype}" in reasons(model)
    assert len(compile_model(model).rewritten) == 1
    x = image(dtype) / large
    assert_same(fuse(model)(x), model(x))


def test_a_fold_that_vanishes_in_float16_stays() -> None:
    """Every weight below the normal numbers: what was a product of two good numbers would lose its digits."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=0.0))
    model = randomize(model).eval().half()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # type: ignore[index, union-attr, operator]
        model[1].weight.mul_(1e-4)  # type: ignore[index, union-attr, operator]
        model[1].running_mean.zero_()  # type: ignore[index, union-attr, operator]
        model[1].bias.zero_()  # type: ignore[index, union-attr, operator]
    (reason,) = reasons(model)
    assert reason == "rolled back: folded values are all below the normal numbers of torch.float16"
    assert not reasons(model.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_channel_may_vanish_beside_others(dtype: torch.dtype) -> None:
    """As pruned gains do: what is lost is below one rounding of the other channels."""
    model = block(dtype)
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    set_in(model, "1.weight", 4 * smallest, 2)
    set_in(model, "1.bias", 0.0, 2)
    set_in(model, "1.running_mean", 0.0, 2)
    assert not reasons(model)
    assert_same(fuse(model)(image(dtype)), model(image(dtype)))


def test_denormals_may_be_flushed() -> None:
    model = block()
    for name in PLACES:
        set_in(model, name, 1e-41, 1)
    kept = fuse(model)
    assert torch.set_flush_denormal(True)
    try:
        assert not reasons(model)
        assert_same(kept(image()), model(image()))
        assert_same(fuse(model)(image()), model(image()))
    finally:
        torch.set_flush_denormal(False)


# -- ranges ----------------------------------------------------------------------------------------------------------


def uneven(gains: list[float], weights: list[float]) -> nn.Module:
    """A 1x1 convolution whose channels have weights of one size each, and a norm that only scales them."""
    model = nn.Sequential(nn.Conv2d(2, len(weights), 1), nn.BatchNorm2d(len(weights), eps=0.0))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1).expand(-1, 2, 1, 1))  # type: ignore[operator]
        model[1].weight.copy_(torch.tensor(gains))  # type: ignore[operator]
    return model.eval()


def test_ranges_of_channels_before_and_after() -> None:
    (ranges,) = explain(uneven([1.0, 0.5, -0.25], [1.0, -2.0, 4.0])).ranges.values()
    assert ranges.before == (1.0, 2.0, 4.0)
    assert ranges.after == (1.0, 1.0, 1.0)
    assert (ranges.spread_before, ranges.spread_after) == (4.0, 1.0)


def test_channels_without_weights_do_not_count() -> None:
    report = explain(uneven([1.0, 0.0, 8.0], [1.0, 1.0, 1.0]))
    (ranges,) = report.ranges.values()
    assert ranges.spread_after == 8.0
    assert "1 without weights" in str(report.ranges)
    (ranges,) = explain(uneven([0.0, 0.0], [1.0, 1.0])).ranges.values()
    assert ranges.spread_after == 1.0


def test_ranges_say_the_widest_first() -> None:
    report = explain(block())
    spreads = {item.path: item.ranges.spread_after for item in report.fused if item.ranges is not None}
    assert list(report.ranges) == sorted(spreads, key=spreads.__getitem__, reverse=True)
    assert len(spreads) == 2
    assert [line.split()[0] for line in str(report.ranges).splitlines()[1:]] == list(report.ranges)


def test_ranges_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{__name__}:block"]) == 0
    assert "largest / smallest" not in capsys.readouterr().out
    assert main(["explain", f"{__name__}:block", "--ranges"]) == 0
    assert "largest / smallest" in capsys.readouterr().out


# -- what is said of each region --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (block, r"channel \d, position \(\d, \d\), (border|interior)"),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)).eval(), r"channel \d"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), r"channel \d, position \(\d, \d\)"),
    ],
)
def test_error_bound_and_place_of_each_region(build: Callable[[], nn.Module], place: str) -> None:
    report: Report = explain(randomize(build()))
    item = report.fused[0]
    assert item.check is not None
    assert item.rounded is not None
    assert item.check.error <= item.check.bound < 1e-9
    assert item.check.bound < item.rounded.bound < 1e-3
    off = r"off by \d\.\de-\d\d of at most \d\.\de-\d\d, most at "
    assert re.fullmatch(
        rf"{item.path}: {item.idiom}; in float64 {off}{place}; with rounded weights {off}{place}", str(item)
    )
