"""What torch.fx cannot trace and torch.export can: captured where that is true for every call, left in words if not."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import Compilation, compile_model, explain, fuse
from repcompile.defaults import Specialized
from repcompile.errors import ModelError
from repcompile.noise import SameNoise
from tests.test_hostile import (
    Inputs,
    Masked,
    Net,
    NetOfTwo,
    assert_close,
    assert_same_call,
    assert_untouched,
    conv,
    image,
    made,
    norm,
    state_of,
)

Function = Callable[[Any, Tensor], Any]
SIZES = ((1, 4, 6, 8), (2, 4, 6, 8), (3, 4, 7, 9), (1, 4, 9, 6), (5, 4, 1, 3))


class Pair(NamedTuple):
    first: Tensor
    size: int


def folded(m: Any, x: Tensor) -> Tensor:
    """What there is to fuse, once its forward is captured: the norm and the convolution are children of their own."""
    return m.norm(m.conv(x))


def parts() -> dict[str, nn.Module]:
    return {"conv": conv(), "norm": norm(), "act": nn.ReLU(inplace=True), "other": conv(size=1)}


def network(function: Function, **more: Any) -> nn.Module:
    return made(lambda: Net(function, **parts(), **more))


def calls() -> list[Inputs]:
    return [(image(*shape, seed=seed),) for seed, shape in enumerate(SIZES)]


def compiled(model: nn.Module, *inputs: Inputs) -> Compilation:
    """The compilation for the first call, equal in all of them; the model is left alone."""
    before = state_of(model)
    result = compile_model(model, inputs[0])
    assert_untouched(model, before)
    for call in inputs:
        assert_same_call(model, result.module, call)
    return result


def reasons(result: Compilation) -> str:
    return "\n".join(map(str, result.report.left))


# -- captured ----------------------------------------------------------------------------------------------------------


def branches_on_the_batch(m: Any, x: Tensor) -> Tensor:
    return folded(m, x) if x.shape[0] > 2 else m.act(folded(m, x))


def branches_on_the_image(m: Any, x: Tensor) -> Tensor:
    return F.avg_pool2d(folded(m, x), 3) if min(x.shape[2:]) >= 7 else folded(m, x)


def pads_to_a_multiple(m: Any, x: Tensor) -> Tensor:
    missing = -x.shape[2] % 4
    return folded(m, F.pad(x, (0, 0, 0, missing)) if missing else x)


def counts_to_a_remainder(m: Any, x: Tensor) -> Tensor:
    for _ in range(x.shape[3] % 3):
        x = x + m.other(x)
    return folded(m, x)


def iterates_over_channels(m: Any, x: Tensor) -> Tensor:
    return torch.cat([channel.unsqueeze(1) * place for place, channel in enumerate(folded(m, x).transpose(0, 1))], 1)


def writes_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.act(folded(m, x))
    y += x
    return y.mul_(2) if x.shape[0] != 7 else y


def makes_tensors(m: Any, x: Tensor) -> Tensor:
    assert x.shape[2] != 77
    return folded(m, x) + torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device) + torch.tensor(2.0)


def flattens(m: Any, x: Tensor) -> Tensor:
    assert x.shape[2] != 77
    n, c, h, w = folded(m, x).shape
    return folded(m, x).reshape(n, c, h * w).transpose(1, 2)


def asks_whether_it_is_compiled(m: Any, x: Tensor) -> Tensor:
    return m.act(folded(m, x)) if torch.compiler.is_compiling() or x.shape[0] == 77 else folded(m, x)


def returns_much(m: Any, x: Tensor) -> Any:
    assert x.shape[2] != 77
    y = folded(m, x)
    return {"pair": Pair(y, x.shape[2]), "more": [y, None, 3, "text", (x.shape[3] * 2,)]}


CAPTURED: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(branches_on_the_batch, branches_on_the_image, pads_to_a_multiple, counts_to_a_remainder),
        *(iterates_over_channels, writes_in_place, makes_tensors, flattens, returns_much, asks_whether_it_is_compiled),
    )
}


@pytest.mark.parametrize("name", CAPTURED)
def test_it_is_captured_and_right_at_all_sizes(name: str) -> None:
    model = network(CAPTURED[name])
    assert explain(model).fused == ()
    result = compiled(model, *calls())
    assert "conv" in [item.path for item in result.report.fused]
    (note,) = result.report.notes
    assert note.reason.startswith("captured by torch.export: Net.forward cannot be traced")


@pytest.mark.parametrize("name", CAPTURED)
def test_another_example_another_side_of_the_branch(name: str) -> None:
    compiled(network(CAPTURED[name]), *reversed(calls()))


def test_it_answers_other_sizes_itself() -> None:
    fused = fuse(network(branches_on_the_batch), (image(1, 4, 6, 8),))
    assert isinstance(fused, Specialized)
    answered = [fused._way.values((image(n, 4, 9, 5),), {}) is not None for n in (1, 2, 3)]
    assert answered == [True, True, False]
    assert fused._way.values((image(1, 4, 9),), {}) is None


@pytest.mark.parametrize("example", [(), (image(1, 4, 6, 8),)], ids=["without mask", "with mask"])
def test_an_optional_mask(example: Inputs) -> None:
    model = made(lambda: Masked(branches_on_the_batch, **parts()))
    x, mask = image(1, 4, 6, 8), image(1, 4, 6, 8, seed=3)
    result = compiled(model, (x, *example), (x,), (x, mask), (x, mask, 2.0), (image(4, 4, 6, 8), mask))
    assert len(result.report.fused) == 1


@pytest.mark.parametrize("name", ["branches_on_the_batch", "makes_tensors"])
def test_the_dtype_may_change_afterwards(name: str) -> None:
    model = network(CAPTURED[name]).float()
    fused = fuse(model, (image(1, 4, 6, 8).float(),))
    assert isinstance(fused, Specialized)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = image(2, 4, 6, 8).to(dtype)
        got, expected = fused.to(dtype)(x), copy.deepcopy(model).to(dtype)(x)
        assert got.dtype == expected.dtype
        assert_close(got.double(), expected.double(), 1e-5 if dtype != torch.bfloat16 else 0.1)


def test_it_is_copied_pickled_and_named_like_the_model() -> None:
    model, (x,) = network(branches_on_the_batch), calls()[0]
    fused = fuse(model, (x,))
    names = {name for name in fused.state_dict() if not name.startswith("otherwise.")}
    assert names == {"conv.weight", "conv.bias"}
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same_call(model, other, (x,))
        assert_same_call(model, other, (image(3, 4, 5, 5),))


def forms(fused: nn.Module) -> tuple[nn.Module, ...]:
    again = copy.deepcopy(fused)
    assert isinstance(again, Specialized)
    again.recompile()
    return fused, again, pickle.loads(pickle.dumps(fused))


@pytest.mark.parametrize("name", ["branches_on_the_image", "returns_much", "makes_tensors"])
def test_exported_it_takes_and_returns_what_the_model_does(name: str) -> None:
    model, x = network(CAPTURED[name]), image(2, 4, 8, 8)
    for fused in forms(fuse(model, (x,))):
        assert_same_call(model, torch.export.export(fused, (x,)).module(), (x,))
        assert_close(fused.forward(x), model(x))


def test_exported_it_takes_a_dict() -> None:
    def forward(m: Any, inputs: Any) -> Any:
        return {"y": branches_on_the_image(m, inputs["image"])}

    model = network(forward)
    inputs = ({"image": image(2, 4, 8, 8)},)
    fused = fuse(model, inputs)
    assert isinstance(fused, Specialized)
    assert_same_call(model, torch.export.export(fused, inputs).module(), inputs)


def test_another_side_of_the_branch_is_not_exported() -> None:
    """torch.export interprets the graph, which does not have the other side."""
    for fused in forms(fuse(network(branches_on_the_image), (image(2, 4, 8, 8),))):
        with pytest.raises(ModelError, match="in a way that it was not compiled for"):
            torch.export.export(fused, (image(2, 4, 5, 5),))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_traced_by_torch_jit_it_returns_what_the_model_does() -> None:
    model, x = network(branches_on_the_image), image(2, 4, 8, 8)
    for fused in forms(fuse(model, (x,))):
        traced: Any = torch.jit.trace(fused, x, check_trace=False)
        assert_same_call(model, traced, (x,))


def test_integers_that_vary_are_inputs() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x: Tensor, height: int, *, width: int) -> Tensor:
            assert height > 0
            return folded(self, x.transpose(1, 2).reshape(x.shape[0], -1, height, width))

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.inner(x.flatten(2).transpose(1, 2), x.shape[2], width=x.shape[3])

    result = compiled(made(lambda: Net(forward, inner=Tokens())), *calls())
    assert [item.path for item in result.report.fused] == ["inner.conv"]
    assert [note.path for note in result.report.notes] == ["inner"]


def test_a_module_that_is_called_in_many_ways() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.inner(x)
        return m.inner(y[:, :, 1:, :].repeat(3, 1, 1, 1)).sum() + y

    result = compiled(made(lambda: Net(forward, inner=Net(branches_on_the_batch, **parts()))), *calls()[:4])
    assert [note.path for note in result.report.notes] == ["inner"]


class Outer(nn.Module):
    """Stays Python for good; its child does not, if somebody shows how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(branches_on_the_batch, **parts())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) < 1e9 else x


