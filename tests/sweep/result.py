"""What became of one model, and where it is kept between the worker, the tests and the table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path("build", "sweep")
USUAL, LIMIT = 90, 900  # seconds of computing for one model, on one thread: that most need, that it may take


@dataclass(frozen=True, slots=True)
class Counts:
    """One forward.  price: `Roofline`'s seconds, over every operator that ran on the first input."""

    operators: int
    norms: int
    macs: int
    price: float


@dataclass(frozen=True, slots=True)
class Result:
    """One model of the catalogue.

    name: of the entry.  problems: what is wrong, empty if nothing is.  skipped: why the model could not be asked.
    parameters: of the model.  sizes: shapes of the inputs compared.  before, plain, informed: as it was, after
    `fuse(model)`, after `fuse(model, example_inputs)`.  exact: largest relative error of a float64 model.
    rounded: of a float32 model, compared in float64.  explained: what the model itself makes of weights that are off by
    one rounding to float32, where the errors are more than usual.  seconds: `fuse(model)`.
    computed: seconds of computing that all of it took.  touched: what changed in the user's model.
    trace: end of the process's traceback.
    float64: whether the model runs in float64; if not, all is compared in float32.
    left: reason -> places.  silent: batch norms that are left without a reason.
    """

    name: str
    problems: tuple[str, ...] = ()
    skipped: str = ""
    parameters: int = 0
    sizes: tuple[str, ...] = ()
    before: Counts | None = None
    plain: Counts | None = None
    informed: Counts | None = None
    float64: bool = True
    exact: float | None = None
    rounded: float | None = None
    explained: float | None = None
    seconds: float | None = None
    computed: float | None = None
    touched: tuple[str, ...] = ()
    trace: str = ""
    left: Mapping[str, int] = field(default_factory=dict[str, int])
    silent: tuple[str, ...] = ()


def path_of(name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{name}.json"


def write(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=1))


def read(path: Path) -> Result:
    fields: dict[str, Any] = json.loads(path.read_text())
    for name in ("before", "plain", "informed"):
        fields[name] = Counts(**fields[name]) if fields[name] else None
    for name in ("problems", "sizes", "silent", "touched"):
        fields[name] = tuple(fields[name])
    return Result(**fields)
