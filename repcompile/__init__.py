"""A structural-reparameterization compiler for PyTorch: equal outputs, fewer operators."""

from repcompile.affine import Affine, Uniform
from repcompile.axis import Axis
from repcompile.compare import Check
from repcompile.compiler import Compilation, compile_model, explain, fuse
from repcompile.cost import Cost, CostModel, Macs, Roofline
from repcompile.errors import Inexact, ModelError, RepcompileError, RuleError, VerificationError
from repcompile.idioms import idiom
from repcompile.report import Report
from repcompile.rules import (
    DEFAULT,
    RuleSet,
    affine_rule,
    any_constant,
    any_module,
    build,
    layout_rule,
    load_rules,
    rewrite_rule,
    shape_rule,
)
from repcompile.verify import verify

__version__ = "0.1.0"

__all__ = [
    "DEFAULT",
    "Affine",
    "Axis",
    "Check",
    "Compilation",
    "Cost",
    "CostModel",
    "Inexact",
    "Macs",
    "ModelError",
    "RepcompileError",
    "Report",
    "Roofline",
    "RuleError",
    "RuleSet",
    "Uniform",
    "VerificationError",
    "affine_rule",
    "any_constant",
    "any_module",
    "build",
    "compile_model",
    "explain",
    "fuse",
    "idiom",
    "layout_rule",
    "load_rules",
    "rewrite_rule",
    "shape_rule",
    "verify",
]
