"""Which models are captured, which parts of them stay Python, and what the errors say."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import _pytree as pytree

from repcompile import ModelError, fuse
from repcompile.capture import Captured, capture
from repcompile.defaults import Specialized
from repcompile.graphs import Fused
from repcompile.rules import DEFAULT
from repcompile.tracing import trace
from tests.fuzz.build import build
from tests.fuzz.generate import generate
from tests.test_hostile import (
    TABLE,
    Net,
    NetOfTwo,
    Undecided,
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
    refusal,
    run_by,
    state_of,
)

# -- errors ------------------------------------------------------------------------------------------------------------


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(conv(), norm()).eval()


def of_fakes() -> nn.Module:
    with FakeTensorMode():
        return nn.Sequential(conv(), norm()).eval()


def of_few_numbers() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse(), requires_grad=False)
    return nn.Sequential(layer).eval()


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: F.relu, "takes a torch.nn.Module; got function"),
    "nothing": (lambda: None, "takes a torch.nn.Module; got NoneType"),
    "a class": (lambda: nn.Conv2d, "takes a torch.nn.Module; got type"),
    "training": (lambda: nn.Sequential(conv(), norm()).train(), r"training mode.*call model.eval\(\) first"),
    "meta": (on_meta, "meta device"),
    "fakes": (of_fakes, "has fake tensors, which hold no weights to fold"),
    "sparse": (of_few_numbers, "weights of layout torch.sparse_coo; it takes torch.strided ones"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)).eval(), "lazy.*run it once"),
    "lazy buffers": (lambda: nn.Sequential(conv(), nn.LazyBatchNorm2d(affine=False)).eval(), "lazy.*run it once"),
    "a lock": (lambda: nn.Sequential(conv(), Locked()).eval(), "cannot be copied.*lock"),
    "a scripted root": (lambda: torch.jit.script(nn.Sequential(nn.ReLU()).eval()), "scripted module"),
}


class Varargs(Net):
    def forward(self, *inputs: Tensor) -> Any:  # type: ignore[override]
        return self.function(self, *inputs)


WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "any number of inputs": (
        lambda: Varargs(lambda m, *xs: sum(m.conv(x) for x in xs), conv=conv()),
        (image(1, 4, 5, 5), image(2, 4, 5, 5)),
    ),
    "a branch at the root": (Undecided, images()[0]),
    "a write at the root": (lambda: Net(lambda m, x: x.mul_(2.0)), images()[0]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_is_python_as_a_whole_runs_or_is_refused(name: str) -> None:
    build, call = WHOLE[name]
    reason = refusal(made(build), call)
    assert not reason or "cannot be traced" in reason or "cannot follow" in reason


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_compiled_is_refused_in_one_sentence(name: str) -> None:
    build, message = ERRORS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(ModelError, match=message) as error:
        fuse(model)
    assert "\n" not in str(error.value)


def test_wrong_number_of_example_inputs() -> None:
    with pytest.raises(ModelError, match="takes 1 required arguments; example_inputs has 2"):
        fuse(made(conv), (image(1, 4, 5, 5), image(1, 4, 5, 5)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_bare_tensor_as_example_inputs_is_not_taken_apart(batch: int) -> None:
    """A batch of one image would otherwise be compiled as an image without a batch."""
    with pytest.raises(ModelError, match="example_inputs"):
        fuse(made(conv), image(batch, 4, 5, 5))  # type: ignore[arg-type]


# -- arguments ---------------------------------------------------------------------------------------------------------


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, *more: Tensor, scale: float = 1.0, **options: Any) -> Any:
        net: Any = self
        y = net.norm(net.conv(x)) * scale
        return y if mask is None else y * mask


def test_optional_arguments_keep_their_default() -> None:
    check(made(lambda: Optional(lambda: None, **parts())), *images(), operators=1)


def test_optional_arguments_of_a_child_are_what_the_parent_says() -> None:
    def parent(m: Any, x: Tensor) -> Tensor:
        return (
            m.child(x)
            + torch.relu(m.child(x, torch.sigmoid(x), scale=2.0))
            + torch.tanh(m.child(x, mask=None, scale=3.0))
        )

    check(made(lambda: Net(parent, child=Optional(lambda: None, **parts()))), *images())


def test_required_arguments_keep_their_names() -> None:
    fused = fuse(made(lambda: NetOfTwo(lambda m, x, y: m.norm(m.conv(x)) - y, **parts())))
    x, y = image(1, 4, 5, 5), image(1, 4, 5, 5, seed=1)
    assert torch.equal(fused(y=y, x=x), fused(x, y))


def test_an_argument_called_input_keeps_its_name() -> None:
    class Model(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    fused = fuse(made(lambda: Model(conv(), norm())))
    x = image(1, 4, 5, 5)
    assert torch.equal(fused(input=x), fused(x))


def test_keyword_only_argument_is_required_or_refused() -> None:
    class Model(Net):
        def forward(self, x: Tensor, *, factor: Tensor) -> Any:  # type: ignore[override]
            net: Any = self
            return net.norm(net.conv(x)) * factor

    model = made(lambda: Model(lambda: None, **parts()))
    x = image(1, 4, 5, 5)
    try:
        fused = fuse(model)
    except ModelError:
        return
    assert torch.allclose(fused(x, factor=x), model(x, factor=x))


def test_a_dict_as_input() -> None:
    model = made(lambda: Net(lambda m, x: {"y": m.norm(m.conv(x["image"])) + x["more"][0]}, **parts()))
    x = image(1, 4, 5, 5)
    check(model, ({"image": x, "more": [x]},))


# -- outputs -----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Result:
    first: Tensor
    second: Tensor


class Attributes(OrderedDict[str, Tensor]):
    """As transformers' ModelOutput."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class Fields(OrderedDict[str, Tensor]):
    """A dataclass that is a dict of its fields, as transformers' outputs are; pytree knows it by name."""

    first: Tensor
    second: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


