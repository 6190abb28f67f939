"""The main path: from a model to its fused form, with every intermediate value kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, overload

from torch import fx, nn
from torch.export import ExportedProgram

from repcompile.canonicalize import canonicalize
from repcompile.capture import Captured, capture
from repcompile.classes import hooked, move_hooks
from repcompile.copies import duplicate
from repcompile.cost import CostModel, Roofline
from repcompile.defaults import specialized
from repcompile.errors import ModelError, RuleError, Untraceable, VerificationError
from repcompile.execute import execute, run_copy
from repcompile.exported import examples_of, module_of, program_of
from repcompile.facts import Facts, affine_facts
from repcompile.names import safe
from repcompile.opaque import exchangeable_children
from repcompile.plan import Plan, choose
from repcompile.regions import Region, candidate_regions
from repcompile.regroup import regrouped
from repcompile.report import Report, joined, report_on
from repcompile.rewrite import Emission, Rewritten, Rollback, rewrite
from repcompile.rewrites import Rewrites, rewritten_by
from repcompile.rules import DEFAULT, RuleSet, load_rules
from repcompile.selection import SKIPPED, Choice, Selection, selected
from repcompile.trial import Trial
from repcompile.verify import Check, compare_outputs, verify
from repcompile.wrappers import unwrapped

Inputs = Sequence[Any]
Rules = RuleSet | str  # the name of rules that a package offers means those on top of `DEFAULT`
REGROUPINGS = 3  # a norm behind a sum inside a sum takes two


@dataclass(frozen=True, slots=True)
class Options:
    """What is known of operators, what these cost, and what the caller wants to stay."""

    rules: RuleSet
    cost: CostModel
    selection: Selection


@dataclass(frozen=True, slots=True)
class Compilation:
    """What each stage made.

    module: the fused model.  checks: of the whole model, in float64 and in its own dtype, if example inputs were given.
    inner: compilations of modules inside those that stay Python, by path.
    later: the next round, where a chain of linear operators was longer than `facts.HORIZON`; it started from what this
    one made.
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

    @property
    def report(self) -> Report:
        """What was fused, what was not, and why not."""
        done, names = (self.rewritten, self.rollbacks, self.rewrites), self.rules.idioms
        report = report_on(self.captured, self.facts, self.plan, *done, names, self.checks)
        for path, part in self.inner.items():
            report = joined(report, part.report.under(path))
        return report if self.later is None else joined(replace(report, left=()), self.later.report)


def compile_model(
    model: nn.Module | ExportedProgram,
    example_inputs: Inputs | None = None,
    *,
    rules: Rules = DEFAULT,
    cost: CostModel | None = None,
    only: Choice | None = None,
    skip: Choice | None = None,
) -> Compilation:
    """Run every stage and keep every intermediate value; `fuse` and `explain` are views of the result.

    Where a chain of linear operators is longer than `facts.HORIZON`, what remains of it is compiled again.
    """
    if isinstance(model, ExportedProgram):
        model, example_inputs = module_of(model), example_inputs or examples_of(model)
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    selection = selected(model, only, skip)
    result = _rounds(model, example_inputs, Options(_known(rules), cost or Roofline(), selection))
    return result if example_inputs is None else replace(result, checks=_checked(model, result.module, example_inputs))


def _known(rules: Rules) -> RuleSet:
    if not isinstance(rules, RuleSet | str):
        raise RuleError(f"rules is a RuleSet, as in DEFAULT + [mine], or a name; got {type(rules).__name__}")
    return DEFAULT + load_rules(rules) if isinstance(rules, str) else rules


def _rounds(model: nn.Module, example_inputs: Inputs | None, options: Options) -> Compilation:
    if "" in options.selection.whole:
        return _around(model, SKIPPED, options)
    try:
        first = _one_round(model, example_inputs, options)
    except Untraceable as reason:
        return _around(model, str(reason), options)
    if first.facts.truncated and first.rewritten:
        renamed = replace(
            options, rules=options.rules - options.rules.rewrites, selection=options.selection.renamed(safe)
        )
        later = _rounds(first.module, _inputs_of(first, example_inputs), renamed)
        first = replace(first, module=later.module, later=later)
    return replace(first, module=_callable_as(model, first))


