"""Values without axes, and images without entries: whatever runs on them is compiled, and computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import VerificationError, fuse, verify
from tests.test_hostile import Net, gain, made

SHAPES = ((), (0,), (1,), (2, 0, 4), (0, 4, 6, 6), (2, 0, 6, 6), (2, 4, 0, 6), (1, 4, 1, 1))
OPERATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean of the first": lambda x: x.mean(0),
    "mean of the last": lambda x: x.mean(-1, keepdim=True),
    "mean of an image": lambda x: x.mean((-1, -2)),
    "flatten": lambda x: x.flatten(),
    "flatten from the second": lambda x: x.flatten(1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.squeeze(),
    "squeeze the first": lambda x: x.squeeze(0),
    "squeeze the last": lambda x: x.squeeze(-1),
    "transpose": lambda x: x.transpose(0, -1),
    "permute": lambda x: x.permute(*reversed(range(x.dim()))),
    "permute a tuple": lambda x: x.permute(tuple(range(x.dim()))),
    "reshape": lambda x: x.reshape(1, -1),
    "reshape_as": lambda x: x.reshape_as(x + 1),
    "unflatten": lambda x: x.unflatten(-1, (-1, 1)),
    "roll": lambda x: x.roll(1, 0),
    "flip": lambda x: x.flip(-1),
    "flip nothing": lambda x: x.flip(()),
    "narrow": lambda x: x.narrow(-1, 0, 0),
    "all of it": lambda x: x[...],
    "a list": lambda x: x[:, [0]],
    "a stride": lambda x: x[..., ::2],
    "chunk": lambda x: x.chunk(2, -1)[-1],
    "split": lambda x: x.split(1)[0],
    "cat": lambda x: torch.cat([x, 2 * x], -1),
    "stack": lambda x: torch.stack([x, x]),
    "sum": lambda x: x + (x - 1),
    "a gain": lambda x: x * torch.arange(4.0).double()[:, None, None],
    "a number": lambda x: x / torch.tensor(3.0, dtype=torch.float64),
    "dropout": lambda x: F.dropout(x, 0.3, False),
    "softmax": lambda x: x.softmax(-1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "clamp": lambda x: x.clamp(0, 1),
    "pad": lambda x: F.pad(x, (1, 1, 0, 2)),
    "pad by less": lambda x: F.pad(x, (-1, 0)),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "linear": lambda x: F.linear(x, torch.ones(3, 4).double()),
    "matmul": lambda x: x @ torch.ones(4, 3).double(),
    "contiguous": lambda x: x.contiguous(),
}


def runs(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x)
    except Exception:  # noqa: BLE001 - torch's own, of an operator that does not take such a value
        return False
    return True


@pytest.mark.parametrize("name", OPERATORS)
def test_whatever_runs_is_compiled(name: str) -> None:
    operator, taken = OPERATORS[name], 0
    for inner in (lambda m, x: operator(x), lambda m, x: operator(x * 3.0 + 1.0) * 0.5):
        model = made(lambda inner=inner: Net(inner))
        for shape in SHAPES:
            x = torch.randn(shape, dtype=torch.float64)
            if runs(model, x):
                taken += 1
                for fused in (fuse(model), fuse(model, [x])):
                    torch.testing.assert_close(fused(x), model(x), equal_nan=True)
    assert taken


def test_a_fused_model_that_fails_is_told() -> None:
    model, other = (made(lambda n=n: Net(lambda m, x: x * m.gain, gain=gain(n, 1, 1))) for n in (4, 3))
    with pytest.raises(VerificationError, match=r"^the fused model fails where the model runs: The size of tensor a"):
        verify(model, other, [torch.randn(2, 4, 3, 3)])
