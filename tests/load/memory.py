"""How much memory fusing takes: run in a process of its own, because its peak is what is measured (Linux).

python -m tests.load.memory BLOCKS [inputs]  ->  {"model": bytes, "fused": bytes, "largest": bytes, "peak": bytes}
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch

from repcompile import fuse
from tests.load.models import bytes_of, layers

CHANNELS = 256


def resident(kind: str) -> int:
    """Bytes: now ("VmRSS"), or at most ("VmHWM")."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(blocks: int, inputs: bool) -> dict[str, int]:
    """peak: beside what the process had before the model was made."""
    x = (torch.randn(1, CHANNELS, 4, 4),) if inputs else None
    fuse(layers(6, CHANNELS), x)  # what is imported and made once
    before = resident("VmRSS")
    model = layers(3 * blocks, CHANNELS, 3)
    fused = fuse(model, x)
    largest = max(weight.numel() * weight.element_size() for weight in model.parameters())
    peak = resident("VmHWM") - before
    return {"model": bytes_of(model), "fused": bytes_of(fused), "largest": largest, "peak": peak}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(int(sys.argv[1]), "inputs" in sys.argv[2:])))
