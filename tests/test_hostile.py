"""Small models of the kinds that break tools like this one: fused, they compute what they did, or we say why not.

`check` and the builders here serve the neighbouring test files too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from repcompile import Macs, ModelError, explain, fuse
from repcompile.testing import randomize

Inputs = tuple[Any, ...]
Build = Callable[[], nn.Module]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*torch.jit"),
]

SHAPE_QUESTIONS = (getattr, "size", "dim")
UNCOUNTED = ("getitem", "mul_size", "of_rank")


class Net(nn.Module):
    """A model from one function of (model, *inputs) and named parts: modules, parameters, buffers, anything."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class NetOfTwo(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.function(self, x, y)


class Masked(Net):
    """A model that is called with and without its mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        y = self.function(self, x) * scale
        return y if mask is None else y * mask


class Undecided(nn.Module):
    """A module that tracing cannot follow, although the branch is always the same."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) < 0.0:
            return x
        return self.function(x)


def conv(c_in: int = 4, c_out: int = 4, size: int = 3, **options: Any) -> nn.Conv2d:
    options = {"padding": size // 2, **options}
    return nn.Conv2d(c_in, c_out, size, **options)


def norm(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


def gain(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape) + 0.5)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(channels: int = 4) -> tuple[Inputs, Inputs]:
    """Two calls: other batch, other height, other width."""
    return (image(2, channels, 7, 6),), (image(1, channels, 10, 9, seed=1),)


def made(build: Build, seed: int = 0) -> nn.Module:
    """The model that `build` builds, in float64 and in eval mode, with weights in which an error shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomize(build().double(), seed).double().eval()


def check(
    model: nn.Module,
    *calls: Inputs,
    operators: int | None = None,
    examples: tuple[bool, ...] = (False, True),
    tolerance: float = 1e-10,
) -> nn.Module:
    """Fuse without and with example inputs, compare outputs and effects on the inputs, and see the model untouched.

    operators: what the fused model may run, questions about shapes and picks from tuples aside.
    """
    fused = model
    for example in examples:
        before = state_of(model)
        fused = fuse(model, copied(calls[0])) if example else fuse(model)
        assert_untouched(model, before)
        if operators is not None:
            assert len(run_by(fused)) == operators, run_by(fused)
        for call in calls:
            assert_same_call(model, fused, call, tolerance)
    return fused


def refusal(model: nn.Module, *calls: Inputs, **options: Any) -> str:
    """`check`, or the reason why the model cannot be compiled."""
    try:
        check(model, *calls, **options)
    except ModelError as error:
        return str(error)
    return ""


def run_by(fused: nn.Module) -> list[str]:
    """What a fused model runs, questions about shapes, checks and picks from tuples aside."""
    assert isinstance(fused, fx.GraphModule), "its own forward stayed Python"
    nodes = [node for node in fused.graph.nodes if node.op.startswith("call")]
    names = [(node.target, getattr(node.target, "__name__", str(node.target))) for node in nodes]
    return [name for target, name in names if target not in SHAPE_QUESTIONS and name not in UNCOUNTED]


def assert_same_call(model: nn.Module, fused: nn.Module, call: Inputs, tolerance: float = 1e-10) -> None:
    """Equal outputs, equal structure, and what happens to the inputs is equal too."""
    mine, theirs = copied(call), copied(call)
    with torch.no_grad():
        expected, got = model(*theirs), fused(*mine)
    assert_close(got, expected, tolerance)
    assert_close(mine, theirs, tolerance)


def assert_close(got: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Relative to the largest entry of each tensor."""
    leaves, structure = pytree.tree_flatten(expected)
    others, other = pytree.tree_flatten(got)
    assert len(leaves) == len(others), f"{other} is not {structure}"
    for a, b in zip(leaves, others, strict=True):
        if not isinstance(a, Tensor):
            assert a == b
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = a.abs().max().item() if a.numel() else 1.0
        assert torch.allclose(b, a, rtol=0.0, atol=tolerance * scale), f"{(b - a).abs().max().item() / scale:.1e}"


def copied(call: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, call)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that fusing must leave alone, and torch's random numbers."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = {path: _attributes(module) for path, module in model.named_modules()}
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return {"tensors": tensors, "modules": modules, "learns": learns, "random": torch.get_rng_state()}


def assert_untouched(model: nn.Module, before: Mapping[str, Any]) -> None:
    after = state_of(model)
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][name]), name
    assert after["learns"] == before["learns"]
    for path, attributes in before["modules"].items():
        assert after["modules"][path].keys() == attributes.keys(), path
        for name, value in attributes.items():
            assert after["modules"][path][name] is value or after["modules"][path][name] == value, f"{path}.{name}"
    assert torch.equal(before["random"], after["random"]), "fusing used up random numbers"
    assert not list(proxies_in(model))


