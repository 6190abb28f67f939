"""Whatever the user's arguments, modules and tensors are called, like operators or like what generated code says."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile import explain, fuse
from repcompile.capture import capture
from repcompile.names import rename_arguments
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
    assert not hasattr(fused, "others")


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