def _inputs_of(result: Compilation, examples: Inputs | None) -> Inputs | None:
    """What the graph of `result` gets in the call that the examples are."""
    arguments = result.captured.arguments
    return examples if examples is None or arguments is None else arguments.values(examples, {})


def _callable_as(model: nn.Module, result: Compilation) -> nn.Module:
    """The fused model, for every way in which the model may be called."""
    arguments = result.captured.arguments
    if not isinstance(result.module, fx.GraphModule) or arguments is None:
        return result.module
    module = specialized(result.module, model, arguments)
    if hooked(model):
        move_hooks(model, module)
    return module


def _one_round(model: nn.Module, example_inputs: Inputs | None, options: Options) -> Compilation:
    captured = canonicalize(capture(model, options.rules.module_classes, example_inputs, options.selection))
    known = _measured(captured, model, example_inputs)
    captured, known, rewrites = _rewritten(captured, options.rules, known, example_inputs)
    captured, facts = _understood(captured, options.rules, known)  # legality: no weight is read
    Trial(captured, facts, options.rules).of_rules()
    regions = candidate_regions(captured, facts, known)
    inner = _inside({path: captured.modules[path] for path in captured.opaque}, options)
    parts = {path: part.module for path, part in inner.items()}
    plan, failed, tried = choose(regions, options.cost), list[Rollback](), dict[Region, Emission]()  # profit
    rewriting = partial(rewrite, captured, facts, rules=options.rules, inner=parts, known=tried)
    module, rewritten, rollbacks = rewriting(plan)  # values: folded once, in float64
    while rollbacks:  # what could not be accepted makes room for what it overlapped
        failed += rollbacks
        broken = {_identity(item.region) for item in failed}
        plan = choose([region for region in regions if _identity(region) not in broken], options.cost)
        module, rewritten, rollbacks = rewriting(plan)
    return Compilation(captured, facts, plan, module, rewritten, tuple(failed), rewrites, options.rules, inner=inner)


def _rewritten(
    captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]], inputs: Inputs | None
) -> tuple[Captured, Mapping[fx.Node, tuple[int, ...]], Rewrites]:
    """(the graph behind the rewrite rules, the shapes of its values, what they did)"""
    if not rules.rewrites:
        return captured, known, Rewrites(captured)
    result = rewritten_by(rules.rewrites, captured, affine_facts(captured, rules, known))
    if result.done and inputs is not None:
        known = execute(result.captured, inputs)[1]
    return result.captured, known, result


def _identity(region: Region) -> tuple[fx.Node, fx.Node, int]:
    return region.source, region.sink, region.fact.at


def _understood(captured: Captured, rules: RuleSet, known: Mapping[fx.Node, tuple[int, ...]]) -> tuple[Captured, Facts]:
    """The facts of a graph whose sums stand in the order in which they merge."""
    facts = affine_facts(captured, rules, known)
    for _ in range(REGROUPINGS):
        better = regrouped(captured, facts)
        if better is None:
            break
        captured, facts = better, affine_facts(better, rules, known)
    return captured, facts


def _around(model: nn.Module, reason: str, options: Options) -> Compilation:
    """A model whose own forward stays Python: a copy, with compiled children."""
    captured = Captured(fx.Graph(), {}, {}, {"": reason}, name=type(model).__name__, selection=options.selection)
    inner = _inside({"": model}, options)
    module = duplicate(model)
    for path, part in inner.items():
        module.set_submodule(path, part.module)
    return Compilation(
        captured,
        affine_facts(captured, options.rules),
        Plan(()),
        module,
        (),
        (),
        Rewrites(captured),
        options.rules,
        inner=inner,
    )


