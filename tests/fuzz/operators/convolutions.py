"""Convolutions, plain and transposed, as modules and as functions."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import Code, Draw, Operator, Value
from tests.fuzz.program import Params, Step

MODES = ("reflect", "replicate", "circular")


def draw_conv(d: Draw) -> Step:
    x = d.image()
    n = x.rank - 2
    c_out = d.channels(x.channels)
    mode = d.among(*MODES) if d.chance(0.1) else "zeros"
    params = _same_size(d, n) if d.chance(0.6) else _any_window(d, n)
    groups = _groups(d, x, c_out)
    return d.step(
        "conv", x, n=n, c_in=x.channels, c_out=c_out, groups=groups, bias=d.chance(0.5), mode=mode, **params,
        spelling=d.among("module", "module", "function", "scaled"),
    )  # fmt: skip


def _same_size(d: Draw, n: int) -> dict[str, object]:
    kernel = [d.among(1, 1, 3, 3, 5)] * n
    kernel = [d.among(1, 3) for _ in range(n)] if d.chance(0.2) else kernel
    dilation = 2 if d.chance(0.1) else 1
    return {"kernel": kernel, "padding": [dilation * (k // 2) for k in kernel], "stride": [1] * n, "dilation": dilation}


def _any_window(d: Draw, n: int) -> dict[str, object]:
    return {
        "kernel": [d.random.randint(1, 4) for _ in range(n)],
        "padding": [d.among(0, 0, 1, 2) for _ in range(n)],
        "stride": [d.among(1, 1, 2, 3) for _ in range(n)] if d.chance(0.5) else [2] * n,
        "dilation": d.among(1, 1, 1, 2),
    }


def _groups(d: Draw, x: Value, c_out: int) -> int:
    return d.random.choice([g for g in range(1, x.channels + 1) if x.channels % g == 0 and c_out % g == 0])


def write_conv(p: Params, reads: Sequence[str], seed: str) -> Code:
    n, (x,) = p["n"], reads
    if p["mode"] != "zeros" or p["spelling"] == "module":
        settings = (
            f"{_tuple(p['kernel'])}, {_tuple(p['stride'])}, {_tuple(p['padding'])}, {p['dilation']}, {p['groups']}"
        )
        layer = f"nn.Conv{n}d({p['c_in']}, {p['c_out']}, {settings}, {p['bias']}, '{p['mode']}')"
        return Code(f"$({x})", {"": f"drawn({layer}, {seed})"})
    shape = ", ".join(map(str, (p["c_out"], p["c_in"] // p["groups"], *p["kernel"])))
    attributes = {"_weight": f"weight({shape}, {seed})"}
    kernel, bias = "$_weight", "None"
    if p["spelling"] == "scaled":  # a weight that is computed in the forward
        ones = ", ".join(["1"] * (n + 1))
        attributes["_gain"] = f"weight({p['c_out']}, {ones}, {seed})"
        kernel = "$_weight * $_gain"
    if p["bias"]:
        attributes["_bias"] = f"weight({p['c_out']}, {seed})"
        bias = "$_bias"
    rest = f"{_tuple(p['stride'])}, {_tuple(p['padding'])}, {p['dilation']}, {p['groups']}"
    return Code(f"F.conv{n}d({x}, {kernel}, {bias}, {rest})", attributes)


def draw_transposed(d: Draw) -> Step:
    x = d.image()
    n, c_out = x.rank - 2, d.channels(x.channels)
    stride = d.among(1, 2, 2, 3)
    return d.step(
        "conv_transpose", x, n=n, c_in=x.channels, c_out=c_out, groups=_groups(d, x, c_out), bias=d.chance(0.5),
        kernel=[d.among(1, 2, 2, 3, 4) for _ in range(n)], stride=stride, padding=d.among(0, 0, 1),
        output_padding=d.random.randint(0, stride - 1), dilation=d.among(1, 1, 2),
        spelling=d.among("module", "function"),
    )  # fmt: skip


def write_transposed(p: Params, reads: Sequence[str], seed: str) -> Code:
    n, (x,) = p["n"], reads
    if p["spelling"] == "module":
        settings = f"{_tuple(p['kernel'])}, {p['stride']}, {p['padding']}, {p['output_padding']}, {p['groups']}"
        layer = f"nn.ConvTranspose{n}d({p['c_in']}, {p['c_out']}, {settings}, {p['bias']}, {p['dilation']})"
        return Code(f"$({x})", {"": f"drawn({layer}, {seed})"})
    shape = ", ".join(map(str, (p["c_in"], p["c_out"] // p["groups"], *p["kernel"])))
    attributes = {"_weight": f"weight({shape}, {seed})"}
    if p["bias"]:
        attributes["_bias"] = f"weight({p['c_out']}, {seed})"
    bias = "$_bias" if p["bias"] else "None"
    rest = f"{p['stride']}, {p['padding']}, {p['output_padding']}, {p['groups']}, {p['dilation']}"
    return Code(f"F.conv_transpose{n}d({x}, $_weight, {bias}, {rest})", attributes)


def draw_unfold(d: Draw) -> Step:
    x = d.value(lambda v: v.rank == 4 and v.fixed(1) and v.channels <= 4)
    return d.step("unfold", x, kernel=d.among(1, 2), padding=d.among(0, 1))


def write_unfold(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(f"F.unfold({reads[0]}, {p['kernel']}, padding={p['padding']})")


def _tuple(numbers: Sequence[int]) -> str:
    return str(tuple(numbers))


CONVOLUTIONS = (
    Operator("conv", draw_conv, write_conv, 8.0),
    Operator("conv_transpose", draw_transposed, write_transposed, 1.5),
    Operator("unfold", draw_unfold, write_unfold, 0.2),
)
