"""What stays Python, modules that are called twice, and weights that are read elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.operators.operator import LARGEST, Code, Draw, NotHere, Operator
from tests.fuzz.program import Params, Step

FORMS = (
    "Branch({one}, {two})", "BySize({one}, {two})", "Repeat({one}, 2)", "Residual({one}, 0.5)", "Remembers({one})",
    "Rows({one})", "Optional()", "Optional({one})", "nn.Sequential({one}, {two})", "nn.ModuleList([{one}, {two}])[1]",
)  # fmt: skip


def draw_module(d: Draw) -> Step:
    """A module with convolutions and batch norms inside, and a forward that is hard to follow."""
    x = d.value(lambda v: 3 <= v.rank <= 4 and v.fixed(1) and v.channels <= LARGEST)
    return d.step("module", x, form=d.among(*FORMS), n=x.rank - 2, c=x.channels, kernel=d.among(1, 3))


def write_module(p: Params, reads: Sequence[str], seed: str) -> Code:
    n, c, k = p["n"], p["c"], p["kernel"]
    conv = f"nn.Conv{n}d({c}, {c}, {k}, padding={k // 2})"
    one = f"nn.Sequential({conv}, nn.BatchNorm{n}d({c}), nn.ReLU(inplace=True))"
    two = f"nn.Sequential({conv}, nn.BatchNorm{n}d({c}))"
    return Code(f"$({reads[0]})", {"": f"drawn({p['form'].format(one=one, two=two)}, {seed})"})


def draw_again(d: Draw) -> Step:
    """A module that an earlier step has, called again; or its weight, used by a function."""
    layers = [i for i, step in enumerate(d.steps) if step.params.get("spelling") == "module" and step.op in KINDS]
    if not layers:
        raise NotHere
    of = d.random.choice(layers)
    before = next(value for value in d.values if value.index == d.steps[of].reads[0])
    x = d.value(lambda v: v.rank == before.rank and v.fixed(1) and v.shape[1] == before.shape[1])
    weight = d.steps[of].op == "conv" and d.chance(0.3)
    step = d.steps[of]
    return d.step("again", x, of=of, weight=weight, n=step.params.get("n", 0), groups=step.params.get("groups", 1))


def write_again(p: Params, reads: Sequence[str], seed: str) -> Code:
    layer = f"self.s{p['of']}"
    if p["weight"]:
        return Code(f"F.conv{p['n']}d({reads[0]}, {layer}.weight * 0.5, groups={p['groups']})")
    return Code(f"{layer}({reads[0]})")


KINDS = ("conv", "linear", "batch_norm", "conv_transpose", "pool")
CALLS = (
    "({x}, {x})[0]", "dict(a={x})['a']", "{x} if {x}.dim() > 2 else {x} * 2", "torch.zeros_like({x}) + {x}",
    "{x} + torch.arange({x}.shape[-1], dtype={x}.dtype)", "{x} * {x}.new_ones(1)", "{x} * (2 if self.training else 1)",
    "{x} + {x}.new_full((1,), 0.5)", "torch.ones_like({x}) - {x}", "{x} * {x}.shape[-1]", "{x} / {x}.size(1)",
    "torch.full_like({x}, 0.5) * {x}", "{x}.masked_fill({x} > 1, 0.5)", "{x}.to({x}.dtype)", "{x}.type_as({x})",
)  # fmt: skip


def draw_call(d: Draw) -> Step:
    return d.step("python", d.value(lambda v: v.rank >= 2), form=d.among(*CALLS))


def write_call(p: Params, reads: Sequence[str], seed: str) -> Code:
    return Code(p["form"].format(x=reads[0]))


def draw_given(d: Draw) -> Step:
    raise NotHere  # `generate` puts it first, in a program with an optional argument


def write_given(p: Params, reads: Sequence[str], seed: str) -> Code:
    x, y = reads
    return Code(f"{x} if {y} is None else {x} + 0.5 * {y}")


PYTHON = (
    Operator("module", draw_module, write_module, 0.8),
    Operator("again", draw_again, write_again, 0.6),
    Operator("python", draw_call, write_call, 0.5),
    Operator("given", draw_given, write_given, 0.0),
)
