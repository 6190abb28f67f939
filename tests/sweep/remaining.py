"""Batch norms that a fused model still has, by their path in the user's model, and whether the report says why."""

from collections.abc import Iterable, Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repcompile import Report


def norms_without_reason(fused: nn.Module, report: Report) -> tuple[str, ...]:
    """Paths of batch norms that no line of the report speaks of."""
    spoken = {item.path for item in report.left}
    return tuple(sorted(path for path in norms_left(fused) if spoken.isdisjoint(_prefixes(path))))


def norms_left(fused: nn.Module) -> set[str]:
    """Paths of the batch norms, modules or functions, that `fused` runs."""
    running = dict(fused.named_modules())
    modules = {path for path, module in running.items() if isinstance(module, _BatchNorm)}
    return modules | {
        f"{path}.{place}".lstrip(".")
        for path, module in running.items()
        if isinstance(module, fx.GraphModule)
        for place in _functional(module.graph)
    }


def _functional(graph: fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target):
            yield str(node.meta.get("path") or node.name)


def _prefixes(path: str) -> Iterable[str]:
    """The path itself and everything around it."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]
