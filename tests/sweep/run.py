"""Runs workers, for models that have no result yet: `python -m tests.sweep.run timm-resnet18 torchvision ...`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.result import FOLDER, Result, path_of, read, write

LIMIT = 90.0  # seconds for one model
ROOT = Path(__file__).parents[2]


def run(entry: Entry, folder: Path = FOLDER, limit: float = LIMIT) -> Result:
    """The result of one model, also where its process fails or takes too long; it is written to `folder`."""
    path = path_of(str(entry), folder)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.sweep.worker", str(entry), str(path.absolute())]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        write(Result(str(entry), (f"takes more than {limit:.0f} s",)), path)
    else:
        if done.returncode != 0 or not path.exists():
            write(
                Result(str(entry), (f"the process failed: {_last_line(done.stderr)}",), trace=_end(done.stderr)), path
            )
    return read(path)


def main(words: Sequence[str]) -> None:
    for entry in catalogue():
        wanted = not words or any(word in (str(entry), entry.name, entry.library) for word in words)
        if wanted and not path_of(str(entry)).exists():
            result = run(entry)
            print(entry, result.skipped or "; ".join(result.problems) or "equal", flush=True)


def _last_line(text: str) -> str:
    return _end(text, 1) or "without a word"


def _end(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


if __name__ == "__main__":
    main(sys.argv[1:])
