"""The unfused model behind a fused one, for the calls that the graph is not: out of the way, and never stale."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import ModelError, fuse
from tests.test_hostile import assert_close, conv, image, made, norm

X, M = image(2, 4, 7, 6), image(2, 4, 7, 6, seed=1)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.alone = conv(), norm(), conv()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = torch.relu(self.alone(torch.relu(self.norm(self.conv(x)))))
        return y if mask is None else y * mask


def both() -> tuple[nn.Module, Any]:
    model = made(Optional)
    return model, fuse(model)


def test_the_other_model_is_in_no_table() -> None:
    _, fused = both()
    assert set(fused.state_dict()) == {"conv.weight", "conv.bias", "alone.weight", "alone.bias"}
    assert sum(p.numel() for p in fused.parameters()) == 2 * 148
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_what_fusing_left_alone_exists_once() -> None:
    _, fused = both()
    assert fused.otherwise.alone.weight is fused.alone.weight
    assert fused.otherwise.conv.weight is not fused.conv.weight
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused).to(torch.float32)):
        assert again.otherwise.alone.weight is again.alone.weight
        assert again.alone.weight is not fused.alone.weight


MOVES: dict[str, Callable[[Any], Any]] = {
    "to another dtype": lambda m: m.float(),
    "to and fro": lambda m: m.float().double().float(),
    "copied first": lambda m: copy.deepcopy(m).float(),
    "pickled first": lambda m: pickle.loads(pickle.dumps(m)).float(),
    "inside another": lambda m: nn.Sequential(m).float()[0],
}


@pytest.mark.parametrize("name", MOVES)
def test_the_other_model_goes_where_the_fused_one_goes(name: str) -> None:
    model, fused = both()
    fused, model = MOVES[name](fused), model.float()
    assert_close(fused(X.float()), model(X.float()), 1e-5)
    assert_close(fused(X.float(), M.float()), model(X.float(), M.float()), 1e-5)


def test_other_weights_are_not_answered_by_the_old_ones() -> None:
    _, fused = both()
    other = fuse(made(Optional, seed=3))
    fused.load_state_dict(other.state_dict())
    assert_close(fused(X), other(X))
    for again in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused).float()):
        with pytest.raises(ModelError, match="the weights have changed since it was fused"):
            again(X, M)


def test_weights_that_learned_are_not_answered_by_the_old_ones() -> None:
    _, fused = both()
    with torch.no_grad():
        fused.conv.weight.add_(1.0)
    for again in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused).float()):
        with pytest.raises(ModelError, match="the weights have changed"):
            again(X, M)


def test_the_same_weights_may_be_loaded() -> None:
    model, fused = both()
    outer = nn.Sequential(fused)
    outer.load_state_dict(copy.deepcopy(outer.state_dict()))
    fused.load_state_dict(copy.deepcopy(fused.state_dict()), assign=True)
    assert_close(fused(X, M), model(X, M))


def test_the_other_model_may_be_dropped() -> None:
    model, fused = both()
    del fused.otherwise
    assert_close(fused.float()(X.float()), model.float()(X.float()), 1e-5)
    with pytest.raises(ModelError, match="in a way that it was not compiled for"):
        fused(X, M)


def test_a_model_whose_other_model_is_gone_is_a_model() -> None:
    _, fused = both()
    del fused.otherwise
    fused.load_state_dict(fuse(made(Optional, seed=3)).state_dict())
    expected = made(Optional, seed=3)(X)
    for again in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_close(again(X), expected)
        with pytest.raises(ModelError, match="in a way that it was not compiled for"):
            again(X, M)


class Outer(nn.Module):
    """Holds a model that may be a fused one, and has an option of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.conv, self.norm = inner, conv(), norm()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        return self.inner(y) if mask is None else self.inner(y, mask)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_fused_model_in_the_model_that_is_fused(dropped: bool) -> None:
    model: Any = made(lambda: Outer(Optional()))
    before = model(X), model(X, M)
    model.inner = fuse(model.inner)
    if dropped:
        del model.inner.otherwise
    fused = fuse(model)
    for again, tolerance in ((fused, 1e-9), (copy.deepcopy(fused).float(), 1e-4)):
        dtype = next(again.parameters()).dtype
        assert_close(again(X.to(dtype)).double(), before[0], tolerance)
        if not dropped:
            assert_close(again(X.to(dtype), M.to(dtype)).double(), before[1], tolerance)


class Spoken(nn.Module):
    """A recurrent module keeps its weights in a list beside the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y = self.recurrent(self.norm(self.conv(x)).transpose(1, 2))[0]
        return y if lengths is None else y * (torch.arange(y.shape[1])[None] < lengths[:, None])[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recurrent_module_goes_where_the_fused_model_goes(dtype: torch.dtype) -> None:
    model = made(Spoken)
    fused = fuse(model).to(dtype)
    expected, x = copy.deepcopy(model).to(dtype), image(2, 3, 9)
    for arguments in ((x.to(dtype),), (x.to(dtype), torch.tensor([5, 9]))):
        assert_close(fused(*arguments), expected(*arguments), 1e-5 if dtype == torch.float32 else 1e-10)


class Asking(nn.Module):
    """Asks what torch.fx cannot answer, and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if y.is_cuda:
            y = y + 1
        return y - 1 if y.shape[0] > 100 else y


def test_a_part_that_torch_export_captured_is_written_to_a_file_and_read() -> None:
    model, x = made(lambda: nn.Sequential(Asking(), nn.ReLU(), conv())), image(2, 4, 7, 6)
    fused = fuse(model, (x,))
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for call in (x, image(1, 4, 9, 5)):
        assert torch.equal(again(call), fused(call))
        assert_close(again(call), model(call), 1e-10)
