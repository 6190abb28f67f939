"""Images that come as integers: what turns them into floating point stays in front of what takes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile.capture import capture
from repcompile.facts import affine_facts
from repcompile.rules import DEFAULT
from tests.test_hostile import Net, NetOfTwo, check, conv, image, made, norm

Forward = Callable[[Any, Tensor], Any]


def bytes_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# what stands between the bytes, channels last, and a convolution
PREPARED: dict[str, Forward] = {
    "nothing": lambda m, x: x.permute(0, 3, 1, 2) / 255,
    "a copy": lambda m, x: x.permute(0, 3, 1, 2).contiguous() / 255.0,
    "other channels": lambda m, x: x.permute(0, 3, 1, 2)[:, [3, 2, 1, 0]] * 0.1,
    "a crop": lambda m, x: x.permute(0, 3, 1, 2)[:, :, 1:, :-1].to(memory_format=torch.contiguous_format) / 3,
    "other positions": lambda m, x: torch.roll(torch.flip(x, (1,)).permute(0, 3, 1, 2), 1, 2) - 127.5,
    "halves": lambda m, x: torch.cat(torch.chunk(x.permute(0, 3, 1, 2), 2, 1)[::-1], 1) / 255,
    "padding": lambda m, x: F.pad(x.permute(0, 3, 1, 2), (1, 0, 0, 1), mode="reflect") / 255,
    "a sum of two": lambda m, x: (x.permute(0, 3, 1, 2) + x.permute(0, 3, 1, 2)) / 255,
    "larger pixels": lambda m, x: F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2) / 255,
    "its own function": lambda m, x: torch.relu(-x.permute(0, 3, 1, 2)) * 0.5,
    "a stack": lambda m, x: torch.stack([x, x], 0).sum(0).permute(0, 3, 1, 2) / 255,
}


@pytest.mark.parametrize("name", PREPARED)
def test_bytes_become_floating_point_where_the_model_says_so(name: str) -> None:
    model = made(lambda: Net(lambda m, x: torch.relu(m.norm(m.conv(PREPARED[name](m, x)))), conv=conv(), norm=norm()))
    with in_double():
        check(model, (bytes_of(2, 8, 6, 4),), (bytes_of(1, 9, 7, 4, seed=1),), (image(2, 8, 6, 4),))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x, y: torch.relu(m.norm(m.conv(x) + y)),
        lambda m, x, y: torch.relu(m.wide(torch.cat([m.conv(x), y], 1))),
    ],
)
def test_a_norm_is_not_shared_out_to_integers(forward: Callable[..., Tensor]) -> None:
    model = made(lambda: NetOfTwo(forward, conv=conv(), norm=norm(), wide=norm(8)))
    check(model, (image(2, 4, 6, 5), bytes_of(2, 4, 6, 5)), (image(1, 4, 7, 8), bytes_of(1, 4, 7, 8)))


def test_sums_of_integers_overflow_as_they_did() -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu((m.conv(x) + (y + y)) + m.conv2(x))

    model = made(lambda: NetOfTwo(forward, conv=conv(), conv2=conv()))
    check(model, (image(2, 4, 6, 5), bytes_of(2, 4, 6, 5)), (image(1, 4, 7, 8), bytes_of(1, 4, 7, 8)), operators=4)


# (what reads x, whether it proves that `x * 2` holds floating-point numbers)
PROOFS: dict[str, tuple[Forward, bool]] = {
    "a convolution of it": (lambda m, x: m.conv(x * 2), True),
    "a convolution of x": (lambda m, x: (m.conv(x), x * 2), True),
    "a convolution of x behind a layout": (lambda m, x: (m.conv(x.flip(1)[:, :4]), x * 2), True),
    "a convolution of x behind an integer": (lambda m, x: (m.conv(3 + x), x * 2), True),
    "a convolution behind a fraction": (lambda m, x: (m.conv(x + 0.5), x * 2), False),
    "a convolution behind a quotient": (lambda m, x: (m.conv(x / 2), x * 2), False),
    "a convolution behind a function": (lambda m, x: (m.conv(torch.sigmoid(x)), x * 2), False),
    "a convolution behind a cut": (lambda m, x: (m.conv(torch.relu(x)), x * 2), True),
    "a convolution behind what is joined": (
        lambda m, x: (m.conv(torch.cat([x, torch.tanh(x)], 1)[:, :4]), x * 2),
        False,
    ),
    "a product with a matrix": (lambda m, x: (x @ m.matrix, x * 2), True),
    "a product with itself": (lambda m, x: (x @ x, x * 2), False),
    "an activation": (lambda m, x: (F.gelu(x), x * 2), True),
    "nothing": (lambda m, x: x * 2, False),
    "a fraction": (lambda m, x: x * 2 + (x * 0.5), False),
}


@pytest.mark.parametrize("name", PROOFS)
def test_what_reads_a_value_tells_what_it_is(name: str) -> None:
    forward, proven = PROOFS[name]
    parts = {"conv": conv(), "matrix": nn.Parameter(torch.rand(6, 6))}
    assert (doubled(Net(forward, **parts)) is True) == proven


# (how the value is made, whether that makes it a tensor of floating-point numbers)
MADE: dict[str, tuple[Forward, bool]] = {
    "by division": (lambda m, x: x / 2, True),
    "by rounded division": (lambda m, x: torch.div(x, 2, rounding_mode="floor"), False),
    "by a fraction": (lambda m, x: 0.5 + x, True),
    "by an integer": (lambda m, x: 2 - x, False),
    "by a parameter": (lambda m, x: m.matrix + x, True),
    "by a buffer of integers": (lambda m, x: m.count + x, False),
    "by a module with weights": (lambda m, x: m.table(x), True),
    "by a module without": (lambda m, x: m.pool(x), False),
    "by a cast": (lambda m, x: x.float(), True),
    "by another cast": (lambda m, x: x.long(), False),
    "by a comparison": (lambda m, x: x > 0.5, False),
    "by a function": (lambda m, x: torch.tanh(x), True),
    "by pooling": (lambda m, x: F.max_pool2d(x, 3), False),
    "of what is floating, by pooling": (lambda m, x: F.max_pool2d(x / 2, 3), True),
    "of what is floating, by a sum": (lambda m, x: (x / 2).sum(1), True),
    "of what is floating, by a choice": (lambda m, x: torch.argmax(x / 2, 1), False),
    "of what is floating, by Python": (lambda m, x: m.python(x / 2), False),
    "of a size": (lambda m, x: x * x.shape[0], False),
    "of an assignment": (lambda m, x: put_half(x), False),
}


def put_half(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :1] = torch.tanh(x[:, 1:2])
    return y


@pytest.mark.parametrize("name", MADE)
def test_what_makes_a_value_tells_what_it_is(name: str) -> None:
    forward, proven = MADE[name]
    parts = {
        "matrix": nn.Parameter(torch.rand(6, 6)),
        "count": torch.arange(6),
        "table": nn.Embedding(9, 6),
        "pool": nn.AdaptiveMaxPool2d(2),
        "python": Python(),
    }
    assert doubled(Net(lambda m, x: forward(m, x) * 2, **parts)) == proven


class Python(nn.Module):
    """Stays Python, and returns integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.long() if float(x.sum()) > 0 else x.long() + 1


