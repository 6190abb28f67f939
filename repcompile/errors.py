"""The errors of repcompile: one family, so that one `except` clause is enough."""

from __future__ import annotations


class RepcompileError(Exception):
    """Anything that repcompile refuses to do, with a sentence that says why."""


class Inexact(RepcompileError):
    """No single operator equals the one asked for; the message is the reason.

    Rules and the algebra raise it, `facts` turns it into a `Refusal`. Users see it only when they compose maps by hand.
    """


class ModelError(RepcompileError):
    """The model cannot be compiled as it was given: not a module, in training mode, or not copyable."""


class Untraceable(ModelError):
    """The model's own forward cannot be traced; its submodules may be."""


class RuleError(RepcompileError):
    """A rule is wrong: it raised, or what it claims is not what the operator computes."""


class VerificationError(RepcompileError):
    """The fused model does not compute what the model computes; nothing is returned."""
