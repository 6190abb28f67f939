"""From a model to its fused form, with every intermediate value kept: the rounds that it takes, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from torch import fx, nn

from repcompile.calls import Call, Calls, positional, run_call
from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.classes import hooked, move_hooks
from repcompile.compare import Check
from repcompile.copies import duplicate
from repcompile.cost import CostModel, total
from repcompile.defaults import specialized, standing_in
from repcompile.errors import ModelError, Untraceable, VerificationError
from repcompile.execute import execute
from repcompile.exporting import Exported, exported
from repcompile.facts import Facts, affine_facts
from repcompile.names import places_of
from repcompile.opaque import exchangeable_children
from repcompile.plan import Plan, choose
from repcompile.regions import Region, candidate_regions
from repcompile.regroup import regrouped
from repcompile.report import Left, Report, joined, report_on
from repcompile.rewrite import Emission, Rewritten, Rollback, rewrite
from repcompile.rewrites import Rewrites, rewritten_by
from repcompile.rules import RuleSet
from repcompile.selection import NOTHING, SKIPPED, Selection
from repcompile.statements import KeptStatement
from repcompile.trial import Trial
from repcompile.verify import compare_run, same_results

Inputs = Sequence[Any]
Shapes = Mapping[fx.Node, tuple[int, ...]]
ROUNDS = 8
REGROUPINGS = 3  # a norm behind a sum inside a sum takes two


@dataclass(frozen=True, slots=True)
class Compilation:
    """What each stage made.

    module: the fused model.  checks: of the whole model, in float64 and in its own dtype, if example inputs were given.
    inner: compilations of modules inside those that stay Python, or of such modules themselves, by path.
    later: the next round, if there was more to fuse in what this one made.
    regrouped: whether sums stand in another order than in the model, or norms elsewhere.
    exported: why torch.export captured it, and not torch.fx; "" if torch.fx did.
    called: whether the module of an inner one is called in the calls that are known.
    """

    captured: Captured
    facts: Facts
    plan: Plan
    module: nn.Module
    rewritten: tuple[Rewritten, ...]
    rollbacks: tuple[Rollback, ...]
    rewrites: Rewrites
    rules: RuleSet
    checks: tuple[Check, Check] | None = None
    inner: Mapping[str, Compilation] = field(default_factory=dict[str, "Compilation"])
    later: Compilation | None = None
    regrouped: bool = False
    exported: str = ""
    called: bool = True

    @property
    def report(self) -> Report:
        """What was fused, what was not, and why not."""
        stages = (self.captured, self.facts, self.plan, self.rewritten, self.rollbacks, self.rewrites)
        report = report_on(*stages, self.rules.idioms, self.checks, self.inner)
        for path, part in self.inner.items():
            report = joined(report, part.report.under(path))
        if self.later is not None:  # what is left then is told as it was first: in operators of the user's
            later, told = self.later.report, {left.path: left for left in report.left}
            later = replace(later, left=tuple(told.get(left.path, left) for left in later.left))
            report = joined(replace(report, left=()), later)
        return replace(report, notes=(Left("", self.exported), *report.notes)) if self.exported else report

    @property
    def worked(self) -> bool:
        """Whether this round, or a later one, has fused anything."""
        return bool(self.rewritten) or (self.later is not None and self.later.worked)

    @property
    def saved(self) -> int:
        """How many operators fewer run in the calls that are known, of those that start kernels."""
        own = sum(total(item.region.before).launches - 1 for item in self.rewritten)
        later = self.later.saved if self.later is not None else 0
        return own + later + sum(part.saved for part in self.inner.values() if part.called)


@dataclass(frozen=True, slots=True)
class Settings:
    """rules, cost, selection: of the user.
    rounds: how many may follow the first.
    barren: what torch.export was tried on in vain, as class and text, and the reason: what is built alike ends alike.
    """

    rules: RuleSet
    cost: CostModel
    selection: Selection = NOTHING
    rounds: int = ROUNDS
    barren: dict[tuple[type, str], str] = field(default_factory=dict[tuple[type, str], str])

    def inside(self, path: str) -> Settings:
        """The same for the module at `path`."""
        return replace(self, selection=self.selection.inside(path))


def compiled(model: nn.Module, examples: Inputs | None, settings: Settings) -> Compilation:
    """Every stage, as often as it takes; the result may be called in every way in which `model` may.

    Raises ModelError if `model` is no module in eval mode, or cannot be copied.
    """
    calls = Calls() if examples is None else Calls((Call(tuple(examples)),))
    return _rounds(model, examples, calls, settings)


def _rounds(model: nn.Module, examples: Inputs | None, calls: Calls, settings: Settings) -> Compilation:
    if "" in settings.selection.whole:
        return _around(model, SKIPPED, calls, settings)
    try:
        first = _traced(model, examples, calls, settings)
    except Untraceable as reason:
        return _around(model, str(reason), calls, settings)
    first = _with_later(first, _inputs_of(first, examples), settings)
    return replace(first, module=_callable_as(model, first))


def _with_later(first: Compilation, inputs: Inputs | None, settings: Settings) -> Compilation:
    """The rounds that follow: what one made is compiled again, as long as there is more to fuse in it."""
    if not settings.rounds or not (first.rewritten or first.regrouped):
        return first
    renamed = replace(
        settings,
        rules=settings.rules - settings.rules.rewrites,
        selection=settings.selection.renamed(places_of(first.captured)),
        rounds=settings.rounds - 1,
    )
    if not _promises_more(first.module, inputs, renamed):
        return first
    later = _rounds(first.module, inputs, Calls(), renamed)
    return replace(first, module=later.module, later=later) if later.worked else first


def _promises_more(module: nn.Module, inputs: Inputs | None, settings: Settings) -> bool:
    """Whether one more round would choose any region, or order a sum anew: no weight is read to see it."""
    try:
        captured = canonicalize(capture(module, settings.rules.module_classes, inputs, settings.selection, made=True))
        known = {} if inputs is None or hooked(module) else execute(captured, inputs)[1]
    except Exception:  # noqa: BLE001 - what this round made does not run: whoever compares it says so
        return False
    captured, facts, known, ordered = _understood(captured, settings.rules, known, inputs)
    return ordered or bool(choose(candidate_regions(captured, facts, known), settings.cost).chosen)


def _inputs_of(result: Compilation, examples: Inputs | None) -> Inputs | None:
    """What the graph of `result` gets in the call that the examples are."""
    arguments = result.captured.arguments
    return examples if examples is None or arguments is None else arguments.values(examples, {})


def _callable_as(model: nn.Module, result: Compilation) -> nn.Module:
    """The fused model, for every way in which the model may be called."""
    arguments = result.captured.arguments
    if not isinstance(result.module, fx.GraphModule) or arguments is None:
        return result.module
    names = tuple(str(node.target) for node in result.module.graph.find_nodes(op="placeholder"))
    module = specialized(result.module, model, arguments, names == arguments.inputs)
    if hooked(model):
        move_hooks(model, module)
    return module


def _traced(model: nn.Module, examples: Inputs | None, calls: Calls, settings: Settings) -> Compilation:
    captured = canonicalize(capture(model, settings.rules.module_classes, examples, settings.selection))
    known = _measured(captured, model, examples)
    parts = {path: captured.modules[path] for path in captured.opaque}
    parts = {path: module for path, module in parts.items() if not isinstance(module, KeptStatement)}
    calls = calls.at_other_sizes(model) if parts else calls
    inner = _inside(model, parts, captured.opaque, calls, settings)
    statements = {path: reason for path, reason in captured.opaque.items() if path not in parts}
    captured = replace(captured, opaque={**inner.reasons, **statements})
    return _one_round(captured, known, settings, None if hooked(model) else examples, inner.parts)


def _one_round(
    captured: Captured,
    known: Shapes,
    settings: Settings,
    inputs: Inputs | None,
    inner: Mapping[str, Compilation] | None = None,
) -> Compilation:
    captured, known, rewrites = _rewritten(captured, settings.rules, known, inputs)
    captured, facts, known, regrouped = _understood(captured, settings.rules, known, inputs)  # legality: weights unread
    Trial(captured, facts, settings.rules).of_rules()
    regions = candidate_regions(captured, facts, known)
    inner = inner or {}
    parts = {path: part.module for path, part in inner.items()}
    plan, failed, tried = choose(regions, settings.cost), list[Rollback](), dict[Region, Emission]()  # profit
    rewriting = partial(rewrite, captured, facts, rules=settings.rules, inner=parts, known=tried)
    module, rewritten, rollbacks = rewriting(plan)  # values: folded once, in float64
    while rollbacks:  # what could not be accepted makes room for what it overlapped
        failed += rollbacks
        broken = {_identity(item.region) for item in failed}
        plan = choose([region for region in regions if _identity(region) not in broken], settings.cost)
        module, rewritten, rollbacks = rewriting(plan)
    stages = (captured, facts, plan, module, rewritten, tuple(failed), rewrites, settings.rules)
    return Compilation(*stages, inner=inner, regrouped=regrouped)


def _rewritten(
    captured: Captured, rules: RuleSet, known: Shapes, inputs: Inputs | None
) -> tuple[Captured, Shapes, Rewrites]:
    """(the graph behind the rewrite rules, the shapes of its values, what they did)"""
    if not rules.rewrites:
        return captured, known, Rewrites(captured)
    result = rewritten_by(rules.rewrites, captured, affine_facts(captured, rules, known))
    if result.done and inputs is not None:
        known = execute(result.captured, inputs)[1]
    return result.captured, known, result


def _identity(region: Region) -> tuple[fx.Node, fx.Node, int]:
    return region.source, region.sink, region.fact.at


def _understood(
    captured: Captured, rules: RuleSet, known: Shapes, inputs: Inputs | None
) -> tuple[Captured, Facts, Shapes, bool]:
    """(a graph whose sums stand in the order in which they merge, its facts, the shapes of its values, whether the sums
    stood otherwise before)
    """
    facts = affine_facts(captured, rules, known)
    for times in range(REGROUPINGS):
        better = regrouped(captured, facts)
        if better is None:
            return captured, facts, known, times > 0
        captured, known = better, known if inputs is None else execute(better, inputs)[1]
        facts = affine_facts(captured, rules, known)
    return captured, facts, known, True


def _measured(captured: Captured, model: nn.Module, inputs: Inputs | None) -> Shapes:
    """The shapes on the way of the example inputs; the captured graph must compute what the model does."""
    if inputs is None or hooked(model):  # a hook may change what its forward gets
        return {}
    output, shapes = execute(captured, inputs)
    check = compare_run(model, inputs, output)
    if not check.passed:
        raise VerificationError(
            f"the captured graph of {captured.name} differs from the model by {check.error:.2e} at {check.place}: "
            "tracing saw something else than what runs, so nothing is fused"
        )
    return shapes


# -- what torch.fx cannot trace ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Inside:
    """parts: what takes the place of modules that cannot be traced, or of modules inside them, by path.
    reasons: of the modules that stay Python.
    """

    parts: Mapping[str, Compilation]
    reasons: Mapping[str, str]


def _around(model: nn.Module, reason: str, calls: Calls, settings: Settings) -> Compilation:
    """A model whose own forward is not traced: what torch.export makes of it, or a copy with compiled children."""
    inner = _inside(model, {"": model}, {"": reason}, calls.at_other_sizes(model), settings)
    if "" in inner.parts:
        return inner.parts[""]
    graph, name = fx.Graph(), type(model).__name__
    captured = Captured(graph, {"": model}, {}, inner.reasons, name=name, selection=settings.selection)
    module = _exchanged(model, inner.parts)
    facts = affine_facts(captured, settings.rules)
    rewrites = Rewrites(captured)
    return Compilation(captured, facts, Plan(()), module, (), (), rewrites, settings.rules, inner=inner.parts)


def _exchanged(model: nn.Module, parts: Mapping[str, Compilation]) -> nn.Module:
    """A copy of the model with other children."""
    module = duplicate(model)
    for path, part in parts.items():
        module.set_submodule(path, part.module)
    return module


def _inside(
    model: nn.Module, modules: Mapping[str, nn.Module], reasons: Mapping[str, str], calls: Calls, settings: Settings
) -> _Inside:
    """For each of the modules, which `model` calls: what torch.export makes of it, or its children, as far outside as
    possible; whichever fuses more.

    reasons: why torch.fx does not capture them.
    """
    whole = settings.selection.whole
    children = {
        path: {}
        if path in whole
        else {name: child for name, child in exchangeable_children(module) if _below(path, name) not in whole}
        for path, module in modules.items()
    }
    places = [*filter(None, modules), *(_below(path, name) for path in modules for name in children[path])]
    known = {"": calls, **calls.inside(model, places)}
    parts, left = dict[str, Compilation](), dict[str, str]()
    for path, module in modules.items():
        below = {name: _below(path, name) for name in children[path]}
        within = {
            name: _child(child, known[below[name]], settings.inside(below[name]))
            for name, child in children[path].items()
        }
        fused = {name: part for name, part in within.items() if part is not None}
        program = _by_export(module, reasons[path], known[path], fused, settings.inside(path))
        if isinstance(program, Compilation):
            parts[path] = program
        else:
            parts.update({below[name]: part for name, part in fused.items()})
            left[path] = f"{reasons[path]}; torch.export: {program}" if program else reasons[path]
    return _Inside(parts, left)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _child(module: nn.Module, calls: Calls, settings: Settings) -> Compilation | None:
    """The compilation of a module that is only called, None if there is nothing to fuse, or if it is not equal."""
    called, calls = bool(calls.given), calls.running(module)
    examples = None if calls.first is None else positional(module.forward, calls.first)
    try:
        part = _rounds(module, examples, calls, settings)
    except (ModelError, VerificationError):  # in training mode, not to be copied, or captured falsely: as it is
        return None
    changed = part.report.fused or part.report.rewritten
    return replace(part, called=called) if changed and _agrees(module, part.module, calls.given) else None


def _by_export(
    module: nn.Module, reason: str, calls: Calls, children: Mapping[str, Compilation], settings: Settings
) -> Compilation | str:
    """What torch.export makes of a module, or why that is not used; "" if nothing shows how it is called,
    or nothing is left to fuse.

    children: the compilations that take its place otherwise, and in calls that the program does not answer.
    """
    calls, kind = calls.running(module), (type(module), repr(module))
    if not calls.given or settings.selection.kept:
        return ""
    if kind in settings.barren or not _promises(module, children):
        return settings.barren.get(kind, "")
    try:
        part = _of_program(module, calls, children, settings)
    except ModelError as error:
        settings.barren[kind] = str(error)
        return str(error)
    return replace(part, exported=f"captured by torch.export: {reason}")


def _of_program(
    module: nn.Module, calls: Calls, children: Mapping[str, Compilation], settings: Settings
) -> Compilation:
    """The compilation of a module's program.  Raises ModelError if there is none that is equal, and fuses more."""
    found = exported(module, calls)
    parts = [_one_program(each, calls, settings) for each in found]
    first = parts[0]
    if first.saved <= sum(child.saved for child in children.values() if child.called):
        raise ModelError("it fuses nothing more")
    result = _exchanged(module, children)
    for each, part in reversed(list(zip(found, parts, strict=True))):
        if isinstance(part.module, fx.GraphModule):
            result = standing_in(part.module, result, each.conditions)
    if not _agrees(module, result, calls.all):
        raise ModelError("what it makes differs from the module")
    return replace(first, module=result)


