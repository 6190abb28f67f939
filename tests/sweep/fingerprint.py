"""Whether somebody touched a model: every tensor bit by bit, every flag, every attribute by name and type."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

Fingerprint = dict[str, Any]


def fingerprint(model: nn.Module) -> Fingerprint:
    """What must be equal before and after."""
    tensors = {name: _digest(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {"keys": list(model.state_dict()), **tensors, **{f"module {p}": _own(m) for p, m in model.named_modules()}}


def differences(before: Fingerprint, after: Fingerprint) -> list[str]:
    """Names of what differs."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {hashlib.blake2b(content).hexdigest()}"


def _own(module: nn.Module) -> Any:
    attributes = {name: type(value).__name__ for name, value in vars(module).items()}
    return type(module).__name__, module.training, attributes