def _inside(modules: Mapping[str, nn.Module], options: Options) -> dict[str, Compilation]:
    """Compilations of what modules that stay Python call, as far outside as possible."""
    inner: dict[str, Compilation] = {}
    whole = options.selection.whole
    for path, module in modules.items():
        for name, child in exchangeable_children(module) if path not in whole else ():
            place = f"{path}.{name}".lstrip(".")
            if place in whole:
                continue
            try:
                part = _rounds(child, None, replace(options, selection=options.selection.inside(place)))
            except ModelError:  # in training mode, or not to be copied: as it is
                continue
            if part.report.fused or part.report.rewritten:
                inner[place] = part
    return inner


@overload
def fuse(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    rules: Rules = DEFAULT,
    cost: CostModel | None = None,
    only: Choice | None = None,
    skip: Choice | None = None,
) -> nn.Module: ...
@overload
def fuse(
    model: ExportedProgram,
    example_inputs: Inputs | None = None,
    *,
    rules: Rules = DEFAULT,
    cost: CostModel | None = None,
    only: Choice | None = None,
    skip: Choice | None = None,
) -> ExportedProgram: ...
def fuse(
    model: nn.Module | ExportedProgram,
    example_inputs: Inputs | None = None,
    *,
    rules: Rules = DEFAULT,
    cost: CostModel | None = None,
    only: Choice | None = None,
    skip: Choice | None = None,
) -> nn.Module | ExportedProgram:
    """A new module that computes what `model` computes in eval mode, with fewer operators.

    It is a `torch.fx.GraphModule`; a model whose own forward cannot be traced keeps its class, with children exchanged;
    an exported program is exported again, with the same example inputs and dynamic sizes.

    model: in eval mode; it is not changed, and shares nothing with the result. Wrappers such as `nn.DataParallel`
    and what torch.compile returns are taken off.
    example_inputs: positional arguments of one call. Then costs are exact, and the whole model is compared. Without,
    arguments that have a default keep it; calls that differ run a copy of the model as it was.
    rules: what is known of each operator; `DEFAULT + [mine]`, or the name of rules that an installed package offers.
    cost: what operators cost; `Roofline()` unless given.
    only, skip: the modules that are compiled, and those that stay as they are, in training form: a glob of module paths
    ("stages.3", "**.attention"; all that is inside is meant too), several of them, or a function of path and module.
    Raises ModelError if the model cannot be compiled as it is, VerificationError if the results differ.
    """
    module = compile_model(model, example_inputs, rules=rules, cost=cost, only=only, skip=skip).module
    return program_of(module, model) if isinstance(model, ExportedProgram) else module


def explain(
    model: nn.Module | ExportedProgram,
    example_inputs: Inputs | None = None,
    *,
    rules: Rules = DEFAULT,
    cost: CostModel | None = None,
    only: Choice | None = None,
    skip: Choice | None = None,
) -> Report:
    """What `fuse` would do with `model`, what it would leave, and why.  `print` it."""
    return compile_model(model, example_inputs, rules=rules, cost=cost, only=only, skip=skip).report


def _measured(captured: Captured, model: nn.Module, inputs: Inputs | None) -> dict[fx.Node, tuple[int, ...]]:
    """The shapes on the way of the example inputs; the captured graph must compute what the model does."""
    if inputs is None or hooked(model):  # a hook may change what its forward gets
        return {}
    output, shapes = execute(captured, inputs)
    check = compare_outputs(run_copy(model, inputs), output)
    if not check.passed:
        raise VerificationError(
            f"the captured graph of {captured.name} differs from the model by {check.error:.2e} at {check.place}: "
            "tracing saw something else than what runs, so nothing is fused"
        )
    return shapes


def _checked(model: nn.Module, module: nn.Module, inputs: Inputs) -> tuple[Check, Check]:
    checks = verify(model, module, inputs)
    for check, where in zip(checks, ("in float64", "in the model's dtype"), strict=True):
        if not check.passed:
            raise VerificationError(
                f"the fused model differs {where} by {check.error:.2e} at {check.place}, "
                f"where rounding explains {check.bound:.2e}; nothing is returned"
            )
    return checks
