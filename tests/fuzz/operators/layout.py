"""Slices and crops, splits, shuffles, permutations, and what joins several values."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import LARGEST, Code, Draw, NotHere, Operator, Value
from tests.fuzz.program import Params, Step

CHANNELS = (
    "{x}[:, 1:]", "{x}[:, :-1]", "{x}[:, ::2]", "{x}[:, :2]", "{x}.narrow(1, 1, {less})", "{x}.flip(1)",
    "{x}[:, [1, 0]]", "{x}.narrow(1, -1, 1)",
    "torch.flip({x}, [1])", "{x}.index_select(1, torch.tensor([1, 0]))", "{x}[:, -1:]", "torch.roll({x}, 1, 1)",
    "{x}[:, 1:][:, :1]", "{x}.repeat_interleave(2, 1)", "torch.index_select({x}, 1, torch.tensor([0, 0, 1]))",
    "torch.cat({x}.chunk(2, 1)[::-1], 1)", "{x}.split(1, 1)[1:][0]", "torch.stack({x}.unbind(1)[::-1], 1)",
    "torch.cat({x}.chunk(2, 1) + {x}.chunk(2, 1)[:1], 1)", "torch.cat(torch.split({x}, 1, 1), 1)",
    "{x}[:, [0, 0, 1]]", "{x}.select(1, 0).unsqueeze(1)", "{x}[:, 0]", "{x}[:, None, 0]",
)  # fmt: skip
POSITIONS = (
    "{x}[..., 1:-1]", "{x}[..., ::2]", "{x}[:, :, 1:]", "{x}[:, :, :-1]", "{x}[:, :, 1::2]", "{x}[..., :-2]",
    "{x}.flip(-1)", "{x}[..., 1:, :]", "{x}.narrow(-1, 0, 3)", "{x}[..., -3:]", "{x}[..., :3]", "{x}.roll(1, -1)",
    "{x}[1:]", "{x}[:1]", "{x}[:, :, ::2][:, :, 1:]", "{x}.narrow(-1, -2, 2)", "{x}.roll(1, ())",
)  # fmt: skip


def draw_slice(d: Draw) -> Step:
    x = d.value(lambda v: v.rank >= 2)
    form = d.among(*CHANNELS) if d.chance(0.5) and x.fixed(1) else d.among(*POSITIONS)
    return d.step("slice", x, form=form, less=x.shape[1] - 1)


def write_slice(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(x=reads[0], less=p["less"]))


def draw_split(d: Draw) -> Step:
    """A tuple of parts; `part` picks them."""
    x = d.value(lambda v: v.rank >= 2)
    axis = 1 if x.fixed(1) and d.chance(0.7) else d.random.randint(1, x.rank - 1)
    size, form = x.shape[axis], d.among("chunk", "split", "sizes", "function", "unbind")
    if size < 2:
        raise NotHere
    first = d.random.randint(1, size - 1)
    dim = axis - x.rank if d.chance(0.3) else axis
    return d.step("split", x, axis=dim, form=form, first=first, rest=size - first, pieces=d.random.randint(2, 3))


def write_split(p: Params, reads: Sequence[str], seed: str) -> Code:
    x, axis = reads[0], p["axis"]
    return Code({
        "chunk": f"{x}.chunk({p['pieces']}, {axis})",
        "function": f"torch.chunk({x}, {p['pieces']}, dim={axis})",
        "split": f"{x}.split({p['first']}, dim={axis})",
        "sizes": f"torch.split({x}, [{p['first']}, {p['rest']}], {axis})",
        "unbind": f"torch.unbind({x}, {axis})",
    }[p["form"]])  # fmt: skip


def draw_part(d: Draw) -> Step:
    tuples = [value for value in d.values if value.parts]
    if not tuples:
        raise NotHere
    whole = d.random.choice(tuples)
    part = d.random.randrange(whole.parts)
    return Step("part", (whole.index,), {"part": part - whole.parts if d.chance(0.2) else part})


def write_part(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(f"{reads[0]}[{p['part']}]")


LAYOUTS = (
    "{x}.permute(0, *range(2, {rank}), 1)", "{x}.transpose(1, -1)", "{x}.flatten(2)", "{x}.flatten(2).transpose(1, 2)",
    "{x}.transpose(1, 2)", "{x}.transpose(-1, -2)", "{x}.movedim(1, -1)", "{x}.flatten(1)", "{x}.unsqueeze(-1)",
    "{x}.squeeze(-1)", "{x}.permute(0, -1, *range(1, {rank} - 1))", "{x}.contiguous()", "torch.permute({x}, (0, 2, 1))",
    "{x}.reshape({x}.shape[0], {x}.shape[1], -1)", "{x}.view({x}.size(0), {x}.size(1), -1)", "{x}[..., None]",
    "F.channel_shuffle({x}, {groups})", "F.pixel_shuffle({x}, 2)", "F.pixel_unshuffle({x}, 2)", "{x}.unsqueeze(1)",
    "{x}.reshape(len({x}), {groups}, -1, *{x}.shape[2:]).transpose(1, 2).reshape({x}.shape)", "{x}.swapaxes(1, 2)",
    "{x}.view(len({x}), -1)", "{x}.repeat(1, 2, *[1] * ({rank} - 2))", "{x}.expand(2, *{x}.shape).sum(0)",
    "torch.stack([{x}, {x}]).sum(0)", "torch.stack(({x}, -{x}, {x}), 1).mean(1)",
    "{x}.unflatten(1, ({groups}, -1)).flatten(1, 2)", "{x}.flatten(2).reshape({x}.shape)",
    "{x}.flatten().view({x}.size())",
    "{x}.reshape({x}.shape[0], {x}.shape[1], -1).view({x}.shape)", "{x}.flatten(1).view_as({x})",
)  # fmt: skip


def draw_layout(d: Draw) -> Step:
    x = d.value(lambda v: v.rank >= 2)
    return d.step("layout", x, form=d.among(*LAYOUTS), rank=x.rank, groups=d.part_of(max(x.shape[1], 1)))


def write_layout(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(x=reads[0], rank=p["rank"], groups=p["groups"]))


SUMS = (
    "{a} + {b}", "{a} + {b}", "{a} + {b}", "{a} + {b}", "{a} - {b}", "torch.add({a}, {b}, alpha=2)", "{a}.add({b})",
    "{a} + 0.5 * {b}", "torch.sub({a}, {b}, alpha=0.5)", "({a} + {b}) * 0.5", "{a} * {b}", "2 * ({a} - {b}) + {a}",
    "{b} - ({a} - {b})", "{a} + {b} + {a}", "torch.stack([{a}, {b}]).sum(0)", "sum([{a}, {b}])", "torch.rsub({a}, {b})",
    "torch.lerp({a}, {b}, 0.25)", "(-{a}).add({b})", "{a} + {b} + 1",
)  # fmt: skip
IN_PLACE = (
    "{out} = {a}\n{out} += {b}",
    "{out} = {a}.add_({b})",
    "{out} = {a}.sub_({b}, alpha=2)",
    "{out} = {a}.mul_({b})",
)


def draw_sum(d: Draw) -> Step:
    """Of two values of one shape, or, in one case in seven, in place."""
    a = d.value()
    b = d.value(lambda v: v.like(a) and v is not a) if d.chance(0.9) else a
    form = d.among(*IN_PLACE) if d.chance(0.15) else d.among(*SUMS)
    return d.step("sum", a, b, form=form)


def write_sum(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(a=reads[0], b=reads[1], out="{out}"))


def draw_cat(d: Draw) -> Step:
    a = d.value(lambda v: v.rank >= 2 and v.shape[1] <= LARGEST)
    axis = 1 if d.chance(0.8) else d.random.randrange(a.rank)

    def fits(v: Value) -> bool:
        pairs = list(zip(a.tensors, v.tensors, strict=True))
        return (
            v.rank == a.rank
            and v.dtype == a.dtype
            and all(x.shape[i] == y.shape[i] for x, y in pairs for i in range(a.rank) if i != axis)
        )

    reads = [a, *(d.value(fits) for _ in range(d.random.randint(1, 2)))]
    d.random.shuffle(reads)
    return d.step("cat", *reads, axis=axis - a.rank if d.chance(0.2) else axis, name=d.among("cat", "concat"))


def write_cat(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(f"torch.{p['name']}([{', '.join(reads)}], {p['axis']})")


LAYOUT = (
    Operator("slice", draw_slice, write_slice, 1.8),
    Operator("split", draw_split, write_split, 0.8),
    Operator("part", draw_part, write_part, 4.0),
    Operator("layout", draw_layout, write_layout, 2.0),
    Operator("sum", draw_sum, write_sum, 4.0),
    Operator("cat", draw_cat, write_cat, 1.2),
)
