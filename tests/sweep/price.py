"""What a forward costs, counted from outside: every operator that runs, copies included, priced as the planner does,
in whatever dtype: as in float32.
"""

import re
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from repcompile import Cost, Roofline
from repcompile.cost import ELEMENT
from repcompile.measure import EMPTY, macs_of, measure
from tests.sweep.result import Counts
from tests.sweep.subject import Inputs


def counts_of(model: nn.Module, inputs: Inputs, warm: bool = False) -> Counts:
    """Run `model` twice: the first time fills what it remembers per size, such as border maps.

    warm: whether it has run on inputs of these sizes before.
    """
    if not warm:
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
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:  # a view that torch does not call one
            tensors = [value for value in pytree.tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
            size = sum(tensor.numel() for tensor in tensors)
            if func is torch.ops.aten.constant_pad_nd.default:  # reads no more than it keeps
                size = min(args[0].numel(), result.numel()) + result.numel()
            if func is torch.ops.aten.copy_.default:  # reads nothing of what it writes to
                size = args[1].numel() + result.numel()
            if func.overloadpacket.__name__ in EMPTY:  # writes nothing
                size = 0
            taps = _taps(func, args)
            macs = macs_of(func, args, kwargs, result) + (taps * result.numel() if taps else 0)
            self.price += self._roofline(Cost(macs, ELEMENT * size, 1))
        return result


def _taps(func: Any, args: Any) -> int:
    """How many numbers an average pool adds for each one that it returns."""
    found = re.fullmatch(r"avg_pool(\d)d", func.overloadpacket.__name__)
    if found is None:
        return 0
    sizes = list(args[1])
    return prod(sizes) if len(sizes) > 1 else sizes[0] ** int(found[1])
