"""One model, in the process that `run` makes for it."""

import importlib
import resource
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.sweep.catalogue import entry_of
from tests.sweep.examine import examine
from tests.sweep.result import Result, write

LINES = 12  # of a traceback that are kept


def module_of(library: str) -> str:
    """Where the sweep's models of a library are built; importing it imports the library."""
    return f"tests.sweep.libraries.{library}_models"


def main(text: str, output: str, limit: int) -> None:
    """Examine a model and write its result, an exception among them; SIGXCPU after `limit` seconds of computing."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    torch.set_num_threads(1)
    entry = entry_of(text)
    try:
        models: Any = importlib.import_module(module_of(entry.library))
        result = examine(str(entry), lambda: models.build(entry.name))
    except Exception as error:  # noqa: BLE001 - whatever a library raises is a result
        end = traceback.format_exc().strip().splitlines()[-LINES:]
        result = Result(str(entry), (f"{type(error).__name__}: {error}",), trace="\n".join(end))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    write(replace(result, computed=usage.ru_utime + usage.ru_stime), Path(output))
