"""A structural-reparameterization compiler for PyTorch: equal outputs, fewer operators."""

from repcompile.affine import Affine, Uniform
from repcompile.axis import Axis
from repcompile.compiler import Compilation, compile_model, explain, fuse
from repcompile.cost import Cost, CostModel, Macs, Roofline
from repcompile.errors import Inexact, ModelError, RepcompileError, RuleError, VerificationError
from repcompile.report import Report
from repcompile.rules import DEFAULT, RuleSet, affine_rule, layout_rule, load_rules, shape_rule
from repcompile.verify import Check, verify

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
    "compile_model",
    "explain",
    "fuse",
    "layout_rule",
    "load_rules",
    "shape_rule",
    "verify",
]
