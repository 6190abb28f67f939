"""What a forward costs, counted from outside: every operator that runs, copies included, priced as the planner does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile import Cost, Roofline
from repcompile.measure import macs_of, measure
from tests.sweep.result import Counts
from tests.sweep.subject import Inputs


def counts_of(model: nn.Module, inputs: Inputs) -> Counts:
    """Run `model` twice: the first time fills what it remembers per size, such as border maps."""
    with torch.no_grad():
        model(*inputs)
    with _Pricing() as pricing:
        measured = measure(model, inputs)
    return Counts(measured.operators, measured.norms, measured.macs, pricing.price)


class _Pricing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.price = 0.0
        self._roofline = Roofline()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            tensors = [value for value in pytree.tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.price += self._roofline(Cost(macs_of(func, args, kwargs, result), size, 1))
        return result
