"""The pages that are run: every block of Python, in order, in one namespace."""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from pkgutil import walk_packages

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repcompile
from repcompile.cli import main

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(?P<kind>\w+) ?(?P<file>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory from which packages are imported, and whose entry points are found."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "antialiasing"]:
        del sys.modules[name]


def install(site: Path, name: str, entry_points: str) -> None:
    """The metadata that an installer would write."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def run(page: Path, site: Path, **given: object) -> dict[str, object]:
    """Write the files that the page names and run its other blocks of Python, which take `given` for granted."""
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": f"docs_{page.stem}", **given}
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        if block["file"]:
            file = site / block["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_text(block["text"])
            invalidate_caches()
        elif block["kind"] == "python":
            exec(compile("\n" * line + block["text"], str(page), "exec"), namespace)
    return namespace


def test_rules(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "rules.md"
    toml = next(block["text"] for block in BLOCK.finditer(page.read_text()) if block["kind"] == "toml")
    declared = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", toml).replace('"', "")
    install(site, "antialiasing", declared)
    run(page, site)
    capsys.readouterr()
    assert main(["explain", "antialiasing.rules:Double", "--rules", "antialiasing"]) == 0
    assert main(["explain", "antialiasing.rules:Double", "--rules", "antialias"]) == 1
    assert "no installed package offers rules called 'antialias'; offered: antialiasing" in re.sub(
        r"\s+", " ", capsys.readouterr().err
    )


def test_an_entry_point_that_is_no_rules(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "antialiasing", "[repcompile.rules]\nantialiasing = math:pi\nblur = math:blur\n")
    for name, reason in (("antialiasing", r"\(math:pi\) are a float, not rules"), ("blur", "cannot be loaded: .*blur")):
        assert main(["explain", "torch.nn:ReLU", "--rules", name]) == 1
        assert re.search(f"the rules '{name}' .*{reason}", re.sub(r"\s+", " ", capsys.readouterr().err))


def test_the_tutorial(site: Path) -> None:
    run(DOCS / "tutorial.md", site)


def test_the_algebra(site: Path) -> None:
    run(DOCS / "math.md", site)


class Blur(nn.Module):
    """What the README's rule is about."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.unsqueeze(1), stride=2, padding=1, groups=len(self.kernel))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.blur, self.head = nn.BatchNorm2d(4), Blur(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(self.norm(x))
        return self.head(x * F.relu6(x + 3) / 6)


def test_the_readme(site: Path) -> None:
    model, x = Network().eval(), torch.randn(2, 4, 8, 9)
    names = {name: getattr(repcompile, name) for name in ("Affine", "DEFAULT", "affine_rule", "rewrite_rule")}
    given: dict[str, object] = {**names, "F": F, "Blur": Blur, "model": model, "x": x}
    fused = run(DOCS.parent / "README.md", site, **given)["fused"]
    assert isinstance(fused, nn.Module)
    torch.testing.assert_close(fused(x), model(x))
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 2
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_with_code_is_run_above() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    with_code = {page.name for page in pages if any(b["kind"] == "python" for b in BLOCK.finditer(page.read_text()))}
    assert with_code == {"rules.md", "tutorial.md", "math.md", "README.md"}


def test_what_docstrings_show() -> None:
    names = [name for _, name, _ in walk_packages(repcompile.__path__, "repcompile.") if name != "repcompile.__main__"]
    shown = [doctest.testmod(import_module(name)) for name in names]
    assert sum(result.attempted for result in shown) >= 5
    assert [result.failed for result in shown] == [0] * len(names)
