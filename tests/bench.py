"""The speed of the compiler, and of what it makes: every ratio with its target.  Exit code 1 if one is missed.

`make bench`, or `PYTHONPATH=. python tests/bench.py --rounds 15`. All times are medians of rounds in which the
competitors take turns, on all cores.
"""

import argparse
import copy
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import timm
import torch
from fvcore.nn import FlopCountAnalysis
from rich.console import Console
from rich.table import Table
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fx_fuse

from fastvit_zoo import create_model, list_models
from repcompile import fuse
from repcompile.measure import latencies
from repcompile.testing import randomize
from tests.zoo.test_model import PAPER_GMACS

COMPILE_TARGET = 1.5  # of torch.fx's fuser, which folds none of the batch norms of timm's FastViT
LATENCY_TARGET = 0.95  # of timm's conversion by hand
VARIANT_TARGET = 1.0  # of the training form
NEVER_WORSE = 1.02  # of the model as it was
NETWORKS = (  # of timm, 224 x 224: with and without branches, norms, attention, shuffles
    *("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "densenet121", "ghostnet_100"),
    *("repvgg_a0", "mobileone_s0", "levit_128s", "convnext_atto", "vit_tiny_patch16_224"),
)


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
    if "macs" in options.only:
        show_macs(Console())
    benchmarks: dict[str, Callable[[], list[Result]]] = {
        "compile": lambda: compile_time(options.compile_rounds),
        "latency": lambda: fused_against_converted(options.rounds),
        "variants": lambda: fused_against_training_form(options.rounds),
        "networks": lambda: never_worse(options.rounds),
    }
    results = [result for name in options.only if name in benchmarks for result in benchmarks[name]()]
    show(Console(), results)
    return 0 if all(result.passed for result in results) else 1


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--rounds", type=int, default=31, help="forwards of each model (default: %(default)s)")
    result.add_argument("--compile-rounds", type=int, default=7, help="runs of each compiler (default: %(default)s)")
    names = ["macs", "compile", "latency", "variants", "networks"]
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


def never_worse(rounds: int) -> list[Result]:
    """Networks that nobody here wrote, 224 x 224, batch 1, against themselves."""
    results: list[Result] = []
    for name in NETWORKS:
        model = randomize(timm.create_model(name)).eval()
        before, after = latencies([model, fuse(model)], [image(224)], rounds)
        results.append(Result(f"{name} / as it was", after, before, NEVER_WORSE))
    return results


def show_macs(console: Console) -> None:
    """Multiply-accumulates as fvcore counts them, of every variant's training form and fused form."""
    table = Table(title="G multiply-accumulates by fvcore, 256 x 256", box=None, header_style="bold", pad_edge=False)
    for column in ("variant", "training form", "fused", "paper"):
        table.add_column(column, justify="right" if column != "variant" else "left")
    for name, paper in PAPER_GMACS.items():
        model = create_model(name).eval()
        table.add_row(name, f"{gmacs(model):.3f}", f"{gmacs(fuse(model)):.3f}", str(paper))
    console.print(table)


def gmacs(model: nn.Module) -> float:
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FlopCountAnalysis(model, image()).unsupported_ops_warnings(False).total() / 1e9


def image(size: int = 256) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


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
