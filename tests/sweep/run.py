"""Runs models that have no result yet: `python -m tests.sweep.run --workers 2 timm-resnet18 torchvision ...`.

Each has a process of its own, forked from one that has the libraries imported: that takes longer than most models do.
"""

import argparse
import fcntl
import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.sweep import worker
from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.result import FOLDER, LIMIT, Result, path_of, read, write

PATIENCE = 2  # times as long it may take, where others compute as well
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1"}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tests.sweep.examine",
        *(worker.module_of(name) for name in ("timm", "torchvision", "transformers", "ultralytics")),
    ]
)


def run(entry: Entry, folder: Path = FOLDER, limit: int = LIMIT) -> Result:
    """The result of one model, also where its process fails or takes too long; it is written to `folder`.

    limit: seconds of computing that it may take.
    """
    path = path_of(str(entry), folder)
    path.unlink(missing_ok=True)
    os.environ.update(SETTINGS)
    process = PROCESSES.Process(target=worker.main, args=(str(entry), str(path.absolute()), limit))
    with _room(entry, folder):
        process.start()
        process.join(PATIENCE * limit)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
    if late or process.exitcode == -signal.SIGXCPU:
        write(Result(str(entry), (f"takes more than {limit} s",)), path)
    elif not path.exists():
        write(Result(str(entry), (f"the process ended with {process.exitcode}, without a word",)), path)
    return read(path)


@contextmanager
def _room(entry: Entry, folder: Path) -> Generator[None]:
    """Wait until the machine has room for the model: the largest run alone, also beside other workers' processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "room.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if entry.alone else fcntl.LOCK_SH)
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="models or libraries; without: all")
    parser.add_argument("--workers", type=int, default=1, help="models at a time; leave a core for each")
    parser.add_argument("--seconds", type=int, default=LIMIT, help="of computing for a model (default: %(default)s)")
    asked = parser.parse_args(arguments)
    entries = [
        entry
        for entry in catalogue()
        if not asked.words or any(word in (str(entry), entry.name, entry.library) for word in asked.words)
    ]
    missing = [entry for entry in entries if not path_of(str(entry)).exists()]
    with ThreadPoolExecutor(asked.workers) as pool:
        for entry, result in zip(missing, pool.map(partial(run, limit=asked.seconds), missing), strict=True):
            print(entry, result.skipped or "; ".join(result.problems) or "equal", flush=True)


if __name__ == "__main__":
    main()
