"""The backend of torch.compile: what it hands on is fused, and never stale."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repcompile import backend
from repcompile.modules import of_rank
from tests.test_hostile import assert_close, conv, image, made, norm


class Recording:
    """A backend that runs what it gets, and remembers it."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph

    @property
    def operators(self) -> list[list[str]]:
        calls = [[n for n in graph.graph.nodes if n.op.startswith("call")] for graph in self.graphs]
        return [[str(n.target) for n in nodes if n.target is not of_rank] for nodes in calls]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def block() -> nn.Module:
    return made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()))


class Broken(nn.Module):
    """A graph break in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(), block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.sum().item() < 1e9 else x


def test_graphs_are_fused_at_every_size() -> None:
    model, seen = block(), Recording()
    compiled = torch.compile(model, backend=backend.before(seen))
    with torch.no_grad():
        for x in (image(2, 4, 7, 6), image(3, 4, 9, 8, seed=1), image(1, 4, 5, 5)):
            assert_close(compiled(x), model(x))
    assert all(len(operators) == 3 for operators in seen.operators)


def test_both_sides_of_a_graph_break() -> None:
    model, seen = made(Broken), Recording()
    with torch.no_grad():
        assert_close(torch.compile(model, backend=backend.before(seen))(image(2, 4, 7, 6)), model(image(2, 4, 7, 6)))
    assert not [name for operators in seen.operators for name in operators if "batch_norm" in name]


def test_weights_that_learn_are_not_folded() -> None:
    model, seen = block(), Recording()
    x = image(2, 4, 7, 6)
    torch.compile(model, backend=backend.before(seen))(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert any("batch_norm" in name for name in seen.operators[0])


def test_weights_that_change_are_noticed() -> None:
    model: Any = block()
    x = image(2, 4, 7, 6)
    compiled = torch.compile(model, backend=backend.before("eager"))
    with torch.no_grad():
        compiled(x)
        model[0].weight.mul_(2.0)
        with pytest.warns(UserWarning, match="weights changed"):
            assert_close(compiled(x), model(x))


def test_the_callers_gradient_mode_is_left_alone() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.norm(self.conv(x))
            return y * 2.0

    model = made(Frozen).requires_grad_(False)
    compiled = torch.compile(model, backend=backend.before("eager"))
    assert_close(compiled(image(1, 4, 5, 5)), model(image(1, 4, 5, 5)))
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_torch_finds_it_by_name(tmp_path: Path) -> None:
    """As an installed package declares it."""
    root = Path(__file__).parents[1]
    declared = (root / "pyproject.toml").read_text()
    assert "[project.entry-points.torch_dynamo_backends]" in declared
    assert 'repcompile = "repcompile.backend:repcompile"' in declared
    package = tmp_path / "repcompile_backend-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: repcompile-backend\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[torch_dynamo_backends]\nrepcompile = repcompile.backend:repcompile\n")
    program = "from torch._dynamo.backends import registry as r; print(r.lookup_backend('repcompile').__module__)"

    paths = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=paths, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "repcompile.backend"


@pytest.mark.slow
def test_inductor_comes_behind() -> None:
    model = block().float()
    x = image(2, 4, 7, 6).float()
    with torch.no_grad():
        assert_close(torch.compile(model, backend=backend.repcompile)(x), model(x), 1e-5)
