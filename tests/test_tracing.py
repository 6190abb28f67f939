"""Tracing tells the truth, and leaves no trace."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import types
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repcompile import ModelError, explain, fuse
from repcompile.classes import torch_class
from tests.test_hostile import (
    Net,
    Undecided,
    assert_close,
    assert_same_call,
    assert_untouched,
    check,
    conv,
    gain,
    image,
    images,
    made,
    norm,
    parts,
    proxies_in,
    refusal,
    run_by,
    state_of,
)

# -- hooks -------------------------------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[], nn.Module]] = {
    "conv": conv,
    "norm": norm,
    "activation": nn.ReLU,
    "activation in place": lambda: nn.ReLU(inplace=True),
    "identity": nn.Identity,
    "dropout": nn.Dropout,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "container": lambda: nn.Sequential(conv(), norm()),
    "empty container": nn.Sequential,
}


def around(part: nn.Module) -> nn.Module:
    return nn.Sequential(conv(), part, norm(), nn.ReLU(), conv(size=1))


@pytest.mark.parametrize("place", PLACES)
def test_forward_hook_changes_the_output(place: str) -> None:
    model = made(lambda: around(PLACES[place]()))
    model[1].register_forward_hook(lambda module, args, output: output * 2.0)  # type: ignore[index]
    check(model, *images())


@pytest.mark.parametrize("place", PLACES)
def test_forward_pre_hook_changes_the_input(place: str) -> None:
    model = made(lambda: around(PLACES[place]()))
    model[1].register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))  # type: ignore[index]
    check(model, *images())


@pytest.mark.parametrize("place", PLACES)
def test_hook_that_only_watches_fires_once_a_call(place: str) -> None:
    model, seen = made(lambda: around(PLACES[place]())), list[Tensor]()
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))  # type: ignore[index]
    fused = fuse(model)
    assert not seen, "fusing runs the user's hooks"
    (x,) = images()[0]
    model(x)
    fused(x)
    assert len(seen) == 2
    assert torch.allclose(seen[0], seen[1])


def test_hook_with_keywords_fires() -> None:
    model = made(lambda: around(norm()))
    hook: Any = lambda module, args, kwargs, output: output + 1.0  # noqa: E731
    model[1].register_forward_hook(hook, with_kwargs=True)  # type: ignore[index]
    check(model, *images())


def test_hook_of_a_module_whose_result_nobody_reads_fires() -> None:
    seen = list[int]()
    model = made(lambda: Net(lambda m, x: (m.probe(x), m.norm(m.conv(x)))[1], probe=nn.ReLU(), **parts()))
    model.probe.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    fused = fuse(model)
    seen.clear()
    fused(*images()[0])
    assert seen == [1]


def test_hook_on_the_root_is_refused_or_works() -> None:
    model = made(lambda: nn.Sequential(conv(), norm()))
    hook: Any = lambda module, args, output: output * 2.0  # noqa: E731
    model.register_forward_hook(hook)
    assert refusal(model, *images()) in (
        "",
        "hooks on the model itself would not survive; put it into a module of its own",
    )


def test_forward_called_by_name_skips_the_hooks() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv.forward(x)), **parts()))
    model.conv.register_forward_hook(lambda module, args, output: output * 2.0)  # type: ignore[union-attr]
    check(model, *images())


# -- classes that are not what they are called -------------------------------------------------------------------------


class DoubledConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2.0


class InheritedConv(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.note = "a conv like any other"


class StandardizedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


class InnerConv(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * 2.0, bias)


class CalledConv(nn.Conv2d):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 2.0


class ActivatedNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the norm is written out."""

    def forward(self, input: Tensor) -> Tensor:
        training = self.training or self.running_mean is None
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum or 0.0, self.eps
        )
        return F.silu(y)


class SuperNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class InheritedNorm(nn.BatchNorm2d):
    pass


class GrowingDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input * 2.0 if float(input.abs().sum()) >= 0.0 else input


