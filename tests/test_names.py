"""Whatever the user's arguments, modules and tensors are called, like operators or like what generated code says."""

from __future__ import annotations

import copy
import keyword
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from repcompile import explain, fuse
from repcompile.capture import capture
from repcompile.defaults import Specialized
from repcompile.names import Places, rename_arguments
from repcompile.spelling import name_of, target_of
from tests.test_hostile import Net, assert_close, check, conv, gain, image, images, made, norm

OPERATORS = (
    *("size", "dim", "numel", "shape", "getattr", "getitem", "floordiv", "add", "mul", "sum", "mean", "cat", "permute"),
    *("clone", "contiguous", "narrow", "reshape", "dropout", "max_pool2d"),
)
SPOKEN = ("torch", "device", "inf", "nan", "slice", "range", "NoneType", "pytree", "max", "len")


def forward_of(*names: str) -> Callable[..., Any]:
    """Multiplies with the last; its code has slices, infinity, a builtin function and operators of torch."""
    space: dict[str, Any] = {"F": F, "max_": max, "Infinity": float("inf")}
    body = f"""
def forward(this, {", ".join(names)}):
    y = this.norm(this.conv({names[0]})) * {names[-1]}
    return F.gelu(this.second(y))[:, 1:], y.clamp(max=Infinity), max_(y.size(2), 3)
"""
    exec(body, space)
    function: Callable[..., Any] = space["forward"]
    return function


def called(*names: str) -> nn.Module:
    """A model whose arguments have these names."""
    cls = type("Called", (nn.Module,), {"forward": forward_of(*names)})

    def build() -> nn.Module:
        model: Any = cls()
        model.conv, model.norm, model.second = conv(), norm(), nn.Sequential(conv(), norm())
        return model  # type: ignore[no-any-return]

    return made(build)


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize("name", ["self", *SPOKEN, *OPERATORS])
def test_an_argument_may_have_any_name(name: str) -> None:
    model = called(name)
    fused = check(model, *images())
    assert norms(fused) == 0
    x = image(2, 4, 7, 6)
    if name != "self":  # which torch's `__call__` keeps for itself
        assert_close(fused(**{name: x}), model(**{name: x}))
    assert_close(copy.deepcopy(fused)(x), model(x))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, inf: Tensor) -> Tensor:
        return self.norm(self.conv(inf)).clamp(max=math.inf)  # type: ignore[no-any-return]


def test_another_name_survives_pickling() -> None:
    model, (x,) = made(Shifted), images()[0]
    again = pickle.loads(pickle.dumps(fuse(model)))
    assert_close(again(x), model(x))
    assert_close(again(inf=x), model(inf=x))


@pytest.mark.parametrize("names", [("inf", "inf_"), ("inf_", "inf"), ("x", "torch"), ("slice", "max")])
def test_two_arguments_stay_two(names: tuple[str, str]) -> None:
    model = called(*names)
    calls = [(image(2, 4, 7, 6), image(2, 4, 1, 1, seed=1)), (image(1, 4, 10, 9), image(1, 4, 1, 1, seed=2))]
    fused = check(model, *calls)
    x, y = calls[0]
    assert_close(fused(**{names[1]: y, names[0]: x}), model(x, y))
    assert_close(fused(x, **{names[1]: y}), model(x, y))


