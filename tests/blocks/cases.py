"""What every table of blocks says of each: the model, two calls of other sizes, and how few operators equal it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import explain, fuse
from repcompile.measure import measure
from tests.test_hostile import (
    Build,
    Inputs,
    assert_same_call,
    assert_untouched,
    copied,
    image,
    images,
    made,
    state_of,
)

CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: Mapping[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

ROWS = ((image(3, 4),), (image(5, 4, seed=1),))
TOKENS = ((image(2, 6, 4),), (image(1, 9, 4, seed=1),))
SIGNALS = ((image(2, 4, 24),), (image(1, 4, 31, seed=1),))
VIDEOS = ((image(2, 4, 4, 5, 6),), (image(1, 4, 7, 6, 5, seed=1),))
PAIRS = tuple(
    (image(*size, seed=seed), image(*size, seed=seed + 2)) for seed, size in enumerate([(2, 4, 7, 6), (1, 4, 10, 9)])
)


@dataclass(frozen=True, slots=True)
class Case:
    """A block, and what it comes to.

    calls: two calls of other sizes.  operators: at most so many ATen operators compute in the fused model.
    blind: whether that holds without example inputs too, where nobody tells the rank or the channels of the input.
    """

    build: Build
    calls: tuple[Inputs, ...] = images()
    operators: int = 1
    blind: bool = True


def holds(case: Case) -> None:
    """Fused with and without example inputs: equal on every call, few operators, and the model untouched."""
    model = made(case.build)
    call = case.calls[0]
    assert operators_of(model, call) > case.operators, "the model as it stands does"
    for shown in (False, True):
        before = state_of(model)
        fused = fuse(model, copied(call)) if shown else fuse(model)
        assert_untouched(model, before)
        for each in case.calls:
            assert_same_call(model, fused, each)
        if shown or case.blind:
            found = operators_of(fused, call)
            assert found <= case.operators, f"{found} operators:\n{explain(model, call if shown else None)}"


def operators_of(model: nn.Module, call: Inputs) -> int:
    """What one run computes once border maps of this size are known."""
    with torch.no_grad():
        model(*copied(call))
    return measure(model, copied(call)).operators


def table(cases: Mapping[str, Case]) -> pytest.MarkDecorator:
    """One test a case, named after it."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


# -- parts that many blocks share --------------------------------------------------------------------------------------


def conv_norm(c_in: int = 4, c_out: int = 4, size: Any = 3, dims: int = 2, **options: Any) -> nn.Sequential:
    """A convolution without bias that keeps the size, and its batch norm."""
    sizes = (size,) * dims if isinstance(size, int) else size
    options = {"padding": tuple(s // 2 for s in sizes), "bias": False, **options}
    return nn.Sequential(CONVOLUTIONS[dims](c_in, c_out, sizes, **options), NORMS[dims](c_out))


def listed(*parts: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(parts)


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2)


def bordered(y: Tensor, value: Tensor, width: int = 1) -> Tensor:
    """Padding with one value per channel, the way DBB and ECBSR write it: zeros, then overwritten."""
    y = F.pad(y, [width] * 4)
    value = value.view(1, -1, 1, 1)
    y[:, :, 0:width, :] = value
    y[:, :, -width:, :] = value
    y[:, :, :, 0:width] = value
    y[:, :, :, -width:] = value
    return y
