"""A model answers every call that it answered before, whichever of them was fused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repcompile import ModelError, fuse
from repcompile.arguments import Arguments, arguments_of
from repcompile.defaults import Specialized
from repcompile.errors import Untraceable
from tests.test_hostile import Net, assert_close, conv, image, made, norm, parts, run_by


class Model(nn.Module):
    """Arguments of every kind, all of which matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *more: Tensor, scale: float = 1.0, **options: Tensor
    ) -> Tensor:
        y = self.norm(self.conv(x)) * scale
        y = y if mask is None else y * mask
        return sum(more, y) + sum(options.values(), torch.zeros(()))


X, M = image(1, 4, 5, 5), image(1, 4, 5, 5, seed=1)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "defaults": ((X,), {}),
    "by name": ((), {"x": X}),
    "default given": ((X, None), {"scale": 1.0}),
    "mask": ((X, M), {}),
    "mask by name": ((X,), {"mask": M}),
    "scale": ((X,), {"scale": 2.0}),
    "integer scale": ((X,), {"scale": 1}),
    "more": ((X, M, M, X), {}),
    "options": ((X,), {"shift": M}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("example", [None, (X,), (X, M), (X, None)], ids=["none", "x", "x and mask", "x and None"])
def test_every_call_is_the_models(name: str, example: tuple[Any, ...] | None) -> None:
    model = made(Model)
    args, kwargs = CALLS[name]
    assert_close(fuse(model, example)(*args, **kwargs), model(*args, **kwargs))


def test_the_call_that_the_examples_show_is_fused() -> None:
    assert run_by(fuse(made(Model), (X, M))) == ["conv", "mul", "add"]
    assert run_by(fuse(made(Model))) == ["conv"]


@pytest.mark.parametrize("name", CALLS)
def test_a_copy_answers_every_call_too(name: str) -> None:
    model = made(Model)
    args, kwargs = CALLS[name]
    fused = fuse(model)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), fuse(fused)):
        assert_close(again(*args, **kwargs), model(*args, **kwargs))


def test_a_wrong_call_is_the_models_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        fuse(made(Model))()
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        fuse(made(Model))(X, x=X)


def test_the_other_calls_share_what_fusing_left_alone() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) + torch.relu(m.alone(torch.relu(x)))

    class Optional(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
            return self.function(self, x) if mask is None else mask

    fused: Any = fuse(made(lambda: Optional(both, alone=conv(), **parts())))
    assert Specialized in type(fused).__mro__
    assert fused.alone.weight is fused.otherwise.alone.weight
    assert fused.conv.weight is not fused.otherwise.conv.weight


def test_what_is_fixed_is_what_no_tensor_is_in() -> None:
    def forward(x: Any, flag: bool = False, mask: Any = None, *, gain: Any, scale: float = 1.0) -> None: ...

    with pytest.raises(ModelError, match="takes 2 required arguments; example_inputs has 1"):
        arguments_of("Model", forward, (X,))
    found = arguments_of("Model", forward)
    assert found == Arguments(("x", "flag", "mask"), ("x", "gain"), {"flag": False, "mask": None, "scale": 1.0})
    assert found.call([1, 2]) == ([1, False, None], {"gain": 2, "scale": 1.0})
    assert found.values((1,), {"gain": 2}) == [1, 2]
    assert found.values((1, True), {"gain": 2}) is None
    assert found.values((1,), {}) is None


def test_a_model_of_optional_arguments_is_called_with_the_first() -> None:
    def forward(x: Any = None, labels: Any = None) -> None: ...
    def counted(depth: int = 3) -> None: ...

    assert arguments_of("Model", forward) == arguments_of("Model", forward, (X,))
    assert arguments_of("Model", forward).inputs == ("x",)
    with pytest.raises(Untraceable, match="takes no argument by name"):
        arguments_of("Model", counted)


def test_starred_arguments_are_as_many_as_in_the_example() -> None:
    def forward(x: Any, *more: Any) -> None: ...
    def starred(*xs: Any) -> None: ...

    assert arguments_of("Model", forward).values((1, 2), {}) is None
    found = arguments_of("Model", forward, (X, X, X))
    assert found.inputs == ("x", "more_0", "more_1")
    assert found.call([1, 2, 3]) == ([1, 2, 3], {})
    assert found.values((1, 2, 3), {}) == [1, 2, 3]
    assert found.values((1, 2), {}) is None
    assert arguments_of("Model", starred).inputs == ("xs_0",)


def test_keywords_that_the_graph_does_not_know_are_for_the_model() -> None:
    class Open(Net):
        def forward(self, x: Tensor, **options: Any) -> Any:
            return self.function(self, x) * options.get("scale", 1)

    model = made(lambda: Open(lambda m, x: m.norm(m.conv(x)), **parts()))
    for fused in (fuse(model), fuse(model, (X,))):
        assert run_by(fused)[0] == "conv"
        assert_close(fused(X), model(X))
        assert_close(fused(X, scale=3), model(X, scale=3))


def test_a_model_of_optional_arguments_is_fused_with_examples() -> None:
    class Optional(Net):
        def forward(self, x: Tensor | None = None, labels: Tensor | None = None) -> Any:
            y = self.function(self, x)
            return {"y": y} if labels is None else {"y": y, "loss": (y - labels).square().mean()}

    model = made(lambda: Optional(lambda m, x: m.norm(m.conv(x)), **parts()))
    for fused in (fuse(model), fuse(model, (X,)), fuse(model, (X, M))):
        assert_close(fused(X), model(X))
        assert_close(fused(x=X, labels=M), model(x=X, labels=M))
    assert run_by(fuse(model, (X,))) == ["conv"]
