"""The only place that formats: what was fused, what was left, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from repcompile.affine import Affine
from repcompile.branches import branches_of, name_of
from repcompile.capture import Captured
from repcompile.compare import Check
from repcompile.cost import total
from repcompile.facts import Facts
from repcompile.idioms import Idiom
from repcompile.plan import Plan
from repcompile.ranges import Ranges
from repcompile.regions import Region
from repcompile.rewrite import Rewritten, Rollback
from repcompile.rewrites import Replacement, Rewrites
from repcompile.selection import SKIPPED
from repcompile.statements import KeptStatement

WIDTH = 120


@dataclass(frozen=True, slots=True)
class Fused:
    """A region that became one operator.

    idiom: what people call it.  path: where it is in the model.  branches: in the words of `idioms`.
    operators: how many kernels it was.  error: largest difference from these in float64, relative to the largest value.
    check: the same with its bound and its place; None where nothing is computed any more.
    rounded: after the new weights were rounded to the model's dtype.  ranges: of the weights, before and after.
    n_axes: spatial axes of what it returns, None where its channels are not on an axis of their own.
    """

    idiom: str
    path: str
    branches: tuple[str, ...]
    operators: int
    error: float
    check: Check | None = None
    rounded: Check | None = None
    ranges: Ranges | None = None
    n_axes: int | None = None

    def __str__(self) -> str:
        name = f"{self.path}: {self.idiom}"
        if self.check is None or self.rounded is None:
            return name
        checks = (("in float64", self.check), ("with rounded weights", self.rounded))
        return f"{name}; " + "; ".join(f"{when} {self._said(check)}" for when, check in checks)

    def _said(self, check: Check) -> str:
        return f"off by {check.error:.1e} of at most {check.bound:.1e}, most at {_place(check, self.n_axes)}"


class RangesReport(dict[str, Ranges]):
    """Ranges of weights by path of the fused region, the widest spread first."""

    def __init__(self, ranges: Mapping[str, Ranges]) -> None:
        super().__init__(sorted(ranges.items(), key=lambda item: -item[1].spread_after))

    def __rich__(self) -> RenderableType:
        table = _table("weights of", "channels", "largest / smallest before", "after", "")
        for path, ranges in self.items():
            spreads = (f"{spread:.1f}" for spread in (ranges.spread_before, ranges.spread_after))
            dead = sum(size == 0.0 for size in ranges.after)
            table.add_row(path, str(len(ranges.after)), *spreads, f"{dead} without weights" if dead else "")
        return table

    def __str__(self) -> str:
        return _text(self)


@dataclass(frozen=True, slots=True)
class Left:
    """Operators that stay apart.

    path: of the last one.  reason: why.  factor: multiply-accumulates as one operator over those as they stand, where
    that is the reason.  norms: batch norms inside of which nothing else is said.
    """

    path: str
    reason: str
    factor: float | None = None
    norms: int = 0

    def __str__(self) -> str:
        factor = "" if self.factor is None else f" {_times(self.factor)}"
        return f"{self.path}: {self.reason}{factor}{_inside(self.norms)}"


@dataclass(frozen=True, slots=True)
class Report:
    """What `fuse` did, or would do.  `print(report)` shows it.

    notes: what else there is to know of a part, such as how it was captured.
    """

    model: str
    fused: tuple[Fused, ...]
    left: tuple[Left, ...]
    checks: tuple[Check, Check] | None = None
    rewritten: tuple[Replacement, ...] = ()
    notes: tuple[Left, ...] = ()

    def under(self, path: str) -> Report:
        """The same report, with every path below `path`."""
        fused = tuple(replace(item, path=f"{path}.{item.path}") for item in self.fused)
        rewritten = tuple(replace(item, path=f"{path}.{item.path}") for item in self.rewritten)
        left, notes = (
            tuple(replace(item, path=f"{path}.{item.path}".rstrip(".")) for item in items)
            for items in (self.left, self.notes)
        )
        return replace(self, fused=fused, left=left, rewritten=rewritten, notes=notes)

    @property
    def idioms(self) -> Mapping[str, int]:
        """How many regions of each name."""
        return Counter(item.idiom for item in self.fused)

    @property
    def ranges(self) -> RangesReport:
        """How far the channels' weights are apart, for those who quantize next: by path.  `print` it."""
        return RangesReport({item.path: item.ranges for item in self.fused if item.ranges is not None})

    def __rich__(self) -> RenderableType:
        return Group(*self._parts())

    def __str__(self) -> str:
        return _text(self)

    def _parts(self) -> Iterable[RenderableType]:
        before, after = sum(item.operators for item in self.fused), len(self.fused)
        yield Text(f"{self.model}: {after} regions fused, {before} operators into {after}")
        if self.fused:
            yield self._fused_table()
        if self.rewritten:
            yield self._rewritten_table()
        if self.left:
            yield _reasons("left, because", self.left)
        if self.notes:
            yield _reasons("note", self.notes)
        if self.checks is not None:
            exact, native = self.checks
            yield Text(f"largest difference, relative: {exact.relative:.1e} in float64, {native.relative:.1e} as it is")

    def _fused_table(self) -> Table:
        table = _table("fused as", "regions", "operators", "largest error < bound", "for example")
        for idiom, count in Counter(item.idiom for item in self.fused).most_common():
            items = [item for item in self.fused if item.idiom == idiom]
            operators = f"{sum(item.operators for item in items)} -> {count}"
            worst = max(items, key=lambda item: item.error)
            share = "" if worst.check is None else f" < {worst.check.bound / (worst.check.scale or 1.0):.1e}"
            table.add_row(idiom, str(count), operators, f"{worst.error:.1e}{share}", items[0].path)
        return table

    def _rewritten_table(self) -> Table:
        table = _table("rewritten by", "places", "operators", "largest error", "for example")
        for rule, count in Counter(item.rule for item in self.rewritten).most_common():
            items = [item for item in self.rewritten if item.rule == rule]
            operators = f"{sum(item.before for item in items)} -> {sum(item.after for item in items)}"
            table.add_row(rule, str(count), operators, f"{max(i.error for i in items):.1e}", items[0].path)
        return table


