"""Forwards that change their modules for the moment of one call: they get what they had before, or stay Python."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from repcompile import explain
from tests.test_hostile import Net, Undecided, check, conv, gain, images, made, norm

Forward = Callable[[Any, Tensor], Any]


def behind(m: Any, x: Tensor) -> Tensor:
    return m.last(m.norm(m.conv(x)))


def with_setting(owner: str, name: str, value: Any, back: bool = True) -> Forward:
    """Call with another attribute of a module."""

    def forward(m: Any, x: Tensor) -> Tensor:
        module = m.get_submodule(owner)
        before = getattr(module, name)
        setattr(module, name, value(m) if callable(value) else value)
        y = behind(m, x)
        if back:
            setattr(module, name, before)
        return y

    return forward


def with_hook(owner: str, register: str, hook: Callable[..., Any]) -> Forward:
    def forward(m: Any, x: Tensor) -> Tensor:
        handle = getattr(m.get_submodule(owner), register)(hook)
        y = behind(m, x)
        handle.remove()
        return y

    return forward


def collected(owner: str) -> Forward:
    """Add what a hook sees."""

    def forward(m: Any, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = m.get_submodule(owner).register_forward_hook(lambda module, given, result: seen.append(result))
        y = behind(m, x)
        handle.remove()
        return y + sum(seen)

    return forward


def without_bias(m: Any, x: Tensor) -> Tensor:
    bias = m.conv[0]._parameters["bias"]
    m.conv[0]._parameters["bias"] = None
    y = behind(m, x)
    m.conv[0]._parameters["bias"] = bias
    return y


def training(m: Any, x: Tensor) -> Tensor:
    m.norm.train()
    y = behind(m, x)
    m.norm.eval()
    return y


def patched(m: Any, x: Tensor) -> Tensor:
    forward = m.conv.forward
    m.conv.forward = lambda x: forward(2.0 * x)
    y = behind(m, x)
    m.conv.forward = forward
    return y


def patched_and_deleted(m: Any, x: Tensor) -> Tensor:
    m.conv.forward = lambda x: 3.0 * x
    y = behind(m, x)
    del m.conv.forward
    return y


def caught(m: Any, x: Tensor) -> Tensor:
    """Hide the compiler's error."""
    m.conv[0].stride = 2, 2
    try:
        y = behind(m, x)
    except Exception:  # noqa: BLE001 - as users do
        y = x
    m.conv[0].stride = 1, 1
    return y


def copied_module(m: Any, x: Tensor) -> Tensor:
    other = copy.copy(m.conv[0])
    other.stride = 2, 2
    return m.norm(other(x))


FORWARDS: dict[str, Forward] = {
    "weights of a layer": lambda m, x: m.norm(functional_call(m.conv[0], {"weight": m.conv[0].weight * 2.0}, (x,))),
    "weights of a part": lambda m, x: m.norm(functional_call(m.conv, {"0.weight": m.conv[0].weight * 2.0}, (x,))),
    "weights, and not": lambda m, x: functional_call(m.conv, {"0.bias": m.other.bias}, (x,)) + behind(m, x),
    "not, and weights": lambda m, x: behind(m, x) + functional_call(m.conv, {"0.bias": m.other.bias}, (x,)),
    "a parameter": with_setting("conv.0", "weight", lambda m: m.other.weight),
    "no bias": without_bias,
    "a statistic": with_setting("norm", "running_mean", lambda m: m.norm.running_mean * 0.5),
    "eps": with_setting("norm", "eps", 1.0),
    "stride": with_setting("conv.0", "stride", (2, 2)),
    "stride, for good": with_setting("conv.0", "stride", (2, 2), back=False),
    "a module": with_setting("conv", "0", lambda m: m.other),
    "a module, for good": with_setting("conv", "0", lambda m: m.other, back=False),
    "training": training,
    "a setting of what stays Python": with_setting("last", "function", lambda m: torch.sigmoid),
    "a setting of what stays Python, for good": with_setting("last", "function", lambda m: torch.sigmoid, back=False),
    "forward": patched,
    "forward, deleted": patched_and_deleted,
    "a hook of a layer that sees": collected("conv.0"),
    "a hook of a part that sees": collected("conv"),
    "a hook that changes the output": with_hook("conv", "register_forward_hook", lambda m, x, y: 2.0 * y),
    "a hook that changes the input": with_hook("conv.0", "register_forward_pre_hook", lambda m, x: (2.0 * x[0],)),
    "stride, and catches what is raised": caught,
    "a copy": copied_module,
}


def model_of(forward: Forward) -> nn.Module:
    """With a last part that stays Python."""
    parts = {"conv": nn.Sequential(conv(), norm()), "norm": norm(), "other": conv(), "last": Undecided()}
    return made(lambda: Net(forward, **parts))


@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_module_is_for_the_moment_counts(name: str) -> None:
    check(model_of(FORWARDS[name]), *images())


@pytest.mark.parametrize("name", FORWARDS)
def test_only_the_part_that_does_it_stays_python(name: str) -> None:
    """And what surrounds it fuses."""

    def build() -> nn.Module:
        return nn.Sequential(conv(), norm(), model_of(FORWARDS[name]), conv(), norm())

    fused = check(made(build), *images(), examples=(False,))
    assert not {"1", "4"} & {path for path, part in fused.named_modules() if isinstance(part, nn.BatchNorm2d)}


def test_the_report_says_what_the_forward_does() -> None:
    model = nn.Sequential(model_of(FORWARDS["stride"]), conv(), norm()).eval()
    assert "stays Python: its forward calls modules that it changed before" in str(explain(model))


def test_a_weight_that_is_put_back_is_the_weight() -> None:
    """What follows the moment fuses: the parameter is no computed tensor."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = functional_call(m.part, {"gain": m.part.gain * 2.0}, (m.first(x),))
        return m.norm(m.conv(m.part(y)))

    def build() -> nn.Module:
        part = Net(lambda m, x: x * m.gain, gain=gain(4, 1, 1))
        return Net(forward, first=conv(), part=part, conv=conv(size=1, padding=0), norm=norm())

    check(made(build), *images(), operators=1)
