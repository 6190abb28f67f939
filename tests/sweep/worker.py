"""One model in a process of its own: `python -m tests.sweep.worker timm-resnet18 build/sweep/timm-resnet18.json`."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from tests.sweep.catalogue import entry_of
from tests.sweep.examine import examine
from tests.sweep.result import write


def main(text: str, output: str) -> None:
    torch.set_num_threads(1)
    entry = entry_of(text)
    models: Any = importlib.import_module(f"tests.sweep.libraries.{entry.library}_models")
    write(examine(str(entry), lambda: models.build(entry.name)), Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
