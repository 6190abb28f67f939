"""What random choices seldom make: branches of one value that are added or joined again, as in the papers."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.operators.layout import SUMS
from tests.fuzz.operators.operator import LARGEST, Draw, NotHere, Value
from tests.fuzz.program import Step

Take = Callable[[Step], Value | None]


def branches(d: Draw, take: Take) -> None:
    """x -> several chains of convolutions, batch norms, gains, crops and pads -> one value."""
    x = d.value(lambda v: 3 <= v.rank <= 5 and v.fixed(1) and v.channels <= LARGEST and max(v.shape[2:]) <= 16)
    c_out = d.channels(x.channels)
    depthwise = d.chance(0.3)
    stride = d.among(1, 1, 1, 2)
    ends = [_branch(d, take, x, c_out, depthwise, stride) for _ in range(d.random.randint(2, 3))]
    found = [end for end in ends if end is not None]
    if not found:
        return
    total, *rest = found
    for end in rest:
        pair = [total, end] if d.chance(0.7) else [end, total]
        form = d.random.choice(SUMS[:6])
        joined = d.step("cat", *pair, axis=1, name="cat") if d.chance(0.1) else d.step("sum", *pair, form=form)
        total = take(joined) or total
    if d.chance(0.5):
        take(_norm(d, total))


def _branch(d: Draw, take: Take, x: Value, c_out: int, depthwise: bool, stride: int) -> Value | None:
    """A chain that keeps the size, or halves it once."""
    value: Value | None = x
    left = 1 if stride > 1 or c_out != x.channels else 0
    for _ in range(max(left, d.random.randint(0, 3))):
        if value is None:
            return None
        kind = "conv" if left else d.among("conv", "norm", "gain", "conv", "identity", "pool")
        if kind == "conv":
            value = take(_conv(d, value, c_out, depthwise, stride if left else 1))
            left = 0
        elif kind == "norm":
            value = take(_norm(d, value))
        elif kind == "gain":
            shape = [value.channels, *[1] * (value.rank - 2)]
            value = take(d.step("gain", value, shape=shape, form="x * g", kind="usual", holder="weight"))
        elif kind == "pool":
            spelling = {"ceil": False, "counts": True, "divisor": False, "spelling": "module"}
            value = take(d.step("pool", value, n=value.rank - 2, kind="avg", kernel=3, stride=1, padding=1, **spelling))
    return value


def _conv(d: Draw, x: Value, c_out: int, depthwise: bool, stride: int) -> Step:
    n = x.rank - 2
    kernel = [d.among(1, 3)] * n if d.chance(0.7) else [d.among(1, 3, 5) for _ in range(n)]
    groups = x.channels if depthwise and c_out % x.channels == 0 else 1
    return d.step(
        "conv", x, n=n, c_in=x.channels, c_out=c_out, groups=groups, bias=d.chance(0.4), mode="zeros", kernel=kernel,
        padding=[k // 2 for k in kernel], stride=[stride] * n, dilation=1, spelling=d.among("module", "function"),
    )  # fmt: skip


def _norm(d: Draw, x: Value) -> Step:
    n = max(x.rank - 2, 1)
    return d.step("batch_norm", x, n=n, c=x.channels, affine=True, eps=1e-5, statistics="usual", spelling="module")


def drawn(d: Draw, take: Take) -> None:
    """One motif, if there is a value that it can start from."""
    try:
        branches(d, take)
    except NotHere:
        return
