"""Exported programs: fused in the words of ATen, and exported again as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from repcompile import ModelError, explain, fuse
from repcompile.exported import module_of
from tests.test_hostile import assert_close, assert_same_call, conv, image, made, norm


class Block(nn.Module):
    """Operators in place, a residual sum, changes of layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(), norm(), nn.Hardswish(inplace=True)
        self.conv2, self.norm2, self.pool = conv(bias=False), norm(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        y = self.norm2(self.conv2(self.act(self.norm(self.conv(x)))))
        y += x
        y = y.relu_() if shift is None else y + shift
        return {"features": y, "logits": self.head(self.pool(y))}


DYNAMIC = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


def program(model: nn.Module) -> ExportedProgram:
    return torch.export.export(model, (image(2, 4, 8, 7),), dynamic_shapes=(DYNAMIC,))


def called(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_a_program_becomes_a_program_without_norms() -> None:
    model = made(Block)
    fused = fuse(program(model))
    assert isinstance(fused, ExportedProgram)
    assert not [name for name in called(fused) if "batch_norm" in name or "dropout" in name]
    for x in (image(2, 4, 8, 7), image(3, 4, 5, 9, seed=1)):
        assert_close(fused.module()(x), model(x))


def test_the_program_itself_is_left_alone() -> None:
    before = program(made(Block))
    text, weights = str(before), {name: tensor.clone() for name, tensor in before.state_dict.items()}
    fuse(before)
    assert str(before) == text
    assert all(torch.equal(tensor, weights[name]) for name, tensor in before.state_dict.items())


def test_places_are_named_after_the_weights() -> None:
    report = explain(program(made(Block)))
    assert {item.path for item in report.fused} >= {"conv", "head"}


def test_a_program_without_examples_is_refused() -> None:
    without = program(made(Block))
    without._example_inputs = None
    with pytest.raises(ModelError, match="no example inputs"):
        fuse(without)


def test_a_graph_module_of_aten_calls_is_fused_as_any_other() -> None:
    model = made(Block)
    graph: Any = module_of(program(model))
    x = image(1, 4, 6, 6)
    assert_same_call(graph, fuse(graph), (x,))


def test_an_operator_that_writes_and_that_nobody_knows_is_left() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = y
            torch.ops.aten.masked_fill_.Scalar(y, y < 0.0, 0.5)
            return self.norm(z)

    model = made(lambda: nn.Sequential(Masked(), nn.ReLU()))
    assert_same_call(model, fuse(model), (image(1, 4, 6, 6),))


def test_a_program_returns_the_containers_that_it_returned() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"maps": [self.norm(self.conv(x)), (x,)]}

    model = made(Nested)
    got = fuse(program(model)).module()(image(2, 4, 8, 7))
    assert [type(got), type(got["maps"]), type(got["maps"][1])] == [dict, list, tuple]
    assert_same_call(model, fuse(program(model)).module(), (image(2, 4, 8, 7),))
