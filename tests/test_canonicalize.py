"""Many spellings, one meaning."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from tests.test_hostile import Net, check, conv, gain, images, made, norm, parts, refusal, run_by

NOTHING: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "identity with arguments": lambda: nn.Identity(3, unused=True),
    "dropout": nn.Dropout,
    "dropout of images": lambda: nn.Dropout2d(0.3),
    "alpha dropout": nn.AlphaDropout,
    "dropout of features": nn.FeatureAlphaDropout,
    "dropout in place": lambda: nn.Dropout(0.2, inplace=True),
    "empty": nn.Sequential,
    "dropout as a function": lambda: Net(lambda m, x: F.dropout(x, 0.4, m.training)),
    "dropout with keywords": lambda: Net(lambda m, x: F.dropout2d(x, p=0.4, training=False)),
    "dropout by torch": lambda: Net(lambda m, x: torch.dropout(x, 0.4, m.training)),
    "drop path": lambda: Net(lambda m, x: x if not m.training else x * torch.rand(1)),
    "plus zero": lambda: Net(lambda m, x: x + 0.0),
    "times one": lambda: Net(lambda m, x: 1.0 * x),
    "over one": lambda: Net(lambda m, x: x / 1.0),
    "contiguous": lambda: Net(lambda m, x: x.contiguous()),
    "clone": lambda: Net(lambda m, x: x.clone()),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_nothing_does_not_stand_between(name: str) -> None:
    check(made(lambda: nn.Sequential(conv(), NOTHING[name](), norm())), *images(), operators=1)


DOUBLED: dict[str, Callable[[Any, Tensor], Any]] = {
    "operator": lambda m, x: m.conv(x) + x,
    "torch.add": lambda m, x: torch.add(m.conv(x), x),
    "torch.add with keywords": lambda m, x: torch.add(input=m.conv(x), other=x),
    "torch.add with alpha": lambda m, x: torch.add(m.conv(x), x, alpha=2),
    "method": lambda m, x: m.conv(x).add(x),
    "method with keyword": lambda m, x: m.conv(x).add(other=x, alpha=3),
    "in place": lambda m, x: m.conv(x).add_(x),
    "in place with alpha": lambda m, x: m.conv(x).add_(x, alpha=0.5),
    "iadd": lambda m, x: operator.iadd(m.conv(x), x),
    "sub with alpha": lambda m, x: torch.sub(m.conv(x), x, alpha=3),
    "method sub with alpha": lambda m, x: m.conv(x).sub_(x, alpha=3),
    "rsub": lambda m, x: 1.0 - m.conv(x) + x,
    "mul": lambda m, x: m.conv(x).mul(2.0) + x,
    "multiply": lambda m, x: torch.multiply(m.conv(x), 2.0) + x,
    "div": lambda m, x: torch.div(m.conv(x), 3.0) + x,
    "div in place": lambda m, x: m.conv(x).div_(3.0) + x,
    "neg": lambda m, x: torch.neg(m.conv(x)) + x,
    "sum": lambda m, x: sum([m.conv(x), x]),
    "numpy on the right": lambda m, x: m.conv(x) * np.sqrt(2) + x,
    "a boolean": lambda m, x: m.conv(x) * True + x,
    "gain in place": lambda m, x: m.conv(x).mul_(m.gamma) + x,
    "gain on the left": lambda m, x: m.gamma * m.conv(x) + x,
    "functional": lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, padding=1) + x,
    "functional with keywords": lambda m, x: F.conv2d(input=x, weight=m.conv.weight, bias=m.conv.bias, padding=1) + x,
    "module with keyword": lambda m, x: m.conv(input=x) + x,
    "functional norm": lambda m, x: F.batch_norm(
        m.conv(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias, False, 0.1, 1e-3
    ),
    "functional norm with keywords": lambda m, x: F.batch_norm(
        input=m.conv(x),
        running_mean=m.norm.running_mean,
        running_var=m.norm.running_var,
        weight=m.norm.weight,
        bias=m.norm.bias,
        training=False,
        eps=1e-3,
    ),
    "functional norm, no affine": lambda m, x: F.batch_norm(m.conv(x), m.norm.running_mean, m.norm.running_var),
    "functional norm by torch": lambda m, x: torch.batch_norm(
        m.conv(x), m.norm.weight, m.norm.bias, m.norm.running_mean, m.norm.running_var, False, 0.1, 1e-3, True
    ),
    "functional pad": lambda m, x: F.conv2d(F.pad(input=x, pad=(1, 1, 1, 1)), m.conv.weight) + x,
}


@pytest.mark.parametrize("name", DOUBLED)
@pytest.mark.parametrize("nested", [False, True])
def test_every_spelling_of_a_sum_is_one_conv(name: str, nested: bool) -> None:
    model = made(lambda: Net(DOUBLED[name], gamma=gain(4, 1, 1), **parts()))
    check(nn.Sequential(model).eval() if nested else model, *images(), operators=1)


NUMBERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "numpy on the left": lambda m, x: np.sqrt(2) * m.norm(m.conv(x)),
    "numpy float32": lambda m, x: m.norm(m.conv(x)) / np.float32(3.0),
    "complex": lambda m, x: m.norm(m.conv(x)) * 2j,
    "infinity": lambda m, x: m.norm(m.conv(x)) * float("inf"),
    "zero divisor": lambda m, x: m.norm(m.conv(x)) / 0.0,
    "zero gain": lambda m, x: m.norm(m.conv(x)) * 0.0,
    "rounded quotient": lambda m, x: torch.div(m.norm(m.conv(x)), 0.3, rounding_mode="floor"),
    "a large number": lambda m, x: m.norm(m.conv(x)) * 10**15,
    "a number over the map": lambda m, x: 1.0 / (m.norm(m.conv(x)) + 10.0),
    "the width": lambda m, x: m.norm(m.conv(x)) * x.shape[-1],
    "over the width": lambda m, x: m.norm(m.conv(x)) / x.shape[-1],
    "plus the width": lambda m, x: m.norm(m.conv(x)) + x.size(-1),
    "the width minus": lambda m, x: x.size(-1) - m.norm(m.conv(x)),
    "the area": lambda m, x: m.norm(m.conv(x)) * (x.shape[2] * x.shape[3]),
    "root of the width": lambda m, x: m.norm(m.conv(x)) * x.shape[-1] ** -0.5,
    "a tuple of sizes": lambda m, x: m.norm(m.conv(x)).reshape(x.shape[:2] + (-1,)),
    "a list of sizes": lambda m, x: m.norm(m.conv(x)).reshape([x.shape[0], -1]),
    "the shape of another": lambda m, x: m.norm(m.conv(x)).reshape(x.shape),
    "expanded as another": lambda m, x: m.gamma.expand_as(m.norm(m.conv(x))) * x,
    "its dtype": lambda m, x: m.norm(m.conv(x)).to(x.dtype) + m.gamma.to(x.dtype),
    "its device": lambda m, x: m.norm(m.conv(x)) + torch.ones(4, 1, 1, device=x.device, dtype=x.dtype),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_every_kind(name: str) -> None:
    model = made(lambda: Net(NUMBERS[name], gamma=gain(4, 1, 1), **parts()))
    (x,), (y,) = images()
    check(nn.Sequential(model).eval(), (x,), (y,)) if name not in ("infinity", "zero divisor") else _check_with_nan(
        model
    )


def _check_with_nan(model: nn.Module) -> None:
    model = nn.Sequential(Net(lambda m, x: torch.nan_to_num(m.child(x)).clamp(-1, 1), child=model)).eval()
    check(model, *images())


def test_numbers_at_the_root_compile_or_say_why() -> None:
    for name in NUMBERS:
        if name in ("infinity", "zero divisor"):
            continue
        reason = refusal(made(lambda n=name: Net(NUMBERS[n], gamma=gain(4, 1, 1), **parts())), *images())
        assert not reason or "cannot be traced" in reason, name


# -- questions about shapes --------------------------------------------------------------------------------------------


def _asks_late(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    b, c, h, w = y.shape
    z = torch.relu(m.norm(y))
    return z.reshape(b, c, z.shape[2] * z.size(3)) + h * w * 0.001


def test_a_question_does_not_keep_an_interior_value_alive() -> None:
    check(made(lambda: Net(_asks_late, **parts())), *images(), operators=None)
    canonical = canonicalize(capture(made(lambda: Net(_asks_late, **parts()))))
    asked = [node for node in canonical.graph.nodes if node.target is getattr and node.args[1] == "shape"]
    assert len(asked) == 1


def test_a_question_about_a_resized_value_stays_where_it_is() -> None:
    def resized(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.norm(m.conv(x)), 2)
        b, c, h, w = torch.relu(y).shape
        return y.reshape(b, c, h * w)

    check(made(lambda: Net(resized, **parts())), *images())


def test_a_norm_that_broadcasts_nothing_is_asked_for_its_own_size() -> None:
    def strided(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.down(x))
        return y.flatten(2).transpose(1, 2).reshape(y.shape[0], y.shape[2], y.shape[3], y.shape[1])

    check(made(lambda: Net(strided, down=conv(stride=2), norm=norm())), *images())


def test_dead_operators_with_effects_stay() -> None:
    """A norm in training mode whose result nobody reads still learns its statistics."""
    model = made(lambda: Net(lambda m, x: (m.norm(x), m.conv(x))[1], **parts()))
    model.norm.train()  # type: ignore[union-attr]
    from_model, fused = model.norm, check(model, images()[0], examples=(False,))
    learned = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(learned) == 1
    assert torch.allclose(learned[0].running_mean, from_model.running_mean)  # type: ignore[arg-type, union-attr]


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "a scale layer of ones": lambda: Net(lambda m, x: m.act(x) * m.gain, gain=nn.Parameter(torch.ones(4, 1, 1))),
    "one factor of one": lambda: Net(lambda m, x: m.act(x) * m.gain, gain=nn.Parameter(torch.ones(1))),
    "PReLU of slope 1": lambda: Net(lambda m, x: m.prelu(m.act(x)), prelu=nn.PReLU(4, init=1.0)),
    "leaky ReLU of slope 1": lambda: Net(lambda m, x: m.leaky(m.act(x)), leaky=nn.LeakyReLU(1.0)),
    "times one, plus zero": lambda: Net(lambda m, x: 0 + m.act(x) * 1.0 - 0.0),
    "empty": lambda: Net(lambda m, x: m.nothing(m.act(x)), nothing=nn.Sequential()),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_identities_vanish(name: str) -> None:
    model = HIDDEN[name]()
    model.act = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    model.double().eval()
    fused = check(model, *images(), examples=(False,))
    assert run_by(fused) == ["act.0", "act.1"]


def test_ones_that_broadcast_stay() -> None:
    """One channel times four ones is four channels."""
    model = Net(lambda m, x: m.conv(x) * m.gain, conv=nn.Conv2d(4, 1, 1), gain=nn.Parameter(torch.ones(4, 1, 1)))
    check(model.double().eval(), *images(), examples=(False,))


def test_a_copy_of_what_is_written_later_stays_a_copy() -> None:
    """Leaky ReLU of slope 1 changes no number; its result is a tensor of its own when the input is overwritten."""

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.act = nn.LeakyReLU(1.0), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, z = self.same(x), self.same(x.flatten(1))
            self.act(x)
            return y, z

    x = torch.tensor([[-1.0, 2.0]])
    got = fuse(Overwrites().eval())(x.clone())
    assert all(torch.equal(value, x) for value in got)
