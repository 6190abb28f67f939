"""The modules of our own: what the border map remembers must never be stale."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from repcompile.modules import MAPS_KEPT, BorderConv, ChannelAffine
from repcompile.testing.strategies import normal
from tests.strategies import assert_close


def border_conv(seed: int = 0, learns: bool = False, pads: tuple[int, ...] = ()) -> BorderConv:
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 4, 3, padding=0 if pads else 1)
    return BorderConv(conv, torch.randn(4, 1, 3, 3), pads).double().requires_grad_(learns)


def expected(module: BorderConv, x: Tensor) -> Tensor:
    """The formula: conv(x) + border * 1~."""
    conv = module.conv
    assert isinstance(conv, nn.Conv2d)
    pads = module.pads or (1, 1, 1, 1)
    y = F.conv2d(F.pad(x, pads), conv.weight, conv.bias, conv.stride)
    return y + F.conv2d(F.pad(torch.ones_like(x[:1, :1]), pads), module.border, None, conv.stride)


def assert_formula(module: BorderConv, x: Tensor) -> None:
    with torch.no_grad():
        assert_close(module(x), expected(module, x))


def image(*sizes: int) -> Tensor:
    return torch.linspace(-1, 1, 3 * sizes[0] * sizes[1]).double().reshape(1, 3, *sizes)


@given(data=st.data())
def test_channel_affine(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 2))
    weight, bias = (data.draw(normal(3, *[1] * n)) for _ in range(2))
    x = data.draw(normal(2, 3, 4, 5)) if n == 2 else data.draw(normal(2, *[3] * (n + 1)))
    assert_close(ChannelAffine(weight, bias)(x).detach(), weight * x + bias)


@given(sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3 * MAPS_KEPT))
def test_at_every_size_in_any_order(sizes: list[tuple[int, int]]) -> None:
    module = border_conv()
    for size in sizes:
        assert_formula(module, image(*size))


@pytest.mark.parametrize("pads", [(), (1, 0, 2, 1), (-1, 1, 1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_with_padding_of_its_own(pads: tuple[int, ...], batch: int) -> None:
    assert_formula(border_conv(pads=pads), image(5, 6).expand(batch, -1, -1, -1))


def in_place(module: BorderConv) -> None:
    module.border.mul_(2)


def loaded(module: BorderConv) -> None:
    module.load_state_dict(border_conv(seed=1).state_dict())


def assigned(module: BorderConv) -> None:
    module.load_state_dict(border_conv(seed=1).state_dict(), assign=True)


def replaced(module: BorderConv) -> None:
    module.border = nn.Parameter(torch.randn(4, 1, 3, 3).double(), requires_grad=False)


def initialized(module: BorderConv) -> None:
    nn.init.normal_(module.border)


@pytest.mark.parametrize("change", [in_place, loaded, assigned, replaced, initialized])
def test_after_a_change_of_the_border(change: Callable[[BorderConv], None]) -> None:
    module, x = border_conv(), image(5, 6)
    with torch.no_grad():
        before = module(x)
        change(module)
        assert not torch.equal(module(x), before)
    assert_formula(module, x)


def test_an_optimizer_step_is_a_change() -> None:
    module, x = border_conv(learns=True), image(5, 6)
    with torch.no_grad():
        module(x)
    module(x).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.01).step()
    assert_formula(module, x)


def test_gradients_reach_the_border() -> None:
    module, x = border_conv(learns=True), image(4, 5)
    assert_formula(module, x)
    module(x).sum().backward()
    gradient = module.border.grad
    module.border.grad = None
    expected(module, x).sum().backward()
    assert gradient is not None
    assert module.border.grad is not None
    assert_close(gradient, module.border.grad)


def through_pickle(module: BorderConv) -> BorderConv:
    return pickle.loads(pickle.dumps(module))


def through_torch(module: BorderConv) -> BorderConv:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_torch])
def test_a_copy_remembers_nothing_of_the_original(duplicate: Callable[[BorderConv], BorderConv]) -> None:
    module, x = border_conv(), image(5, 6)
    with torch.no_grad():
        y = module(x)
        other = duplicate(module)
        assert not other._maps
        assert_close(other(x), y)
        other.border.mul_(3)
    assert_formula(other, x)
    assert_formula(module, x)


def test_the_number_of_maps_is_bounded() -> None:
    module = border_conv()
    for size in range(1, 2 * MAPS_KEPT):
        assert_formula(module, image(size, size))
    assert len(module._maps) == MAPS_KEPT


def test_weights_that_take_the_place_of_others_in_memory_are_others() -> None:
    """Large ones, which the system hands out again at once."""
    module = BorderConv(nn.Conv2d(16, 16, 3, padding=1), torch.rand(16, 1, 127, 127)).double()
    module.padding, x = (63, 63), torch.randn(1, 16, 16, 16, dtype=torch.float64)
    seen = set[int]()
    for _ in range(8):
        module.border.data = torch.rand_like(module.border)
        seen.add(module.border.data_ptr())
        with torch.no_grad():
            expected = module.conv(x) + F.conv2d(torch.ones(1, 1, 16, 16).double(), module.border, None, padding=63)
            assert_close(module(x), expected)
    assert len(seen) == 8, "the maps kept hold the weights that they were made of"


def test_threads_with_many_sizes_share_one_module() -> None:
    module, failures = border_conv(), list[BaseException]()

    def call(first: int) -> None:
        try:
            for size in range(first, first + 3 * MAPS_KEPT):
                assert_formula(module, image(1 + size % 20, 3))
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=call, args=(5 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(module._maps) <= MAPS_KEPT + len(threads)


def test_maps_are_no_state() -> None:
    module = border_conv()
    assert_formula(module, image(5, 6))
    assert set(module.state_dict()) == {"border", "conv.weight", "conv.bias"}


def test_inference_mode_leaves_nothing_behind_that_gradients_stumble_over() -> None:
    module, x = border_conv(), image(5, 6)
    with torch.inference_mode():
        module(x)
    module(x.requires_grad_()).sum().backward()
    assert_formula(module, x)


def test_built_in_inference_mode() -> None:
    with torch.inference_mode():
        module = border_conv()
        assert_formula(module, image(5, 6))
    assert_formula(module, image(5, 6))


def test_dtypes_are_kept_apart() -> None:
    module, x = border_conv(), image(5, 6)
    assert_formula(module, x)
    with torch.no_grad():
        single = module.float()(x.float())
        assert single.dtype == torch.float32
        double = module.double()(x)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
    assert_formula(module, x)


def test_autocast_does_not_coarsen_what_comes_after() -> None:
    """The map of a size must not be remembered in the dtype of an autocast region."""
    module, x = border_conv().float(), image(5, 6).float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            module(x)
        torch.testing.assert_close(module(x), expected(module, x))


def test_vmap() -> None:
    """The map of a size must not be remembered from inside a functorch transform."""
    module, x = border_conv(), image(5, 6)
    with torch.no_grad():
        both = torch.func.vmap(module)(torch.stack([x, 2 * x]))
        assert_close(both, torch.stack([expected(module, x), expected(module, 2 * x)]))
    assert_formula(module, x)


def test_another_border_for_one_call() -> None:
    module, x = border_conv(), image(5, 6)
    with torch.no_grad():
        module(x)
        other = torch.func.functional_call(module, {"border": torch.zeros_like(module.border)}, (x,))
        assert_close(other, module.conv(x))
    assert_formula(module, x)


def through_fx(module: nn.Module, x: Tensor) -> nn.Module:
    return torch.fx.symbolic_trace(module)


def through_jit(module: nn.Module, x: Tensor) -> nn.Module:
    traced = torch.jit.trace(module, (x,))
    assert isinstance(traced, nn.Module)
    return traced


def through_export(module: nn.Module, x: Tensor) -> nn.Module:
    sizes = {2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    return torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()


@pytest.mark.parametrize("record", [through_fx, through_jit, through_export])
def test_a_recorded_graph_computes_the_map(record: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    module, small, large = border_conv(), image(5, 6), image(8, 7)
    with torch.no_grad():
        module(small)
        recorded = record(module, small)
        for x in (small, large):
            assert_close(recorded(x), expected(module, x))


def test_a_border_map_on_a_device_that_autocast_does_not_know() -> None:
    module, x = border_conv().to("meta"), image(7, 6).to("meta")
    with torch.no_grad():
        assert module(x).shape == (1, 4, 7, 6)
