"""Exported programs: to a module and back.

torch.export freezes the sizes that it was not told to keep dynamic, in the program and in what is made of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ModuleCallSignature
from torch.utils import _pytree as pytree

from repcompile.classes import HOOK_TABLES
from repcompile.errors import ModelError


def module_of(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module in eval mode, whatever it was exported in: the operators say what they do.

    torch.export's hooks, which guard the inputs, stay behind; the fused program is exported with guards of its own.
    """
    known = inspect.signature(program.module).parameters
    module: Any = program.module(check_guards=False) if "check_guards" in known else program.module()
    for part in module.modules():
        part.training = False
    for name in HOOK_TABLES:
        hooks = vars(module).get(name)
        if isinstance(hooks, dict):
            hooks.clear()
    return module


def examples_of(program: ExportedProgram) -> Sequence[Any] | None:
    """The positional arguments with which it was exported, if there were no others."""
    args, kwargs = program.example_inputs or ((), {})
    return tuple(args) if args and not kwargs else None


def program_of(module: nn.Module, like: ExportedProgram) -> ExportedProgram:
    """`module` exported with the example inputs and the dynamic sizes of `like`.

    Raises ModelError if `like` came without example inputs, or if torch.export refuses the module.
    """
    if like.example_inputs is None:
        raise ModelError("the program has no example inputs, with which the fused one would be exported")
    args, kwargs = like.example_inputs
    try:
        program = torch.export.export(module, tuple(args), dict(kwargs), dynamic_shapes=_dynamic_shapes(like))
    except Exception as error:  # torch.export's own, of many classes
        raise ModelError(f"torch.export refuses the fused program: {str(error).strip().splitlines()[0]}") from error
    structure = like.call_spec.out_spec  # dicts and lists, where torch.fx has immutable ones
    assert structure is not None
    _signature(program).out_spec = structure
    return program


def _signature(program: ExportedProgram) -> ModuleCallSignature:
    (signature,) = (entry.signature for entry in program.module_call_graph if entry.fqn == "")
    assert signature is not None
    return signature


def _dynamic_shapes(program: ExportedProgram) -> dict[str, Any]:
    """Per argument, which sizes are dynamic."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [placeholders[str(name)].meta["val"] for name in program.graph_signature.user_inputs]
    spec = program.call_spec.in_spec
    assert spec is not None
    args, kwargs = pytree.tree_unflatten([_dynamic_sizes(value) for value in values], spec)
    names = list(inspect.signature(program.module().forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _dynamic_sizes(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return {axis: Dim.DYNAMIC for axis, size in enumerate(value.shape) if not isinstance(size, int)} or None
