"""`only` and `skip`: what stays keeps its class, its weights and its place; what does not is fused as before."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvit_zoo import create_model
from repcompile import ModelError, compile_model, explain, fuse
from repcompile.selection import SKIPPED, Selection, _expression, selected
from repcompile.testing import randomize
from tests.zoo.synthetic import synthetic_images


class Branches(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.small = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(self.drop(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList(nn.Sequential(Branches(), Branches()) for _ in range(3))
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.project = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = self.head(x) * self.gamma
        return F.linear(x.mean((2, 3)), self.project.weight * 2, self.project.bias)


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    randomize(model).eval().double()
    with torch.no_grad():
        model.gamma.fill_(1.0)
    return model


IMAGE = torch.randn(2, 3, 12, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def checked(model: nn.Module, image: Tensor = IMAGE, **choice: Any) -> nn.Module:
    """Fused with a choice: equal, and the model untouched."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse(model, **choice)
    torch.testing.assert_close(fused(image), model(image), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fuse(model, (image,), **choice)(image), model(image), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return fused


def assert_kept(fused: nn.Module, model: nn.Module, path: str) -> None:
    """The module at `path` has its class and every entry of its state dict, in an object of its own."""
    kept, original = fused.get_submodule(path), model.get_submodule(path)
    assert type(kept) is type(original)
    assert kept is not original
    assert list(kept.state_dict()) == list(original.state_dict())
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def test_the_sum_of_a_module_that_is_kept_around_its_parts() -> None:
    torch.manual_seed(0)
    model = randomize(Branches()).eval().double()
    image = torch.randn(2, 8, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused = checked(model, image, only="large")
    assert_kept(fused, model, "small")
    assert norms(fused) == 1


@pytest.mark.parametrize("skip", ["stages.1", ["stages.1"], "stages.1*", lambda path, _: path == "stages.1"])
def test_a_stage_stays(skip: Any) -> None:
    model = net()
    fused = checked(model, skip=skip)
    assert_kept(fused, model, "stages.1")
    assert norms(fused) == norms(model.stages[1])
    left = explain(model, skip=skip).left
    assert [item.path for item in left if item.reason == SKIPPED] == ["stages.1"]


def test_several_parts_stay() -> None:
    model = net()
    fused = checked(model, skip=("stem.1", "stages.*.0", "**.drop", "head"))
    for path in ("stem.1", "stages.0.0", "stages.1.0", "stages.2.0", "head"):
        assert_kept(fused, model, path)
    assert norms(fused) == 1 + 3 * 2 + 1


def test_modules_of_one_kind_stay() -> None:
    """Every batch norm, wherever it is; the layers around it do not reach across."""
    model = net()
    fused = checked(model, skip=lambda _, module: isinstance(module, nn.BatchNorm2d))
    assert norms(fused) == norms(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in names:
        assert_kept(fused, model, name)


def test_a_container_that_is_never_called() -> None:
    """Its children are kept in its place."""
    model = net()
    fused = checked(model, skip="stages")
    for index in range(3):
        assert_kept(fused, model, f"stages.{index}")
    assert norms(fused) == norms(model.stages)


def test_only_a_part_is_compiled() -> None:
    model = net()
    fused = checked(model, only="stages.1.0")
    for path in ("stem", "stages.0", "stages.1.1", "stages.2", "head"):
        assert_kept(fused, model, path)
    assert norms(fused) == norms(model) - norms(model.stages[1][0])  # type: ignore[index]
    assert torch.equal(fused.get_parameter("gamma"), model.gamma)
    assert torch.equal(fused.get_parameter("project.weight"), model.project.weight)
    assert [item.path.startswith("stages.1.0") for item in explain(model, only="stages.1.0").fused] == [True]


def test_only_and_skip() -> None:
    model = net()
    fused = checked(model, only="stages*", skip="stages.1")
    for path in ("stem", "stages.1", "head"):
        assert_kept(fused, model, path)
    assert norms(fused) == norms(model.stem) + norms(model.stages[1]) + norms(model.head)


def test_weights_that_a_parent_reads() -> None:
    """`project` is never called: its parent takes its weight, doubles it and passes it to F.linear."""
    model = net()
    assert "project.weight" not in fuse(model).state_dict()
    fused = checked(model, skip="project")
    assert torch.equal(fused.get_parameter("project.weight"), model.project.weight)


def test_an_exported_program() -> None:
    """It has no modules to call: what reads the weights of one stays."""
    model = net()
    program = torch.export.export(model, (IMAGE,))
    fused = fuse(program, skip="stages.1.0.large")
    torch.testing.assert_close(fused.module()(IMAGE), model(IMAGE), rtol=1e-9, atol=1e-9)
    names = {name for name in model.state_dict() if name.startswith("stages.1.0.large") and "tracked" not in name}
    assert names <= set(fused.state_dict)
    assert "stages.1.1.large.1.running_mean" not in fused.state_dict
    left = explain(program, skip="stages.1.0.large").left
    assert {item.path for item in left if item.reason == SKIPPED} == {"stages.1.0.large.0", "stages.1.0.large.1"}


def test_a_scale_of_ones_that_stays() -> None:
    """Dropped otherwise, with its entry of the state dict."""
    model = net()
    assert "gamma" not in fuse(model).state_dict()
    assert "gamma" in checked(model, only="stem").state_dict()


@pytest.mark.parametrize("choice", [{"skip": lambda path, _: True}, {"only": lambda path, _: False}])
def test_everything_stays(choice: Any) -> None:
    model = net()
    fused = checked(model, **choice)
    assert type(fused) is Net
    assert list(fused.state_dict()) == list(model.state_dict())
    assert not explain(model, **choice).fused


def test_nothing_stays() -> None:
    model = net()
    everything = fuse(model).state_dict()
    choices: list[Any] = [{}, {"skip": []}, {"skip": lambda path, _: False}, {"only": lambda path, _: path == ""}]
    for choice in choices:
        assert list(fuse(model, **choice).state_dict()) == list(everything)


def test_a_module_in_two_places_stays_in_both() -> None:
    """It is one object; to keep it in one place is to keep it."""
    shared = Branches()
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.Sequential(shared))).eval().double()
    fused = checked(model, skip="2")
    assert norms(fused) == 2


def test_what_stays_inside_of_what_stays_python() -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Branches(), Branches()

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) if x.sum() > 0 else self.second(x)

    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Undecided())).eval().double()
    assert norms(checked(model)) == 0
    fused = checked(model, skip="2.second")
    assert_kept(fused, model, "2.second")
    assert norms(fused) == 2
    assert norms(checked(model.get_submodule("2"), torch.randn(1, 8, 5, 5).double(), skip="second")) == 2
    assert norms(checked(model, only="2.first")) == 2
    assert norms(checked(model, skip="2")) == 4