def _attributes(module: nn.Module) -> dict[str, Any]:
    plain = {name: value for name, value in vars(module).items() if not isinstance(value, dict | Tensor)}
    hooks = {name: dict(vars(module)[name]) for name in HOOKS}
    groups = {name: [id(value) for value in vars(module)[name].values()] for name in ("_parameters", "_buffers")}
    return {**plain, **hooks, **groups, "modules": list(module._modules.items())}


def proxies_in(model: nn.Module) -> Iterator[str]:
    """Paths of attributes that hold something of the tracer's."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, fx.Proxy | fx.Node) or "repcompile" in type(leaf).__module__:
                    yield f"{path}.{name}"


# -- the table ---------------------------------------------------------------------------------------------------------


def _bottleneck(m: Any, x: Tensor) -> Tensor:
    y = m.relu(m.norm1(m.conv1(x)))
    y = m.relu(m.norm2(m.conv2(y)))
    y = m.norm3(m.conv3(y))
    y += x
    return m.relu(y)


def bottleneck() -> nn.Module:
    """torchvision's: one in-place ReLU for three places, and an in-place sum."""
    return Net(
        _bottleneck,
        relu=nn.ReLU(inplace=True),
        conv1=conv(4, 2, 1),
        norm1=norm(2),
        conv2=conv(2, 2),
        norm2=norm(2),
        conv3=conv(2, 4, 1),
        norm3=norm(),
    )


def _convnext(m: Any, x: Tensor) -> Tensor:
    y = m.up(m.norm(m.depthwise(x).permute(0, 2, 3, 1)))
    return x + (m.gamma * m.down(F.gelu(y))).permute(0, 3, 1, 2)


def _frozen(m: Any, x: Tensor) -> Tensor:
    """torchvision's FrozenBatchNorm2d."""
    scale = m.weight.reshape(1, -1, 1, 1) * (m.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
    return m.conv(x) * scale + (m.bias.reshape(1, -1, 1, 1) - m.mean.reshape(1, -1, 1, 1) * scale)


def _frozen_by_hand(m: Any, x: Tensor) -> Tensor:
    y = (m.conv(x) - m.mean[None, :, None, None]) / torch.sqrt(m.var[None, :, None, None] + 1e-5)
    return y * m.weight.view(-1, 1, 1) + m.bias.unsqueeze(-1).unsqueeze(-1)


def _frozen_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y -= m.mean.view(1, -1, 1, 1)
    y *= (m.weight / (m.var + 1e-5) ** 0.5).view(1, -1, 1, 1)
    return y.add_(m.bias.view(1, -1, 1, 1))


def frozen(function: Callable[..., Tensor]) -> Build:
    def build() -> nn.Module:
        statistics = {"mean": torch.randn(4), "var": torch.rand(4) + 0.5}
        return Net(function, conv=conv(), weight=torch.rand(4), bias=torch.randn(4), **statistics)

    return build


def _tokens_and_back(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    tokens = m.proj(x.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).reshape(b, c, h, w) * m.gamma


def _tokens_mixed_up(m: Any, x: Tensor) -> Tensor:
    """The transposition is forgotten, so that reshape mixes channels and positions."""
    b, c, h, w = x.shape
    return m.proj(x.flatten(2).transpose(1, 2)).reshape(b, c, h, w) * m.gamma


def _shuffled(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.conv(m.norm(x).view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))


def _shuffled_and_split(m: Any, x: Tensor) -> Tensor:
    """A unit of ShuffleNet: both halves are views of a copy, one is convolved."""
    b, c, h, w = torch.relu(x).size()
    a, b = torch.relu(x).view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w).chunk(2, dim=1)
    return torch.cat([a, torch.relu(m.norm(m.mix(b)))], 1)


def _contiguous_tokens(m: Any, x: Tensor) -> Any:
    """Whoever gets the tokens takes views of them: inside, where nobody can see it, and outside."""
    y = m.norm(m.conv(torch.relu(x))).flatten(2).transpose(1, 2).contiguous()
    return m.viewed(y), m.viewed(y * m.gamma)


def _frozen_weights(build: Build) -> Build:
    def built() -> nn.Module:
        return build().requires_grad_(False)

    return built


def _split_and_swapped(m: Any, x: Tensor) -> Tensor:
    a, b = m.norm(m.conv(x)).chunk(2, 1)
    return torch.cat([b, a], 1)


def _features(m: Any, x: Tensor) -> dict[str, list[Tensor]]:
    a = m.conv(x)
    b = m.norm(a)
    return {"early": [a, b], "late": [m.conv2(F.relu(b)), x]}


def _summed_up(m: Any, x: Tensor) -> Tensor:
    result: Any = 0.0
    for branch in m.branches:
        result = result + branch(x)
    return result


def _walked(m: Any, x: Tensor, steps: int = 3) -> Tensor:
    return x if steps == 0 else m.norm(m.conv(_walked(m, x, steps - 1)))


def _twice_with_two_norms(m: Any, x: Tensor) -> Tensor:
    return m.norm1(m.conv(x)) + torch.relu(m.norm2(m.conv(torch.relu(x))))


def twin() -> nn.Module:
    shared = nn.Sequential(conv(), norm())
    return nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.ReLU(), shared[0]))


