"""Which models the sweep runs: catalogue.txt, one line each, so that collecting tests imports no library."""

from dataclasses import dataclass
from pathlib import Path

from tests.sweep.result import LIMIT

CATALOGUE = Path(__file__).with_name("catalogue.txt")
HEAVY = 900  # seconds of computing for those that take longer than others: long videos, large images, much attention
SLOW = frozenset(
    (
        "timm-cait_s24_384",
        "timm-swinv2_cr_small_384",
        "torchvision-convnext_large",
        "torchvision-deeplabv3_resnet101",
        "torchvision-keypointrcnn_resnet50_fpn",
        "torchvision-maskrcnn_resnet50_fpn_v2",
        "torchvision-mvit_v1_b",
        "torchvision-mvit_v2_s",
        "torchvision-regnet_y_128gf",
        "torchvision-ssd300_vgg16",
        "torchvision-swin3d_b",
        "torchvision-vit_h_14",
        "torchvision-vit_l_16",
        "torchvision-vit_l_32",
        "transformers-swinv2",
    )
)
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
    def seconds(self) -> int:
        """Of computing, on one thread, that it may take."""
        return HEAVY if str(self) in SLOW else LIMIT

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
