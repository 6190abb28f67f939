"""What is promised of every program: equal, untouched, never dearer, nothing left to find, whatever it was made of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import repcompile
from repcompile import Compilation, RepcompileError, compile_model
from repcompile.cost import POSITIONS
from repcompile.facts import UNPREPARED
from tests.claims import untrue
from tests.fuzz.build import build, inputs_of
from tests.fuzz.generate import REFUSALS
from tests.fuzz.program import Program
from tests.fuzz.rounding import Expected, expected_of
from tests.sweep.fingerprint import differences, fingerprint
from tests.sweep.price import counts_of
from tests.sweep.result import Counts

SHARES = (
    "informed",
    "informed",
    "informed",
    "again",
    "again, informed",
    "twice",
    "graph module",
    "integers",
)  # take turns
EXPORTED, SELDOM = "exported", 400  # one program in so many is exported, which takes seconds
EVERYTHING = frozenset(SHARES)
UNTRACEABLE = (TraceError, TypeError, RuntimeError, ValueError, AttributeError, IndexError, KeyError)
INTEGERS = (torch.uint8, torch.int32, torch.int64)
CENTS = 1.000001  # rounding of a sum of prices
GUESSED = 1.05  # the same where the planner has to assume sizes (docs/decisions/0029)
GROWN = 2.0  # and where images are larger than it assumes, or a convolution or a padding makes small ones much larger


@dataclass(frozen=True, slots=True)
class Outcome:
    """failure: what is wrong, "kind: details"; "" if nothing is.  fused: regions.  rollbacks: their reasons.

    skipped: what the model itself says if it does not run.
    """

    failure: str = ""
    fused: int = 0
    rollbacks: tuple[str, ...] = ()
    skipped: str = ""


class Failure(Exception):
    """A promise that was broken."""


def check(program: Program, shares: Set[str] | None = None) -> Outcome:
    """Fuse the program's model in several ways and compare.

    shares: what is checked of it beside `fuse` without inputs; by turns unless given.
    """
    torch.manual_seed(program.seed)
    turn = SHARES[program.seed % len(SHARES)] if program.seed % SELDOM else EXPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            checking = _Checking(program)
        except REFUSALS as error:
            return Outcome(skipped=f"{type(error).__name__}: {error}")
        return checking.run({turn} if shares is None else shares)


class _Checking:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = build(program)
        self.calls = [inputs_of(program, call) for call in (0, 1)]
        self.expected: Expected = expected_of(program, self.model, self.calls)
        self.rollbacks: list[str] = []
        self.fused = 0

    def run(self, shares: Set[str]) -> Outcome:
        try:
            self._plain(shares)
        except Failure as failure:
            return Outcome(str(failure), self.fused, tuple(self.rollbacks))
        return Outcome("", self.fused, tuple(self.rollbacks))

    def _plain(self, shares: Set[str]) -> None:
        before = fingerprint(self.model)
        batched = self.program.batched
        plain = self._compiled("plain", self.model, None)
        self.fused = len(plain.rewritten)
        touched = differences(before, fingerprint(self.model))
        if touched:
            raise Failure(f"touched: {', '.join(touched[:3])}")
        if batched:
            self._true("plain", plain)
            self._same("plain", plain.module)
            self._no_dearer("plain", plain.module)
        if shares & {"informed", "again, informed"}:
            self._informed(before, "again, informed" in shares)
        if "again" in shares and batched:
            self._finished("plain", plain.module, None)
        if "integers" in shares:
            self._on_integers(plain.module)
        if "twice" in shares:
            self._alike(plain.module, self._compiled("twice", self.model, None).module)
        if "graph module" in shares and batched and not self.program.optional:
            self._traced()
        if EXPORTED in shares and batched:
            self._exported()

    def _informed(self, before: dict[str, Any], again: bool) -> None:
        informed = self._compiled("informed", self.model, self._inputs)
        touched = differences(before, fingerprint(self.model))
        if touched:
            raise Failure(f"touched: {', '.join(touched[:3])}")
        self._true("informed", informed)
        self._same("informed", informed.module)
        self._no_dearer("informed", informed.module)
        if again:
            self._finished("informed", informed.module, self._inputs)

    def _compiled(self, how: str, model: nn.Module, inputs: Any) -> Compilation:
        """The compilation; any exception is a failure, because the model runs."""
        try:
            result = compile_model(model, inputs)
        except RepcompileError as error:
            raise Failure(f"refused {how}: {type(error).__name__}: {error}") from error
        except Exception as error:  # whatever it is, nobody may see it
            raise Failure(f"raised {how}: {type(error).__name__}: {error}") from error
        self.rollbacks += [item.reason for item in result.rollbacks]
        for item in result.report.left:
            if item.reason.startswith(UNPREPARED):
                raise Failure(f"unprepared {how}: {item.reason}")
        wrong = [item.reason for item in result.rollbacks if item.reason.startswith("differs by")]
        if wrong:
            raise Failure(f"rolled back {how}: {wrong[0]}")
        return result

    def _true(self, how: str, result: Compilation) -> None:
        """Whether what the compiler knew of shapes is so, at both sizes."""
        for inputs in self.calls if isinstance(result.module, fx.GraphModule) else ():
            try:
                wrong = next(untrue(result.captured, result.facts, tuple(map(torch.clone, inputs))), None)
            except RuntimeError:  # a view that needs other strides than sums in another order make
                return
            if wrong is not None:
                raise Failure(f"untrue {how}: {wrong}")

    def _same(
        self,
        how: str,
        module: nn.Module,
        writes: bool = True,
        expected: Expected | None = None,
        calls: Sequence[tuple[Tensor, ...]] | None = None,
    ) -> None:
        """writes: whether what becomes of the inputs is compared too.  expected, calls: others than the program's."""
        expected = expected or self.expected
        for call, inputs in enumerate(calls or self.calls):
            given = tuple(map(torch.clone, inputs))
            try:
                with torch.no_grad():
                    got = module(*given)
            except Exception as error:
                raise Failure(f"does not run {how}: {type(error).__name__}: {error}") from error
            difference = expected.difference(call, got, given if writes else None)
            if difference:
                raise Failure(f"differs {how}: call {call}: {difference}")

    def _on_integers(self, module: nn.Module) -> None:
        """What has seen no inputs may be given integers, wherever the model takes them."""
        dtype = INTEGERS[self.program.seed % len(INTEGERS)]
        calls = [tuple((4 * x.double()).round().to(dtype) for x in inputs) for inputs in self.calls]
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.program.dtype))  # what a quotient of integers has
        try:
            expected = expected_of(self.program, self.model, calls)
        except REFUSALS:
            return
        else:
            self._same(f"on {dtype}", module, expected=expected, calls=calls)
        finally:
            torch.set_default_dtype(before)

    def _no_dearer(self, how: str, module: nn.Module) -> None:
        if self.program.optional:
            return
        before, after = self.before, counts_of(module, self._inputs, warm=True)  # `_same` has run it
        if after.operators > before.operators:
            raise Failure(f"more operators {how}: {before.operators} became {after.operators}")
        if after.price <= before.price * CENTS:
            return
        model, fused = self._watched(copy.deepcopy(self.model)), self._watched(module)
        if fused.by_strides > model.by_strides:  # what only passed on, and is gone, may have made a slice contiguous
            return
        unlike = model.positions > POSITIONS or any(map(_grows, module.modules()))
        if how != "plain" or after.price > before.price * (GROWN if unlike else GUESSED):
            raise Failure(f"dearer {how}: {after.price / before.price - 1:.2%}")

    def _watched(self, module: nn.Module) -> _Watch:
        with _Watch() as watch, _Linears() as linears, torch.no_grad():
            module(*self._inputs)
        watch.by_strides += linears.split
        return watch

    @cached_property
    def before(self) -> Counts:
        """Of the model as it is."""
        return counts_of(copy.deepcopy(self.model), self._inputs)

    @property
    def _inputs(self) -> tuple[Tensor, ...]:
        """Of the first call, for whoever may write to them."""
        return tuple(map(torch.clone, self.calls[0]))

    def _finished(self, how: str, module: nn.Module, inputs: Any) -> None:
        second = self._compiled(f"again {how}", module, inputs)
        if second.rewritten:
            found = second.report.fused[0]
            raise Failure(f"not finished {how}: {found.idiom} at {found.path} is left: {', '.join(found.branches)}")
        self._same(f"again {how}", second.module)

    def _alike(self, first: nn.Module, second: nn.Module) -> None:
        if isinstance(first, fx.GraphModule) and first.code != getattr(second, "code", ""):
            raise Failure("not deterministic: other code")
        states = (first.state_dict(), second.state_dict())
        if list(states[0]) != list(states[1]) or not all(map(_bitwise, states[0].values(), states[1].values())):
            raise Failure("not deterministic: other weights")

    def _traced(self) -> None:
        """torch.fx's own graph of the model, where it makes a true one; `x += y` writes to no input there."""
        try:
            graph = fx.symbolic_trace(copy.deepcopy(self.model))
            with torch.no_grad():
                results = [graph(*map(torch.clone, inputs)) for inputs in self.calls]
            if any(self.expected.difference(call, got, None) for call, got in enumerate(results)):
                return
        except UNTRACEABLE:
            return
        self._same("graph module", self._compiled("graph module", graph, None).module, writes=False)

    def _exported(self) -> None:
        try:
            program = torch.export.export(copy.deepcopy(self.model), self._inputs)
            with torch.no_grad():
                got = program.module()(*self._inputs)
            if self.expected.difference(0, got, None):
                return
        except Exception:  # noqa: BLE001 - torch.export's own, of many classes
            return
        try:
            with torch.no_grad():
                got = repcompile.fuse(program).module()(*self._inputs)
        except Exception as error:
            raise Failure(f"raised exported: {type(error).__name__}: {error}") from error
        difference = self.expected.difference(0, got, None)
        if difference:
            raise Failure(f"differs exported: {difference}")


class _Watch(TorchDispatchMode):
    """by_strides: kernels that torch adds by itself: copies.  positions: of the largest image, batch included."""

    def __init__(self) -> None:
        super().__init__()
        self.by_strides = self.positions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.by_strides += func is torch.ops.aten.clone.default
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() > 2:
            self.positions = max(self.positions, result.numel() // max(result.shape[1], 1))
        return result


class _Linears(TorchFunctionMode):
    """split: how many calls of `linear` torch runs as a product and a sum, since a batch of rows is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.split = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, bias = args[0], kwargs.get("bias", args[2] if len(args) > 2 else None)
            self.split += bias is not None and x.dim() > 2 and not x.is_contiguous()
        return func(*args, **kwargs)


def _grows(module: nn.Module) -> bool:
    """Whether it is a padding, or a convolution of a stride of 1 that returns more positions than it gets."""
    if isinstance(module, nn.modules.padding._ConstantPadNd):
        return True
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or isinstance(module.padding, str):
        return False
    sizes = zip(module.kernel_size, module.dilation, module.padding, strict=True)
    return any(2 * padding > dilation * (size - 1) for size, dilation, padding in sizes)


def _bitwise(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