def tied() -> nn.Module:
    first, second = conv(), conv()
    second.weight = first.weight
    return nn.Sequential(first, norm(), nn.ReLU(), second, norm())


def _zeroed(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    y[:, 0] = 0.0
    y[:, 1:3, 0] += 1.0
    return m.conv2(y)


def _written_while_read(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    other = y
    y += x
    return m.norm(other) - y


def _tiled(m: Any, x: Tensor) -> Tensor:
    """Sizes through int(), which only the run can answer."""
    y = m.norm(m.conv(x))
    return y[:, :, : int(x.shape[2]) // 2].repeat(1, 1, int(x.shape[2] > 0) + 1, 1)


def _chosen_by_size(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) if x.shape[-1] == 6 else x


def _walks_a_list(m: Any, x: Tensor) -> Tensor:
    """As detectors collect the features of their stages."""
    features = [x]
    for stage in m.stages:
        features.append(stage(features[-1]))
    return torch.cat(features[1:], 1)


def diverse_branches() -> nn.Module:
    convs = {"conv1": conv(), "conv2": conv(size=1), "conv3": conv(padding=0), "conv4": conv(size=1)}
    norms = {f"norm{i}": norm() for i in range(1, 5)}
    return Net(_diverse, **convs, **norms)


def _diverse(m: Any, x: Tensor) -> Tensor:
    """As DBB: k x k, 1 x 1 then k x k, 1 x 1, each with a norm."""
    inner = m.norm3(m.conv3(F.pad(m.norm2(m.conv2(x)), (1, 1, 1, 1))))
    return m.norm1(m.conv1(x)) + inner + m.norm4(m.conv4(x))


def repvgg() -> nn.Module:
    parts = {"conv3": conv(bias=False), "norm3": norm(), "conv1": conv(size=1, bias=False), "norm1": norm()}
    return Net(lambda m, x: m.norm3(m.conv3(x)) + m.norm1(m.conv1(x)) + m.skip(x), skip=norm(), **parts)


class Child(nn.Module):
    """Knows the module that it is in, as some detectors' heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def parent_and_child() -> nn.Module:
    child = Child()
    parent = nn.Sequential(child, nn.ReLU())
    child.__dict__["parent"] = parent
    return parent


def weighted(how: Callable[[nn.Module], nn.Module]) -> Build:
    """A conv whose weight a hook or a parametrization computes."""
    return lambda: nn.Sequential(how(conv()), norm(), nn.ReLU())


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight**2


def squared(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Squared())
    return module


def pruned(module: nn.Module) -> nn.Module:
    return prune.random_unstructured(module, "weight", 0.5)


def hooked(module: nn.Module) -> nn.Module:
    double: Any = lambda module, args, output: output * 2.0  # noqa: E731
    module.register_forward_hook(double)
    return module


def repmixer() -> nn.Module:
    mixer = nn.Sequential(conv(groups=4, bias=False), norm())
    return Net(lambda m, x: x + m.gamma * (m.mixer(x) - m.norm(x)), gamma=gain(4, 1, 1), mixer=mixer, norm=norm())


def repmixer_of_branches() -> nn.Module:
    mixer = Net(
        lambda m, x: m.norm3(m.conv3(x)) + m.norm1(m.conv1(x)) + m.skip(x),
        conv3=conv(groups=4, bias=False),
        norm3=norm(),
        conv1=conv(size=1, groups=4, bias=False),
        norm1=norm(),
        skip=norm(),
    )
    return Net(lambda m, x: x + m.gamma * (m.mixer(x) - m.norm(x)), gamma=gain(4, 1, 1), mixer=mixer, norm=norm())


def parts(**more: Any) -> dict[str, Any]:
    return {"conv": conv(), "norm": norm(), **more}


SQUARE = ((image(2, 4, 4, 4),), (image(1, 4, 4, 4, seed=1),))
TOKENS = ((image(2, 3, 5),), (image(1, 7, 5, seed=1),))

# name -> (model, calls, operators of the fused model or None)
TABLE: dict[str, tuple[Build, tuple[Inputs, ...], int | None]] = {
    "bottleneck": (bottleneck, images(), None),
    "one conv, two norms": (
        lambda: Net(_twice_with_two_norms, conv=conv(), norm1=norm(), norm2=norm()),
        images(),
        5,
    ),
    "one norm behind two convs": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)) * torch.relu(m.norm(m.conv2(x))), conv2=conv(), **parts()),
        images(),
        4,
    ),
    "a weight read elsewhere": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean(), **parts()),
        images(),
        None,
    ),
    "tied weights": (tied, images(), 3),
    "one block at two places": (twin, images(), 5),
    "a conv with two readers": (
        lambda: Net(lambda m, x: torch.relu(m.norm(m.conv2(x))) + torch.tanh(m.conv2(x)), conv2=conv(), **parts()),
        images(),
        None,
    ),
    "a conv that is also returned": (
        lambda: Net(lambda m, x: (m.conv(x), m.norm(m.conv(x))), **parts()),
        images(),
        None,
    ),
    "a dict of lists of features": (lambda: Net(_features, conv2=conv(), **parts()), images(), None),
    "an interior value that is returned": (
        lambda: Net(lambda m, x: (m.norm(y := m.conv(x)), y), **parts()),
        images(),
        2,
    ),
    "frozen norm as torchvision's": (frozen(_frozen), images(), 1),
    "frozen norm by hand": (frozen(_frozen_by_hand), images(), 1),
    "frozen norm in place": (frozen(_frozen_in_place), images(), 1),
    "norm in front of a border": (lambda: nn.Sequential(norm(), conv()), images(), None),
    "norms around a 7x7": (lambda: nn.Sequential(norm(), conv(size=7, groups=4), norm()), images(), 1),
    "positional encoding": (
        lambda: Net(lambda m, x: m.conv(x) + x, conv=conv(size=7, groups=4)),
        images(),
        1,
    ),
    "RepMixer": (repmixer, images(), 1),
    "RepMixer of branches": (repmixer_of_branches, images(), 1),
    "two padded convs": (lambda: nn.Sequential(conv(), conv()), images(), 2),
    "1x1 in front of a padded conv": (lambda: nn.Sequential(conv(size=1), conv()), images(), 1),
    "3x3 in front of 1x1": (lambda: nn.Sequential(conv(), conv(size=1), norm()), images(), 1),
    "strided 1x1": (lambda: nn.Sequential(norm(), conv(size=1, stride=2), norm()), images(), 1),
    "strided twice": (lambda: nn.Sequential(conv(stride=2), conv(size=1, stride=2)), images(), None),
    "depthwise multiplier": (lambda: nn.Sequential(norm(), conv(4, 12, groups=4), norm(12)), images(), None),
    "groups": (lambda: nn.Sequential(norm(), conv(4, 6, groups=2), norm(6)), images(), None),
    "grouped plus skip": (lambda: Net(lambda m, x: m.conv(x) + x, conv=conv(groups=2)), images(), 1),
    "dilation": (lambda: nn.Sequential(norm(), conv(dilation=2, padding=2), norm()), images(), 1),
    "dilation that shrinks": (lambda: nn.Sequential(norm(), conv(dilation=2, padding=1), norm()), images(), 1),
    "same padding of an even kernel": (
        lambda: nn.Sequential(norm(), conv(size=4, padding="same"), norm()),
        images(),
        None,
    ),
    "same padding, even and dilated": (
        lambda: nn.Sequential(norm(), conv(size=2, padding="same", dilation=3), norm()),
        images(),
        None,
    ),
    "more padding than kernel": (lambda: nn.Sequential(norm(), conv(size=1, padding=2), norm()), images(), 1),
    "1x3 and 3x1": (
        lambda: Net(
            lambda m, x: m.conv(x) + m.wide(x) + m.high(x),
            conv=conv(),
            wide=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
            high=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        ),
        images(),
        1,
    ),
    "reflecting border": (lambda: nn.Sequential(norm(), conv(padding_mode="reflect"), norm()), images(), 1),
    "circular border": (lambda: nn.Sequential(norm(), conv(padding_mode="circular"), norm()), images(), 1),
    "replicated border": (lambda: nn.Sequential(norm(), conv(padding_mode="replicate"), norm()), images(), 1),
    "two kinds of border": (
        lambda: Net(lambda m, x: m.conv(x) + m.conv2(x), conv=conv(), conv2=conv(padding_mode="reflect")),
        images(),
        3,
    ),
    "padded, convolved and cropped": (
        lambda: Net(lambda m, x: F.pad(m.norm(m.conv(F.pad(x, (2, 0, 1, 3)))), (-1, 0, 0, -2)), **parts()),
        images(),
        None,
    ),
    "padded with a value": (
        lambda: Net(lambda m, x: m.conv(F.pad(m.norm(x), (1, 0, 2, 1), value=1.5)), **parts()),
        images(),
        None,
    ),
    "average pool between": (
        lambda: nn.Sequential(norm(), conv(), nn.AvgPool2d(2), conv(size=1), norm()),
        images(),
        None,
    ),
    "average pool that ignores padding": (
        lambda: nn.Sequential(norm(), nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(size=1)),
        images(),
        None,
    ),
    "average pool that sticks out": (
        lambda: nn.Sequential(norm(), nn.AvgPool2d(2, 2, ceil_mode=True), conv(size=1)),
        images(),
        None,
    ),
    "gain of the last axis": (lambda: Net(lambda m, x: m.conv(x) * m.gamma, conv=conv(), gamma=gain(4)), SQUARE, None),
    "gain of the last axis, in front": (
        lambda: Net(lambda m, x: m.conv(x * m.gamma), conv=conv(), gamma=gain(4)),
        SQUARE,
        None,
    ),
    "gain of the height": (lambda: Net(lambda m, x: m.conv(x * m.gamma), conv=conv(), gamma=gain(4, 1)), SQUARE, None),
    "gain of the batch": (
        lambda: Net(lambda m, x: m.conv(x * m.gamma), conv=conv(), gamma=gain(4, 1, 1, 1)),
        ((image(4, 4, 5, 5),), (image(1, 4, 5, 5),)),
        None,
    ),
    "gain of shape (1, C, 1, 1)": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma + m.gamma, conv=conv(), gamma=gain(1, 4, 1, 1)),
        images(),
        1,
    ),
    "gain of shape (C, 1, 1)": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma + m.gamma, conv=conv(), gamma=gain(4, 1, 1)),
        images(),
        1,
    ),
    "gain of shape ()": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma - m.gamma, conv=conv(), gamma=gain()),
        images(),
        1,
    ),
    "gain of shape (1,)": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma - m.gamma, conv=conv(), gamma=gain(1)),
        images(),
        1,
    ),
    "gain with one axis too many": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma, conv=conv(), gamma=gain(1, 1, 4, 1, 1)),
        images(),
        None,
    ),
    "one channel times three": (
        lambda: Net(lambda m, x: m.conv(x) * m.gamma, conv=conv(4, 1), gamma=gain(3, 1, 1)),
        images(),
        None,
    ),
    "one channel plus four": (
        lambda: Net(lambda m, x: m.conv(x) + m.conv2(x), conv=conv(), conv2=conv(4, 1)),
        images(),
        None,
    ),
    "skip of one channel": (lambda: Net(lambda m, x: m.conv(x) + x, conv=conv(1, 4)), images(1), None),
    "norm behind linear": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
        ((image(2, 5),), (image(7, 5),)),
        None,
    ),
    "norm behind linear, L == C": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
        ((image(2, 3, 5),), (image(1, 3, 5),)),
        None,
    ),
    "norm in front of linear, L == C": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)),
        ((image(2, 4, 4),), (image(1, 4, 4),)),
        None,
    ),
    "norm, flatten, linear": (
        lambda: nn.Sequential(norm(), nn.Flatten(), nn.Linear(24, 5)),
        ((image(2, 4, 2, 3),), (image(1, 4, 3, 2),)),
        None,
    ),
    "norm, pool, flatten, linear": (
        lambda: nn.Sequential(conv(), norm(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        images(),
        None,
    ),
    "norm, tokens, linear": (
        lambda: Net(lambda m, x: m.proj(m.norm(m.conv(x)).flatten(2).transpose(1, 2)), proj=nn.Linear(4, 5), **parts()),
        images(),
        3,
    ),
    "norm, contiguous tokens, linear": (
        lambda: Net(
            lambda m, x: m.proj(m.norm(x).permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, 4)),
            proj=nn.Linear(4, 5),
            **parts(),
        ),
        images(),
        None,
    ),
    "tokens and back": (lambda: Net(_tokens_and_back, proj=nn.Linear(4, 4), gamma=gain(4, 1, 1)), images(), None),
    "tokens mixed up": (
        lambda: Net(_tokens_mixed_up, proj=nn.Linear(4, 4), gamma=gain(4, 1, 1)),
        (*images(), *SQUARE),
        None,
    ),
    "channels behind, wrongly": (
        lambda: Net(
            lambda m, x: m.conv(m.norm(x).view(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)),
            **parts(),
        ),
        (*images(), *SQUARE),
        None,
    ),
    "ConvNeXt": (
        lambda: Net(
            _convnext,
            depthwise=conv(groups=4),
            norm=nn.LayerNorm(4),
            up=nn.Linear(4, 8),
            down=nn.Linear(8, 4),
            gamma=gain(4),
        ),
        images(),
        None,
    ),
    "shuffled channels": (lambda: Net(_shuffled, **parts()), images(), None),
    "shuffled and split": (lambda: Net(_shuffled_and_split, mix=conv(2, 2, 1), norm=norm(2)), images(), None),
    "contiguous tokens": (
        lambda: Net(_contiguous_tokens, gamma=gain(4), viewed=Undecided(lambda y: y.view(-1)), **parts()),
        images(),
        None,
    ),
    "height and width exchanged": (
        lambda: Net(lambda m, x: m.conv(m.norm(x).transpose(2, 3)) + x.transpose(2, 3), **parts()),
        images(),
        None,
    ),
    "batch and channels exchanged": (
        lambda: Net(lambda m, x: m.conv(m.norm(x).transpose(0, 1)), **parts()),
        ((image(4, 4, 5, 6),),),
        None,
    ),
    "channels and height exchanged": (
        lambda: Net(lambda m, x: m.conv2(m.conv(x).transpose(1, 2)), conv=conv(size=1), conv2=conv(size=1)),
        SQUARE,
        3,
    ),
    "transposed skip": (lambda: Net(lambda m, x: m.conv(m.norm(x + x.transpose(2, 3))), **parts()), SQUARE, None),
    "split and swapped": (lambda: Net(_split_and_swapped, **parts()), images(), None),
    "an integer in between": (
        lambda: Net(lambda m, x: m.norm(m.conv(x)).round().long() * 2, **parts()),
        images(),
        None,
    ),
    "no parameters": (lambda: Net(lambda m, x: torch.relu(x * 2.0 + 1.0) - x), images(), None),
    "nothing at all": (lambda: nn.Sequential(), images(), 0),
    "empty in between": (
        lambda: nn.Sequential(conv(), nn.Sequential(), nn.Sequential(nn.Identity()), norm()),
        images(),
        1,
    ),
    "a callable that is no module": (
        lambda: Net(lambda m, x: m.norm(m.conv(m.act(x))), act=torch.nn.functional.silu, **parts()),
        images(),
        2,
    ),
    "a loop over branches": (
        lambda: Net(_summed_up, branches=nn.ModuleList([conv(), conv(size=1), norm(), nn.Identity()])),
        images(),
        1,
    ),
    "recursion": (lambda: Net(_walked, **parts()), images(), 3),
    "two inputs": (
        lambda: NetOfTwo(lambda m, x, y: m.norm(m.conv(x)) + m.norm(m.conv(y)), **parts()),
        ((image(1, 4, 7, 6), image(1, 4, 7, 6, seed=2)),),
        3,
    ),
    "two inputs that are one": (
        lambda: NetOfTwo(lambda m, x, y: m.conv(x) + y, **parts()),
        ((image(1, 4, 7, 6), image(1, 4, 7, 6, seed=2)),),
        2,
    ),
    "no image in the batch": (
        lambda: nn.Sequential(norm(), conv(), norm(), nn.ReLU(), conv(size=1), nn.Flatten()),
        ((image(2, 4, 7, 6),), (image(0, 4, 7, 6),)),
        None,
    ),
    "no batch": (
        lambda: nn.Sequential(conv(size=1), conv(), nn.ReLU(), conv(), conv(size=1)),
        ((image(4, 7, 6),), (image(4, 9, 8),)),
        3,
    ),
    "norm that was never affine": (lambda: nn.Sequential(conv(), norm(affine=False), norm(momentum=None)), images(), 1),
    "norm without statistics": (
        lambda: nn.Sequential(conv(), norm(track_running_stats=False), conv(size=1)),
        images(),
        3,
    ),
    "weights that do not learn": (_frozen_weights(lambda: nn.Sequential(norm(), conv(), norm())), images(), 1),
    "integer and complex buffers": (
        lambda: Net(
            lambda m, x: m.norm(m.conv(x)) * m.table[1] + (m.phase * m.phase.conj()).real,
            table=torch.tensor([1, 3]),
            phase=torch.tensor(1 + 2j, dtype=torch.complex128),
            **parts(),
        ),
        images(),
        None,
    ),
    "attention": (
        lambda: Net(
            lambda m, x: m.attend(m.up(x), x, x)[0],
            attend=nn.MultiheadAttention(5, 1),
            up=nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)),
        ),
        TOKENS,
        2,
    ),
    "transformer layer": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3)),
        TOKENS,
        3,
    ),
    "recurrence": (
        lambda: Net(
            lambda m, x: m.up(m.cell(x)[0]), cell=nn.LSTM(5, 4), up=nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        ),
        TOKENS,
        2,
    ),
    "a branch on the data": (lambda: nn.Sequential(conv(), norm(), Undecided(), conv(), norm()), images(), 3),
    "one dimension": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)),
        ((image(2, 4, 9),), (image(1, 4, 12),)),
        None,
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.BatchNorm3d(4), nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4)),
        ((image(2, 4, 5, 6, 4),), (image(1, 4, 4, 5, 7),)),
        1,
    ),
    "arithmetic with alpha": (
        lambda: Net(lambda m, x: torch.sub(torch.add(m.conv(x), x, alpha=2), x, alpha=0.5), **parts()),
        images(),
        1,
    ),
    "negated twice": (
        lambda: Net(lambda m, x: torch.relu(torch.neg(torch.neg(m.conv(x)))) - x, **parts()),
        images(),
        3,
    ),
    "a place of a tensor is written to": (lambda: Net(_zeroed, conv2=conv(), **parts()), images(), None),
    "a sum in place while another name is read": (lambda: Net(_written_while_read, **parts()), images(), None),
    "int() of a size": (lambda: nn.Sequential(Net(_tiled, **parts()), nn.ReLU(), conv(), norm()), images(), 3),
    "a choice by size": (
        lambda: nn.Sequential(Net(_chosen_by_size, **parts()), conv(), norm()),
        images(),
        2,
    ),
    "a list of features": (
        lambda: Net(_walks_a_list, stages=nn.ModuleList([nn.Sequential(conv(), norm(), nn.ReLU()) for _ in range(3)])),
        images(),
        7,
    ),
    "optional mask": (
        lambda: Masked(lambda m, x: m.norm(m.conv(x)), **parts()),
        ((image(2, 4, 7, 6),), (image(1, 4, 5, 5), image(1, 4, 5, 5, seed=1))),
        1,
    ),
    "optional mask, given first": (
        lambda: Masked(lambda m, x: m.norm(m.conv(x)), **parts()),
        ((image(1, 4, 5, 5), image(1, 4, 5, 5, seed=1)), (image(2, 4, 7, 6),), (image(1, 4, 5, 5), None, 2.0)),
        None,
    ),
    "DBB": (diverse_branches, images(), None),
    "RepVGG": (repvgg, images(), 1),
    "conv, norm, norm": (lambda: nn.Sequential(conv(), norm(), norm()), images(), 1),
    "grouped transposed conv and norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)),
        images(),
        None,
    ),
    "a module that knows its parent": (parent_and_child, images(), 2),
    "weight norm, a hook": (weighted(torch.nn.utils.weight_norm), images(), 2),
    "weight norm, a parametrization": (weighted(parametrizations.weight_norm), images(), 2),
    "spectral norm, a hook": (weighted(torch.nn.utils.spectral_norm), images(), 2),
    "spectral norm, a parametrization": (weighted(parametrizations.spectral_norm), images(), 2),
    "pruned": (weighted(pruned), images(), 2),
    "squared weights": (weighted(squared), images(), 2),
    "squared weights that nothing folds into": (lambda: nn.Sequential(nn.ReLU(), squared(conv())), images(), 2),
    "a hook": (lambda: nn.Sequential(conv(), hooked(norm()), conv(size=1), norm()), images(), 3),
    "DataParallel": (lambda: nn.DataParallel(nn.Sequential(conv(), norm())), images(), 1),
    "DataParallel inside": (
        lambda: nn.Sequential(nn.DataParallel(nn.Sequential(conv(), norm())), nn.ReLU()),
        images(),
        2,
    ),
    "averaged weights": (lambda: AveragedModel(nn.Sequential(conv(), norm())), images(), 1),
    "scripted inside": (
        lambda: nn.Sequential(torch.jit.script(nn.Sequential(conv(), norm())), nn.ReLU(), conv(), norm()),
        images(),
        3,
    ),
    "complex weights": (
        lambda: nn.Sequential(*(nn.Conv2d(4, 4, size, dtype=torch.complex128) for size in (1, 3))),
        ((torch.complex(image(2, 4, 5, 5), image(2, 4, 5, 5, seed=1)),),),
        2,
    ),
    "complex image": (
        lambda: Net(lambda m, x: (x * 2.0 + 1.0) * m.gamma - m.gamma, gamma=gain(4, 1, 1)),
        ((torch.complex(image(2, 4, 5, 5), image(2, 4, 5, 5, seed=1)),),),
        None,
    ),
    "a conv minus itself": (lambda: Net(lambda m, x: torch.relu(m.conv(x) - m.conv(x)) + x, **parts()), images(), None),
}


@pytest.mark.parametrize("name", TABLE)
def test_fused_is_the_model(name: str) -> None:
    build, calls, operators = TABLE[name]
    check(made(build), *calls, examples=(False,), operators=operators)


@pytest.mark.parametrize("name", TABLE)
def test_fused_with_example_inputs_is_the_model(name: str) -> None:
    build, calls, _ = TABLE[name]
    check(made(build, seed=1), *calls, examples=(True,))


@pytest.mark.parametrize("name", TABLE)
def test_fused_for_the_fewest_products_is_the_model(name: str) -> None:
    """Another price makes other regions, those with a border term among them."""
    build, calls, _ = TABLE[name]
    model = made(build, seed=2)
    fused = fuse(model, cost=Macs())
    for call in calls:
        assert_same_call(model, fused, call)


@pytest.mark.parametrize("name", TABLE)
def test_fusing_again_changes_nothing(name: str) -> None:
    build, calls, _ = TABLE[name]
    once = fuse(made(build))
    assert explain(once).fused == ()
    twice, before = fuse(once), once.state_dict()
    assert {name: tensor.tolist() for name, tensor in twice.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert_same_call(once, twice, calls[-1])


def test_two_threads_fuse_while_a_third_runs_something_else() -> None:
    models = [made(bottleneck, 1), made(repmixer, 2)]
    bystander = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU()))
    x = image(1, 4, 8, 8)
    expected = bystander(x)
    done, problems = threading.Event(), list[str]()

    def run() -> None:
        while not done.is_set():
            if not torch.equal(bystander(x), expected):
                problems.append("the bystander saw something else")

    def work(model: nn.Module) -> None:
        try:
            for _ in range(5):
                assert_same_call(model, fuse(model), (x,))
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            problems.append(repr(error))

    third = threading.Thread(target=run)
    workers = [threading.Thread(target=work, args=(model,)) for model in models]
    third.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    third.join()
    assert not problems


@pytest.mark.slow
def test_ten_thousand_operators() -> None:
    def long(m: Any, x: Tensor) -> Tensor:
        for _ in range(2500):
            x = torch.relu(m.norm(m.conv(x))) * 0.5
        return x

    model, x = made(lambda: Net(long, **parts())), image(1, 4, 3, 3)
    fused = fuse(model)
    assert len(run_by(fused)) == 5001  # every convolution takes in the product in front of it
    assert_same_call(model, fused, (x,))
