"""Along which axis an operator acts, and of which value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import DEFAULT, Affine, affine_rule, explain, fuse, layout_rule
from repcompile.canonicalize import canonicalize
from repcompile.capture import capture
from repcompile.execute import execute
from repcompile.facts import affine_facts
from tests.claims import untrue, untrue_maps
from tests.test_hostile import (
    Inputs,
    Net,
    assert_same_call,
    check,
    conv,
    gain,
    image,
    images,
    made,
    norm,
    parts,
    run_by,
)

SQUARE = ((image(2, 4, 4, 4),), (image(4, 4, 4, 4, seed=1),))

LAYOUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "flatten(input=)": lambda m, x: torch.flatten(input=m.norm(m.conv(x)), start_dim=2),
    "flatten(start_dim=)": lambda m, x: m.norm(m.conv(x)).flatten(start_dim=2),
    "flatten of the end": lambda m, x: m.norm(m.conv(x)).flatten(-2, -1),
    "flatten of the batch": lambda m, x: m.tail(m.norm(m.conv(x)).permute(0, 2, 3, 1).flatten(0, 2)),
    "flatten of batch and channels": lambda m, x: m.norm(m.conv(x)).flatten(0, 1) * 2.0 + 1.0,
    "permute(dims=)": lambda m, x: m.tail(m.norm(m.conv(x)).permute(dims=(0, 2, 3, 1))),
    "permute of a tuple": lambda m, x: m.tail(m.norm(m.conv(x)).permute((0, 2, 3, 1))),
    "permute from the end": lambda m, x: m.tail(m.norm(m.conv(x)).permute(0, -2, -1, 1)),
    "torch.permute(dims=)": lambda m, x: m.tail(torch.permute(m.norm(m.conv(x)), dims=(0, 2, 3, 1))),
    "torch.permute(input=)": lambda m, x: m.tail(torch.permute(input=m.norm(m.conv(x)), dims=(0, 2, 3, 1))),
    "movedim": lambda m, x: m.tail(m.norm(m.conv(x)).movedim(1, -1)),
    "transpose(dim0=)": lambda m, x: m.tail(m.norm(m.conv(x)).transpose(dim0=1, dim1=3)),
    "transpose twice": lambda m, x: m.conv(m.norm(m.conv(x)).transpose(1, 2).transpose(2, 1)),
    "reshape(shape=)": lambda m, x: m.norm(m.conv(x)).reshape(shape=(x.shape[0], -1)),
    "reshape(input=)": lambda m, x: torch.reshape(input=m.norm(m.conv(x)), shape=(x.shape[0], -1)),
    "view(size=)": lambda m, x: m.norm(m.conv(x)).view(size=(x.shape[0], -1)),
    "view as": lambda m, x: m.norm(m.conv(x)).view_as(x) * m.gamma,
    "reshape and back": lambda m, x: m.conv(m.norm(x).reshape(x.shape[0], 4, -1).reshape(x.shape)),
    "flattened and of a whole shape": lambda m, x: m.norm(m.conv(x).flatten(2).reshape(x.shape)),
    "flattened and of a whole size": lambda m, x: m.norm(m.conv(x).flatten(2).view(x.size())),
    "flattened and viewed as it was": lambda m, x: m.norm((y := m.conv(x)).flatten(1).view_as(y)),
    "flattened and of its own shape": lambda m, x: m.norm((y := m.conv(x)).flatten(2).view(y.shape)),
    "view of weights as": lambda m, x: m.norm(m.conv(x)) * m.width.view_as(x.mean((2, 3), keepdim=True)[:1]),
    "reshape as weights": lambda m, x: m.norm(m.conv(x)).mean((0, 2, 3)).reshape_as(m.gamma) * m.gamma,
    "roll of everything": lambda m, x: m.conv(m.norm(x).roll(1)),
    "squeeze of everything": lambda m, x: m.norm(m.conv(x)).unsqueeze(1).squeeze() * m.gamma,
    "unsqueezed and squeezed": lambda m, x: m.conv(m.norm(x).unsqueeze(2).squeeze(2)),
    "unflatten": lambda m, x: m.norm(m.conv(x)).unflatten(1, (2, 2)) * 2.0,
    "unsqueeze": lambda m, x: m.norm(m.conv(x)).unsqueeze(1) * m.gamma,
    "squeeze": lambda m, x: m.norm(m.conv(x))[:, :, :1].squeeze(2) * m.gamma[0],
    "mT": lambda m, x: m.conv(m.norm(x).mT),
    "expand": lambda m, x: m.conv(m.norm(x.mean((2, 3), keepdim=True)).expand_as(x)),
    "a linear along the height": lambda m, x: m.tail(m.conv(x).transpose(2, 3)),
    "a linear along the width": lambda m, x: m.tail(m.norm(m.conv(x))),
    "a gain behind a linear along the width": lambda m, x: m.tail(x) * m.gamma,
    "a norm behind a linear along the width": lambda m, x: m.norm(m.tail(x)),
    "a linear along the width behind a gain": lambda m, x: m.tail(x * m.gamma),
    "a linear behind a linear along the height": lambda m, x: m.tail(m.tail(x).transpose(2, 3)),
    "a gain of the width in front of a conv": lambda m, x: m.conv(x * m.width),
    "a gain of the height in front of a conv": lambda m, x: m.conv(x * m.width[:, None]),
    "a gain of positions": lambda m, x: m.norm(m.conv(x)) * m.width[:, None] * m.width,
    "a gain of the batch": lambda m, x: m.norm(m.conv(x)) * m.width.view(4, 1, 1, 1) if x.shape else x,
    "roll": lambda m, x: m.conv(m.norm(x).roll(1, 1)),
    "flip": lambda m, x: m.conv(m.norm(x).flip(1)),
    "pad of the channels": lambda m, x: m.conv(F.pad(m.norm(x), (0, 0, 0, 0, 1, 0))[:, :4]),
    "pad of a keyword": lambda m, x: m.conv(F.pad(input=m.norm(x), pad=(1, 0, 0, 1), mode="constant", value=0.0)),
    "pad of the width": lambda m, x: m.conv(F.pad(m.norm(x), (1, 2))),
    "reflecting pad": lambda m, x: m.conv(F.pad(m.norm(x), (1, 1, 1, 1), mode="reflect")),
    "pool of a keyword": lambda m, x: F.avg_pool2d(input=m.norm(m.conv(x)), kernel_size=2),
    "pool of everything": lambda m, x: F.avg_pool2d(m.norm(m.conv(x)), x.shape[2:]),
    "pool of three axes": lambda m, x: F.avg_pool1d(m.norm(m.conv(x)).flatten(2), 3),
    "mean": lambda m, x: m.tail(m.norm(m.conv(x)).mean((2, 3))),
    "mean of the channels": lambda m, x: m.norm(m.conv(x)) + m.conv(x).mean(1, keepdim=True),
    "adaptive pool": lambda m, x: m.tail(F.adaptive_avg_pool2d(m.norm(m.conv(x)), 1).flatten(1)),
    "upsampled": lambda m, x: m.conv(F.interpolate(m.norm(x), scale_factor=2.0, mode="nearest")),
    "interpolated": lambda m, x: m.conv(F.interpolate(m.norm(x), scale_factor=2.0, mode="bilinear")),
    "concatenated": lambda m, x: torch.cat([m.norm(m.conv(x)), x, m.conv(x)], 1) * 2.0,
    "stacked": lambda m, x: torch.stack([m.norm(m.conv(x)), x]).sum(0),
    "outer product": lambda m, x: m.norm(m.conv(x)) @ x.transpose(2, 3),
    "two layouts added": lambda m, x: m.norm(m.conv(x)) + m.conv(x.transpose(2, 3)).transpose(2, 3),
    "two layouts of one added": lambda m, x: x.transpose(2, 3) + x + m.conv(x),
    "three rows of tokens": lambda m, x: (
        m.tail(m.norm(m.conv(x)).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (2, -1))
    ),
    "norm of tokens": lambda m, x: m.norm1(m.tail(x.flatten(2).transpose(1, 2)).transpose(1, 2)),
    "norm of tokens along the wrong axis": lambda m, x: m.norm1(m.tail(x[:, :, 0])),
    "channel shuffle": lambda m, x: m.conv(
        m.norm(x).view(x.shape[0], 2, 2, x.shape[2], -1).transpose(1, 2).reshape(x.shape)
    ),
    "window partition": lambda m, x: m.tail(
        m.norm(x).permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2] // 2, 2, -1, 2, 4)
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("nested", [False, True])
def test_an_operator_acts_along_its_axis(name: str, nested: bool) -> None:
    """With as many channels as rows and columns, so that a wrong axis fits."""
    more = {"tail": nn.Linear(4, 4), "gamma": gain(4, 1, 1), "width": gain(4), "norm1": nn.BatchNorm1d(4)}
    model = made(lambda: Net(LAYOUTS[name], **parts(**more)))
    calls = SQUARE[1:] if name == "a gain of the batch" else SQUARE
    check(nn.Sequential(model).eval() if nested else model, *calls)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "a gain of the batch"])
def test_what_is_known_of_layouts_is_so(name: str) -> None:
    """Of every value, whether a region uses it or not."""
    more = {"tail": nn.Linear(4, 4), "gamma": gain(4, 1, 1), "width": gain(4), "norm1": nn.BatchNorm1d(4)}
    captured = canonicalize(capture(made(lambda: Net(LAYOUTS[name], **parts(**more))), DEFAULT.module_classes))
    for (x,) in SQUARE:
        for known in ({}, execute(captured, [x])[1]):
            facts = affine_facts(captured, DEFAULT, known)
            assert [*untrue(captured, facts, [x]), *untrue_maps(captured, facts, [x])] == []


WITHOUT_BATCH: dict[str, tuple[Callable[[], nn.Module], tuple[Inputs, ...]]] = {
    "permuted": (
        lambda: Net(lambda m, x: m.tail(m.conv(x).permute(1, 2, 0)), conv=conv(), tail=nn.Linear(4, 3)),
        ((image(4, 7, 6),),),
    ),
    "a border": (lambda: nn.Sequential(conv(size=1), conv()), ((image(4, 7, 6),), (image(2, 4, 5, 5),))),
    "a gain of the input": (
        lambda: Net(lambda m, x: m.conv(x * m.gamma + m.gamma), conv=conv(), gamma=gain(4, 1, 1)),
        ((image(4, 7, 6),), (image(2, 4, 5, 5),)),
    ),
    "a gain that adds the batch": (
        lambda: Net(lambda m, x: m.conv((x - m.gamma) / m.gamma), conv=conv(), gamma=gain(1, 4, 1, 1)),
        ((image(4, 7, 6),), (image(2, 4, 5, 5),)),
    ),
}


@pytest.mark.parametrize("name", WITHOUT_BATCH)
@pytest.mark.parametrize("example", [False, True])
def test_an_image_without_a_batch(name: str, example: bool) -> None:
    """torch's convolutions take it, so the fused model does what the model does."""
    build, calls = WITHOUT_BATCH[name]
    check(made(build), *calls, examples=(example,))


