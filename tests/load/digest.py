"""Fuses some models and says what came out, for whoever compares it with another process.

python -m tests.load.digest  ->  a line for each model
"""

from __future__ import annotations

import torch
from torch import nn

from repcompile import explain, fuse
from tests.load.models import randomized
from tests.sweep.fingerprint import fingerprint
from tests.test_hostile import bottleneck, image, made, repmixer

X = image(1, 4, 8, 8)


def models() -> list[nn.Module]:
    return [made(bottleneck, 1), made(repmixer, 2), randomized(90)]


def digest(model: nn.Module) -> str:
    """Of the fused model, blind and with inputs: names, weights, attributes, code, and the report."""
    fused = [fuse(model), fuse(model, (X,))]
    return "; ".join([str(explain(model)), *(f"{fingerprint(each)} {getattr(each, 'code', '')}" for each in fused)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print([digest(model) for model in models()])