class GrowingIdentity(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        return input * 2.0


class PoolingReLU(nn.ReLU):
    """Does not keep the size, which nn.ReLU does."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, 2) if float(input.abs().sum()) >= 0.0 else input


CLASSES: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "conv with a forward of its own": (lambda: nn.Sequential(DoubledConv(4, 4, 3), norm()), 1),
    "conv that only inherits": (lambda: nn.Sequential(InheritedConv(), norm()), 1),
    "standardized weights": (lambda: nn.Sequential(StandardizedConv(4, 4, 3), norm()), 1),
    "conv with an inner method of its own": (lambda: nn.Sequential(InnerConv(4, 4, 3), norm()), 1),
    "conv that overrides __call__": (lambda: nn.Sequential(CalledConv(4, 4, 3), norm()), None),
    "norm and activation": (lambda: nn.Sequential(conv(), ActivatedNorm(4)), 2),
    "norm by super()": (lambda: nn.Sequential(conv(), SuperNorm(4)), None),
    "norm that only inherits": (lambda: nn.Sequential(conv(), InheritedNorm(4)), 1),
    "dropout that is none": (lambda: nn.Sequential(conv(), GrowingDropout(), norm()), 3),
    "identity that is none": (lambda: nn.Sequential(conv(), GrowingIdentity(), norm()), 1),
}


@pytest.mark.parametrize("name", CLASSES)
def test_an_operator_is_what_it_computes(name: str) -> None:
    build, operators = CLASSES[name]
    check(made(build), *images(), operators=operators)


def test_an_activation_that_pools_tells_its_own_size() -> None:
    def tokens(m: Any, x: Tensor) -> Tensor:
        b, c, h, w = (y := m.act(m.conv(x))).shape
        return m.proj(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w) * m.gamma

    model = made(lambda: Net(tokens, conv=conv(), act=PoolingReLU(), proj=nn.Linear(4, 4), gamma=gain(4, 1, 1)))
    check(model, *images())


@pytest.mark.parametrize("place", ["conv", "norm", "activation", "identity", "dropout", "pool"])
def test_forward_replaced_on_the_instance(place: str) -> None:
    model = made(lambda: around(PLACES[place]()))
    model[1].forward = lambda x: torch.tanh(x) * 2.0  # type: ignore[index]
    check(model, *images())


def test_forward_wrapped_on_the_instance() -> None:
    model = made(lambda: around(nn.Sequential(conv(), norm())))
    inner: Any = model[1]  # type: ignore[index]
    inherited = inner.forward
    inner.forward = lambda x: inherited(x) * 2.0
    check(model, *images())


def test_bound_method_as_forward() -> None:
    model = made(lambda: around(conv()))
    inner: Any = model[1]  # type: ignore[index]
    inner.forward = types.MethodType(lambda self, x: F.conv2d(x, self.weight) * 2.0, inner)
    check(model, *images())


def test_call_overridden_by_the_root() -> None:
    class Model(Net):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2.0

    model = made(lambda: Model(lambda m, x: m.norm(m.conv(x)), **parts()))
    try:
        fused = fuse(model)
    except ModelError:
        return
    assert_same_call(model, fused, images()[0])


def test_call_overridden_by_an_opaque_child_happens_once() -> None:
    class Child(Undecided):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2.0

    check(made(lambda: nn.Sequential(conv(), Child(), conv(), norm())), *images())


def test_torch_class_sees_what_is_inherited_untouched() -> None:
    assert torch_class(conv()) is nn.Conv2d
    assert torch_class(InheritedConv()) is nn.Conv2d
    assert torch_class(DoubledConv(4, 4, 3)) is None
    assert torch_class(InnerConv(4, 4, 3)) is None
    assert torch_class(CalledConv(4, 4, 3)) is None
    assert torch_class(ActivatedNorm(4)) is None


# -- questions that a proxy answers differently from a tensor ----------------------------------------------------------

QUESTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "isinstance": lambda m, x: m.norm(m.conv(x)) * (2.0 if isinstance(x, Tensor) else 1.0),
    "is_tensor": lambda m, x: m.norm(m.conv(x)) * (2.0 if torch.is_tensor(x) else 1.0),
    "type": lambda m, x: m.norm(m.conv(x)) * (2.0 if type(x) is Tensor else 1.0),
    "hasattr": lambda m, x: m.norm(m.conv(x.tensors if hasattr(x, "tensors") else x)),
    "callable": lambda m, x: m.norm(m.conv(x())) if callable(x) else m.norm(m.conv(x)),
    "isinstance of a list": lambda m, x: m.norm(m.conv(x[0] if isinstance(x, list | tuple) else x)),
    "isinstance of a parameter": lambda m, x: (
        m.norm(m.conv(x)) * m.gamma if isinstance(m.gamma, nn.Parameter) else m.conv(x)
    ),
    "isinstance of a buffer": lambda m, x: (
        m.norm(m.conv(x)) * m.mask if not isinstance(m.mask, nn.Parameter) else m.conv(x)
    ),
}


def _questioned(name: str) -> nn.Module:
    return made(lambda: Net(QUESTIONS[name], gamma=gain(4, 1, 1), mask=torch.rand(4, 1, 1), **parts()))


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("nested", [False, True])
def test_the_branch_taken_is_the_branch_of_a_tensor(name: str, nested: bool) -> None:
    model = nn.Sequential(_questioned(name)).eval() if nested else _questioned(name)
    reason = refusal(model, *images())  # what cannot be traced stays Python, unless it is the root
    assert not reason or (not nested and "cannot be traced" in reason), reason


def _caught(m: Any, x: Tensor) -> Tensor:
    try:
        factor = float(x.abs().sum())
    except Exception:  # noqa: BLE001 - users do
        factor = 0.0
    return m.norm(m.conv(x)) * factor


def test_a_model_that_catches_the_tracers_error_stays_python() -> None:
    model = nn.Sequential(made(lambda: Net(_caught, **parts())), made(conv)).eval()
    check(model, *images())


# -- tensors made in forward -------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "arange": lambda m, x: m.norm(m.conv(x)) + torch.arange(x.shape[-1], dtype=x.dtype),
    "zeros_like": lambda m, x: torch.cat([m.norm(m.conv(x)), torch.zeros_like(x)], 1),
    "new_zeros": lambda m, x: m.norm(m.conv(x)) + x.new_ones(x.shape[0], 1, 1, 1),
    "tensor": lambda m, x: m.norm(m.conv(x)) * torch.tensor([2.0, 1.0, 0.5, 4.0], dtype=x.dtype).view(4, 1, 1),
    "full": lambda m, x: m.norm(m.conv(x)) * torch.full((4, 1, 1), 0.3, dtype=x.dtype),
    "meshgrid": lambda m, x: (
        m.norm(m.conv(x))
        + sum(
            torch.meshgrid(
                torch.linspace(0, 1, x.shape[2], dtype=x.dtype),
                torch.linspace(0, 1, x.shape[3], dtype=x.dtype),
                indexing="ij",
            )
        )
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_tensor_made_in_forward_has_the_size_of_this_run(name: str, nested: bool) -> None:
    model = made(lambda: Net(MAKERS[name], **parts()))
    reason = refusal(nn.Sequential(model).eval() if nested else model, *images())
    assert not reason or (not nested and "cannot be traced" in reason), reason


NOISE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "randn": lambda m, x: m.norm(m.conv(x)) * torch.randn(4, 1, 1, dtype=x.dtype),
    "randn_like": lambda m, x: m.norm(m.conv(x)) + torch.randn_like(x),
    "new_empty": lambda m, x: m.norm(m.conv(x)) * x.new_empty(4, 1, 1).normal_(),
    "empty": lambda m, x: m.norm(m.conv(x)) * torch.empty(4, 1, 1, dtype=x.dtype).normal_(),
    "constructor": lambda m, x: m.norm(m.conv(x)) * torch.DoubleTensor(4, 1, 1).normal_(),
    "clone": lambda m, x: m.norm(m.conv(x)) * m.mask.clone().normal_(),
    "bernoulli": lambda m, x: m.norm(m.conv(x)) * torch.bernoulli(m.mask),
    "multinomial": lambda m, x: m.norm(m.conv(x))[:, torch.multinomial(m.mask.view(4), 2)],
}


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("example", [False, True])
def test_noise_stays_random(name: str, example: bool) -> None:
    model = nn.Sequential(made(lambda: Net(NOISE[name], mask=torch.full((4, 1, 1), 0.5), **parts()))).eval()
    (x,) = images()[0]
    before = state_of(model)
    fused = fuse(model, (x,)) if example else fuse(model)
    assert_untouched(model, before)
    with torch.random.fork_rng(devices=[]):
        outputs = [fused(x) for _ in range(4)]
        assert not all(torch.equal(outputs[0], other) for other in outputs[1:])
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.allclose(fused(x), expected)


# -- memory ------------------------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Keeps what it computed, as models do whose features somebody wants to see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.norm = norm()
        self.last: Tensor | None = None
        self.features: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        self.features["norm"] = self.norm(self.last)
        return torch.relu(self.features["norm"])


def test_a_model_that_caches_keeps_no_proxy() -> None:
    model = made(lambda: nn.Sequential(Remembering(), conv(), norm()))
    check(model, *images())
    model = made(Remembering)
    model(*images()[0])
    kept: Any = model.last
    with contextlib.suppress(ModelError):
        fuse(model)
    assert model.last is kept
    assert not list(proxies_in(model))


class Counter:
    """A callable that counts its calls."""

    number = 0.0

    def __call__(self) -> float:
        self.number += 1.0
        return self.number


class Counting(nn.Module):
    """Multiplies with the number of its calls, kept in one of many ways."""

    calls: ClassVar[float] = 0.0

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = conv()
        self.number = 0
        self.tensor = torch.zeros(())
        self.register_buffer("buffer", torch.zeros(()))
        self.table = {"n": 0.0}
        self.list = [0.0]
        self.nested: list[list[float]] = [[]]
        self.object = types.SimpleNamespace(n=0.0)
        self.callable = Counter()
        self.hidden = [nn.Identity()]
        self.iterator = itertools.count(1.0)
        self.generator = random.Random(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self._count()

    def _count(self) -> Any:
        if self.how == "number":
            self.number += 1
            return self.number
        if self.how == "buffer":
            self.buffer += 1
            return self.buffer
        if self.how == "tensor":
            self.tensor += 1
            return self.tensor
        if self.how == "data":
            self.tensor.data = self.tensor.data + 1.0
            return self.tensor
        if self.how == "dict":
            self.table["n"] += 1.0
            return self.table["n"]
        if self.how == "list":
            self.list[0] += 1.0
            return self.list[0]
        if self.how == "nested list":
            self.nested[0].append(1.0)
            return len(self.nested[0])
        if self.how == "callable":
            return self.callable()
        if self.how == "module in a list":
            hidden: Any = self.hidden[0]
            hidden.number = getattr(hidden, "number", 0.0) + 1.0
            return hidden.number
        if self.how == "iterator":
            return next(self.iterator)
        if self.how == "random number":
            return self.generator.random()
        if self.how == "class":
            Counting.calls += 1.0
            return Counting.calls
        self.object.n += 1.0
        return self.object.n


COUNTING = (
    *("number", "buffer", "tensor", "data", "dict", "list", "nested list", "object"),
    *("callable", "module in a list", "iterator", "random number"),
)


@pytest.mark.parametrize("how", COUNTING)
def test_what_is_remembered_from_call_to_call_goes_on(how: str) -> None:
    model = made(lambda: nn.Sequential(Counting(how), conv(), norm()))
    fused, (x,) = fuse(model), images()[0]
    for _ in range(3):
        assert_same_call(model, fused, (x,))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("how", COUNTING)
def test_what_is_remembered_goes_on_behind_example_inputs(how: str, nested: bool) -> None:
    model = made(lambda: nn.Sequential(Counting(how), conv(), norm()) if nested else Counting(how))
    fused, (x,) = fuse(model, images()[0]), images()[0]
    for _ in range(3):
        assert_same_call(model, fused, (x,))


def test_what_a_class_remembers_goes_on() -> None:
    """It is one for the model and for what is made of it, and tracing counts as well."""
    model = made(lambda: nn.Sequential(Counting("class"), conv(), norm()))
    fused, (x,) = fuse(model), images()[0]
    for _ in range(2):
        Counting.calls = 6.0
        expected = model(x)
        Counting.calls = 6.0
        assert_close(fused(x), expected)


@pytest.mark.parametrize("how", COUNTING)
def test_example_inputs_leave_no_trace_in_what_is_remembered(how: str) -> None:
    model = made(lambda: nn.Sequential(Counting(how), conv(), norm()))
    fresh = made(lambda: nn.Sequential(Counting(how), conv(), norm()))
    fuse(model, images()[0])
    assert_same_call(fresh, model, images()[0])


class Caching(nn.Module):
    """Remembers what it computed from a parameter, by device, as attention biases are; or from its input."""

    def __init__(self, of_the_input: bool = False, once: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.gamma = conv(), norm(), gain(4, 2)
        self.of_the_input, self.once = of_the_input, once
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        first = key not in self.cache
        if first:
            self.cache[key] = x.mean() if self.of_the_input else self.gamma.sum(1).view(4, 1, 1)
        y = self.norm(self.conv(x)) * self.cache[key]
        return y + 1.0 if first and self.once else y


def test_a_cache_of_what_parameters_make_is_no_memory() -> None:
    model = made(lambda: nn.Sequential(Caching(), nn.ReLU()))
    fused = check(model, *images(), operators=2)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.parametrize("options", [{"of_the_input": True}, {"once": True}], ids=["input", "once"])
def test_a_cache_that_matters_goes_on(options: dict[str, bool]) -> None:
    model = made(lambda: nn.Sequential(Caching(**options), nn.ReLU()))
    fused = fuse(model)
    for call in (*images(), *images()):
        assert_same_call(model, fused, call)


def test_a_branch_on_the_device_is_not_guessed() -> None:
    def moved(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) if str(x.device) == "cpu" else x

    check(made(lambda: nn.Sequential(Net(moved, **parts()), nn.ReLU())), *images())


def test_a_message_about_a_size_is_no_question() -> None:
    def checked(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 4, f"got {x.shape[1]} channels")
        return m.norm(m.conv(x))

    check(made(lambda: Net(checked, **parts())), *images(), operators=3)


def test_weights_that_a_layer_puts_elsewhere_are_the_same() -> None:
    """As `nn.LSTM.flatten_parameters` does on a GPU, in every call."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for weight in m.conv.flat:
            weight.data = weight.data.clone()
        return m.norm(m.conv(x))

    def build() -> nn.Module:
        model: Any = Net(forward, conv=conv(), norm=norm())
        model.conv.flat = [model.conv.weight]
        return model

    check(made(build), *images(), operators=1)


def test_a_constant_that_numpy_makes_anew_is_the_same_again() -> None:
    def ramped(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x) * torch.from_numpy(np.arange(1.0, 5.0)).view(4, 1, 1))

    check(made(lambda: Net(ramped, **parts())), *images(), operators=1)


