"""Linear, and the many ways of writing a product with a constant matrix."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import LARGEST, Code, Draw, Operator
from tests.fuzz.program import Params, Step

LETTERS = "bcdefg"


def draw_linear(d: Draw) -> Step:
    x = d.tokens()
    c_in = x.shape[-1]
    spelling = d.among("module", "module", "function")
    return d.step("linear", x, c_in=c_in, c_out=d.channels(c_in), bias=d.chance(0.6), spelling=spelling)


def write_linear(p: Params, reads: Sequence[str], seed: str) -> Code:
    if p["spelling"] == "module":
        return Code(f"$({reads[0]})", {"": f"drawn(nn.Linear({p['c_in']}, {p['c_out']}, {p['bias']}), {seed})"})
    attributes = {"_weight": f"weight({p['c_out']}, {p['c_in']}, {seed})"}
    if p["bias"]:
        attributes["_bias"] = f"weight({p['c_out']}, {seed})"
    return Code(f"F.linear({reads[0]}, $_weight{', $_bias' if p['bias'] else ''})", attributes)


def draw_matmul(d: Draw) -> Step:
    """x W on the last axis, W x on the one before it."""
    left = d.chance(0.5)
    axis = -2 if left else -1
    x = d.value(lambda v: v.rank >= 2 and v.fixed(axis) and v.shape[axis] <= LARGEST)
    c_in, spelling = x.shape[axis], d.among("@", "function", "method")
    return d.step("matmul", x, c_in=c_in, c_out=d.channels(c_in), left=left, spelling=spelling)


def write_matmul(p: Params, reads: Sequence[str], seed: str) -> Code:
    shape = f"{p['c_out']}, {p['c_in']}" if p["left"] else f"{p['c_in']}, {p['c_out']}"
    a, b = ("$_weight", reads[0]) if p["left"] else (reads[0], "$_weight")
    text = {"@": f"{a} @ {b}", "function": f"torch.matmul({a}, {b})", "method": f"{a}.matmul({b})"}[p["spelling"]]
    return Code(text, {"_weight": f"weight({shape}, {seed})"})


def draw_einsum(d: Draw) -> Step:
    """One axis exchanged for another one, by a matrix; any axis, that of the batch too."""
    axis_from = d.random.randint(1, 3)
    x = d.value(lambda v: v.rank >= 2 and axis_from < v.rank and v.fixed(axis_from) and v.shape[axis_from] <= LARGEST)
    size = x.shape[axis_from]
    return d.step(
        "einsum", x, rank=x.rank, axis=axis_from, c_in=size, c_out=d.channels(size), turned=d.chance(0.5),
        first=d.chance(0.5),
    )  # fmt: skip


def write_einsum(p: Params, reads: Sequence[str], seed: str) -> Code:
    image = LETTERS[: p["rank"]]
    old = image[p["axis"]]
    matrix = f"{old}o" if p["turned"] else f"o{old}"
    shape = f"{p['c_in']}, {p['c_out']}" if p["turned"] else f"{p['c_out']}, {p['c_in']}"
    result = image.replace(old, "o")
    equation = f"{image},{matrix}->{result}" if p["first"] else f"{matrix},{image}->{result}"
    operands = f"{reads[0]}, $_weight" if p["first"] else f"$_weight, {reads[0]}"
    return Code(f"torch.einsum('{equation}', {operands})", {"_weight": f"weight({shape}, {seed})"})


def draw_attention(d: Draw) -> Step:
    x = d.value(lambda v: v.rank >= 3 and v.fixed(-1) and v.shape[-1] <= LARGEST)
    return d.step("attention", x, width=x.shape[-1])


def write_attention(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(f"$({reads[0]})", {"": f"drawn(Attention({p['width']}), {seed})"})


PRODUCTS = (
    Operator("linear", draw_linear, write_linear, 2.5),
    Operator("matmul", draw_matmul, write_matmul, 1.2),
    Operator("einsum", draw_einsum, write_einsum, 0.8),
    Operator("attention", draw_attention, write_attention, 0.6),
)
