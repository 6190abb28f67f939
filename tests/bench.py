"""The speed of the compiler, and of what it makes: every ratio with its target.  Exit code 1 if one is missed.

`make bench`, or `PYTHONPATH=. python tests/bench.py --rounds 15`. All times are medians of rounds in which the
competitors take turns, on all cores.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fx_fuse

from fastvit_zoo import create_model, list_models
from repcompile import fuse
from repcompile.measure import latencies
from repcompile.testing import randomize

COMPILE_TARGET = 1.5  # of torch.fx's fuser, which folds none of the batch norms of timm's FastViT
LATENCY_TARGET = 0.95  # of timm's conversion by hand
VARIANT_TARGET = 1.0  # of the training form


@dataclass(frozen=True, slots=True)
class Result:
    """ours, theirs: seconds.  target: the largest ratio that passes."""

    what: str
    ours: float
    theirs: float
    target: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def passed(self) -> bool:
        return self.ratio <= self.target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks and print a table; 1 if a target is missed."""
    options = parser().parse_args(arguments)
    torch.manual_seed(0)
    benchmarks: dict[str, Callable[[], list[Result]]] = {
        "compile": lambda: compile_time(options.compile_rounds),
        "latency": lambda: fused_against_converted(options.rounds),
        "variants": lambda: fused_against_training_form(options.rounds),
    }
    results = [result for name in options.only for result in benchmarks[name]()]
    show(Console(), results)
    return 0 if all(result.passed for result in results) else 1


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--rounds", type=int, default=31, help="forwards of each model (default: %(default)s)")
    result.add_argument("--compile-rounds", type=int, default=7, help="runs of each compiler (default: %(default)s)")
    names = ["compile", "latency", "variants"]
    result.add_argument("--only", nargs="+", choices=names, default=names, help="which ones (default: all)")
    return result


def compile_time(rounds: int) -> list[Result]:
    """`repcompile.fuse` on MA36 against torch.fx's fuser on timm's."""
    theirs = randomize(timm.create_model("fastvit_ma36")).eval()
    zoo = randomize(create_model("fastvit_ma36")).eval()
    compilers = [lambda: fx_fuse(theirs), lambda: fuse(theirs), lambda: fuse(zoo)]
    fx, ours, ours_zoo = times_of(compilers, rounds)
    return [
        Result("fuse timm's MA36 / torch.fx's fuser on it", ours, fx, COMPILE_TARGET),
        Result("fuse the zoo's MA36 / torch.fx's fuser on timm's", ours_zoo, fx, COMPILE_TARGET),
    ]


def fused_against_converted(rounds: int) -> list[Result]:
    """T8, 256 x 256, batch 1: fused from either training form against timm's converter."""
    theirs = randomize(timm.create_model("fastvit_t8")).eval()
    converted = reparameterize_model(copy.deepcopy(theirs))
    zoo = randomize(create_model("fastvit_t8")).eval()
    slow, ours, ours_zoo = latencies([converted, fuse(theirs), fuse(zoo)], [image()], rounds)
    return [
        Result("T8 from timm's form / timm's converted T8", ours, slow, LATENCY_TARGET),
        Result("T8 from the zoo's form / timm's converted T8", ours_zoo, slow, LATENCY_TARGET),
    ]


def fused_against_training_form(rounds: int) -> list[Result]:
    """Every variant, 256 x 256, batch 1."""
    results: list[Result] = []
    for name in list_models():
        model = randomize(create_model(name)).eval()
        before, after = latencies([model, fuse(model)], [image()], rounds)
        results.append(Result(f"{name} / its training form", after, before, VARIANT_TARGET))
    return results


def image() -> Tensor:
    return torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def times_of(functions: Sequence[Callable[[], nn.Module]], rounds: int) -> list[float]:
    """Median seconds of each function, taking turns; the first turn warms up."""
    seen: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, times in zip(functions, seen, strict=True):
            start = time.perf_counter()
            function()
            if turn > 0:
                times.append(time.perf_counter() - start)
    return [median(times) for times in seen]


def show(console: Console, results: Sequence[Result]) -> None:
    table = Table(title=f"{torch.get_num_threads()} threads", box=None, header_style="bold", pad_edge=False)
    table.add_column("ours / theirs")
    for column in ("ours", "theirs", "ratio", "target", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        verdict = "[green]ok[/green]" if result.passed else "[red]missed[/red]"
        milliseconds = [f"{1e3 * seconds:.1f} ms" for seconds in (result.ours, result.theirs)]
        table.add_row(result.what, *milliseconds, f"{result.ratio:.2f}", f"<= {result.target:.2f}", verdict)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