def test_a_chain_that_takes_several_rounds() -> None:
    layers = [nn.BatchNorm2d(4) for _ in range(60)]
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), *layers)).eval().double()
    fused = checked(model, skip=["30", "50"])
    assert_kept(fused, model, "30")
    assert_kept(fused, model, "50")
    assert norms(fused) == 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"skip": "stage.1"}, "skip: 'stage.1' names no module of the model, which has stem, stages, project, head"),
        ({"only": ["stem", "neck"]}, "only: 'neck' names no module"),
        ({"skip": [3]}, "skip is a glob of module paths"),
    ],
)
def test_a_choice_that_means_nothing(choice: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fuse(net(), **choice)


def test_a_selection_below_a_module() -> None:
    selection = selected(net(), None, ("stages.1", "head.0"))
    assert selection.inside("head") == Selection(frozenset({"0"}), frozenset({"0"}))
    assert "" in selection.inside("stages.1").whole
    assert selection.inside("stem") == Selection()


def test_a_stage_of_fastvit_stays_in_training_form() -> None:
    torch.manual_seed(0)
    model = randomize(create_model("fastvit_t8")).eval().double()
    path = "network.4"
    result = compile_model(model, skip=path)
    image = synthetic_images(1, 64, 64).double()
    torch.testing.assert_close(result.module(image), model(image), rtol=1e-9, atol=1e-9)
    assert_kept(result.module, model, path)
    assert norms(result.module) == norms(model.get_submodule(path)) > 0


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("a", {"a"}),
        ("a.*", {"a.b", "a.c"}),
        ("a.**", {"a", "a.b", "a.c", "a.b.d"}),
        ("**.d", {"a.b.d", "d"}),
        ("*.b", {"a.b"}),
        ("**", {"a", "a.b", "a.c", "a.b.d", "d"}),
        ("a*d", set()),
        ("a**d", {"a.b.d"}),
    ],
)
def test_globs(glob: str, found: set[str]) -> None:
    """One star stays within a name, two go across dots."""
    paths = ("a", "a.b", "a.c", "a.b.d", "d")
    assert {path for path in paths if re.fullmatch(_expression(glob), path)} == found