def _one_program(program: Exported, calls: Calls, settings: Settings) -> Compilation:
    values = (program.conditions.values(call.args, call.kwargs) for call in calls.all)
    inputs = next(value for value in values if value is not None)
    captured = canonicalize(program.captured)
    return _with_later(_one_round(captured, execute(captured, inputs)[1], settings, inputs), inputs, settings)


def _promises(module: nn.Module, children: Mapping[str, Compilation]) -> bool:
    """Whether there is anything left that might fold, once the children are what they are compiled to: it takes seconds
    to see.
    """
    inside, convolutions = tuple(f"{path}." for path in children), 0
    own = (part for path, part in module.named_modules() if not f"{path}.".startswith(inside))
    for part in chain(own, *(child.module.modules() for child in children.values())):
        builtin = type(part).__module__.startswith("torch.nn")
        gains = not builtin and any(sum(size > 1 for size in p.shape) == 1 for p in part.parameters(recurse=False))
        if gains or isinstance(part, nn.modules.batchnorm._BatchNorm):
            return True
        convolutions += isinstance(part, nn.modules.conv._ConvNd)
    return convolutions > 1


def _agrees(module: nn.Module, other: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether both return the same in all calls, up to rounding."""
    try:
        return all(same_results(run_call(module, call), run_call(other, call), module) for call in calls)
    except Exception:  # noqa: BLE001 - the user's forward, in a call that it takes in the model alone
        return False
