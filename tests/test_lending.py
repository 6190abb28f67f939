"""A copy whose weights are copied when they are read computes what a whole copy computes, and keeps nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from repcompile import fuse, verify
from repcompile.compare import Check
from repcompile.errors import ModelError
from repcompile.execute import run
from repcompile.lending import as_it_is, lent_copy, unchanged, whole_copy
from repcompile.modules import FixedDtype
from tests.sweep.fingerprint import differences, fingerprint
from tests.test_hostile import Net, check, conv, image, images, made, norm, parts

INPUTS = (image(2, 4, 7, 6).float(),)


def tied() -> nn.Module:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    return nn.Sequential(first, norm(), second)


def swaps(m: Any, x: Tensor) -> Tensor:
    """Calls a part with other weights than its own."""
    doubled = {name: 2 * weight for name, weight in m.conv.named_parameters()}
    return torch.func.functional_call(m.conv, doubled, (x,)) + m.conv(x)


def lists(m: Any, x: Tensor) -> Tensor:
    for weight in m.weights:
        x = x * weight
    return F.conv2d(x, m.named["kernel"]) + sum(p.sum() for p in m.parameters())


def reads_elsewhere(m: Any, x: Tensor) -> Tensor:
    """As attention does with the weights of its last layer."""
    return F.conv2d(x, m.conv.weight, m.conv.bias, padding=1)


def listed() -> nn.Module:
    weights = nn.ParameterList([torch.full((1, 4, 1, 1), 0.5), torch.full((4, 1, 1), 3.0)])
    return Net(lists, weights=weights, named=nn.ParameterDict({"kernel": torch.randn(3, 4, 1, 1)}))


def fused() -> nn.Module:
    return fuse(made(lambda: nn.Sequential(norm(), conv(), nn.ReLU(), conv(), norm())))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv()),
    "tied": tied,
    "parameters in lists": listed,
    "weights read by another module": lambda: Net(reads_elsewhere, conv=nn.Conv2d(4, 4, 3)),
    "other weights for one call": lambda: Net(swaps, **parts()),
    "weight norm": lambda: nn.Sequential(weight_norm(nn.Conv2d(4, 4, 3)), norm()),
    "an orthogonal weight": lambda: orthogonal(nn.Linear(6, 6)),
    "fused": fused,
    "attention": lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(42, 2, 8, batch_first=True)),
}


@pytest.mark.parametrize("convert", [as_it_is, nn.Module.double], ids=["as it is", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_results_of_a_whole_copy(name: str, convert: Any) -> None:
    model = made(MODELS[name]).float()
    x = (INPUTS[0].double(),) if convert is nn.Module.double else INPUTS

    def change(tensor: Tensor, number: int) -> None:
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.01 * number)

    before = fingerprint(model)
    for changed in (unchanged, change):
        expected = run(whole_copy(model, convert, changed), x)
        got = run(lent_copy(model, convert, changed), x)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    assert not torch.equal(run(lent_copy(model, convert), x), got)
    assert differences(before, fingerprint(model)) == []


def test_it_holds_no_weight() -> None:
    copied = lent_copy(made(lambda: nn.Sequential(conv(), norm())))
    tables = [part._parameters for part in copied.modules()]
    assert all(dict.__getitem__(table, name).numel() == 0 for table in tables for name in table)
    assert copied[0].weight is not copied[0].weight  # type: ignore[index]
    assert copied[0]._parameters.get("no") is None  # type: ignore[index]


def test_a_dtype_that_the_model_has_chosen_stays() -> None:
    copied = lent_copy(nn.Sequential(FixedDtype(torch.ones(2)), nn.Linear(2, 2)), nn.Module.double)
    assert [buffer.dtype for buffer in copied.buffers()] == [torch.float32]
    assert {weight.dtype for weight in copied.parameters()} == {torch.float64}
    whole = nn.Linear(2, 2).bfloat16()
    whole.numbers = nn.Parameter(torch.arange(3), requires_grad=False)
    assert {p.dtype for p in lent_copy(whole, nn.Module.double).parameters()} == {torch.float64, torch.int64}


def writes(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data.clamp_(-0.1, 0.1)
    m.conv.weight.data = m.conv.weight.data * 2
    with torch.no_grad():
        m.conv.bias += 1
    return m.conv(x)


def test_what_a_forward_writes_reaches_nobody() -> None:
    model = made(lambda: Net(writes, **parts())).float()
    before = fingerprint(model)
    run(lent_copy(model), INPUTS)
    assert differences(before, fingerprint(model)) == []


def remembers(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, m.remembered[0])


def remembering() -> nn.Module:
    kernel = nn.Parameter(torch.randn(4, 4, 1, 1))
    model = Net(remembers, kernel=kernel)
    model.__dict__["remembered"] = [kernel]
    return model


@pytest.mark.parametrize(
    "build",
    [lambda: nn.LSTM(4, 4), remembering, lambda: torch.jit.trace(nn.Conv2d(4, 4, 1), INPUTS)],
    ids=["lstm", "a list", "scripted"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_weight_that_others_hold_is_not_lent(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match="not read by their names"):
        lent_copy(build())


def test_a_copy_of_the_copy_is_one_of_its_own() -> None:
    lender = lent_copy(made(conv).float())
    assert torch.equal(run(copy.deepcopy(lender), INPUTS), run(lender, INPUTS))


def test_copies_that_belong_together() -> None:
    """A layer lent by itself, then inside another module, and its weight in a whole copy."""
    layer, memo = made(conv).float(), dict[int, Any]()
    around, tie = nn.Sequential(layer, nn.ReLU()), nn.Conv2d(4, 4, 3, padding=1)
    tie.weight, tie.bias = layer.weight, layer.bias  # type: ignore[assignment]
    lender = lent_copy(layer, memo=memo)
    lent_around, whole = lent_copy(around, memo=memo), copy.deepcopy(tie, memo)
    assert lent_around[0] is lender  # type: ignore[index]
    assert torch.equal(run(lender, INPUTS), run(layer, INPUTS))
    assert torch.equal(run(lent_around, INPUTS), run(around, INPUTS))
    assert torch.equal(whole(*INPUTS), tie(*INPUTS))
    assert whole.weight is not tie.weight


def reads_tied(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x) + F.conv2d(x, m.conv.weight, padding=1)) + torch.einsum("bchw,oc->bohw", x, m.gain.weight)


def test_a_weight_that_is_read_beside_its_layer() -> None:
    check(made(lambda: Net(reads_tied, **parts(gain=nn.Linear(4, 4)))), *images())


# -- verify -----------------------------------------------------------------------------------------------------------


def ping_pong(m: Any, x: Tensor) -> Tensor:
    """Of no use without its own memory of what it wrote."""
    with torch.no_grad():
        m.conv.bias.fill_(x.mean())
    return m.conv(x)


def passed(checks: tuple[Check, Check]) -> bool:
    return all(check.passed for check in checks)


def test_who_depends_on_what_it_writes_is_compared_with_whole_copies() -> None:
    """The other model computes what this one writes, so that they differ where writes are lost."""

    def other(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, m.conv.weight, x.mean() * torch.ones_like(m.conv.bias), padding=1)

    model = made(lambda: Net(ping_pong, **parts())).float()
    straight = made(lambda: Net(other, **parts())).float()
    assert passed(verify(model, straight, INPUTS))
    with torch.no_grad():
        straight.conv.weight.mul_(1.01)  # type: ignore[union-attr]
    assert not passed(verify(model, straight, INPUTS))


def test_who_cannot_be_lent_is_compared_with_whole_copies() -> None:
    model, x = remembering().eval(), image(2, 4, 5, 5).float()
    assert passed(verify(model, copy.deepcopy(model), (x,)))
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    assert not passed(verify(model, other, (x,)))
