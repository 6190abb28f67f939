"""Runs many programs: `python -m tests.fuzz.report --programs 100000 --seconds 3600 --workers 2 --seed 0`.

What fails is made smaller and saved among the regression tests; the figures go to docs/trust.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from tests.fuzz.build import source
from tests.fuzz.check import check
from tests.fuzz.generate import generate
from tests.fuzz.operators.table import OPERATORS
from tests.fuzz.program import to_json
from tests.fuzz.saved import SAVED
from tests.fuzz.shrink import kind_of, shrunk

PAGE = Path("docs", "trust.md")
START, END = "<!-- fuzz -->", "<!-- /fuzz -->"
BATCH = 200  # programs that a process runs before another one takes its place, as what torch remembers grows
EXAMPLES = 2  # of each kind of failure that are shrunk and saved


@dataclass(slots=True)
class Tally:
    """The figures of some programs.

    failures: (seed, text).  pairs: programs in which one operator reads the result of the other one.
    """

    programs: int = 0
    skipped: int = 0
    steps: int = 0
    fused: int = 0
    regions: int = 0
    rollbacks: Counter[str] = field(default_factory=Counter[str])
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    dtypes: Counter[str] = field(default_factory=Counter[str])
    failures: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def add(self, other: Tally) -> None:
        self.programs += other.programs
        self.skipped += other.skipped
        self.steps += other.steps
        self.fused += other.fused
        self.regions += other.regions
        self.rollbacks += other.rollbacks
        self.pairs += other.pairs
        self.dtypes += other.dtypes
        self.failures += other.failures


def tally_of(seeds: Sequence[int], end: float = float("inf")) -> Tally:
    """Check the programs of some seeds, until it is time to end."""
    torch.set_num_threads(1)
    tally = Tally()
    for seed in seeds:
        if time.time() > end:
            break
        _add(tally, seed)
    return tally


def _add(tally: Tally, seed: int) -> None:
    try:
        program = generate(seed)
        outcome = check(program)
    except Exception as error:  # noqa: BLE001 - a mistake of the fuzzer's
        tally.failures.append((seed, f"fuzzer: {type(error).__name__}: {error}"))
        return
    if outcome.skipped:
        tally.skipped += 1
        return
    tally.programs += 1
    tally.steps += len(program.steps)
    tally.fused += outcome.fused > 0
    tally.regions += outcome.fused
    tally.rollbacks.update(reason.split(":")[0] for reason in outcome.rollbacks)
    tally.pairs.update(program.pairs)
    tally.dtypes.update([program.dtype])
    if outcome.failure:
        tally.failures.append((seed, outcome.failure))


def run(seed: int, programs: int, seconds: float, workers: int) -> Tally:
    """The figures of programs from `seed` on, as many as asked, or as there is time for.

    What torch itself refuses does not count: others are drawn in its place.
    """
    end, tally = time.time() + seconds, Tally()
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=4) as pool:
        while tally.programs < programs and time.time() < end:
            last = seed + programs - tally.programs
            batches = [range(start, min(start + BATCH, last)) for start in range(seed, last, BATCH)]
            seed = last
            for part in pool.imap_unordered(partial(tally_of, end=end), batches):
                tally.add(part)
                for failed, text in part.failures:
                    print(f"\nseed {failed}: {text}")
                print(f"\r{tally.programs} programs, {len(tally.failures)} failures", end="", flush=True)
                if time.time() > end:
                    break
    print()
    return tally


def save(tally: Tally) -> Iterator[str]:
    """Make some failures of each kind small, and keep them; a line for each."""
    seen = Counter[str]()
    for seed, text in tally.failures:
        kind = kind_of(text)
        seen[kind] += 1
        if seen[kind] > EXAMPLES or kind == "fuzzer":
            yield f"seed {seed}: {text}"
            continue
        program, failure = shrunk(generate(seed), text)
        path = SAVED / f"{kind.replace(': ', '-').replace(' ', '-').lower()}-{seed}.json"
        path.write_text(to_json(program))
        yield f"seed {seed}: {failure}\nsaved as {path}\n{source(program)}"


# -- the page ----------------------------------------------------------------------------------------------------------


def section(tally: Tally, seconds: float, command: str) -> str:
    """The figures as Markdown."""
    ops = [name for name in OPERATORS if name != "given"]
    possible = len(ops) * (len(ops) + 1)
    pairs = {pair: count for pair, count in tally.pairs.items() if pair[1] in ops}
    often = sum(count >= 10 for count in pairs.values())
    lines = [
        START,
        "",
        "| random programs | |",
        "| --- | --- |",
        f"| command | `{command}` |",
        f"| programs | {tally.programs:,} of {tally.steps:,} operators, in {seconds / 60:.0f} minutes |",
        f"| failures | {len(tally.failures)} |",
        f"| something was fused in | {tally.fused / max(tally.programs, 1):.1%} of them, {tally.regions:,} regions |",
        f"| drawn, but refused by torch itself | {tally.skipped:,} |",
        f"| regions rolled back | {sum(tally.rollbacks.values())} |",
        f"| operators | {len(ops)}, in {len(pairs)} of {possible} pairs "
        f"of one that reads another; {often} at least ten times |",
        f"| dtypes | {', '.join(f'{name} {count:,}' for name, count in tally.dtypes.most_common())} |",
        "",
        "In how many programs each operator reads the results of others, most often first:",
        "",
        "| operator | programs | reads |",
        "| --- | --- | --- |",
    ]
    lines += [_row(name, pairs) for name in ops]
    return "\n".join([*lines, "", END])


def _row(name: str, pairs: dict[tuple[str, str], int]) -> str:
    own = Counter({before: count for (before, after), count in pairs.items() if after == name})
    text = ", ".join(f"{before} {count}" for before, count in own.most_common(6))
    return f"| {name} | {sum(own.values())} | {text}; {len(own)} operators |"


def write(text: str, page: Path = PAGE) -> None:
    """Put the section into the page, in place of the one that was there."""
    before = page.read_text() if page.exists() else "# Trust\n"
    head, found, rest = before.partition(START)
    tail = rest.partition(END)[2] if found else ""
    head = head if found else f"{head.rstrip()}\n\n## Random programs\n\n"
    page.write_text(f"{head}{text}{tail}" if tail else f"{head}{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, save, write; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="neither save programs nor write the page")
    asked = parser.parse_args(arguments)
    start = time.time()
    tally = run(asked.seed, asked.programs, asked.seconds, asked.workers)
    for reason, count in tally.rollbacks.most_common():
        print(f"rolled back {count} times: {reason}")
    if asked.dry:
        print("\n".join(f"seed {seed}: {text}" for seed, text in tally.failures))
        return int(bool(tally.failures))
    for line in save(tally):
        print(line, flush=True)
    options = f"--programs {asked.programs} --seconds {asked.seconds:.0f} --workers {asked.workers} --seed {asked.seed}"
    write(section(tally, time.time() - start, f"python -m tests.fuzz.report {options}"))
    return int(bool(tally.failures))


if __name__ == "__main__":
    raise SystemExit(main())
