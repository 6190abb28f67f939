"""What is known of each operator: one rule each."""

from repcompile.idioms import IDIOMS
from repcompile.rules.channels import CHANNELS
from repcompile.rules.conv import CONV
from repcompile.rules.emitted import EMITTED
from repcompile.rules.layout import LAYOUT
from repcompile.rules.linear import LINEAR
from repcompile.rules.norm import NORM
from repcompile.rules.offered import load_rules
from repcompile.rules.pad import PAD
from repcompile.rules.pointwise import POINTWISE
from repcompile.rules.pool import POOL
from repcompile.rules.product import PRODUCT
from repcompile.rules.rewriting import RewriteRule, rewrite_rule
from repcompile.rules.ruleset import Rule, RuleSet, affine_rule, layout_rule, shape_rule
from repcompile.rules.shape import SHAPE
from repcompile.rules.wildcards import any_constant, any_module, build

NAMES = RuleSet(IDIOMS).trusting()
DEFAULT = CONV + LINEAR + PRODUCT + NORM + POINTWISE + POOL + PAD + CHANNELS + EMITTED + LAYOUT + SHAPE + NAMES

__all__ = [
    "CHANNELS", "CONV", "DEFAULT", "EMITTED", "LAYOUT", "LINEAR", "NAMES", "NORM", "PAD", "POINTWISE", "POOL",
    "PRODUCT",
    "SHAPE", "RewriteRule", "Rule", "RuleSet", "affine_rule", "any_constant", "any_module", "build", "layout_rule",
    "load_rules", "rewrite_rule", "shape_rule",
]  # fmt: skip
