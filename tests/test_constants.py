"""What does not depend on an input is evaluated once, in float64; what is random is not a constant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from repcompile.capture import capture
from repcompile.constants import Constants
from repcompile.errors import Inexact
from tests.test_hostile import (
    Net,
    assert_close,
    assert_same_call,
    assert_untouched,
    check,
    conv,
    gain,
    image,
    images,
    made,
    norm,
    parts,
    run_by,
    state_of,
)

COMPUTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sum of kernels": lambda m, x: F.conv2d(x, m.a + F.pad(m.b, (1, 1, 1, 1)), padding=1),
    "product of kernels": lambda m, x: F.conv2d(x, torch.einsum("ij,jkhw->ikhw", m.c, m.a)),
    "product of matrices": lambda m, x: F.conv2d(x, (m.c @ m.c.T)[:, :, None, None]),
    "scaled by a buffer": lambda m, x: F.conv2d(x, m.a * m.mask),
    "a choice": lambda m, x: F.conv2d(x, torch.where(m.a > 0, m.a, torch.zeros_like(m.a))),
    "rounded": lambda m, x: F.conv2d(x, torch.round(m.a * 8) / 8),
    "an index": lambda m, x: F.conv2d(x, m.a[m.order]),
    "stacked": lambda m, x: F.conv2d(x, torch.stack([m.c, m.c.T], -1).unsqueeze(-1)),
    "its statistics": lambda m, x: F.conv2d(x, (m.a - m.a.mean()) / m.a.std()),
    "a method in place on a copy": lambda m, x: F.conv2d(x, m.a.clone().mul_(2.0)),
    "its shape": lambda m, x: F.conv2d(x, m.a.view(m.a.shape[0], -1, 3, 3)),
    "its norm": lambda m, x: F.conv2d(x, F.normalize(m.a.flatten(1), dim=1).view_as(m.a)),
    "a sum over parameters": lambda m, x: F.conv2d(x, m.a * sum(p.mean() for p in m.parameters())),
    "a number out of one": lambda m, x: F.conv2d(x, m.a) * m.c.max().item(),
    "a product in half precision": lambda m, x: F.conv2d(x, m.a * m.c.half().double().mean()),
}


def _computed(name: str) -> nn.Module:
    constants = {"mask": (torch.rand(4, 4, 3, 3) > 0.5).double(), "order": torch.tensor([3, 1, 0, 2])}
    weights = {"a": gain(4, 4, 3, 3), "b": gain(4, 4, 1, 1), "c": gain(4, 4)}
    return made(lambda: nn.Sequential(Net(COMPUTED[name], **weights, **constants), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_computed_in_forward_are_folded_or_left(name: str) -> None:
    check(_computed(name), *images())


@pytest.mark.parametrize("name", list(COMPUTED)[:4])
def test_weights_computed_in_forward_are_one_conv(name: str) -> None:
    assert len(run_by(fuse(_computed(name)))) == 1


RANDOM: dict[str, Callable[[Any], Tensor]] = {
    "normal": lambda m: torch.normal(m.mean, m.gamma),
    "poisson": lambda m: torch.poisson(m.gamma * 9),
    "bernoulli": lambda m: torch.bernoulli(m.gamma * 0.5),
    "bernoulli method": lambda m: (m.gamma * 0.5).bernoulli(),
    "binomial": lambda m: torch.binomial(m.gamma.round() * 9 + 9, m.gamma * 0.5),
    "dropout": lambda m: F.dropout(m.gamma, 0.5, True),
    "dropout by torch": lambda m: torch.dropout(m.gamma, 0.5, True),
    "dropout of images": lambda m: F.dropout2d(m.gamma, 0.5, True),
    "alpha dropout": lambda m: F.alpha_dropout(m.gamma, 0.5, True),
    "rrelu": lambda m: F.rrelu(-m.gamma, 0.1, 0.9, True),
    "gumbel": lambda m: F.gumbel_softmax(m.gamma, dim=0),
    "rand_like": lambda m: torch.rand_like(m.gamma),
    "randn_like": lambda m: torch.randn_like(m.gamma),
    "a module": lambda m: m.drop(m.gamma),
    "normal in place": lambda m: m.gamma.clone().normal_(),
    "new empty": lambda m: m.gamma.new_empty(m.gamma.shape).exponential_(),
    "empty_like": lambda m: torch.empty_like(m.gamma).uniform_(),
}


@pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input")  # the weights of one filter each
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("place", ["gain", "weight"])
def test_a_random_weight_stays_random(name: str, place: str) -> None:
    def noisy(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) * RANDOM[name](m) if place == "gain" else F.conv2d(x, m.conv.weight * RANDOM[name](m))

    more = {"gamma": gain(4, 1, 1), "mean": torch.rand(4, 1, 1), "drop": nn.Dropout()}
    model = made(lambda: nn.Sequential(Net(noisy, **parts(**more)), nn.BatchNorm2d(4)))
    model[0].drop.train()  # type: ignore[index, union-attr]
    before, (x,) = state_of(model), images()[0]
    fused = fuse(model)
    assert_untouched(model, before)
    with torch.random.fork_rng(devices=[]):
        outputs = [fused(x) for _ in range(6)]
        assert not all(torch.equal(outputs[0], other) for other in outputs[1:])
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.allclose(fused(x), expected)


def test_constants_of_two_dtypes() -> None:
    """What runs in the dtypes of the model need not run when everything is float64."""

    def mixed(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, (m.low.float() @ m.high)[:, :, None, None])

    model = made(lambda: nn.Sequential(Net(mixed, low=gain(4, 4), high=gain(4, 4)), conv(size=1)))
    model = model.float()
    model[0].low.data = model[0].low.data.bfloat16()  # type: ignore[index, union-attr]
    x = image(1, 4, 5, 5).float()
    assert_same_call(model, fuse(model), (x,), tolerance=1e-5)


def test_long_computation_of_a_weight() -> None:
    def summed(m: Any, x: Tensor) -> Tensor:
        weight = m.conv.weight
        for _ in range(600):
            weight = weight * 0.999 + 0.0001
        return m.norm(F.conv2d(x, weight))

    check(made(lambda: nn.Sequential(Net(summed, **parts()))), images()[0], examples=(False,))


def test_a_constant_that_is_no_float_is_refused() -> None:
    captured = capture(made(lambda: Net(lambda m, x: x + m.table * 2, table=torch.tensor([1, 2]))))
    constants = Constants(captured)
    (product,) = [node for node in captured.graph.nodes if node in constants and node.op == "call_function"]
    with pytest.raises(Inexact):
        constants.value(product)


def test_the_users_weights_are_not_written_to() -> None:
    def scaled(m: Any, x: Tensor) -> Tensor:
        weight = m.conv.weight * 1.0
        weight *= 2.0
        return m.norm(F.conv2d(x, weight))

    model = made(lambda: nn.Sequential(Net(scaled, **parts())))
    check(model, *images())


def test_plain_tensors_are_constants_of_the_time_of_fusing() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)) * m.table["gain"], **parts()))
    model.table = {"gain": torch.tensor([1.0, 2.0, 3.0, 4.0]).double().view(4, 1, 1)}  # type: ignore[assignment]
    fused = check(model, *images())
    expected = model(*images()[0])
    model.table["gain"].zero_()  # type: ignore[index, union-attr]
    assert torch.allclose(fused(*images()[0]), expected), "nothing is shared"


class Positions(nn.Module):
    """Adds numbers that it computes in float32 whatever its weights are, and others that follow the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.table = conv(), norm(), gain(4)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(4, device=self.table.device).to(torch.float32)
        waves = (10000.0 ** (steps / 3) + self.table.to(torch.float32) * 0).sin()
        return self.norm(self.conv(x)) + waves.view(1, 4, 1, 1).to(x.dtype) + (self.table * 3).view(1, 4, 1, 1)


