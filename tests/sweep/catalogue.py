"""Which models the sweep runs: catalogue.txt, one line each, so that collecting tests imports no library."""

from dataclasses import dataclass
from pathlib import Path

CATALOGUE = Path(__file__).with_name("catalogue.txt")
LARGE = frozenset(("torchvision-regnet_y_128gf", "torchvision-vit_h_14"))  # 640 million parameters each: 16 GB and more


@dataclass(frozen=True, slots=True)
class Entry:
    """library: that the model comes from.  group: the file or task that it belongs to.  name: what the library says."""

    library: str
    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"

    @property
    def alone(self) -> bool:
        """Whether there is no memory for another one beside it."""
        return str(self) in LARGE


def catalogue() -> list[Entry]:
    """Every model of the sweep, in the order of the file."""
    return [Entry(*line.split()) for line in CATALOGUE.read_text().splitlines()]


def entry_of(text: str) -> Entry:
    """The entry that `str(entry)` names."""
    return next(entry for entry in catalogue() if str(entry) == text)