# builds a model, (a batch, an image without one) of the same number of channels, rows and columns
FOR_BATCHES: dict[str, tuple[Callable[[], nn.Module], tuple[Inputs, Inputs]]] = {
    "flattened": (
        lambda: Net(lambda m, x: m.conv(x).flatten(1) * 2.0, conv=conv()),
        ((image(2, 4, 7, 6),), (image(4, 7, 6),)),
    ),
    "a gain behind that adds the batch": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma, conv=conv(), gamma=gain(1, 4, 1, 1)),
        ((image(2, 4, 5, 5),), (image(4, 7, 6),)),
    ),
    "the last axis": (
        lambda: Net(lambda m, x: m.tail(m.conv(x).transpose(1, -1)), conv=conv(size=1), tail=nn.Linear(4, 3)),
        ((image(2, 4, 4, 4),), (image(4, 4, 4),)),
    ),
    "norm of one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
        ((image(2, 4, 4),), (image(4, 4),)),
    ),
}


@pytest.mark.parametrize("name", FOR_BATCHES)
@pytest.mark.parametrize("example", [False, True])
def test_an_operator_that_would_act_along_another_axis_without_a_batch(name: str, example: bool) -> None:
    """Fused for batches, a model does not take an image; it never gives another result."""
    build, (batch, single) = FOR_BATCHES[name]
    model = made(build)
    fused = check(model, batch, examples=(example,))
    with pytest.raises(ValueError, match=r"this value has \d axes"):
        fused(*single)
    check(model, single, examples=(True,))