@functools.lru_cache
def cached_ramp(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64).view(count, 1, 1)


class ClassRamp(nn.Module):
    ramp: ClassVar[Tensor | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        if ClassRamp.ramp is None:
            ClassRamp.ramp = torch.arange(4, dtype=torch.float64).view(4, 1, 1)
        return self.conv(x) * ClassRamp.ramp


def test_a_function_with_a_cache_does_not_remember_the_tracer() -> None:
    cached_ramp.cache_clear()
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x) * cached_ramp(4)), **parts()))
    fuse(model)
    assert not isinstance(cached_ramp(4), fx.Proxy)
    assert_same_call(model, fuse(model), images()[0])


def test_a_class_with_a_cache_does_not_remember_the_tracer() -> None:
    ClassRamp.ramp = None
    model = made(ClassRamp)
    with contextlib.suppress(ModelError):
        fuse(model)
    kept, ClassRamp.ramp = ClassRamp.ramp, None
    assert not isinstance(kept, fx.Proxy)


def test_a_patched_forward_that_records_does_not_record_proxies() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)), **parts()))
    inner: Any = model.conv
    inherited = inner.forward

    def recording(x: Tensor) -> Tensor:
        model.seen = inherited(x)
        return model.seen

    inner.forward = recording
    fused = fuse(model)
    assert not list(proxies_in(model))
    assert_same_call(model, fused, images()[0])


