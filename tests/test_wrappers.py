"""Hooks on the model, a `__call__` of its own, and the wrappers of torch: fused below them, and still there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, fx, nn

from repcompile import ModelError, fuse
from tests.test_hostile import assert_close, check, conv, image, images, made, norm, run_by


def pair(cls: type[nn.Sequential] = nn.Sequential) -> Any:
    return made(lambda: cls(conv(), norm()))


class Diary:
    """Notes what it sees, and changes it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before(self, module: nn.Module, args: Any) -> Any:
        self.seen.append(args[0].sum().item())
        return (args[0] * 2,)

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.seen.append(output.sum().item())
        return output + 1


@pytest.mark.parametrize("example", [False, True])
def test_hooks_on_the_model_fire_around_the_fused_one(example: bool) -> None:
    model, diary = pair(), Diary()
    model.register_forward_pre_hook(diary.before)
    model.register_forward_hook(diary.after)
    fused = fuse(model, images()[0]) if example else fuse(model)
    assert isinstance(fused, fx.GraphModule)
    for call in images():
        diary.seen = []
        expected, theirs = model(*call), diary.seen
        diary.seen = []
        assert_close(fused(*call), expected)
        assert diary.seen == pytest.approx(theirs)
    assert_close(copy.deepcopy(fused)(*images()[0]), model(*images()[0]))


def test_a_hook_that_uses_the_module_keeps_its_class() -> None:
    def scale(module: Any, args: Any, output: Tensor) -> Tensor:
        return output * module[1].weight.sum()

    model = pair()
    model.register_forward_hook(scale)
    fused = fuse(model)
    assert type(fused) is nn.Sequential
    for call in images():
        assert_close(fused(*call), model(*call))


class Around(nn.Sequential):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 2) + 1


def test_a_call_of_its_own_is_part_of_the_graph() -> None:
    assert run_by(check(pair(Around), *images())) == ["0"]


def test_a_call_of_its_own_inside_is_part_of_the_graph() -> None:
    check(made(lambda: nn.Sequential(Around(conv(), norm()), nn.ReLU())), *images(), operators=2)


class AnyNumber(nn.Sequential):
    def forward(self, *xs: Tensor) -> Tensor:  # type: ignore[override]
        first, *others = xs
        return sum(others, super().forward(first))


def test_any_number_of_arguments_is_one_or_that_of_the_example() -> None:
    model, (x,) = pair(AnyNumber), images()[0]
    for examples, operators in ((None, ["0"]), ((x,), ["0"]), ((x, x, x), ["0", "add", "add"])):
        fused = fuse(model) if examples is None else fuse(model, examples)
        assert run_by(fused) == operators
        for call in ((x,), (x, x), (x, x, x)):
            assert_close(fused(*call), model(*call))


# -- torch's wrappers --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_is_taken_off() -> None:
    wrapped = nn.parallel.DistributedDataParallel(pair()).eval()
    fused = fuse(wrapped)
    assert run_by(fused) == ["0"]
    assert set(fused.state_dict()) == {"0.weight", "0.bias"}
    for call in images():
        assert_close(fused(*call), wrapped(*call))


def test_data_parallel_is_taken_off() -> None:
    wrapped = nn.DataParallel(pair()).eval()
    assert run_by(check(wrapped, *images())) == ["0"]


def test_what_torch_compile_returns_is_taken_off() -> None:
    model = pair()
    compiled: Any = torch.compile(model, backend="eager")
    fused = fuse(compiled)
    assert run_by(fused) == ["0"]
    assert_close(fused(image(1, 4, 6, 6)), model(image(1, 4, 6, 6)))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_is_refused_and_a_scripted_part_stays() -> None:
    with pytest.raises(ModelError, match="scripted module"):
        fuse(torch.jit.script(pair()))
    model = nn.Sequential(pair(), torch.jit.script(pair())).eval()
    fused = fuse(model)
    for call in images():
        assert_close(fused(*call), model(*call))
    assert len(run_by(fused)) == 2
