"""Writes docs/compatibility.md from the results that lie in build/sweep: `python -m tests.sweep.table`.

Models without a result there keep the row that they have.
"""

import importlib.metadata
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.result import USUAL, Counts, Result, path_of, read

PAGE = Path("docs", "compatibility.md")
LIBRARIES = ("torch", "timm", "torchvision", "transformers", "ultralytics")
LONGEST = 110  # characters of a reason in the table

GOOD, BAD, SKIPPED = "", "With a problem", "Not asked"
TITLES = {  # of the columns, by the table's heading
    GOOD: ("model", "operators", "batch norms", "macs", "fuse", "error", "left, because"),
    BAD: ("model", "problem"),
    SKIPPED: ("model", "what it says"),
}

HEAD = """\
# Models that nobody here wrote

Written by `python -m tests.sweep.table` from what `make sweep` left in build/sweep, and not by hand; models that were
not run again keep their row. All four libraries come with `pip install ".[sweep]"`.

{sentence}

Every model is built with a fixed seed, gets batch-norm statistics near what it sees, random gains, shifts and layer
scales, and runs in a process of its own, on one thread; where everything that is asked of it took more than 90 s of
computing, the row says how many (900 s are the limit). `fuse(model)` of the float32 model is compared in float64
(largest relative error that passes: 1e-6, or four times what one rounding of its weights does to the model itself),
`fuse(model, inputs)` of a float64 model too (1e-10), both at two sizes if the model takes two. The user's model must be
untouched bit by bit, and neither the operators that run nor their estimated cost may grow. A batch norm may be left
only where the report says why. `fuse(model)` by itself may take 90 s.

- operators, batch norms: what one forward runs, before → after `fuse(model)` → after `fuse(model, inputs)` where that
  differs.
- macs: multiply-accumulates after over before.  fuse: seconds of `fuse(model)`.
- error: largest relative error in float32, then in float64.
- left, because: the most frequent reason of the report and its number of places; more reasons are counted.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What the page says of one model.  heading: of the table that it is in.  text: its line."""

    heading: str
    text: str


Rows = Mapping[Entry, Row]


def main() -> None:
    results = {entry: read(path) for entry in catalogue() if (path := path_of(str(entry))).exists()}
    kept = rows_of(PAGE.read_text()) if PAGE.exists() else {}
    PAGE.write_text(page({**kept, **{entry: _row(entry, result) for entry, result in results.items()}}))


def page(rows: Rows) -> str:
    """The whole page."""
    parts = [HEAD.format(sentence=_sentence(rows))]
    for library in dict.fromkeys(entry.library for entry in catalogue()):
        part = [rows[entry] for entry in catalogue() if entry.library == library and entry in rows]
        parts += [_section(library, part)] if part else []
    return "\n".join(parts)


def rows_of(text: str) -> Rows:
    """The rows of a page that was written before."""
    known = {(entry.library, entry.name): entry for entry in catalogue()}
    rows, library, heading = dict[Entry, Row](), "", GOOD
    for line in text.splitlines():
        if line.startswith("## "):
            library, heading = line.removeprefix("## "), GOOD
        elif line.endswith(":") and line.removesuffix(":") in TITLES:
            heading = line.removesuffix(":")
        elif found := re.match(r"\| (\S+) \|", line):
            entry = known.get((library, found[1]))
            rows.update({entry: Row(heading, line)} if entry else {})
    return rows


def _sentence(rows: Rows) -> str:
    counts = Counter(row.heading for row in rows.values())
    text = (
        f"{counts[GOOD] + counts[BAD]} of the {len(catalogue())} models in the catalogue were run, with "
        f"{', '.join(f'{name} {_version(name)}' for name in LIBRARIES if _version(name))}: {counts[GOOD]} without a "
        f"problem, {counts[BAD]} with one. {counts[SKIPPED]} do not run themselves."
    )
    return textwrap.fill(text, 116)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _section(library: str, rows: Sequence[Row]) -> str:
    parts = [f"## {library}\n"]
    for heading, titles in TITLES.items():
        lines = [row.text for row in rows if row.heading == heading]
        if lines:
            parts += [f"{heading}:\n"] if heading else []
            parts += [_table(titles, lines)]
    return "\n".join(parts)


def _table(titles: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([_line(titles), _line(["---"] * len(titles)), *rows, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(entry: Entry, result: Result) -> Row:
    if result.skipped:
        return Row(SKIPPED, _line((entry.name, _cell(result.skipped))))
    if result.problems:
        return Row(BAD, _line((entry.name, _cell("; ".join(result.problems)))))
    assert result.before is not None
    assert result.plain is not None
    after = result.informed or result.plain
    cells = (
        entry.name,
        _arrows(result.before.operators, result.plain.operators, after.operators),
        _arrows(result.before.norms, result.plain.norms, after.norms),
        _ratio(result.before, after),
        f"{result.seconds:.1f} s" + (f" (all {result.computed:.0f} s)" if (result.computed or 0.0) > USUAL else ""),
        f"{result.rounded:.0e}, {'-' if result.exact is None else f'{result.exact:.0e}'}",
        _because(result),
    )
    return Row(GOOD, _line(cells))


def _arrows(before: int, plain: int, informed: int) -> str:
    return f"{before} → {plain}" + ("" if informed == plain else f" → {informed}")


def _ratio(before: Counts, after: Counts) -> str:
    return f"{after.macs / before.macs:.3f}" if before.macs else "-"


def _because(result: Result) -> str:
    if not result.left:
        return ""
    (reason, places), *more = Counter(result.left).most_common()
    return _cell(f"{reason.removesuffix(':')}: {places}") + (f" (and {len(more)} more)" if more else "")


def _cell(text: str) -> str:
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return shown.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