def test_a_module_that_copies_to_itself_survives() -> None:
    """As wrappers do that share a frozen teacher."""

    class Shared(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self

    model = made(lambda: nn.Sequential(Shared(conv(), norm()), conv()))
    before, expected = state_of(model), model(*images()[0])
    try:
        fused = fuse(model)
    except ModelError:
        fused = None
    assert_untouched(model, before)
    assert torch.equal(model(*images()[0]), expected)
    if fused is not None:
        assert_same_call(model, fused, images()[0])


def test_forward_that_writes_parameters() -> None:
    class Clamping(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            self.weight.data.clamp_(-0.1, 0.1)
            return super().forward(input)

    model = made(lambda: nn.Sequential(Clamping(4, 4, 3), norm(), nn.ReLU(), conv(), norm()))
    before = state_of(model)
    fused = fuse(model)
    assert_untouched(model, before)
    assert_same_call(model, fused, images()[0])


# -- control flow ------------------------------------------------------------------------------------------------------


def _loops(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m.norm(m.conv(row[None]))[0] for row in x])


def _unpacks(m: Any, x: Tensor) -> Tensor:
    first, second = m.conv(x).split(2, dim=1)
    return m.norm(torch.cat((second, first), 1))


def _unpacks_the_rest(m: Any, x: Tensor) -> Tensor:
    batch, *rest = x.shape
    return m.norm(m.conv(x)).reshape(batch, -1, *rest)


def _ranges(m: Any, x: Tensor) -> Tensor:
    for _ in range(x.shape[0]):
        x = m.norm(m.conv(x))
    return x


FLOWS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "iteration over a tensor": (_loops, False),
    "unpacking": (_unpacks, True),
    "unpacking the rest": (_unpacks_the_rest, False),
    "a loop as long as the batch": (_ranges, False),
    "a choice by rank": (lambda m, x: m.norm(m.conv(x)) if x.ndim == 4 else x, False),
    "a choice by size": (lambda m, x: m.norm(m.conv(x)) if x.shape[-1] == 6 else x, False),
    "a choice by value": (lambda m, x: m.norm(m.conv(x)) if x.mean() > 0 else x, False),
    "an assertion": (lambda m, x: (torch._assert(x.shape[1] == 4, "four"), m.norm(m.conv(x)))[1], True),
    "the length of a shape": (lambda m, x: m.norm(m.conv(x)).flatten(1, len(x.shape) - 1), False),
    "a number out of a tensor": (lambda m, x: m.norm(m.conv(x)) * float(x.max()), False),
    "an assert statement": (lambda m, x: next(m.norm(m.conv(x)) for _ in (0,) if x.shape[1] == 4), False),
}


