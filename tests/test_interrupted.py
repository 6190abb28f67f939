"""Interrupted at any moment, the compiler leaves the model and torch as they were."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile import compile_model, fuse
from tests.sweep.fingerprint import differences, fingerprint
from tests.test_hostile import Undecided, conv, image, made, norm

MOMENTS = 24
INPUTS = (image(2, 4, 7, 6),)

# Ctrl-C while the garbage collector calls back (Hypothesis has it do so) is reported, and goes no further.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def network() -> nn.Module:
    """A part that stays Python among parts that fuse."""
    return made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), Undecided(), conv(), norm(), nn.ReLU()))


def state_of_torch() -> dict[str, Any]:
    """What a tracer might patch, and what torch keeps for the whole process."""
    functions = {
        name: getattr(torch, name) for name in ("add", "relu", "zeros", "ones_like", "arange", "cat", "conv2d")
    }
    methods = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__", "__setattr__")}
    names = ("is_grad_enabled", "is_inference_mode_enabled", "get_default_dtype", "get_num_threads")
    modes = {name: getattr(torch, name)() for name in names}
    noise = {"noise": torch.random.get_rng_state().tolist(), "warnings": list(warnings.filters)}
    depths = {name: getattr(torch._C, f"_len_torch_{name}_stack")() for name in ("dispatch", "function")}
    return {**functions, **methods, **modes, **noise, **depths}


@contextmanager
def interrupted(seconds: float) -> Generator[None]:
    """Ctrl-C after `seconds` of work."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of the system's")
@pytest.mark.parametrize("inputs", [None, INPUTS], ids=["blind", "with inputs"])
def test_everything_is_as_it_was(inputs: Any) -> None:
    model = network()
    fuse(model, inputs)  # what is made once only
    start = time.perf_counter()
    fuse(model, inputs)
    whole = time.perf_counter() - start
    before, torch_before = fingerprint(model), state_of_torch()
    stopped = 0
    for moment in range(1, MOMENTS):
        try:
            with interrupted(whole * moment / MOMENTS):
                fuse(model, inputs)
        except KeyboardInterrupt:
            stopped += 1
        assert differences(before, fingerprint(model)) == []
        assert state_of_torch() == torch_before
    assert stopped > MOMENTS // 4  # how many are in time depends on what else the machine does
    result = compile_model(model, INPUTS)
    assert result.checks is not None
    assert all(check.passed for check in result.checks)


class Between(nn.Module):
    """Ctrl-C comes between entering a mode and taking note of it."""

    def forward(self, x: Tensor) -> Tensor:
        DispatchMode().__enter__()
        BaseTorchFunctionMode().__enter__()
        torch.set_grad_enabled(not torch.is_grad_enabled())
        raise KeyboardInterrupt


class DispatchMode(TorchDispatchMode):
    """Sees every operator, and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradients", [True, False])
def test_modes_are_left_where_nobody_took_note_of_them(gradients: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Between()).double().eval()
    with torch.set_grad_enabled(gradients):
        before = state_of_torch()
        with pytest.raises(KeyboardInterrupt):
            fuse(model, INPUTS)
        assert state_of_torch() == before