def test_children_are_compiled_with_the_inputs_that_they_see() -> None:
    model = made(Outer)
    assert explain(model).fused == ()
    result = compiled(model, *calls())
    assert isinstance(result.module, Outer)
    assert [note.path for note in result.report.notes] == ["inner"]
    assert "only the run will know" in reasons(result)


# -- left --------------------------------------------------------------------------------------------------------------


def asks_its_data(m: Any, x: Tensor) -> Tensor:
    return folded(m, x) if x.sum() > -1e9 else x


def computes_with_an_integer(m: Any, x: Tensor) -> Tensor:
    return folded(m, x) * int(x.shape[2]) + len(x)


def remembers(m: Any, x: Tensor) -> Tensor:
    m.seen = m.seen + 1
    return folded(m, x) if x.shape[0] != 77 else x


def asks_for_memory(m: Any, x: Tensor) -> Tensor:
    return folded(m, x) if x.is_contiguous() else m.act(folded(m, x))


def asks_for_autocast(m: Any, x: Tensor) -> Tensor:
    return m.act(folded(m, x)) if torch.is_autocast_enabled() or x.shape[0] == 77 else folded(m, x)


def asks_for_gradients(m: Any, x: Tensor) -> Tensor:
    return m.act(folded(m, x)) if x.shape[0] == 77 or torch.is_grad_enabled() else folded(m, x)


