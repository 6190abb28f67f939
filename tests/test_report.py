"""The report: its text against golden files, and what one can ask it.

`UPDATE_GOLDEN=1 pytest tests/test_report.py` writes the golden files anew.
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from repcompile import DEFAULT, Affine, Report, RuleSet, Uniform, affine_rule, explain, fuse
from repcompile.report import Left
from repcompile.testing import randomize

GOLDEN = Path(__file__).parent / "golden"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
ROUNDING = re.compile(r"\d\.\d+e[-+]\d\d")  # the size of rounding errors depends on the machine
CHANNELS = 16


def depthwise_norm(kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=CHANNELS, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS))


class MobileOne(nn.Module):
    """Three branches around one input."""

    def __init__(self) -> None:
        super().__init__()
        self.large = depthwise_norm(3)
        self.small = depthwise_norm(1)
        self.skip = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x) + self.skip(x))


class Encoding(nn.Module):
    """pe(x) + x"""

    def __init__(self) -> None:
        super().__init__()
        self.pe = nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.pe(x) + x


class Branching(nn.Module):
    """What runs depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@affine_rule(Double)
def tripled(x: Affine | Uniform, layer: Double) -> Affine | Uniform:
    """Wrong."""
    return 3.0 * x


class Small(nn.Module):
    """One of everything that a report has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1), nn.BatchNorm2d(CHANNELS), nn.GELU())
        self.mixers = nn.Sequential(MobileOne(), MobileOne())
        self.encoding = Encoding()
        self.act = nn.GELU()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS)
        self.expand = nn.Conv2d(CHANNELS, 4 * CHANNELS, 1)
        self.branching = Branching()
        self.first, self.second = nn.Conv2d(4 * CHANNELS, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), Double())

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.encoding(self.mixers(self.stem(x))))
        x = self.branching(self.expand(self.depthwise(x)))
        x = F.relu(self.norm(self.second(self.first(x))))
        return self.head(x)


class Plain(nn.Module):
    """Nothing to fuse, nothing to say."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def model(kind: Callable[[], nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return randomize(kind()).eval()


def image() -> Tensor:
    return torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


REPORTS: dict[str, Callable[[], Report]] = {
    "small": lambda: explain(model()),
    "small_with_inputs": lambda: explain(model(), (image(),)),
    "wrong_rule": lambda: explain(model(), rules=DEFAULT + RuleSet((tripled,)).trusting()),
    "nothing": lambda: explain(model(Plain)),
}


# -- golden text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_golden_text(name: str) -> None:
    file = GOLDEN / f"{name}.txt"
    text = "\n".join(line.rstrip() for line in ROUNDING.sub("#.#e-##", str(REPORTS[name]())).splitlines()) + "\n"
    if UPDATE:
        file.write_text(text)
    assert text == file.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(REPORTS)


def test_the_text_is_plain_and_fits() -> None:
    """For a log as for a terminal: no colours, no line longer than a page is wide."""
    text = str(explain(model(), (image(),)))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_rich_prints_the_same() -> None:
    """In a console of the same width."""
    console = Console(width=120, no_color=True, highlight=False)
    report = explain(model())
    with console.capture() as text:
        console.print(report)
    assert text.get().rstrip() == str(report)


# -- what one can ask --------------------------------------------------------------------------------------------------


def test_idioms_count_the_regions() -> None:
    report = explain(model())
    assert dict(report.idioms) == {
        "ConvBN": 2,
        "MobileOne (3 branches, depthwise)": 2,
        "CPE": 1,
        "LayerScale": 1,
    }
    assert sum(report.idioms.values()) == len(report.fused)
    assert report.idioms["RepMixer"] == 0


def test_fused_in_the_order_of_the_model() -> None:
    report = explain(model())
    paths = [item.path for item in report.fused]
    assert paths == ["stem.0", "mixers.0", "mixers.1", "encoding", "second", "head"]
    assert set(paths) <= set(dict(fuse(model()).named_modules()))


def test_how_many_operators_each_region_was() -> None:
    """A convolution and a norm are two; three branches with their norms and two additions are seven."""
    operators = {item.path: item.operators for item in explain(model()).fused}
    assert operators == {
        "stem.0": 2,
        "mixers.0": 7,
        "mixers.1": 7,
        "encoding": 2,
        "second": 2,
        "head": 2,
    }


def test_a_line_of_fused() -> None:
    item = explain(model()).fused[0]
    assert item.check is not None
    assert str(replace(item, check=None)) == f"{item.path}: {item.idiom}"
    assert str(item).startswith(f"{item.path}: {item.idiom}; in float64 ")
    assert "channel" in str(item)
    assert f"{item.check.place}" in str(replace(item, n_axes=None))


def test_branches_in_words() -> None:
    branches = {item.path: set(item.branches) for item in explain(model()).fused}
    assert branches["stem.0"] == {"conv3x3 norm"}
    assert branches["mixers.0"] == {"dw3x3 norm", "dw1x1 norm", "norm"}
    assert branches["encoding"] == {"dw7x7", ""}


def test_errors_are_rounding() -> None:
    assert all(0 <= item.error < 1e-12 for item in explain(model()).fused)


def test_left_says_where_why_and_how_much() -> None:
    left = {item.path: item for item in explain(model()).left}
    assert set(left) == {"expand", "branching", "second"}
    assert left["branching"].reason.startswith("stays Python: ")
    assert left["branching"].factor is None
    assert left["second"].reason == "zero padding between two operators that mix positions"
    dense, apart = 49 * CHANNELS * 4 * CHANNELS, 49 * CHANNELS + CHANNELS * 4 * CHANNELS
    assert left["expand"].reason.startswith("dw7x7 pw: ")
    assert left["expand"].factor == pytest.approx(dense / apart)


def test_a_line_of_left() -> None:
    assert str(Left("a.b", "not today")) == "a.b: not today"
    assert str(Left("a.b", "too dear:", 12.4)) == "a.b: too dear: x 12"


def test_notes_are_counted() -> None:
    report = replace(explain(model()), notes=(Left("a.b", "as it happens"), Left("c", "as it happens")))
    assert re.search(r"note +places .*\n.*\n? *as it happens +2 ", str(report))


def test_a_wrong_rule_is_in_the_report() -> None:
    (left,) = [item for item in REPORTS["wrong_rule"]().left if item.reason.startswith("rolled back: ")]
    assert left.path == "head.1"


def test_checks_only_with_example_inputs() -> None:
    assert explain(model()).checks is None
    checks = explain(model(), (image(),)).checks
    assert checks is not None
    assert all(check.passed for check in checks)


def test_every_batch_norm_that_stays_is_spoken_of() -> None:
    """A norm between two operators that are not linear has no neighbour to be folded into."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()
    (left,) = explain(model).left
    assert left.path == "2"
    assert left.reason == "batch norm beside no convolution or Linear that could take it in"