def _place(check: Check, n_axes: int | None) -> str:
    """Channel, position, and whether its window sticks out of the image."""
    place = check.place
    if n_axes is None or len(place) <= n_axes:
        return str(place)
    channel, position = place[len(place) - 1 - n_axes], place[len(place) - n_axes :]
    side = "" if check.border is None else ", border" if check.border else ", interior"
    return f"channel {channel}" + (f", position {position}" if position else "") + side


def _reasons(heading: str, lines: Sequence[Left]) -> Table:
    table = _table(heading, "places", "for example")
    for reason, count in Counter(item.reason for item in lines).most_common():
        items = [item for item in lines if item.reason == reason]
        factors = [item.factor for item in items if item.factor is not None]
        text = f"{reason} {_times(min(factors), max(factors))}" if factors else reason
        table.add_row(text + _inside(sum(item.norms for item in items)), str(count), items[0].path)
    return table


def _inside(norms: int) -> str:
    return f"; {norms} batch norm{'s' * (norms > 1)} inside" if norms else ""


def joined(report: Report, more: Report) -> Report:
    """What both say, about the model of the first."""
    return replace(
        report,
        fused=(*report.fused, *more.fused),
        left=(*report.left, *more.left),
        rewritten=(*report.rewritten, *more.rewritten),
        notes=(*report.notes, *more.notes),
    )


def report_on(
    captured: Captured,
    facts: Facts,
    plan: Plan,
    rewritten: Sequence[Rewritten],
    rollbacks: Sequence[Rollback],
    rewrites: Rewrites,
    idioms: Sequence[Idiom],
    checks: tuple[Check, Check] | None,
    inner: Iterable[str] = (),
) -> Report:
    """The report of a compilation.  inner: paths of the modules that have reports of their own."""
    gone = {node for item in rewritten for node in item.region.dying}
    done = {node for item in rewritten for node in item.region.owned}
    failed = [item for item in rollbacks if not done.issuperset(_working(item.region, facts))]
    fused = tuple(_fused(item, facts, idioms) for item in rewritten)
    left = (
        *_opaque(captured, tuple(inner)),
        *(Left(path, SKIPPED) for path in _skipped(captured)),
        *(Left(_path(item.region.sink), f"rolled back: {item.reason}") for item in failed),
        *(Left(item.path, item.reason) for item in rewrites.declined),
        *_too_dear(plan, gone, facts),
        *(Left(_path(r.node), r.reason) for r in facts.refusals if _says_something(r.node, r.source, facts)),
    )
    lonely = _lonely_norms(facts, done, {item.path for item in left})
    return Report(captured.name, fused, (*left, *lonely), checks, rewrites.done)


