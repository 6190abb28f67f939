"""`repcompile demo`: a model in its training form against its fused form, on a real photograph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from repcompile.compare import Check
from repcompile.compiler import Compilation, compile_model
from repcompile.measure import Measure, latencies, measure
from repcompile.verify import verify


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model and its fused form.  measures, seconds: before and after.  checks: in float64 and in float32."""

    compilation: Compilation
    fuse_seconds: float
    measures: tuple[Measure, Measure]
    seconds: tuple[float, float]
    checks: tuple[Check, Check]
    logits: Tensor


def run(model: nn.Module, image: Tensor, **choices: Any) -> Comparison:
    """Fuse `model` and compare the two on `image`: (1, c, h, w).  choices: as of `compile_model`."""
    start = time.perf_counter()
    compilation = compile_model(model, **choices)
    elapsed = time.perf_counter() - start
    fused = compilation.module
    before, after = latencies([model, fused], [image])
    with torch.inference_mode():
        logits = fused(image)
    return Comparison(
        compilation,
        elapsed,
        (measure(model, [image]), measure(fused, [image])),
        (before, after),
        verify(model, fused, [image]),
        logits,
    )


def show(console: Console, title: str, result: Comparison, names: Callable[[], Sequence[str]] | None) -> None:
    """Print a comparison; with `names`, also the five classes that score highest."""
    console.print(f"[bold]{title}[/bold]")
    console.print(result.compilation.report)
    console.print(_table(result))
    exact, native = result.checks
    console.print(
        f"largest difference {exact.error:.1e} in float64 (relative {exact.relative:.1e}), "
        f"{native.error:.1e} in float32 (relative {native.relative:.1e}); fused in {result.fuse_seconds:.2f} s"
    )
    if names is not None:
        console.print(_top_classes(result.logits, names()))


def _table(result: Comparison) -> Table:
    before, after = result.measures
    table = Table("", "training form", "fused", "ratio", box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    rows: list[tuple[str, float, float, Callable[[Any], str]]] = [
        ("operators", before.operators, after.operators, str),
        ("batch norms", before.norms, after.norms, str),
        ("parameters", before.parameters, after.parameters, lambda n: f"{n / 1e6:.2f} M"),
        ("multiply-accumulates", before.macs, after.macs, lambda n: f"{n / 1e9:.3f} G"),
        ("latency", *result.seconds, lambda s: f"{1e3 * s:.1f} ms"),
    ]
    for name, old, new, text in rows:
        table.add_row(name, text(old), text(new), f"{new / old:.2f}" if old else "")
    return table


def _top_classes(logits: Tensor, names: Sequence[str]) -> Table:
    table = Table("class", "probability", box=None, header_style="bold", pad_edge=False)
    scores, places = logits.softmax(-1)[0].topk(5)
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        name = names[place] if place < len(names) else f"class {place}"
        table.add_row(str(name), f"{100 * score:.1f} %")
    return table
