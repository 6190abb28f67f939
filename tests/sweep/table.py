"""Writes docs/compatibility.md from the results that lie in build/sweep: `python -m tests.sweep.table`."""

import importlib.metadata
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.result import Counts, Result, path_of, read

PAGE = Path("docs", "compatibility.md")
LIBRARIES = ("torch", "timm", "torchvision", "transformers", "ultralytics")
LONGEST = 110  # characters of a reason in the table

HEAD = """\
# Models that nobody here wrote

Written by `python -m tests.sweep.table` from what `make sweep` left in build/sweep; not by hand. All four libraries
come with `pip install ".[sweep]"`.

{sentence}

Every model is built with a fixed seed, gets batch-norm statistics near what it sees, random gains, shifts and layer
scales, and runs in a process of its own with a limit of 90 s of computing on one thread. `fuse(model)` of the float32
model is compared in float64 (largest relative error that passes: 1e-6, or four times what one rounding of its weights
does to the model itself), `fuse(model, inputs)` of a float64 model too (1e-10), both at two sizes if the model takes
two. The user's model must be untouched bit by bit, and neither the operators that run nor their estimated cost may
grow. A batch norm may be left only where the report says why.

- operators, batch norms: what one forward runs, before → after `fuse(model)` → after `fuse(model, inputs)` where that
  differs.
- macs: multiply-accumulates after over before.  fuse: seconds of `fuse(model)`.
- error: largest relative error in float32, then in float64.
- left, because: the most frequent reason of the report and its number of places; more reasons are counted.
"""


def main() -> None:
    results = {entry: read(path) for entry in catalogue() if (path := path_of(str(entry))).exists()}
    PAGE.write_text(page(results))


def page(results: dict[Entry, Result]) -> str:
    """The whole page."""
    parts = [HEAD.format(sentence=_sentence(results))]
    for library in dict.fromkeys(entry.library for entry in results):
        part = {entry: result for entry, result in results.items() if entry.library == library}
        parts.append(_section(library, part))
    return "\n".join(parts)


def _sentence(results: dict[Entry, Result]) -> str:
    run = [result for result in results.values() if not result.skipped]
    fine = sum(not result.problems for result in run)
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES if _version(name))
    text = (
        f"{len(run)} of the {len(catalogue())} models in the catalogue were run, with {versions}: {fine} without a "
        f"problem, {len(run) - fine} with one. {len(results) - len(run)} do not run themselves."
    )
    return textwrap.fill(text, 116)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _section(library: str, results: dict[Entry, Result]) -> str:
    good = [_row(e, r) for e, r in results.items() if not r.problems and not r.skipped]
    bad = [f"| {e.name} | {_cell('; '.join(r.problems))} |" for e, r in results.items() if r.problems]
    skipped = [f"| {e.name} | {_cell(r.skipped)} |" for e, r in results.items() if r.skipped]
    parts = [f"## {library}\n"]
    if good:
        titles = ("model", "operators", "batch norms", "macs", "fuse", "error", "left, because")
        parts += [_table(titles, good)]
    if bad:
        parts += ["With a problem:\n", _table(("model", "problem"), bad)]
    if skipped:
        parts += ["Not asked:\n", _table(("model", "what it says"), skipped)]
    return "\n".join(parts)


def _table(titles: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(titles)} |", f"| {' | '.join('---' for _ in titles)} |", *rows, ""])


def _row(entry: Entry, result: Result) -> str:
    assert result.before is not None
    assert result.plain is not None
    after = result.informed or result.plain
    cells = (
        entry.name,
        _arrows(result.before.operators, result.plain.operators, after.operators),
        _arrows(result.before.norms, result.plain.norms, after.norms),
        _ratio(result.before, after),
        f"{result.seconds:.1f} s",
        f"{result.rounded:.0e}, {'-' if result.exact is None else f'{result.exact:.0e}'}",
        _because(result),
    )
    return f"| {' | '.join(cells)} |"


def _arrows(before: int, plain: int, informed: int) -> str:
    return f"{before} → {plain}" + ("" if informed == plain else f" → {informed}")


def _ratio(before: Counts, after: Counts) -> str:
    return f"{after.macs / before.macs:.3f}" if before.macs else "-"


def _because(result: Result) -> str:
    if not result.left:
        return ""
    (reason, places), *more = Counter(result.left).most_common()
    return _cell(f"{reason}: {places}") + (f" (and {len(more)} more)" if more else "")


def _cell(text: str) -> str:
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return shown.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