@dataclass
class Noting(Result):
    """Its fields do not make it: it notes more than they say."""

    def __post_init__(self) -> None:
        self.first, self.note = self.first * 2, "made"


OUTPUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "tuple": lambda m, x: (x, m.norm(m.conv(x))),
    "list": lambda m, x: [m.norm(m.conv(x)), [x]],
    "dict": lambda m, x: {"a": m.norm(m.conv(x)), "b": {"c": x}},
    "ordered dict": lambda m, x: OrderedDict(a=m.norm(m.conv(x)), b=x),
    "named tuple": lambda m, x: Pair(m.norm(m.conv(x)), x),
    "dataclass": lambda m, x: Result(m.norm(m.conv(x)), x),
    "dataclass that changes its fields": lambda m, x: Noting(m.norm(m.conv(x)), x),
    "dataclass that is a dict": lambda m, x: Fields(m.norm(m.conv(x)), x),
    "dict with attributes": lambda m, x: Attributes(first=m.norm(m.conv(x)), second=x),
    "numbers and words": lambda m, x: (m.norm(m.conv(x)), 3, None, "word", 1.5, True),
    "sizes": lambda m, x: (m.norm(m.conv(x)), x.shape[2], x.shape),
    "a parameter": lambda m, x: (m.norm(m.conv(x)), m.conv.weight),
    "the input": lambda m, x: x,
    "nothing": lambda m, x: None,
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_outputs_keep_their_kind(name: str, example: bool, nested: bool) -> None:
    model = made(lambda: Net(OUTPUTS[name], **parts()))
    model = nn.Sequential(model).eval() if nested else model
    (x,) = images()[0]
    fused = fuse(model, (x,)) if example else fuse(model)
    expected, got = model(x), fused(x)
    assert type(got) is type(expected)
    if isinstance(expected, Result | Attributes | Fields):
        expected, got = (expected.first, expected.second), (got.first, got.second)
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        assert torch.allclose(a, b) if isinstance(a, Tensor) else a == b


# -- what stays Python -------------------------------------------------------------------------------------------------


def test_the_reason_of_what_stays_python_names_it() -> None:
    captured = capture(made(lambda: nn.Sequential(conv(), Undecided(), nn.Sequential(Undecided(), norm()))))
    assert list(captured.opaque) == ["1", "2.0"]
    assert all("Error" in reason for reason in captured.opaque.values())


