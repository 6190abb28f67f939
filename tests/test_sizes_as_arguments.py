"""Sizes of values as arguments of operators: a rule that knows numbers only does not crash, and nothing gets wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from tests.test_hostile import Net, conv, image, made, norm

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda y: y.split(y.shape[1] // 2, 1)[0],
    "split by a list": lambda y: torch.split(y, [y.shape[1] // 2] * 2, 1)[1],
    "split positions": lambda y: y.split(y.shape[2] // 2, 2)[0],
    "chunk": lambda y: y.chunk(y.shape[1], 1)[1],
    "narrow": lambda y: y.narrow(1, 0, y.shape[1] // 2),
    "narrow positions": lambda y: y.narrow(2, 0, y.shape[2] - 1),
    "slice": lambda y: y[:, y.shape[1] // 2 :],
    "slice positions": lambda y: y[..., : y.shape[3] // 2],
    "step": lambda y: y[:, :: y.shape[1] // 2],
    "select": lambda y: y.select(1, y.shape[1] - 1),
    "average of all": lambda y: F.avg_pool2d(y, y.shape[2:]),
    "average": lambda y: F.avg_pool2d(y, y.shape[1] // 2),
    "stride": lambda y: F.avg_pool2d(y, 2, stride=y.shape[1] // 2),
    "roll": lambda y: y.roll(y.shape[1] // 2, 1),
    "roll both": lambda y: y.roll((y.shape[2] // 2, 1), (2, 3)),
    "pixel shuffle": lambda y: F.pixel_shuffle(y, y.shape[1] // 2),
    "pixel unshuffle": lambda y: F.pixel_unshuffle(y, y.shape[1] // 2),
    "channel shuffle": lambda y: F.channel_shuffle(y, y.shape[1] // 2),
    "unflatten": lambda y: y.unflatten(1, (y.shape[1] // 2, 2)),
    "pad": lambda y: F.pad(y, (y.shape[1] // 2, 0)),
    "pad by a remainder": lambda y: F.pad(y, (0, y.shape[3] % 5)),
    "pad with a value": lambda y: F.pad(y, (1, 1), value=y.shape[1]),
    "groups": lambda y: F.conv2d(y, torch.ones(4, 1, 3, 3).to(y), padding=y.shape[1] // 4, groups=y.shape[1]),
    "alpha": lambda y: torch.add(y, y, alpha=y.shape[1]),
    "eps": lambda y: F.batch_norm(y, torch.zeros(4).to(y), torch.ones(4).to(y), eps=y.shape[1] * 1e-5),
    "interpolate": lambda y: F.interpolate(y, scale_factor=y.shape[1] // 2),
    "interpolate to": lambda y: F.interpolate(y, size=(y.shape[2] * 2, y.shape[3] * 2)),
    "repeat": lambda y: y.repeat(1, y.shape[1], 1, 1),
}


@pytest.mark.parametrize("given", [False, True], ids=["blind", "with inputs"])
@pytest.mark.parametrize("name", CALLS)
def test_a_size_as_an_argument(name: str, given: bool) -> None:
    model = made(lambda: Net(lambda m, x: CALLS[name](m.norm(m.conv(x))), conv=conv(), norm=norm()))
    fused = fuse(model, (image(2, 4, 6, 8),) if given else None)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    for x in (image(2, 4, 6, 8), image(1, 4, 8, 6)):
        torch.testing.assert_close(fused(x), model(x))