@pytest.mark.parametrize("name", ["x", "input", "type", "max"])
def test_a_name_that_hides_nothing_is_kept_and_no_second_model_is_needed(name: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def forward(this, {name}):\n    return this.norm(this.conv({name}))", space)
    fused = fuse(made(type("Called", (Shifted,), {"forward": space["forward"]})))
    assert isinstance(fused, fx.GraphModule)
    assert [node.target for node in fused.graph.find_nodes(op="placeholder")] == [name]
    assert not hasattr(fused, "_others")


@pytest.mark.parametrize("names", [("inf",), ("inf", "inf_"), ("inf_", "inf"), ("x", "y"), ("max", "max_", "max__")])
def test_new_names_are_spoken_by_nobody(names: tuple[str, ...]) -> None:
    graph = fx.Graph()
    values = [graph.placeholder(name) for name in names]
    graph.output(graph.call_function(max, (values[0], 1)))
    rename_arguments(graph)
    renamed = [str(value.target) for value in values]
    assert len(set(renamed)) == len(names)
    assert not {"inf", "max"}.intersection(renamed)
    assert all(new.rstrip("_") == old.rstrip("_") for new, old in zip(renamed, names, strict=True))
    assert [new for new, old in zip(renamed, names, strict=True) if old not in ("inf", "max")] == [
        old for old in names if old not in ("inf", "max")
    ]


@pytest.mark.parametrize("name", [*SPOKEN, *OPERATORS])
def test_a_module_may_have_any_name(name: str) -> None:
    """Its number of channels is its own, whatever keeps them is called so."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = getattr(self, name)(x)
        return self.norm(y + self.other(x)).relu() + y.mean((2, 3), keepdim=True)

    model = made(lambda: Net(forward, **{name: conv(4, 6), "norm": norm(6), "other": conv(4, 6, 1)}))
    assert norms(check(model, *images())) == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_an_activation_may_have_any_name(name: str) -> None:
    model = made(
        lambda: Net(
            lambda self, x: self.second(getattr(self, name)(self.norm(self.conv(x)) * 0.5)),
            **{name: nn.SiLU(), "conv": conv(), "norm": norm(), "second": nn.Sequential(norm(), conv(4, 4, 1))},
        )
    )
    assert norms(check(model, *images())) == 0


@pytest.mark.parametrize("name", [*SPOKEN, *OPERATORS])
def test_a_parameter_may_have_any_name(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * getattr(self, name) + getattr(self, name))  # type: ignore[no-any-return]

    assert (
        norms(check(made(lambda: Net(forward, **{name: gain(4, 1, 1), "conv": conv(), "norm": norm()})), *images()))
        == 0
    )


def test_a_random_parameter_is_no_random_number() -> None:
    """Only functions draw numbers."""
    model = made(
        lambda: Net(lambda self, x: self.norm(self.conv(x) * self.rand), rand=gain(4, 1, 1), conv=conv(), norm=norm())
    )
    assert norms(fuse(model)) == 0, explain(model)


def test_paths_and_arguments_name_no_operator() -> None:
    model = Net(lambda self, x: self.mul(x) * self.add + x.relu(), mul=nn.MaxPool2d(1), add=gain(4, 1, 1)).eval()
    nodes = {node.op: (target_of(node), name_of(node)) for node in capture(model).graph.nodes}
    assert nodes["placeholder"] == nodes["call_module"] == nodes["get_attr"] == nodes["output"] == (None, "")
    assert nodes["call_method"] == ("relu", "relu")
    assert nodes["call_function"] == (operator.add, "add")


def test_a_module_called_self_does_not_hide_the_model() -> None:
    model: Any = Net(lambda self, x: self.norm(self._modules["self"](x).relu()), norm=nn.Sequential(conv(), norm()))
    model.add_module("self", conv())
    assert norms(check(made(lambda: model), *images())) == 0


PAIRS = [("class", "class_"), ("graph", "graph_"), ("meta", "meta_"), ("meta_", "meta"), ('"', "_"), ("code", "code__")]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("names", PAIRS)
def test_what_gets_another_name_takes_nobody_elses(names: tuple[str, str], nested: bool) -> None:
    """A graph module keeps `graph` and `code` for itself, and generated code cannot say `class`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        owner = self.inside if nested else self
        one, other = (owner._modules[name] for name in names)
        return torch.relu(one(x)) + torch.tanh(other(x))

    def build() -> nn.Module:
        model = Net(forward, inside=nn.ModuleDict()) if nested else Net(forward)
        owner: Any = model.inside if nested else model
        for name in names:
            nn.Module.add_module(owner, name, nn.Sequential(conv(), norm()))
        return model

    fused = check(made(build), *images())
    assert norms(fused) == 0
    assert list(fuse(fused).state_dict()) == list(fused.state_dict())


NAMES = st.sampled_from(["graph", "graph_", "graph__", "class", "class_", "class__", "x", "x_", '"', "\\", "_", "__"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)


@given(st.lists(PATHS), st.lists(PATHS, min_size=1))
def test_places_are_as_many_as_paths_and_stay_where_they_are(known: list[str], more: list[str]) -> None:
    places = Places(known)
    found = {path: places(path) for path in (*more, *known)}
    assert len(set(found.values())) == len(found)
    assert found == {path: places(path) for path in found}
    again = Places(found.values())
    assert all(again(place) == place for place in found.values()), "so that a second round changes nothing"
    for path, place in found.items():
        owner, _, name = place.rpartition(".")
        assert owner == places(path.rpartition(".")[0])
        assert name.isidentifier()
        assert not keyword.iskeyword(name)
        assert owner or not hasattr(Specialized, name)
        if path in known and path in ("x", "x_", "x.graph", "x.x", "x_.graph_", "_", "x._"):
            assert place == path


@pytest.mark.parametrize("name", ["unregistered_0", "constant_0", "root_fused", "double_settled", "conv_fused"])
def test_what_the_compiler_names_is_not_what_the_model_has(name: str) -> None:
    """A tensor that nobody registers, one that is computed, and a region without a place of its own."""
    table = torch.rand(4, 1, 1, dtype=torch.float64)

    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.maximum(self.norm(self.conv(x)), table) * 2.0
        return torch.relu((y + 1.0) * getattr(self, name)) + torch.minimum(y, self.table.double() * 2.0)

    for part in (gain(4, 1, 1), torch.rand(4, 1, 1)):
        parts = {name: part, "table": torch.rand(4, 1, 1), "conv": conv(), "norm": norm()}
        model = made(lambda parts=parts: Net(forward, **parts))
        fused = check(model, *images())
        assert norms(fused) == 0
    module = made(
        lambda: Net(lambda m, x: torch.maximum(getattr(m, name)(x), table), **{name: nn.Sequential(conv(), norm())})
    )
    check(module, *images())


@pytest.mark.parametrize("name", ["mul_settled", "other"])
def test_a_computed_tensor_goes_into_no_module_that_is_called(name: str) -> None:
    """Half of the convolution's weight is computed where the convolution has been, which is called once more."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.conv(x)
        y = torch.relu(F.conv2d(x, self.conv.weight * 0.5, padding=1))
        return getattr(self, name)(torch.relu(self.conv(y)))  # type: ignore[no-any-return]

    fused = check(made(lambda: Net(forward, conv=conv(), **{name: nn.Sequential(conv(), norm())})), *images())
    assert norms(fused) == 0
    assert [key for key in fused.state_dict() if key.startswith("conv.")] == ["conv.weight", "conv.bias"]


class Masked(nn.Module):
    """With a part of any name, and another way of calling it."""

    def __init__(self, name: str, part: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.name = conv(), norm(), name
        setattr(self, name, part)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y, part = torch.relu(self.norm(self.conv(x))), getattr(self, self.name)
        y = torch.tanh(part(y)) if isinstance(part, nn.Module) else torch.maximum(y, part)
        return y if mask is None else y * mask


@pytest.mark.parametrize("name", ["others", "arguments", "otherwise", "_others", "_way", "_tie_others", "_keeps"])
def test_what_a_fused_model_keeps_for_itself_hides_nothing(name: str) -> None:
    for part in (lambda: nn.Sequential(conv(), norm()), lambda: gain(4, 1, 1)):
        model = made(lambda part=part: Masked(name, part()))
        fused = check(model, *images())
        assert norms(fused) == 0
        for (x,) in images():
            assert_close(fused(x, mask=x), model(x, mask=x))