def switches_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return folded(m, x) if x.shape[0] != 77 else x


def checks_its_data(m: Any, x: Tensor) -> Tensor:
    torch.ops.aten._assert_async.msg(x.abs().sum() > -1, "nothing")
    return folded(m, x) if x.shape[0] != 77 else x


LEFT: dict[str, tuple[Function, str]] = {
    "checks its data": (checks_its_data, "it checks, or reads, numbers in tensors"),
    "asks its data": (asks_its_data, "only the run will know"),
    "an integer": (computes_with_an_integer, "it takes for granted that input0.shape[0] == 2"),
    "remembers": (remembers, "its forward changes attributes"),
    "memory": (asks_for_memory, "its forward asks for is_contiguous of a tensor"),
    "autocast": (asks_for_autocast, "it asks whether autocast is enabled"),
    "asks for gradients": (asks_for_gradients, "what it makes differs from the module"),
    "gradients": (switches_gradients, "under other gradients"),
}


@pytest.mark.parametrize("name", LEFT)
def test_it_is_left_in_words(name: str) -> None:
    function, reason = LEFT[name]
    model = network(function, seen=0)
    result = compile_model(model, calls()[0])
    assert result.report.fused == ()
    (left,) = result.report.left
    assert reason in left.reason.partition("; torch.export: ")[2]
    assert "test_exporting.py" in left.reason
    assert str(left).endswith("; 1 batch norm inside")
    for call in calls():
        assert_same_call(model, result.module, call)