class Branching(nn.Module):
    """Stays Python; uses its child in one of the ways that a child can be used."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child: Any = child


class Calling(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) if float(x.detach().abs().sum()) >= 0.0 else x


class CallingWithMore(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.child(x, mask=torch.sigmoid(x), scale=2.0) if float(x.detach().abs().sum()) >= 0.0 else x


class CallingWithKeywords(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.child(input=x) if float(x.detach().abs().sum()) >= 0.0 else x


class OtherName(Branching):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805  # pyright: ignore[reportSelfClsParameterName]
        y = this.child(x) if float(x.detach().abs().sum()) >= 0.0 else x
        return y * this.child[0].weight.sum()


class Summing(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.child(x) if float(x.detach().abs().sum()) >= 0.0 else x
        return y * sum(parameter.sum() for parameter in self.parameters())


class Walking(Branching):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) >= 0.0:
            for child in self.children():
                x = child[1](child[0](x))  # type: ignore[index, operator]
        return x


class Submodule(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_submodule("child.0").weight.sum() if float(x.detach().abs().sum()) >= 0.0 else self.child(x)  # pyright: ignore[reportCallIssue]


class Typed(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.child(x) if float(x.detach().abs().sum()) >= 0.0 else x
        return y * sum(isinstance(module, nn.BatchNorm2d) for module in self.modules())


class Reading:
    """A mixin behind nn.Module in the order of the bases."""

    def weight(self) -> Tensor:
        return self.child[0].weight.sum()  # type: ignore[attr-defined]


class Mixed(Branching, Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) * self.weight() if float(x.detach().abs().sum()) >= 0.0 else x


@pytest.mark.parametrize(
    "parent",
    [Calling, CallingWithKeywords, OtherName, Summing, Walking, Submodule, Typed, Mixed],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_child_of_a_module_that_stays_python(parent: type[Branching], nested: bool) -> None:
    """It may be exchanged only where nobody could tell."""
    model = made(lambda: parent(nn.Sequential(conv(), norm())))
    check(nn.Sequential(model, nn.ReLU()).eval() if nested else model, *images())


class Announced(Branching):
    """As torchvision's detectors: looked at while it is built, and never again."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__(child)
        assert len(list(_listed(self))) > 0

    @staticmethod
    def positive(x: Tensor) -> bool:
        return float(x.detach().abs().sum()) >= 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) if self.positive(x) else x


def _listed(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())


def test_what_building_a_module_looks_at_may_be_exchanged_later() -> None:
    model = made(lambda: Announced(nn.Sequential(conv(), norm())))
    fused = check(model, *images())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_a_child_with_optional_arguments_of_a_module_that_stays_python() -> None:
    child = Optional(lambda: None, **parts())
    check(made(lambda: nn.Sequential(CallingWithMore(child), nn.ReLU())), *images())
    check(made(lambda: CallingWithMore(Optional(lambda: None, **parts()))), *images())


def test_a_child_whose_parent_got_another_forward() -> None:
    model = made(lambda: Calling(nn.Sequential(conv(), norm())))
    child: Any = model.child
    model.forward = lambda x: child[0](x) * 2.0 if float(x.detach().abs().sum()) >= 0.0 else x
    check(nn.Sequential(model, nn.ReLU()).eval(), *images())


class Filling(nn.Module):
    """Puts its features into a container of the caller's, before or behind a branch that tracing cannot follow."""

    def __init__(self, early: bool, late: bool) -> None:
        super().__init__()
        self.conv = conv()
        self.norm = norm()
        self.early = early
        self.late = late

    def forward(self, x: Tensor, features: Any) -> Tensor:
        y = self.norm(self.conv(x))
        if self.early:
            self.put(features, y)
        if self.late and float(y.abs().sum()) >= 0.0:
            self.put(features, y * 2.0)
        return y

    def put(self, features: Any, y: Tensor) -> None:
        if isinstance(features, dict):
            features[str(len(features))] = y
        else:
            features.append(y)


def _filled_list(m: Any, x: Tensor) -> Tensor:
    features: list[Tensor] = [x]
    y = m.child(x, features)
    return torch.cat([y, *features], 1)


def _filled_dict(m: Any, x: Tensor) -> Tensor:
    features = {"x": x}
    y = m.child(x, features)
    return torch.cat([y, *features.values()], 1)


