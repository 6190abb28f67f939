"""The same noise at every run, and nobody else's noise changed.

torch draws from one generator that the whole process shares. Seeding it for a run, even if its state is put back
afterwards, is seen by every thread that draws meanwhile; so a run gets generators of its own instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock, local
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Shared(local):
    """The generator of the whole process.  lent: whether this thread has borrowed it."""

    lock = Lock()  # one for all threads
    lent = False


_SHARED = _Shared()


class SameNoise(TorchDispatchMode):
    """Operators that draw random numbers take them from generators that start from `seed` when the mode is made.

    A generator that the model passes itself is left alone. An operator that takes none borrows the shared one.
    """

    supports_higher_order_operators = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if _own_generator(args, kwargs):
            return func(*args, **kwargs)
        generator = self._generator(_device(args, kwargs))
        drawing = _taking_generator(func)
        if drawing is not None:
            return drawing(*args, **{**kwargs, "generator": generator})
        return _borrowing(func, args, kwargs, generator)

    def _generator(self, device: torch.device) -> Generator:
        if device not in self._generators:
            self._generators[device] = Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _own_generator(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Generator) for value in (*args, *kwargs.values()))


def _device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where an operator draws."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return next((tensor.device for tensor in tensors), torch.get_default_device())


def _taking_generator(func: OpOverload) -> OpOverload | None:
    """The overload with the same arguments and a generator."""
    arguments = [argument.name for argument in func._schema.arguments]
    if "generator" in arguments:
        return func
    for name in func.overloadpacket.overloads():
        other: OpOverload = getattr(func.overloadpacket, name)
        names = [argument.name for argument in other._schema.arguments]
        if "generator" in names and [name for name in names if name != "generator"] == arguments:
            return other
    return None


def _borrowing(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], generator: Generator) -> Any:
    """Run an operator that draws from the shared generator, whose state is exchanged meanwhile.

    A mode around this one sees the operator afterwards, and is not asked for its generator.
    """
    if _SHARED.lent:
        return func(*args, **kwargs)
    device = generator.device
    place: Any = torch if device.type == "cpu" else getattr(torch, device.type)
    which = () if device.type == "cpu" else (device,)
    with _SHARED.lock:
        before = place.get_rng_state(*which)
        try:
            _SHARED.lent = True
            place.set_rng_state(generator.get_state(), *which)
            return func(*args, **kwargs)
        finally:
            generator.set_state(place.get_rng_state(*which))
            place.set_rng_state(before, *which)
            _SHARED.lent = False
