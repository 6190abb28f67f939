"""Statements that stay Python inside forwards that are traced: what is around them fuses, whatever the size."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import explain, fuse
from repcompile.statements import KeptStatement, Statement, plain_forward, statement_at
from tests.test_hostile import Net, assert_same_call, check, conv, gain, image, images, made, norm, run_by

# -- forwards of which a statement stays Python ------------------------------------------------------------------------


def padded_as_tensorflow(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """As wide as the stride asks for, more of it behind the image: a branch and a maximum for each side."""
    pads: list[int] = []
    for axis in (-1, -2):
        size, stride, kernel = int(x.shape[axis]), layer.stride[axis], layer.kernel_size[axis]
        pad = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
        pads += [pad // 2, pad - pad // 2]
    return F.pad(x, pads)


def own_stride(layer: nn.Module) -> Any:
    return layer.stride


class Unit(nn.Module):
    """A convolution and a norm that are called one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(size=3, stride=2, padding=0, bias=False)
        self.norm = norm()
        self.channels = 4
        self.names = ["a list"]


class PadsByFunction(Unit):
    def forward(self, x: Tensor) -> Tensor:
        x = padded_as_tensorflow(x, self.conv)
        return F.relu(self.norm(self.conv(x)))


class PadsInPlace(Unit):
    def forward(self, x: Tensor) -> Tensor:
        size, stride = int(x.shape[-1]), self.conv.stride[0]
        pad = 3 - stride
        if size % stride:
            pad = max(3 - size % stride, 0)
        x = F.pad(x, (pad, pad, 0, pad))
        return F.relu(self.norm(self.conv(x)))


class ChecksItsInput(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"takes {self.channels} channels")
        return F.relu(self.norm(self.conv(x)))


class Loops(Unit):
    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for side in range(int(x.shape[0])):
            total += side
        x = F.relu(self.norm(self.conv(x)))
        return x + total


class ReturnsAResized(Unit):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return F.interpolate(y, size=(int(x.shape[-2]), 5))


class ChoosesTheImage(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = x * 2.0
        elif x.shape[-1] > 100:
            x = x - 1.0
        return F.relu(self.norm(self.conv(x)))


class ReturnsANumber(Unit):
    """A number that is multiplied is no tensor that a region may read."""

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        size = int(x.shape[-1])
        return F.relu(self.norm(self.conv(x))), size * 2 * 0.5


class InALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(padding=0) for _ in range(2)])
        self.norms = nn.ModuleList([norm() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer, bn in zip(self.convs, self.norms, strict=True):
            pad = int(x.shape[-1]) % 2 + 1
            x = F.relu(bn(layer(F.pad(x, (pad, pad, pad, pad)))))
        return x


class Inside(nn.Module):
    """Two of one class: what stays Python is settled for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = PadsByFunction(), PadsByFunction(), conv()
        self.second.conv.stride = (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


class TiesAChain(nn.Module):
    """A statement of numbers between layers that fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gamma = conv(), norm(), gain(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) * self.gamma
        half = int(x.shape[-1]) // 2
        return F.relu(x)[..., :half]


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, *args: Any, scale: float = 2.0) -> Any:
        return function(self, *args) * scale

    return call


class Decorated(Unit):
    """Twice; the decorators run as they did."""

    @decorated
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        x = padded_as_tensorflow(x, self.conv)
        return F.relu(self.norm(self.conv(x)))


class Settings:
    def __init__(self) -> None:
        self.steps, self.offset = [1, 2], 3


class ReadsByMethods(Unit):
    """Methods that only read their object, and what it has hold of."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()

    @staticmethod
    def doubled(size: int) -> int:
        return 2 * size

    def total(self, size: int) -> int:
        return sum(step * size for step in self.settings.steps) + self.doubled(self.settings.offset)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.total(int(x.shape[-1]))
        return F.relu(self.norm(self.conv(x))) + shift


class CountsByRecursion(Unit):
    def halvings(self, size: int) -> int:
        return 0 if size < 2 else 1 + self.halvings(size // 2)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.halvings(int(x.shape[-1]))
        return F.relu(self.norm(self.conv(x))) + shift


class Annotates(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 7:
            pad: int
            pad = 2
        else:
            pad = 1
        return F.relu(self.norm(self.conv(x))) + pad


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor, scale: float) -> Tensor:
        size = scale * int(x.shape[-1]) / 2
        return F.relu(self.norm(self.conv(x))) + size


class TwiceTheSame(nn.Module):
    """One statement with a number and with another one that is equal, but of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(x, 2), 2.0)