def _skipped(captured: Captured) -> Iterable[str]:
    """The modules that the caller keeps, as far as they are called, or their weights read."""
    read = (str(node.target).rpartition(".")[0] for node in captured.graph.find_nodes(op="get_attr"))
    return dict.fromkeys(
        path for path in (*captured.opaque, *captured.modules, *read) if path in captured.selection.whole
    )


def _opaque(captured: Captured, inner: tuple[str, ...]) -> Iterable[Left]:
    """What stays Python, and how many batch norms with it; a statement belongs to its module."""
    for path, reason in captured.opaque.items():
        if reason == SKIPPED:
            continue
        if isinstance(captured.modules.get(path), KeptStatement):
            yield Left(path.rpartition(".")[0], f"stays Python: {reason}")
            continue
        parts = captured.modules[path].named_modules(prefix=path) if path in captured.modules else ()
        names = [f"{name}." for name, part in parts if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        norms = sum(not name.startswith(tuple(f"{place}." for place in inner)) for name in names)
        yield Left(path, f"stays Python: {reason}", norms=norms)


def _working(region: Region, facts: Facts) -> Iterable[fx.Node]:
    """The nodes of a region that do more than move positions."""
    return (node for node in region.nodes if node not in facts.steps)


def _lonely_norms(facts: Facts, done: set[fx.Node], said: set[str]) -> Iterable[Left]:
    """Batch norms that stay and of which nothing was said: what is beside them is not linear, or has other readers."""
    for node, rule in facts.rules.items():
        if rule.word == "norm" and node not in done and _path(node) not in said:
            yield Left(_path(node), "batch norm beside no convolution or Linear that could take it in")


def _fused(item: Rewritten, facts: Facts, idioms: Sequence[Idiom]) -> Fused:
    made = item.made
    error = 0.0 if made.check is None else made.check.relative
    branches = branches_of(item.region, facts) or ()
    path = item.path or _path(item.region.sink)
    x = item.region.fact.map
    n_axes = len(x.axes) if isinstance(x, Affine) and item.region.fact.ends else None
    name, operators = name_of(item.region, facts, idioms), total(item.region.before).launches
    return Fused(name, path, branches, operators, error, made.check, made.rounded, made.ranges, n_axes)


def _too_dear(plan: Plan, gone: set[fx.Node], facts: Facts) -> Iterable[Left]:
    """One line for each value that could be one operator with what is in front of it, but would not be cheaper."""
    done: set[fx.Node] = set()
    for region in plan.refused:
        if region.sink in done or region.sink in gone:
            continue
        done.add(region.sink)
        words = " + ".join(branch or "skip" for branch in branches_of(region, facts) or ("...",))
        before, after = total(region.before).macs, total(region.after).macs
        factor = after / before if before else 1.0
        if factor > 1.05:
            yield Left(_path(region.sink), f"{words}: exact as one operator, with more multiply-accumulates:", factor)
        else:
            border = " and a border map" if isinstance(region.fact.map, Affine) and region.fact.map.has_border else ""
            yield Left(_path(region.sink), f"{words}: exact as one operator{border}, which is not cheaper")


def _says_something(node: fx.Node, source: fx.Node, facts: Facts) -> bool:
    """Whether somebody might have expected this to fuse: the values in between are operators of the algebra."""
    return node.op == "call_module" or len(facts.maps.get(node, ())) > 0 or source in facts.rules


def _text(item: RenderableType) -> str:
    console = Console(width=WIDTH, no_color=True, highlight=False)
    with console.capture() as text:
        console.print(item)
    return text.get().rstrip()


def _times(least: float, most: float | None = None) -> str:
    low, high = f"{least:.0f}", f"{least if most is None else most:.0f}"
    return f"x {low}" if low == high else f"x {low} to {high}"


def _path(node: fx.Node) -> str:
    return str(node.meta.get("path") or node.name)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < index < len(columns) - 1 else "left", overflow="fold")
    return table
