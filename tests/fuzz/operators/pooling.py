"""Pooling, means, padding and resampling."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import Code, Draw, Operator
from tests.fuzz.program import Params, Step


def draw_pool(d: Draw) -> Step:
    x = d.image()
    kind = d.among("avg", "avg", "avg", "max")
    kernel = d.among(1, 2, 2, 3, 3)
    params = {"kernel": kernel, "stride": d.among(1, 1, 2, kernel), "padding": d.random.randint(0, kernel // 2)}
    return d.step(
        "pool", x, n=x.rank - 2, kind=kind, ceil=d.chance(0.15), counts=d.chance(0.7),
        divisor=d.chance(0.1) and x.rank > 3, spelling=d.among("module", "function"), **params,
    )  # fmt: skip


def write_pool(p: Params, reads: Sequence[str], seed: str) -> Code:
    settings = f"{p['kernel']}, {p['stride']}, {p['padding']}, ceil_mode={p['ceil']}"
    if p["kind"] == "avg":
        settings += f", count_include_pad={p['counts']}" + (", divisor_override=3" if p["divisor"] else "")
    if p["spelling"] == "module":
        return Code(f"$({reads[0]})", {"": f"nn.{p['kind'].title()}Pool{p['n']}d({settings})"})
    return Code(f"F.{p['kind']}_pool{p['n']}d({reads[0]}, {settings})")


GLOBAL = (
    "{x}.mean((-2, -1), keepdim=True)", "{x}.mean(-1)", "{x}.flatten(2).mean(-1)",
    "torch.mean({x}, dim=2, keepdim=True)",
    "{x}.amax(-1, keepdim=True)", "{x}.sum(-1, keepdim=True)", "{x} - {x}.mean(1, keepdim=True)", "{x}.mean(1)",
    "{x}.std(-1, keepdim=True)", "{x}.cumsum(1)", "{x} - {x}.mean(())",
)  # fmt: skip
ADAPTIVE = ("F.adaptive_avg_pool{n}d({x}, 1)", "F.adaptive_avg_pool{n}d({x}, 2)", "F.adaptive_max_pool{n}d({x}, 1)")


def draw_mean(d: Draw) -> Step:
    x = d.value(lambda v: v.rank >= 3)
    return d.step("mean", x, form=d.among(*GLOBAL, *ADAPTIVE, *ADAPTIVE), n=x.rank - 2)


def write_mean(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(x=reads[0], n=p["n"]))


def draw_pad(d: Draw) -> Step:
    """Zeros, numbers, mirrored or repeated values; crops where it is negative."""
    x = d.image()
    n = x.rank - 2
    mode = d.among("constant", "constant", "constant", "reflect", "replicate", "circular")
    low = -1 if d.chance(0.3) else 0
    pads = [d.random.randint(low, 2) for _ in range(2 * n)]
    if mode == "circular" and max(pads) > 0:  # beside a crop, torch returns memory that nobody wrote to
        pads = [max(pad, 0) for pad in pads]
    if mode == "constant" and d.chance(0.3):
        pads = pads[:2]
    value = d.among(0, 0, 0.0, 1.5) if mode == "constant" else 0
    return d.step("pad", x, n=n, pads=pads, mode=mode, value=value, spelling=d.among("function", "function", "module"))


def write_pad(p: Params, reads: Sequence[str], seed: str) -> Code:
    pads, mode, n = tuple(p["pads"]), p["mode"], p["n"]
    if p["spelling"] == "module" and len(pads) == 2 * n:
        names = {"constant": "Constant", "reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}
        value = f", {p['value']}" if mode == "constant" else ""
        return Code(f"$({reads[0]})", {"": f"nn.{names[mode]}Pad{n}d({pads}{value})"})
    value = f", value={p['value']}" if mode == "constant" and p["value"] else ""
    return Code(f"F.pad({reads[0]}, {pads}, mode='{mode}'{value})")


def draw_resize(d: Draw) -> Step:
    x = d.image()
    smooth = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.rank]
    mode = d.among("nearest", "nearest", smooth)
    return d.step("resize", x, factor=d.among(2, 2, 3), mode=mode, spelling=d.among("module", "function"))


def write_resize(p: Params, reads: Sequence[str], seed: str) -> Code:
    if p["spelling"] == "module":
        return Code(f"$({reads[0]})", {"": f"nn.Upsample(scale_factor={p['factor']}, mode='{p['mode']}')"})
    return Code(f"F.interpolate({reads[0]}, scale_factor={p['factor']}, mode='{p['mode']}')")


POOLING = (
    Operator("pool", draw_pool, write_pool, 1.5),
    Operator("mean", draw_mean, write_mean, 0.8),
    Operator("pad", draw_pad, write_pad, 1.2),
    Operator("resize", draw_resize, write_resize, 0.5),
)
