"""Where new modules and tensors go: places in the hierarchy that read like the model did."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence, Set

from torch import fx

from repcompile.affine import Affine
from repcompile.capture import Captured
from repcompile.defaults import Specialized
from repcompile.facts import Facts
from repcompile.regions import Region

RESERVED = frozenset(  # beside the names of the class
    (
        *("meta", "self", "_graph", "_code", "_tracer_cls", "_tracer_extras", "shape_env"),
        *("_way", "_others", "_keeps", "_written"),
    )
)
UNSAYABLE = re.compile(r'["\\\x00-\x1f]')  # between quotation marks
# What generated code says, beside the builtin functions that it calls: an argument of that name would hide it.
SPOKEN = frozenset(
    (
        *("self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"),
        *("slice", "range", "complex", "Ellipsis"),
    )
)


def names_of_regions(regions: Sequence[Region], captured: Captured, facts: Facts) -> list[str]:
    """A place in the hierarchy for each region: the module that it replaces, else that of its heaviest operator."""
    kept = {step.node for region in regions for step in region.fact.path}  # called again, before or behind the new ones
    gone = {node for region in regions for node in region.owned} - kept
    taken = _Paths()
    for node in captured.graph.nodes:
        stays = node not in gone if node.op == "call_module" else not gone.issuperset(node.users)
        if stays and node.op in ("call_module", "get_attr"):
            taken.add(str(node.target))
    return [taken.first_free(_wishes(region, facts)) for region in regions]


def names_of_tensors(nodes: Iterable[fx.Node], captured: Captured, called: Set[str]) -> dict[fx.Node, str]:
    """A place for each tensor that was computed: its own name if it is a parametrized one.

    called: paths of the modules that stay, or are new; no tensor goes into one of them.
    """
    names: dict[fx.Node, str] = {}
    taken = {part for path in (*captured.constants, *captured.modules) for part in _down_to(path)}
    for node in nodes:
        path = str(node.meta.get("path", ""))
        owner, parametrized, field = path.partition(".parametrizations.")
        wish = f"{owner}.{field}" if parametrized else ""
        if not wish or wish in taken or not called.isdisjoint(_prefixes(wish)):
            while not called.isdisjoint(_down_to(path)):
                path = path.rpartition(".")[0]
            wish = _free(f"{path}.{node.name}_settled".lstrip("."), taken)
        names[node] = wish
        taken.add(wish)
    return names


class Places:
    """Where a fused model has what the model has: at the same path, but for names that cannot be used there.

    A graph module and its generated code need some names for themselves, and cannot say others. What has one of these
    gets another one, that nothing beside it has.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """paths: all that the model has."""
        self._names: dict[str, dict[str, str]] = {}  # path of an owner -> name inside -> the name that it gets
        self._taken: dict[str, set[str]] = {}
        parts = dict.fromkeys(part for path in paths for part in _down_to(path))
        for part in sorted(parts, key=_renamings):  # who keeps its name comes first
            self(part)

    def __call__(self, path: str) -> str:
        """The place of what is at `path`."""
        owner, place = "", list[str]()
        for name in path.split("."):
            names, taken = self._names.setdefault(owner, {}), self._taken.setdefault(owner, set())
            if name not in names:
                names[name] = _free(_sayable(name, owner), taken)
                taken.add(names[name])
            place.append(names[name])
            owner = f"{owner}.{name}" if owner else name
        return ".".join(place)


def places_of(captured: Captured) -> Places:
    return Places((*captured.modules, *captured.constants))


def _sayable(name: str, owner: str) -> str:
    """The name, or one like it."""
    reserved = not owner and (hasattr(Specialized, name) or name in RESERVED)
    return f"{UNSAYABLE.sub('_', name)}_" if reserved or keyword.iskeyword(name) or UNSAYABLE.search(name) else name


def _renamings(path: str) -> int:
    """How many of its names cannot stay."""
    first, *rest = path.split(".")
    return (_sayable(first, "") != first) + sum(_sayable(name, first) != name for name in rest)


def _free(wish: str, taken: Container[str]) -> str:
    """The first that is free of a name, the name with an underscore behind it, with two, ..."""
    while wish in taken:
        wish += "_"
    return wish


def rename_arguments(graph: fx.Graph) -> None:
    """Name inputs otherwise that hide what the graph's code says."""
    placeholders = graph.find_nodes(op="placeholder")
    called = {node.target.__name__ for node in graph.nodes if getattr(node.target, "__module__", "") == "builtins"}
    spoken, taken = SPOKEN | called, {str(node.target) for node in placeholders}
    for node in placeholders:
        name = str(node.target)
        if name in spoken:
            node.target = _free(name, spoken | taken)
            taken.add(node.target)


def _wishes(region: Region, facts: Facts) -> tuple[str, str]:
    """What its operators have in common, and the place of the heaviest of them."""
    operators = [node for node in region.nodes if facts.rules[node].kind == "affine"]
    heaviest = max(operators, key=lambda node: _weight(node, facts))
    return _common([str(node.meta["path"]) for node in operators]), str(heaviest.meta["path"])


def _weight(node: fx.Node, facts: Facts) -> int:
    maps = (fact.map for fact in facts.maps[node][:1])
    return max((x.weights if isinstance(x, Affine) and not x.is_diagonal else 0 for x in maps), default=0)


def _common(paths: Sequence[str]) -> str:
    """The longest dotted prefix."""
    parts = [path.split(".") for path in paths]
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    return ".".join(parts[0][:shared])


class _Paths:
    """Dotted paths in use; a path is free if it is not in use, and neither above nor below one that is."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._above: set[str] = set()
        self._counted: Counter[str] = Counter()

    def add(self, path: str) -> None:
        self._used.add(path)
        self._above.update(_prefixes(path))

    def first_free(self, wishes: tuple[str, str]) -> str:
        """The first wish that is free, or the first with a number behind it; from then on it is in use."""
        free = (name for name in wishes if self._free(name))
        name = next(free, None) or next(name for name in self._numbered(wishes[0]) if self._free(name))
        self.add(name)
        return name

    def _numbered(self, wish: str) -> Iterator[str]:
        while not self._used.isdisjoint(_prefixes(wish)):  # inside something that stays as it is
            wish = wish.rpartition(".")[0]
        while True:
            counter, self._counted[wish] = self._counted[wish], self._counted[wish] + 1
            yield f"{wish or 'root'}_fused{counter or ''}"

    def _free(self, path: str) -> bool:
        in_use = path in self._used or path in self._above
        return bool(path) and not in_use and self._used.isdisjoint(_prefixes(path))


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _down_to(path: str) -> list[str]:
    return [*_prefixes(path), path]