@pytest.mark.parametrize("function", [_filled_list, _filled_dict])
@pytest.mark.parametrize(("early", "late"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_container_that_a_child_fills(function: Callable[..., Tensor], early: bool, late: bool, hooked: bool) -> None:
    model = made(lambda: nn.Sequential(Net(function, child=Filling(early, late))))
    if hooked:
        model[0].child.register_forward_hook(lambda *_: None)  # type: ignore[index, union-attr]
    check(model, *images())


def test_a_child_that_returns_a_dict_and_stays_python() -> None:
    class Child(Undecided):
        def forward(self, x: Tensor) -> Any:
            return {"a": super().forward(x), "b": (x, x + 1.0)}

    check(
        made(lambda: Net(lambda m, x: m.norm(m.conv(m.child(x)["b"][1])) + m.child(x)["a"], child=Child(), **parts())),
        *images(),
    )


def test_a_scripted_child_stays_as_it_is() -> None:
    scripts: list[Callable[[nn.Module], Any]] = [torch.jit.script, lambda m: torch.jit.trace(m, image(1, 4, 7, 6))]
    for script in scripts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = script(made(lambda: nn.Sequential(conv(), nn.ReLU())))
        model = nn.Sequential(made(conv), made(norm), child, made(conv), made(norm)).eval()
        fused = fuse(model)
        assert_same_call(model, fused, images()[0])
        assert len(run_by(fused)) == 3


def test_norm_in_training_mode_inside_a_model_in_eval_mode_stays_in_training_mode() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()))
    model[1].train()  # type: ignore[index]
    before = state_of(model)
    fused = fuse(model)
    assert_untouched(model, before)
    assert len(run_by(fused)) == 4
    for call in (*images(), *images()):
        assert_same_call(model, fused, call)


def test_example_inputs_do_not_train_a_norm() -> None:
    model = made(lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()))
    model[1].train()  # type: ignore[index]
    before = state_of(model)
    fuse(model, images()[0])
    assert_untouched(model, before)


@pytest.mark.parametrize("example", [False, True])
def test_dropout_in_training_mode_stays_random(example: bool) -> None:
    """Monte-Carlo dropout: the model is in eval mode, the dropout is not."""
    model = made(lambda: nn.Sequential(conv(), norm(), nn.Dropout(0.5), conv(), norm()))
    model[2].train()  # type: ignore[index]
    before, (x,) = state_of(model), images()[0]
    fused = fuse(model, (x,)) if example else fuse(model)
    assert_untouched(model, before)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(fused(x), fused(x))
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.allclose(fused(x), expected)


# -- parametrizations --------------------------------------------------------------------------------------------------


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight**2


class Noisy(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def _parametrized(module: nn.Module, parametrization: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", parametrization)
    return module


PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(conv()), norm()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(conv()), norm()),
    "squared conv": lambda: nn.Sequential(_parametrized(conv(), Squared()), norm()),
    "squared norm": lambda: nn.Sequential(conv(), _parametrized(norm(), Squared())),
    "squared linear": lambda: nn.Sequential(conv(), norm(), nn.Flatten(2), _parametrized(nn.Linear(42, 3), Squared())),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_weights_are_folded_as_they_are_used(name: str) -> None:
    operators = 3 if "linear" in name else 1
    calls = images()[:1] if "linear" in name else images()
    check(made(PARAMETRIZED[name]), *calls, operators=operators)


def test_a_parametrized_weight_read_elsewhere() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x)) + torch.relu(F.conv2d(x, m.conv.weight, padding=1))

    check(made(lambda: Net(both, conv=_parametrized(conv(), Squared()), norm=norm())), *images())


def test_a_random_parametrization_stays_random() -> None:
    model = made(lambda: nn.Sequential(_parametrized(conv(), Noisy()), norm()))
    before, (x,) = state_of(model), images()[0]
    fused = fuse(model)
    assert_untouched(model, before)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(fused(x), fused(x))