def doubled(model: nn.Module) -> bool:
    """Whether what `* 2` doubles is known to be floating."""
    captured = capture(model.eval(), DEFAULT.module_classes)
    facts = affine_facts(captured, DEFAULT)
    (node,) = [
        node for node in captured.graph.nodes if getattr(node.target, "__name__", "") == "mul" and 2 in node.args
    ]
    assert isinstance(node, fx.Node)
    return node in facts.floating


class in_double:  # noqa: N801 - a context manager, as torch spells them
    """What quotients of integers have."""

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self._before)


# what comes with what a convolution reads, and is made floating point later: it may be integers
BESIDE: dict[str, Callable[[Any, Tensor], Any]] = {
    "the places of the largest": lambda m, x: both(m, x.max(dim=1, keepdim=True)),
    "the places of some": lambda m, x: both(m, x.topk(1, dim=1)),
    "the places of a pool": lambda m, x: (lambda v, i: m.conv(v) + m.conv(i / 100.0))(*m.pool(x)),
    "the places of an adaptive pool": lambda m, x: (lambda v, i: v.mean() + m.conv(i / 9.0))(*m.adaptive(m.conv(x))),
    "the places of an adaptive pool of lines": lambda m, x: lines(m, torch.adaptive_max_pool1d(m.line(x[:, :, 0]), 5)),
    "a sum of integers": lambda m, x: m.conv(x).sum((2, 3), dtype=torch.long) * 2 * 0.5,
    "a canvas of bytes": lambda m, x: m.conv(canvas(x, m.conv(x) * 9) / 255.0),
}


def both(m: Any, found: Any) -> Tensor:
    values, places = found
    return m.one(values) + m.one(places / 8.0)


def lines(m: Any, found: Any) -> Tensor:
    values, places = found
    return m.line(values) + m.line(places / 8.0)


def canvas(x: Tensor, value: Tensor) -> Tensor:
    result = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    result[:, :, :, :] = value.abs().clamp(0, 200)
    return result


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_a_floating_value_may_be_integers(name: str) -> None:
    parts = {"conv": conv(), "one": conv(1), "pool": nn.MaxPool2d(2, return_indices=True)}
    parts |= {"adaptive": nn.AdaptiveMaxPool2d(3, return_indices=True), "line": nn.Conv1d(4, 4, 1)}
    with in_double():
        check(made(lambda: Net(BESIDE[name], **parts)), (image(2, 4, 9, 8),), (image(1, 4, 6, 7),))


def test_an_image_of_bytes_on_a_canvas() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        result = torch.zeros((batch, 4, height + 2, width + 2), device=x.device, dtype=torch.float64)
        result[:, :, 1:-1, 1:-1] = x
        return m.conv(result).mean() + m.conv(x / 255.0)

    with in_double():
        check(made(lambda: Net(forward, conv=conv())), (bytes_of(2, 4, 6, 5),), (bytes_of(1, 4, 7, 8),))


def test_what_a_dictionary_holds_is_of_any_dtype() -> None:
    def forward(m: Any, x: Any) -> Any:
        mask = x["mask"]
        whole = torch.stack([mask, mask, mask]).sum(0)
        return m.conv(x["image"]) + m.one(mask / 255.0), whole, mask.abs() * 2 * 0.5

    with in_double():
        model = made(lambda: Net(forward, conv=conv(), one=conv(1)))
        check(model, *(({"image": image(n, 4, 6, 5), "mask": bytes_of(n, 1, 6, 5)},) for n in (2, 1)))


def test_a_stack_of_integers_and_others_adds_up_as_it_did() -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y, y, m.conv(x)], -1).sum(-1)

    check(made(lambda: NetOfTwo(forward, conv=conv())), (image(2, 4, 6, 5), bytes_of(2, 4, 6, 5)))
