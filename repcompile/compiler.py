"""The main path: from a model to its fused form."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

from torch import nn
from torch.export import ExportedProgram

from repcompile.compare import Check
from repcompile.cost import CostModel, Roofline
from repcompile.errors import RuleError, VerificationError
from repcompile.exported import examples_of, module_of, program_of
from repcompile.report import Report
from repcompile.rounds import Compilation, Inputs, Settings, compiled
from repcompile.rules import DEFAULT, RuleSet, load_rules
from repcompile.selection import Choice, selected
from repcompile.threads import modes_kept
from repcompile.verify import verify
from repcompile.wrappers import unwrapped

Rules = RuleSet | str  # the name of rules that a package offers means those on top of `DEFAULT`

__all__ = ["Compilation", "compile_model", "explain", "fuse"]


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
    with modes_kept():
        if isinstance(model, ExportedProgram):
            model, example_inputs = module_of(model), example_inputs or examples_of(model)
        model = unwrapped(model) if isinstance(model, nn.Module) else model
        settings = Settings(_known(rules), cost or Roofline(), selected(model, only, skip))
        result = compiled(model, example_inputs, settings)
        checks = None if example_inputs is None else _checked(model, result.module, example_inputs)
    return replace(result, checks=checks)


def _known(rules: Rules) -> RuleSet:
    if not isinstance(rules, RuleSet | str):
        raise RuleError(f"rules is a RuleSet, as in DEFAULT + [mine], or a name; got {type(rules).__name__}")
    return DEFAULT + load_rules(rules) if isinstance(rules, str) else rules


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

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> [type(layer).__name__ for layer in fuse(model).children()]
    ['Conv2d', 'ReLU']
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


def _checked(model: nn.Module, module: nn.Module, inputs: Inputs) -> tuple[Check, Check]:
    checks = verify(model, module, inputs)
    for check, where in zip(checks, ("in float64", "in the model's dtype"), strict=True):
        if not check.passed:
            raise VerificationError(
                f"the fused model differs {where} by {check.error:.2e} at {check.place}, "
                f"where rounding explains {check.bound:.2e}; nothing is returned"
            )
    return checks