@pytest.mark.parametrize("name", FLOWS)
def test_control_flow_in_a_child_stays_python(name: str) -> None:
    function, traceable = FLOWS[name]
    model = made(lambda: nn.Sequential(Net(function, **parts()), nn.ReLU(), conv(5 if "rest" in name else 4), norm()))
    if name in ("unpacking the rest", "the length of a shape"):
        model = model[:1].eval()  # type: ignore[index]
        check(model, *images())
        return
    fused = check(model, *images())
    assert any(path.startswith("2") for path in run_by(fused))
    assert len(run_by(fused)) <= (6 if traceable else 3), "the part that can be traced is fused"


@pytest.mark.parametrize("name", FLOWS)
def test_control_flow_at_the_root_is_a_clear_error_or_works(name: str) -> None:
    model = made(lambda: Net(FLOWS[name][0], **parts()))
    reason = refusal(model, *images())
    assert not reason or "cannot be traced" in reason


class Deciding(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.abs().sum()) >= 0.0 else x


def test_children_of_an_opaque_module_are_compiled_on_their_own() -> None:
    """Architecture, section 4: "becomes a leaf, stays Python, and its children are compiled on their own"."""
    fused = check(made(lambda: nn.Sequential(Deciding(nn.Sequential(conv(), norm())), nn.ReLU())), *images())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_gradients_stopped_by_the_model_stay_stopped() -> None:
    def stopped(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.conv(x)
        return torch.relu(y) * m.gamma

    model = made(lambda: nn.Sequential(Net(stopped, conv=conv(), gamma=gain(4, 1, 1))))
    fused = fuse(model)
    fused(image(1, 4, 5, 5)).sum().backward()
    grads = {name: p.grad is not None for name, p in fused.named_parameters()}
    assert not any(moved for name, moved in grads.items() if "conv" in name), grads


def test_autocast_inside_the_model_stays() -> None:
    def cast(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.conv(x)
        return y.float()

    model = made(lambda: nn.Sequential(Net(cast, conv=conv()), conv())).float()
    x = image(1, 4, 6, 6).float()
    assert_same_call(model, fuse(model), (x,), tolerance=1e-6)


def _roundabout(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) if isinstance(x if len(m._modules) else m, Tensor) else x


def _by_another_name(m: Any, x: Tensor) -> Tensor:
    asks: Any = isinstance
    return m.norm(m.conv(x)) if asks(x, Tensor) else x


def _from_a_pair(m: Any, x: Tensor) -> Tensor:
    pair = (x, Tensor)
    return m.norm(m.conv(x)) if isinstance(*pair) else x


@pytest.mark.parametrize("function", [_roundabout, _by_another_name, _from_a_pair])
def test_a_tensor_is_one_however_the_forward_asks(function: Callable[..., Tensor]) -> None:
    model = made(lambda: nn.Sequential(Net(function, **parts()), nn.ReLU()))
    check(model, *images())
    reasons = [item.reason for item in explain(model).left]
    assert not reasons or "asks in a roundabout way whether a value is a tensor" in reasons[0]


class Speed(IntEnum):
    SLOW, FAST = 1, 2


def test_an_attribute_may_be_of_an_enumeration() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)) * m.speed, speed=Speed.FAST, **parts()))
    assert len(run_by(check(model, *images()))) == 1