def test_under_autocast_it_is_left() -> None:
    model = network(branches_on_the_batch).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compile_model(model, (calls()[0][0].float(),))
    assert reasons(result).endswith("torch.export: autocast is enabled; 1 batch norm inside")


def test_one_size_that_is_twice_another() -> None:
    def joins(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return folded(m, x) + y.repeat_interleave(2, -1) if x.shape[0] != 77 else x

    model = made(lambda: NetOfTwo(joins, **parts()))
    result = compiled(model, (image(2, 4, 6, 8), image(2, 4, 6, 4)), (image(3, 4, 5, 10), image(3, 4, 5, 5)))
    assert "one size depends on another one" in reasons(result)


def test_a_call_of_which_an_input_is_empty() -> None:
    result = compiled(network(branches_on_the_batch), (image(0, 4, 6, 8),), (image(3, 4, 6, 8),))
    assert "a size in the call that was followed is 0" in reasons(result)


@pytest.mark.parametrize(("args", "kwargs"), [((1, 2, 3), {}), ((), {}), ((image(1, 4, 6, 6),), {"y": 1})])
def test_a_wrong_call_fails_as_it_did(args: Inputs, kwargs: dict[str, Any]) -> None:
    model = network(branches_on_the_batch)
    fused = fuse(model, calls()[0])
    assert isinstance(fused, Specialized)
    for each in (model, fused):
        with pytest.raises(TypeError, match="argument"):
            each(*args, **kwargs)


def test_memory_that_lies_otherwise_is_seen() -> None:
    model, (x,) = network(asks_for_memory), calls()[0]
    fused = fuse(model, (x,))
    assert_same_call(model, fused, (x.to(memory_format=torch.channels_last),))


def test_hooks_inside_keep_firing() -> None:
    model, seen = network(branches_on_the_batch), list[tuple[int, ...]]()
    model.get_submodule("norm").register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    result = compile_model(model, calls()[0])
    assert "it has hooks" in reasons(result)
    seen.clear()
    result.module(*calls()[0])
    assert seen == [(1, 4, 6, 8)]


def test_a_norm_that_learns_is_left() -> None:
    model = network(branches_on_the_batch)
    model.get_submodule("norm").train()
    assert "in training mode" in reasons(compile_model(model, calls()[0]))


# -- nobody notices ----------------------------------------------------------------------------------------------------


def test_nothing_is_printed_and_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    for function in (branches_on_the_batch, asks_its_data, switches_gradients):
        model = network(function)
        before, attributes = state_of(model), {name: set(vars(part)) for name, part in model.named_modules()}
        fuse(model, calls()[0])
        assert_untouched(model, before)
        assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == grad
    assert capfd.readouterr() == ("", "")


def noisy(m: Any, x: Tensor) -> Tensor:
    y = folded(m, x) + torch.rand_like(x) + torch.randn(x.shape[-1], dtype=x.dtype)
    return F.dropout(y, 0.5) if x.shape[0] < 77 else y


@pytest.mark.parametrize("function", [noisy, branches_on_the_batch, flattens])
def test_threads_fuse_as_one_does(function: Function) -> None:
    """With example inputs, bit by bit; torch's own random numbers stay as they are."""
    models, (x,) = [network(function) for _ in range(4)], calls()[0]
    alone = fuse(models[0], (x,)).state_dict()
    state, results, problems = torch.get_rng_state(), dict[int, dict[str, Tensor]](), list[str]()

    def work(number: int) -> None:
        try:
            results[number] = fuse(models[number], (x,)).state_dict()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert torch.equal(torch.get_rng_state(), state)
    for result in results.values():
        assert result.keys() == alone.keys()
        assert all(torch.equal(result[name], tensor) for name, tensor in alone.items())


def test_noise_is_drawn_as_the_model_draws_it() -> None:
    model, (x,) = network(noisy), calls()[0]
    fused = fuse(model, (x,))
    with SameNoise():
        expected = model(x)
    with SameNoise():
        assert_close(fused(x), expected)
