"""Batch norms with statistics of every kind, and the norms that are not affine."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import LARGEST, Code, Draw, Operator
from tests.fuzz.program import Params, Step

FORMS = (
    "x * g", "x * g", "x * g", "x + g", "x + g", "x - g", "g - x", "x / g", "torch.mul(x, g)", "x.mul(g)",
    "torch.add(x, g, alpha=0.5)", "torch.addcmul(g, x, g)", "x * g + g", "g * x - x",
)  # fmt: skip
STATISTICS = ("usual",) * 6 + ("tiny", "zero", "huge", "fresh")


def draw_batch_norm(d: Draw) -> Step:
    x = d.value(lambda v: 2 <= v.rank <= 5 and v.fixed(1) and v.channels <= LARGEST)
    return d.step(
        "batch_norm", x, n=max(x.rank - 2, 1), c=x.channels, affine=d.chance(0.8), eps=d.among(1e-5, 1e-5, 1e-3, 1e-8),
        statistics=d.among(*STATISTICS), spelling=d.among("module", "module", "module", "function", "sync"),
    )  # fmt: skip


def write_batch_norm(p: Params, reads: Sequence[str], seed: str) -> Code:
    c, (x,) = p["c"], reads
    if p["spelling"] != "function":
        name = "nn.SyncBatchNorm" if p["spelling"] == "sync" else f"nn.BatchNorm{p['n']}d"
        layer = f"{name}({c}, eps={p['eps']}, affine={p['affine']})"
        return Code(f"$({x})", {"": f"drawn({layer}, {seed}, kind='{p['statistics']}')"})
    kind = {"tiny": "tiny", "zero": "zero", "huge": "huge"}.get(p["statistics"], "usual")
    variance = "positive" if kind == "usual" else kind
    attributes = {
        "_mean": f"buffer({c}, {seed})",
        "_var": f"buffer({c}, {seed}, kind='{variance}').abs()",
        "_weight": f"weight({c}, {seed})",
        "_bias": f"weight({c}, {seed})",
    }
    gains = "$_weight, $_bias" if p["affine"] else "None, None"
    return Code(f"F.batch_norm({x}, $_mean, $_var, {gains}, False, 0.1, {p['eps']})", attributes)


def draw_norm(d: Draw) -> Step:
    """Layer, group and instance norm: nonlinear."""
    x = d.value(lambda v: v.rank >= 3 and v.fixed(1))
    kinds = ["group"] + ["layer"] * x.fixed(-1) + ["instance"] * (x.rank == 4)
    return d.step("norm", x, kind=d.among(*kinds), c=x.channels, last=x.shape[-1], groups=d.part_of(x.channels))


def write_norm(p: Params, reads: Sequence[str], seed: str) -> Code:
    layer = {
        "group": f"nn.GroupNorm({p['groups']}, {p['c']})",
        "layer": f"nn.LayerNorm({p['last']})",
        "instance": f"nn.InstanceNorm2d({p['c']}, affine=True)",
    }[p["kind"]]
    return Code(f"$({reads[0]})", {"": f"drawn({layer}, {seed})"})


def draw_gain(d: Draw) -> Step:
    """A number for each channel, or for each entry of the last axis; times, plus, or on the other side."""
    x = d.value(lambda v: v.rank >= 2 and (v.fixed(1) or v.fixed(-1)))
    last = x.fixed(-1) and (not x.fixed(1) or d.chance(0.3))
    shape = [x.shape[-1]] if last else [x.channels, *[1] * (x.rank - 2)]
    if not last and d.chance(0.2):
        shape = [1, *shape]
    form = d.among(*FORMS)
    kind = "positive" if "/" in form else d.among("usual", "usual", "usual", "zero", "one", "huge", "tiny")
    return d.step("gain", x, shape=shape, form=form, kind=kind, holder=d.among("weight", "weight", "buffer"))


def write_gain(p: Params, reads: Sequence[str], seed: str) -> Code:
    names = {"x": reads[0], "g": "$_gain"}
    text = "".join(names.get(word, word) for word in _words(p["form"]))
    shape = ", ".join(map(str, p["shape"]))
    return Code(text, {"_gain": f"{p['holder']}({shape}, {seed}, kind='{p['kind']}')"})


def _words(text: str) -> list[str]:
    words, word = list[str](), ""
    for letter in text:
        if letter.isalnum() or letter == "_":
            word += letter
            continue
        words += [word, letter]
        word = ""
    return [*words, word]


NORMS = (
    Operator("batch_norm", draw_batch_norm, write_batch_norm, 5.0),
    Operator("norm", draw_norm, write_norm, 0.4),
    Operator("gain", draw_gain, write_gain, 2.5),
)