@pytest.mark.parametrize("again", [False, True])
def test_a_dtype_that_the_model_chose_stays(again: bool) -> None:
    model = made(Positions)
    fused: Any = fuse(fuse(model)) if again else fuse(model)
    kept = copy.deepcopy(fused)
    fixed = [name for name, buffer in kept.named_buffers() if buffer.dtype == torch.float32]
    assert len(fixed) == 1
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        moved = copy.deepcopy(kept).to(dtype)
        x = image(1, 4, 6, 6).to(dtype)
        assert moved.get_buffer(fixed[0]).dtype == torch.float32
        assert {p.dtype for p in moved.parameters()} == {dtype}
        assert_close(moved(x), copy.deepcopy(model).to(dtype)(x), 30 * torch.finfo(dtype).eps)
    assert_close(fused(image(2, 4, 9, 8)), model(image(2, 4, 9, 8)))


def _gated_frequencies(m: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(m.conv(x)) * torch.view_as_complex(m.pairs)
    return torch.fft.irfft2(spectrum, s=x.shape[-2:])


def _weighed(m: Any, x: Tensor) -> Tensor:
    branches = torch.stack([torch.relu(m.conv(x)), torch.relu(m.norm(x))])
    return (branches * m.mixture.softmax(0).view(2, 1, 1, 1, 1)).sum(0)


CONVERTED: dict[str, Callable[[Any], Any]] = {
    "float": lambda m: m.float(),
    "double": lambda m: m.to(torch.float64),
    "there and back": lambda m: m.float().double(),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("convert", CONVERTED.values(), ids=CONVERTED)
@pytest.mark.parametrize("forward", [_gated_frequencies, _weighed])
@pytest.mark.parametrize("informed", [False, True])
def test_a_constant_goes_where_its_weights_go(convert: Callable[[Any], Any], forward: Any, informed: bool) -> None:
    """torch gives complex tensors a real dtype, without their imaginary part, and only four axes another order."""
    tensors = {"pairs": nn.Parameter(torch.randn(4, 1, 1, 2)), "mixture": nn.Parameter(torch.randn(2))}
    model, (call, other) = made(lambda: Net(forward, **tensors, **parts())), images()
    fused, expected = convert(fuse(model, call if informed else None)), convert(copy.deepcopy(model))
    dtype = next(expected.parameters()).dtype
    for inputs in (call, other):
        given = tuple(x.to(dtype) for x in inputs)
        got, wanted = fused(*given), expected(*given)
        assert got.dtype == wanted.dtype == dtype
        assert_close(got, wanted, 1e-5)
