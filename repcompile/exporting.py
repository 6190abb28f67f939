"""The second front end: a module as a program that torch.export makes of one of its calls.

Given: a module in eval mode, and calls of it.  Result: a `Captured` graph of its tensors, and the conditions under
which it answers a call. torch.export follows one run and freezes what it was not told to keep; what it froze and does
not tell is refused here: text about dtypes and devices that would not follow, memory, attributes that are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from repcompile.calls import Call, Calls, run_call
from repcompile.capture import Captured
from repcompile.classes import hooked
from repcompile.conditions import (
    Conditions,
    Leaf,
    condition,
    in_words,
    kinds_of,
    ones_in,
    signature_of,
    sizes_of,
    weights_of,
)
from repcompile.copies import duplicate
from repcompile.errors import Untraceable
from repcompile.memory import ANOTHER, contents
from repcompile.observed import Observed, as_at_any_run, undisturbed
from repcompile.programs import captured_program, freezes_kinds, guards_of
from repcompile.questions import asks_for_identity, asks_how_it_runs
from repcompile.reasons import reason_of
from repcompile.verify import same_results
from repcompile.wrappers import own_call

INSIDE = "model"  # name of the module inside `_Flat`
PLAIN = (int, float, str, type(None), torch.dtype, torch.device)
OUTPUTS = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
PROBED = 64  # sizes tried above twice the given one


@dataclass(frozen=True, slots=True)
class Exported:
    """captured: takes and returns tensors and integers only.  conditions: the calls that it answers, and how."""

    captured: Captured
    conditions: Conditions


def exported(module: nn.Module, calls: Calls) -> tuple[Exported, ...]:
    """Programs of `module`, in the order in which a call is offered to them; the first given call is answered.

    There are two where one is for a size of 1 and the other one for the rest.
    Raises Untraceable if there are none that tell the truth, or if a size that varies among the calls is frozen.
    """
    _require_plain(module)
    programs, reasons = list[Exported](), list[str]()
    for example in _examples(calls.given[0], calls):
        try:
            programs.insert(0, _exported(module, example, calls))
            _require_answers([program.conditions for program in programs], calls)
        except Untraceable as reason:
            reasons.append(str(reason))
        else:
            _require_same_again(module, calls.given[0])
            return tuple(programs)
    raise Untraceable(reasons[0])


def _require_same_again(module: nn.Module, call: Call) -> None:
    try:
        same = same_results(run_call(module, call), run_call(module, call, 2), module)
    except Exception as error:  # the user's forward, which need not run a second time
        raise Untraceable(reason_of(error)) from error
    if not same:
        raise Untraceable(f"its forward {ANOTHER}")


def _require_plain(module: nn.Module) -> None:
    parts = list(module.modules())
    if any(hooked(part) for part in parts):
        raise Untraceable("it has hooks, which would see no call")
    if any(own_call(part) for part in parts):
        raise Untraceable("a module has a __call__ of its own")
    if any(part.training for part in parts):
        raise Untraceable("a module in it is in training mode")
    if any(map(asks_how_it_runs, parts)):
        raise Untraceable("it asks whether autocast is enabled, or for the default dtype")
    if any(map(asks_for_identity, parts)):
        raise Untraceable("it asks whether two values are one object")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise Untraceable("autocast is enabled")


def _examples(given: Call, calls: Calls) -> list[Call]:
    """What to follow: a call with several examples if there is one, since torch.export takes a size of 1 for a rule."""
    shapes = [tensor.shape[1:] for tensor in given.tensors]
    alike = (call for call in calls.others or () if [tensor.shape[1:] for tensor in call.tensors] == shapes)
    larger = [call for call in alike if not _single(call)]
    return [*larger[:1], given] if _single(given) else [given]


def _single(call: Call) -> bool:
    return any(tensor.shape[:1] == (1,) for tensor in call.tensors)


def _exported(module: nn.Module, example: Call, calls: Calls) -> Exported:
    flat, inputs = _flattened(module, example, calls)
    asked = Observed()
    dynamic = tuple(dict.fromkeys(range(value.dim()), Dim.AUTO) for value in inputs)
    try:
        with undisturbed(), asked:
            program = torch.export.export(flat, tuple(inputs), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # torch.export's own, of many classes, or the user's forward
        raise Untraceable(reason_of(error)) from error
    if flat.results.changed:
        raise Untraceable("its forward changes attributes of the module")
    if asked.memory:
        raise Untraceable(f"its forward asks for {', '.join(sorted(asked.memory))} of a tensor")
    captured = captured_program(program, module, INSIDE, flat.ranks)
    conditions = _conditions(flat, program, asked, module, inputs)
    answered = filter(conditions.allows, _sizes([conditions], calls.all))
    return Exported(captured, replace(conditions, ones=frozenset(map(ones_in, answered))))


class _Results:
    """What a call left: an object that torch.export passes by, while it puts containers and attributes back.

    leaves, structure: how the result was flattened.  changed: whether attributes were written to.
    """

    leaves: tuple[Leaf, ...] = ()
    structure: Any = None
    changed = False


class _Flat(nn.Module):
    """`model`, called with tensors alone: an integer that varies is the size of an empty one."""

    def __init__(self, model: nn.Module, spec: Any, leaves: Sequence[Leaf]) -> None:
        super().__init__()
        self.model, self.spec, self.leaves = model, spec, leaves
        self.results = _Results()
        self.training = False

    @property
    def ranks(self) -> list[int | None]:
        """The number of axes of each input, None of an integer."""
        known = {leaf.number: leaf.rank for leaf in self.leaves if leaf.number is not None}
        return [known[number] for number in sorted(known)]

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        def value(leaf: Leaf) -> Any:
            if leaf.number is None:
                return leaf.fixed
            return tensors[leaf.number].shape[0] if leaf.rank is None else tensors[leaf.number]

        args, kwargs = pytree.tree_unflatten([value(leaf) for leaf in self.leaves], self.spec)
        before = contents(self.model)
        with as_at_any_run():
            results, structure = pytree.tree_flatten(self.model(*args, **kwargs))
        self.results.changed |= contents(self.model) != before
        returned = [result for result in results if isinstance(result, OUTPUTS)]
        number = iter(range(len(returned)))
        leaves = tuple(Leaf(next(number)) if isinstance(r, OUTPUTS) else Leaf(fixed=_plain(r)) for r in results)
        self.results.leaves, self.results.structure = leaves, structure
        return tuple(returned)


def _plain(value: Any) -> Any:
    if not isinstance(value, PLAIN):
        raise Untraceable(f"takes or returns a {type(value).__name__}")
    return value


def _flattened(module: nn.Module, example: Call, calls: Calls) -> tuple[_Flat, list[Tensor]]:
    """(the module with a flat signature, the tensors of a call)"""
    signature = signature_of(module.forward)
    arranged = [signature.arranged(call.args, call.kwargs) for call in (example.copied(), *calls.all)]
    (values, spec), *others = [pytree.tree_flatten(each) for each in arranged if each is not None]
    alike = [leaves for leaves, other in others if other == spec]
    inputs: list[Tensor] = []
    numbers: dict[int, int] = {}
    leaves: list[Leaf] = []
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            number = numbers.setdefault(id(value), len(inputs))
            inputs += [value] if number == len(inputs) else []
            leaves.append(Leaf(number, value.dim()))
        elif type(value) is int and value > 1 and any(each[place] != value for each in alike):
            leaves.append(Leaf(len(inputs)))
            inputs.append(torch.empty(value))
        else:
            leaves.append(Leaf(fixed=_plain(value)))
    return _Flat(duplicate(module), spec, leaves), inputs


def _conditions(
    flat: _Flat, program: ExportedProgram, asked: Observed, module: nn.Module, inputs: Sequence[Tensor]
) -> Conditions:
    values = [None if rank is None else value for rank, value in zip(flat.ranks, inputs, strict=True)]
    frozen = asked.kinds or freezes_kinds(program)
    return Conditions(
        signature_of(module.forward),
        flat.spec,
        tuple(flat.leaves),
        guards_of(program),
        frozenset(),
        kinds_of(values) if frozen else None,
        weights_of(module),
        flat.results.leaves,
        flat.results.structure,
    )


def _require_answers(programs: Sequence[Conditions], calls: Calls) -> None:
    """Raises Untraceable if the first given call is not answered, or if a size that varies is frozen."""
    known = _sizes(programs, calls.all)
    if not known or not _sizes(programs, calls.given[:1]):
        raise Untraceable("it does not answer the call that was followed")
    if not all(map(all, known[0])):
        raise Untraceable("a size in the call that was followed is 0")
    if not _allowed(programs, known[0]):
        guard = next(guard for guard in programs[-1].guards if not condition(guard)(known[0]))
        raise Untraceable(f"it takes for granted that {in_words(guard)}")
    for number, axis in sorted(_varying(known)):
        if not any(_moves(each, known, number, axis) for each in programs):
            raise Untraceable(f"it freezes axis {axis} of input {number} at {known[0][number][axis]}")


def _allowed(programs: Iterable[Conditions], sizes: Sequence[Sequence[int]]) -> bool:
    return any(conditions.allows(sizes) for conditions in programs)


def _sizes(programs: Sequence[Conditions], calls: Iterable[Call]) -> list[list[tuple[int, ...]]]:
    """The sizes of the inputs in those of the calls that have the structure of the programs."""
    inputs = (programs[0].inputs(call.args, call.kwargs) for call in calls)
    return [sizes_of(found) for found in inputs if found is not None]


def _varying(sizes: Sequence[Sequence[Sequence[int]]]) -> set[tuple[int, int]]:
    """(input, axis) of the sizes that are not the same in all calls."""
    first = sizes[0]
    places = ((number, axis) for number, shape in enumerate(first) for axis in range(len(shape)))
    return {(i, axis) for i, axis in places if any(other[i][axis] != first[i][axis] for other in sizes)}


def _moves(program: Conditions, known: Sequence[Sequence[Sequence[int]]], number: int, axis: int) -> bool:
    """Whether the program answers calls with several sizes there: known ones, or made up from the first."""
    if len({sizes[number][axis] for sizes in filter(program.allows, known)}) > 1:
        return True
    sizes, size = known[0], known[0][number][axis]
    alone, together = list[list[list[int]]](), list[list[list[int]]]()
    for other in range(1, 2 * size + PROBED):
        alone.append([list(shape) for shape in sizes])
        alone[-1][number][axis] = other
        together.append([[other if each == size else each for each in shape] for shape in sizes])
    return any(sum(map(program.allows, probes)) > 1 for probes in (alone, together))
