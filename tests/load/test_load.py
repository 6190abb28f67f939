"""Large models, and many at once: time grows with the model, memory hardly beside it, and nobody disturbs another.

`make load` runs the large sizes, alone on a machine; small ones are part of every run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from repcompile import fuse
from tests.load.digest import X, digest, models
from tests.load.models import randomized
from tests.strategies import assert_close, counting_calls

ROOT = Path(__file__).parents[2]
TEMPORARIES = 16  # times the largest weight: its double in float64, and what it is folded and checked with


def check(model: nn.Module, fused: nn.Module) -> None:
    """Every batch norm is gone, and the numbers are the same."""
    kinds = [type(part) for part in fused.modules()]
    assert kinds.count(nn.Conv2d) == sum(isinstance(part, nn.Conv2d) for part in model.modules())
    assert nn.BatchNorm2d not in kinds
    with torch.no_grad():
        expected = model(X)
        assert_close(fused(X), expected)
    assert expected.count_nonzero() > 0


# -- time --------------------------------------------------------------------------------------------------------------


def test_work_grows_with_the_model_and_not_faster() -> None:
    """Counted in calls of Python functions, which no busy machine blurs."""
    work = dict[int, float]()
    for nodes in (300, 1200):
        model = randomized(nodes)
        fused, calls = counting_calls(lambda model=model: fuse(model))
        check(model, fused)
        work[nodes] = calls / nodes
    assert work[1200] < 1.1 * work[300]


@pytest.mark.load
def test_time_grows_with_the_model_and_not_much_faster() -> None:
    """Ten times the nodes take at most half as much again for each node, which caches alone can cost."""
    seconds = dict[int, float]()
    fuse(randomized(300))
    for nodes in (10_000, 100_000):
        model = randomized(nodes)
        start = time.process_time()
        fused = fuse(model)
        seconds[nodes] = time.process_time() - start
        print(f"{nodes} nodes: {seconds[nodes]:.1f} s, {1e3 * seconds[nodes] / nodes:.2f} ms for each")
        check(model, fused)
    assert seconds[100_000] < 1.5 * 10 * seconds[10_000]


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(blocks: int, *arguments: str) -> dict[str, int]:
    run = [sys.executable, "-m", "tests.load.memory", str(blocks), *arguments]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    said: dict[str, int] = json.loads(done.stdout)
    ratio = said["peak"] / (said["model"] + said["fused"])
    print(f"{said['model'] / 1e6:.0f} MB and {said['fused'] / 1e6:.0f} MB fused: the peak is {ratio:.3f} of both")
    return said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
@pytest.mark.parametrize("arguments", [(), ("inputs",)], ids=["blind", "with inputs"])
def test_memory_is_that_of_both_models(arguments: tuple[str, ...]) -> None:
    said = memory(50, *arguments)
    assert said["peak"] < 1.1 * (said["model"] + said["fused"]) + TEMPORARIES * said["largest"]


@pytest.mark.load
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
@pytest.mark.parametrize("arguments", [(), ("inputs",)], ids=["blind", "with inputs"])
def test_a_gigabyte_takes_a_tenth_more_than_both_models(arguments: tuple[str, ...]) -> None:
    said = memory(430, *arguments)
    assert said["model"] > 1e9
    assert said["peak"] < 1.1 * (said["model"] + said["fused"])


# -- at once -----------------------------------------------------------------------------------------------------------


def at_once(processes: int, threads: int) -> None:
    """Everybody fuses the same models, and gets the same."""
    run = [sys.executable, "-m", "tests.load.digest"]
    others = [subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    expected, results = [digest(model) for model in models()], list[list[str]]()

    def work(own: list[nn.Module]) -> None:
        results.append([digest(model) for model in own])

    workers = [threading.Thread(target=work, args=(models(),)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * threads
    said = [other.communicate()[0] for other in others]
    assert said == [f"{expected}\n"] * processes


@pytest.mark.slow
def test_processes_and_threads_agree() -> None:
    at_once(processes=2, threads=2)


@pytest.mark.load
def test_many_processes_and_threads_agree() -> None:
    at_once(processes=8, threads=8)