@pytest.mark.parametrize("example", [False, True])
def test_grey_images_are_broadcast_to_colours(example: bool) -> None:
    """(x - mean) / deviation makes three channels of one."""

    def normalized(m: Any, x: Tensor) -> Tensor:
        return m.conv((x - m.mean) / m.deviation)

    more = {"mean": torch.rand(3, 1, 1), "deviation": torch.rand(3, 1, 1) + 0.5}
    model = made(lambda: Net(normalized, conv=conv(3, 4), **more))
    check(model, (image(2, 3, 7, 6),), (image(2, 1, 7, 6),), examples=(example,))
    check(model, (image(2, 1, 7, 6),), (image(2, 3, 7, 6),), examples=(example,))


@contextlib.contextmanager
def in_double() -> Generator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("spelling", ["over", "over and minus", "times and plus", "gain"])
def test_integer_images_become_floating_point(spelling: str, example: bool) -> None:
    functions: dict[str, Callable[[Any, Tensor], Tensor]] = {
        "over": lambda m, x: m.conv(x / 255.0),
        "over and minus": lambda m, x: m.conv(x / 255.0 - 0.5),
        "times and plus": lambda m, x: m.conv(x * 0.5 + 1.0),
        "gain": lambda m, x: m.conv(x * m.gamma - m.gamma),
    }
    model = made(lambda: Net(functions[spelling], conv=conv(3, 4), gamma=gain(3, 1, 1)))
    x = torch.arange(2 * 3 * 7 * 6, dtype=torch.uint8).view(2, 3, 7, 6)
    with in_double():  # the dtype that integers become
        check(model, (x,), examples=(example,))