def test_a_parametrization_in_training_mode_is_not_advanced() -> None:
    """spectral_norm takes a step of the power method whenever its weight is read in training mode."""
    model = made(lambda: nn.Sequential(parametrizations.spectral_norm(conv()), norm()))
    model[0].parametrizations.train()  # type: ignore[index, union-attr]
    before = state_of(model)
    fused = fuse(model)
    assert_untouched(model, before)
    assert_same_call(model, fused, images()[0])


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "prune"])
def test_weights_computed_by_a_hook(how: str) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm())
        if how == "prune":
            prune.random_unstructured(model[0], "weight", 0.5)
        else:
            getattr(torch.nn.utils, how)(model[0])
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(build)
        with torch.no_grad():
            model(*images()[0])
        check(model, *images())


# -- containers --------------------------------------------------------------------------------------------------------


def test_parameter_containers() -> None:
    def listed(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        for scale in m.scales:
            y = y * scale
        return y + m.shifts["a"]

    scales = nn.ParameterList([gain(4, 1, 1), gain(1, 4, 1, 1)])
    model = made(lambda: Net(listed, conv=conv(), scales=scales, shifts=nn.ParameterDict({"a": gain(4, 1, 1)})))
    check(model, *images(), operators=1)


def test_modules_hidden_in_a_list() -> None:
    """The usual trick to keep a teacher out of state_dict."""
    hidden = made(conv)
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)) - m.hidden[0](x), hidden=[hidden], **parts()))
    check(model, *images())


def test_buffers_that_state_dict_leaves_out() -> None:
    model = made(lambda: Net(lambda m, x: m.norm(m.conv(x)) * torch.sigmoid(x + m.table), **parts()))
    model.register_buffer("table", torch.rand(4, 1, 1).double(), persistent=False)
    fused = check(model, *images())
    assert "table" not in fused.state_dict()


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
@pytest.mark.parametrize(
    "name",
    "graph code meta _graph to_folder print_readable T for None é a-b root_fused conv_fused 0 x input self".split(),
)
def test_any_name_that_a_module_may_have(kind: str, name: str) -> None:
    def part(m: Any, x: Tensor) -> Tensor:
        value: Any = m.__getattr__(name)
        if kind == "module":
            return m.norm(m.conv(x)) + m.other(value(x))
        return m.norm(m.conv(x)) + m.other(x) * value

    model = Net(part, other=Undecided(), **parts())
    if kind == "module":
        model.add_module(name, conv())
    elif kind == "parameter":
        model.register_parameter(name, gain(4, 1, 1))
    else:
        model.register_buffer(name, torch.rand(4, 1, 1))
    check(made(lambda: model), *images())


def test_wrappers_of_other_tools() -> None:
    model = nn.DataParallel(made(lambda: nn.Sequential(conv(), norm()))).eval()
    reason = refusal(model, *images())
    assert not reason or "cannot be traced" in reason


@pytest.mark.parametrize("depth", [10, 60])
def test_deeply_nested_modules(depth: int) -> None:
    def build() -> nn.Module:
        model: nn.Module = nn.Sequential(conv(), norm())
        for _ in range(depth):
            model = nn.Sequential(model)
        return model

    check(made(build), *images(), operators=1)


# -- what the compiler has made itself ---------------------------------------------------------------------------------


def operators_of(captured: Captured) -> list[Any]:
    place = {node: index for index, node in enumerate(captured.graph.nodes)}
    return [
        (node.op, node.target, node.meta["path"], [place[operand] for operand in node.all_input_nodes])
        for node in place
    ]


def test_what_was_made_is_captured_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [build(generate(seed)).eval() for seed in range(40)] + [made(model) for model, *_ in TABLE.values()]
    fused = map(fuse, models)
    models = [model for model in fused if isinstance(model, Fused) and not isinstance(model, Specialized)]
    traced = [capture(model, DEFAULT.module_classes) for model in models]
    runs: list[nn.Module] = []

    def counting(model: nn.Module, *args: Any) -> Any:
        runs.append(model)
        return trace(model, *args)

    monkeypatch.setattr("repcompile.capture.trace", counting)
    for model, expected in zip(models, traced, strict=True):
        captured = capture(model, DEFAULT.module_classes, made=True)
        assert operators_of(captured) == operators_of(expected)
        for name in ("constants", "modules", "opaque", "classes", "transient", "fixed", "written", "arguments"):
            assert getattr(captured, name) == getattr(expected, name), name
    assert len(models) > 30
    assert len(runs) < len(models) // 4