class Remembers(Unit):
    """A cache beside a statement: the second run is the same program."""

    def __init__(self) -> None:
        super().__init__()
        self.table = gain(4, 1, 1)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError("channels")
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.table * 2.0
        return F.relu(self.norm(self.conv(x)) * self.cache[key])


class ChecksInBetween(nn.Module):
    """A statement that gets sizes alone writes to no tensor, so that a region may reach across it."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[1] != self.width or y.ndim != 4:
            raise ValueError("the convolution takes an image of four channels")
        return F.relu(self.norm(y))


class AsksInBetween(ChecksInBetween):
    """Of a value that would be gone, and that nobody else can be asked about: the norm stays."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.shape[-1] != x.shape[-1]:
            raise ValueError("the convolution should keep the size")
        return F.relu(self.norm(y))


SIZES = ((image(2, 4, 8, 7),), (image(1, 4, 9, 10, seed=1),), (image(3, 4, 11, 6, seed=2),))
KEPT: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # operators, statements
    "a function that pads": (PadsByFunction, 3, 1),
    "arithmetic on a size": (PadsInPlace, 6, 2),
    "a check": (ChecksItsInput, 3, 1),
    "a loop": (Loops, 4, 1),
    "what is returned": (ReturnsAResized, 3, 1),
    "a choice of tensors": (ChoosesTheImage, 3, 1),
    "a number that is returned": (ReturnsANumber, 5, 1),
    "inside of a loop": (InALoop, 8, 1),
    "two of a class": (Inside, 7, 2),
    "between layers": (TiesAChain, 3, 1),
    "beside a cache": (Remembers, 3, 1),
    "a check in between": (ChecksInBetween, 3, 1),
    "inside decorators": (Decorated, 5, 1),
    "methods that read": (ReadsByMethods, 4, 1),
    "a method that calls itself": (CountsByRecursion, 4, 1),
    "a name that is annotated first": (Annotates, 4, 1),
    "numbers of two kinds": (TwiceTheSame, 8, 2),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_around_a_statement_fuses(name: str) -> None:
    build, operators, statements = KEPT[name]
    fused = check(made(build), *SIZES, operators=operators)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    assert sum(isinstance(part, KeptStatement) for part in fused.modules()) == statements


def test_a_convolution_of_which_a_statement_asks_runs_once() -> None:
    assert run_by(fuse(made(AsksInBetween))) == ["conv", "python_0", "norm", "relu"]


@pytest.mark.parametrize("name", KEPT)
def test_copies_and_pickles_run_the_statement(name: str) -> None:
    model = made(KEPT[name][0])
    fused = fuse(model)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), fuse(fused)):
        for call in SIZES:
            assert_same_call(model, other, call)


def test_the_report_names_the_line() -> None:
    report = explain(made(lambda: nn.Sequential(PadsInPlace())))
    (left,) = (item for item in report.left if "if size % stride:" in item.reason)
    assert left.reason.startswith("stays Python: ")
    assert (left.path, left.norms) == ("0", 0)


def test_a_check_fails_as_it_did() -> None:
    fused = fuse(made(ChecksItsInput))
    with pytest.raises(ValueError, match="takes 4 channels"):
        fused(image(1, 3, 8, 8))