def test_a_gain_that_promotes_the_input() -> None:
    model = made(lambda: Net(lambda m, x: m.conv(x * m.gamma), conv=conv(), gamma=gain(4, 1, 1)))
    check(model, (image(1, 4, 5, 5).float(),))


def test_a_norm_of_two_axes_used_with_three() -> None:
    """Example inputs fix the rank; another rank must not give other numbers silently."""
    model = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    fused, tokens = fuse(model, (image(3, 5),)), image(2, 4, 5)
    assert_same_call(model, fused, (image(7, 5),))
    with pytest.raises(ValueError, match="it has 3"):
        fused(tokens)


@pytest.mark.parametrize("count", [3, 30, 200])
def test_many_branches_are_one_conv(count: int) -> None:
    def summed(m: Any, x: Tensor) -> Any:
        return sum((branch(x) for branch in m.branches), m.branches[0](x))

    model = made(lambda: Net(summed, branches=nn.ModuleList(conv(size=1 + 2 * (i % 2)) for i in range(count))))
    check(model, images()[0], operators=1, examples=(False,))


def test_very_many_branches_do_not_exhaust_the_stack() -> None:
    def summed(m: Any, x: Tensor) -> Tensor:
        y = x
        for i in range(350):
            y = y + m.conv(x) * (i + 1)
        return m.norm(y)

    check(made(lambda: Net(summed, conv=conv(size=1), norm=norm())), (image(1, 4, 3, 3),), examples=(False,))


def test_the_order_of_a_sum_does_not_matter() -> None:
    orders: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: (torch.relu(x) + m.a(x)) + m.b(x),
        lambda m, x: (m.a(x) + torch.relu(x)) + m.b(x),
        lambda m, x: m.a(x) + (torch.relu(x) + m.b(x)),
        lambda m, x: (m.a(x) + m.b(x)) + torch.relu(x),
    ]
    models = [made(lambda f=f: Net(f, a=conv(), b=conv(size=1))) for f in orders]
    assert {len(run_by(check(model, *images()))) for model in models} == {3}


def test_arguments_that_a_rule_does_not_know() -> None:
    @affine_rule(torch.cumsum)
    def running(x: Any) -> Any:
        return Affine.conv(torch.ones(4, 4, 1, 1).tril()) @ x

    @layout_rule(torch.rot90)
    def turned(shape: Any) -> Any:
        raise AssertionError("it is called with two arguments more")

    def function(m: Any, x: Tensor) -> Tensor:
        return m.norm(torch.cumsum(m.conv(x), 1)) + torch.rot90(m.conv(x), 2, (2, 3)) * 2.0

    model, rules = made(lambda: Net(function, **parts())), DEFAULT + [running, turned]
    reasons = [item.reason for item in explain(model, rules=rules).left]
    assert any("it is called with arguments that its rule does not know" in reason for reason in reasons)
    for call in images():
        assert_same_call(model, fuse(model, rules=rules), call)


def test_a_refusal_names_its_reason() -> None:
    assert "zero padding between" in str(explain(made(lambda: nn.Sequential(conv(), conv()))))