def test_the_class_of_what_stays_python_is_not_known() -> None:
    """A module that stays Python may return anything; a parent that asks what it is stays Python too."""

    class Two(Undecided):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    def first(m: Any, x: Tensor) -> Tensor:
        y = m.two(m.body(x))
        return y[0] if isinstance(y, tuple) else y

    model = made(lambda: Net(first, two=Two(), body=nn.Sequential(conv(), norm())))
    fused = fuse(model)
    for call in images():
        assert_close(fused(*call), model(*call))
    assert "asks for the class of what a module that stays Python returns" in explain(model).left[0].reason


class Near(str, Enum):
    near = "nearest"


class Twice(int):
    """A whole number of a class of its own."""


DERIVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a root": lambda m, x: torch.relu(m.norm(m.conv(x)) * np.sqrt(2.0)),
    "behind": lambda m, x: torch.relu(np.sqrt(2.0) - m.norm(m.conv(x)) / np.float64(3.0)),
    "no operator of the algebra": lambda m, x: m.norm(m.conv(x)).clamp(np.float64(-1.0), max=np.float64(0.5)),
    "in a list": lambda m, x: F.pad(torch.relu(m.norm(m.conv(x))), [Twice(1), Twice(2)], "constant", np.float64(2.0)),
    "complex": lambda m, x: (m.norm(m.conv(x)) * np.complex128(2.0 + 1.0j)).abs(),
    "a text": lambda m, x: F.interpolate(m.norm(m.conv(x)), scale_factor=Twice(2), mode=str(np.str_("nearest"))),
    "a text of numpy": lambda m, x: F.interpolate(
        m.norm(m.conv(x)).tanh(), scale_factor=Twice(2), mode=np.str_("nearest")
    ),
    "an enumeration": lambda m, x: F.interpolate(m.norm(m.conv(x)).tanh(), scale_factor=2, mode=Near.near),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_number_of_a_derived_class_is_that_number(name: str) -> None:
    """`np.float64` is a float whose text is no literal."""
    fused = check(made(lambda: Net(DERIVED[name], conv=conv(), norm=norm())), *images())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())


def test_python_gets_the_number_with_its_class() -> None:
    class Classed(nn.Module):
        def forward(self, x: Tensor, number: float) -> Tensor:
            if float(x.sum()) > 1e9:  # stays Python
                return x
            return x * (2.0 if isinstance(number, np.float64) else 3.0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return m.classed(y, np.float64(1.0)) + 1.0  # type: ignore[no-any-return]

    check(made(lambda: Net(forward, conv=conv(), norm=norm(), classed=Classed())), *images())


def test_the_caller_gets_the_number_with_its_class() -> None:
    model = made(lambda: Net(lambda m, x: (m.norm(m.conv(x)), {"scale": np.float64(2.0)}), conv=conv(), norm=norm()))
    (x,) = images()[0]
    for fused in (fuse(model), fuse(model, (x,))):
        assert_close(fused(x)[0], model(x)[0])
        assert type(fused(x)[1]["scale"]) is np.float64
