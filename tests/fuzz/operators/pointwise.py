"""Operators on every number alone: nonlinear ones, hidden identities, arithmetic with numbers, in-place spellings."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import Code, Draw, Operator
from tests.fuzz.program import Params, Step

ACTIVATIONS = (
    "F.relu({x})", "torch.relu({x})", "{x}.relu()", "F.gelu({x})", "F.silu({x})", "torch.tanh({x})", "{x}.sigmoid()",
    "F.leaky_relu({x}, 0.1)", "F.hardswish({x})", "{x}.abs()", "{x}.clamp(-1, 2)",
    "torch.where({x} > 0, {x}, 0.1 * {x})",
    "F.softplus({x})", "{x} * {x}.sigmoid()", "torch.maximum({x}, -{x} * 0.3)", "F.relu6({x})", "torch.softmax({x}, 1)",
    "F.normalize({x}, dim=1)", "F.elu({x})", "torch.sin({x})",
)  # fmt: skip
LAYERS = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.SiLU(inplace=True)", "nn.Hardswish()", "nn.LeakyReLU(0.2)",
    "nn.Sigmoid()", "nn.Tanh()", "nn.ReLU6(True)", "nn.Mish()",
)  # fmt: skip
IDENTITIES = (
    "{x} + 0", "0 + {x}", "{x} * 1.0", "1 * {x}", "F.leaky_relu({x}, 1.0)", "F.dropout({x}, 0.3, False)",
    "{x}.contiguous()", "{x}.clone()", "{x} - 0", "{x} / 1", "+{x}", "{x}.detach()",
    "F.dropout2d({x}, 0.5, training=False)",
)  # fmt: skip
EMPTY = ("nn.Identity()", "nn.Dropout(0.4)", "nn.Sequential()", "nn.LeakyReLU(1.0)", "nn.Dropout1d(0.1)")
NUMBERS = (
    "{x} * 0.5", "2 * {x}", "{x} / 4", "-{x}", "{x} + 0.25", "1 - {x}", "{x} - 0.5", "{x}.mul(0.5)", "{x}.neg()",
    "torch.add({x}, 1.5)", "torch.sub({x}, 1, alpha=2)", "torch.rsub({x}, 1)", "{x} * -1", "{x} * 0", "{x}.div(2)",
    "({x} + 1) * ({x}.shape[1] ** -0.5)", "{x} + {x}", "{x} - {x} * 0.5", "torch.true_divide({x}, 8)",
)  # fmt: skip
IN_PLACE = (
    "{out} = {x}.relu_()", "{out} = F.relu({x}, inplace=True)", "{out} = {x}.mul_(0.5)", "{out} = {x}.add_(1.0)",
    "{out} = {x}\n{out} += 0.5", "{out} = {x}\n{out} *= 2", "{out} = {x}\n{out}[:, :1] = 0", "{out} = {x}.neg_()",
    "{out} = {x}.clone()\n{out}[:, 0] *= 3", "{out} = {x}.clone()\n{out}[..., :1] += 1", "{out} = {x}.sub_({x} * 0.5)",
    "{out} = {x}.clamp_(-2, 2)", "{out} = {x}\nother = {out}[:, :1]\nother.mul_(2)", "{out} = {x}\n{out} -= {x}.mean()",
    "{out} = torch.relu_({x})", "{out} = {x}.copy_({x} * 3)", "{out} = {x}.zero_() + 1", "{out} = {x}.fill_(0.5)",
)  # fmt: skip
CASTS = ("{x}.to(torch.{dtype})", "{x}.to(dtype=torch.{dtype})", "{x}.type(torch.{dtype})")


def _one_of(op: str, forms: Sequence[str]) -> Operator:
    def draw(d: Draw) -> Step:
        return d.step(op, d.value(lambda v: v.rank >= 2), form=d.random.choice(forms))

    def write(p: Params, reads: Sequence[str], seed: str) -> Code:
        return Code(p["form"].format(x=reads[0], out="{out}"))

    return Operator(op, draw, write)


def _layer(op: str, forms: Sequence[str]) -> Operator:
    def draw(d: Draw) -> Step:
        return d.step(op, d.value(lambda v: v.rank >= 2), form=d.random.choice(forms))

    def write(p: Params, reads: Sequence[str], seed: str) -> Code:
        return Code(f"$({reads[0]})", {"": p["form"]})

    return Operator(op, draw, write)


def draw_prelu(d: Draw) -> Step:
    x = d.value(lambda v: v.rank >= 2 and v.fixed(1))
    return d.step("prelu", x, c=d.among(1, x.channels))


def write_prelu(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(f"$({reads[0]})", {"": f"drawn(nn.PReLU({p['c']}), {seed})"})


def draw_cast(d: Draw) -> Step:
    """To a finer dtype or back, or to one that every number passes through."""
    return d.step("cast", d.value(), form=d.random.choice(CASTS), dtype=d.among("float64", "float32"))


def write_cast(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(x=reads[0], dtype=p["dtype"]))


POINTWISE = (
    _one_of("activation", ACTIVATIONS),
    _layer("activation_layer", LAYERS),
    _one_of("identity", IDENTITIES),
    _layer("empty_layer", EMPTY),
    _one_of("number", NUMBERS),
    _one_of("in_place", IN_PLACE),
    Operator("prelu", draw_prelu, write_prelu, 0.2),
    Operator("cast", draw_cast, write_cast, 0.15),
)