def test_kept_statements_hold_no_weights() -> None:
    fused = fuse(made(PadsByFunction))
    assert {name for name, _ in fused.named_parameters()} == {"conv.weight", "conv.bias"}


def test_weights_in_another_dtype_are_followed() -> None:
    model = made(PadsByFunction)
    assert_same_call(model.float(), fuse(model).float(), (image(2, 4, 8, 7).float(),), tolerance=1e-5)


# -- statements that cannot stand alone: the module stays Python, and right --------------------------------------------


class ReadsAWeight(Unit):
    def forward(self, x: Tensor) -> Tensor:
        x = x * float(self.conv.weight.sum()) if x.shape[0] > 1 else x
        return self.norm(self.conv(x))


class CallsInside(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = self.norm(self.conv(x))
        return x


class Catches(Unit):
    def forward(self, x: Tensor) -> Tensor:
        try:
            size = int(x.shape[-1])
            size = 10 // (size - 7)
        except ZeroDivisionError:
            size = 1
        return self.norm(self.conv(x)) + size


class UnderAContext(Unit):
    def forward(self, x: Tensor) -> Tensor:
        with contextlib.suppress(ZeroDivisionError):
            x = x + 1 // (int(x.shape[-1]) - 7)
        return self.norm(self.conv(x))


class ChangesAList(Unit):
    def forward(self, x: Tensor) -> Any:
        seen = [1]
        if x.shape[0] > 1:
            seen.append(int(x.shape[1]))
        return self.norm(self.conv(x)), seen


class AssignsAnAttribute(Unit):
    def forward(self, x: Tensor) -> Tensor:
        self.channels = int(x.shape[1])
        return self.norm(self.conv(x))


class LeavesEarly(Unit):
    def forward(self, x: Tensor) -> Tensor:
        for size in (7, 8):
            if x.shape[-1] == size:
                return x
        return self.norm(self.conv(x))


class ReadsAChangingAttribute(Unit):
    def forward(self, x: Tensor) -> Tensor:
        pad = len(self.names) + int(x.shape[-1])
        return self.norm(self.conv(x)) + pad


class AsksForAModule(Unit):
    def forward(self, x: Tensor) -> Tensor:
        stride = int(x.shape[0]) if isinstance(self.conv, nn.Conv2d) else 0
        return self.norm(self.conv(x)) + stride


class PassesAModuleOn(Unit):
    def forward(self, x: Tensor) -> Tensor:
        strides = sum(map(sum, map(own_stride, [self.conv]))) + int(x.shape[0])
        return self.norm(self.conv(x)) + strides


class ReadsWhatIsNotThere(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            x = x * len(str(self.settings.__doc__))
        return self.norm(self.conv(x))


class ReadsAWeightByAMethod(Unit):
    def weight(self) -> Tensor:
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        shift = float(self.weight().sum()) if x.shape[0] > 1 else 0.0
        return self.norm(self.conv(x)) + shift


class ChangesWhatItHolds(Unit):
    def count(self) -> int:
        self.names.append("one more")
        return len(self.names)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.count() * 0 + int(x.shape[0])
        return self.norm(self.conv(x)) + shift


class AsksForItsMode(Unit):
    def forward(self, x: Tensor) -> Tensor:
        shift = int(x.shape[0]) * int(self.training)
        return self.norm(self.conv(x)) + shift


class HidesItself(Unit):
    def forward(self, x: Tensor) -> Tensor:
        shift = sum(self for self in range(self.channels)) + int(x.shape[0])
        return self.norm(self.conv(x)) + shift


WHOLE = (
    *(AsksForItsMode, HidesItself),
    *(ReadsWhatIsNotThere, ReadsAWeightByAMethod, ChangesWhatItHolds),
    *(ReadsAWeight, CallsInside, Catches, UnderAContext, ChangesAList, AssignsAnAttribute, LeavesEarly),
    *(ReadsAChangingAttribute, AsksForAModule, PassesAModuleOn),
)


@pytest.mark.parametrize("build", WHOLE)
def test_a_statement_that_does_more_is_left_where_it_is(build: Callable[[], nn.Module]) -> None:
    fused = check(made(lambda: nn.Sequential(build(), nn.Identity())), *SIZES) if build is not ChangesAList else None
    assert fused is None or not any(isinstance(part, KeptStatement) for part in fused.modules())
    for call in SIZES:
        assert_same_call(model := made(build), fuse(model), call)


def test_a_written_tensor_that_a_statement_may_have_kept() -> None:
    class Writes(Unit):
        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            z = y if x.shape[0] > 1 else y[:, :2]
            y += 1.0
            return self.norm(y), z

    check(made(Writes), *SIZES)


# -- what stays Python returns anything --------------------------------------------------------------------------------


class Record:
    def __init__(self, image: Tensor, size: int) -> None:
        self.image, self.count = image, size


class Opaque(nn.Module):
    """Its result has attributes, and numbers among them."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        for _ in range(int(x.shape[0])):
            return self.function(x)


class ReadsTheResult(Unit):
    def __init__(self) -> None:
        super().__init__()
        self.part = Opaque(lambda x: Record(x, int(x.shape[-1])))

    def forward(self, x: Tensor) -> Any:
        result = self.part(x)
        return self.norm(self.conv(result.image)), result.count * 2 * 0.5


class AsksTheResult(ReadsTheResult):
    def forward(self, x: Tensor) -> Any:
        result = self.part(x)
        return self.norm(self.conv(result.image if hasattr(result, "image") else result))


class TriesTheResult(ReadsTheResult):
    def __init__(self) -> None:
        super().__init__()
        self.part = Opaque(torch.relu)

    def forward(self, x: Tensor) -> Any:
        result = self.part(x)
        try:
            result = result.image
        except AttributeError:
            result = result + 1.0
        return self.norm(self.conv(result))


class NumberOfAPart(Unit):
    def __init__(self) -> None:
        super().__init__()
        self.part = Opaque(lambda x: int(x.shape[-1]))

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)), self.part(x) * 2 * 0.5


class UsesASize(nn.Module):
    """Cannot be traced, once it has used what it is given."""

    def forward(self, x: Tensor, shape: Any) -> Tensor:
        y = x.expand(shape)
        for _ in range(int(x.shape[0])):
            return y * 2.0
        return y


class HandsASizeOn(Unit):
    def __init__(self) -> None:
        super().__init__()
        self.part = UsesASize()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.part(x, x.shape)))


def test_a_question_that_a_failed_part_recorded_is_recorded_again() -> None:
    fused = check(made(HandsASizeOn), *SIZES)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())


def test_attributes_of_what_stays_python_are_read_at_run_time() -> None:
    fused = check(made(ReadsTheResult), *SIZES)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())


@pytest.mark.parametrize("build", [AsksTheResult, TriesTheResult, NumberOfAPart])
def test_nobody_guesses_what_a_part_that_stays_python_returns(build: Callable[[], nn.Module]) -> None:
    check(made(build), *SIZES)


def test_a_tensor_of_the_models_own_making_is_written_to() -> None:
    class Fills(Unit):
        def forward(self, x: Tensor) -> Any:
            sizes = torch.empty((2, 2), device=x.device, dtype=torch.long)
            sizes[0, 0], sizes[0, 1] = x.shape[-1], x.shape[-2]
            sizes[1] = 7
            return self.norm(self.conv(x)), sizes

    fused = check(made(Fills), *SIZES)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())


# -- what a statement reads and assigns --------------------------------------------------------------------------------


class Many:
    def forward(self, x: Any, flag: bool = True) -> Any:
        a = int(x)
        b: int = a
        b += 1
        if flag:
            c = a
        elif x:
            c = b
        else:
            raise ValueError(x)
        for i in range(a):
            b = b + i
        while b > 3:
            d = b
            b = d - 1
        e, (f, *g) = a, (b, c)
        e = 1; f = 2  # noqa: E702  # fmt: skip
        h = [k * 2 for k in g]
        x[0] = e
        return x, h, f


READS: dict[str, tuple[tuple[str, ...], tuple[str, ...]] | None] = {
    "a = int(x)": (("x",), ("a",)),
    "b: int = a": (("a",), ("b",)),
    "b += 1": (("b",), ("b",)),
    "if flag:": (("a", "b", "flag", "x"), ("c",)),
    "elif x:": (("b", "x"), ("c",)),
    "for i in range(a):": (("a", "b"), ("b",)),
    "while b > 3:": (("b",), ("b",)),
    "e, (f, *g) = a, (b, c)": (("a", "b", "c"), ("e", "f", "g")),
    "e = 1; f = 2": None,
    "h = [k * 2 for k in g]": None,
    "x[0] = e": None,
    "return x, h, f": (("f", "h", "x"), ("return",)),
}


@pytest.mark.parametrize("text", READS)
def test_names_of_a_statement(text: str) -> None:
    found = statement_at(Many.forward, _line(text))
    assert (None if found is None else (found.reads, found.writes)) == READS[text]


def test_a_statement_as_a_function() -> None:
    found = statement_at(Many.forward, _line("if flag:"))
    assert isinstance(found, Statement)
    run = KeptStatement(found, ("a", "b", "x"), {"flag": False})
    assert run(1, 2, 3) == (2,)
    with pytest.raises(ValueError, match="0"):
        run(1, 2, 0)


def _line(text: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = lines.index("class Many:")
    return next(number for number, line in enumerate(lines[start:], start + 1) if line.strip().startswith(text))


def test_only_a_forward_whose_source_is_what_runs() -> None:
    model = ChecksItsInput()
    assert plain_forward(model.forward) is ChecksItsInput.forward
    assert plain_forward(F.relu) is None
    assert plain_forward(torch.relu) is None

    wrapped: Any = functools.partial(ChecksItsInput.forward, model)
    assert plain_forward(wrapped) is None
    constants = tuple(2 if value == 1 else value for value in ChecksItsInput.forward.__code__.co_consts)
    changed = ChecksItsInput.forward.__code__.replace(co_consts=constants)
    assert plain_forward(MethodType(FunctionType(changed, globals()), model)) is None


def test_run_by_counts_a_statement_as_one() -> None:
    assert len(run_by(fuse(made(ChecksItsInput)))) == 3


class Flat(Net):
    """Of which the last statement stays Python, and asks how its operand lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, x)
        result = y.view(len(y), -1)
        return result


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, -x, x], 1)


# what is computed lies in memory in order, whatever it is computed from
IN_ORDER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "the mean of a stack": lambda m, x: stacked((x * m.gamma).transpose(2, 3)).mean(1),
    "the sum of a stack": lambda m, x: torch.relu(stacked((x * m.gamma).transpose(2, 3)).sum(1) * 2.0),
    "a linear of tokens": lambda m, x: m.tail(m.point(x).flatten(2).transpose(1, 2)),
    "an activation behind a linear": lambda m, x: torch.relu(m.tail(m.point(x).flatten(2).transpose(1, 2))),
    "joined again": lambda m, x: torch.cat((x * m.gamma).transpose(2, 3).chunk(2, 1), 1) * 2.0 * m.gamma,
    "a norm of a permuted image": lambda m, x: m.norm(m.norm(x.transpose(2, 3))),
    "a copy in order": lambda m, x: (x * m.gamma).transpose(2, 3).contiguous() / m.gamma,
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_statement_that_asks_for_strides(name: str) -> None:
    parts = {"gamma": gain(4, 1, 1), "point": conv(size=1), "tail": nn.Linear(4, 5), "norm": norm()}
    check(made(lambda: Flat(IN_ORDER[name], **parts)), *images())
