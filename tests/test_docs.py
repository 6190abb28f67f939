"""The pages that are run: every block of Python, in order, in one namespace."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

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


def test_rules(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "rules.md").read_text()
    toml = next(block["text"] for block in BLOCK.finditer(page) if block["kind"] == "toml")
    declared = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", toml).replace('"', "")
    install(site, "antialiasing", declared)
    namespace: dict[str, object] = {"__name__": "docs_rules"}
    for block in BLOCK.finditer(page):
        line = page[: block.start()].count("\n") + 1
        if block["file"]:
            file = site / block["file"]
            file.parent.mkdir(exist_ok=True)
            file.write_text(block["text"])
            invalidate_caches()
        elif block["kind"] == "python":
            exec(compile("\n" * line + block["text"], str(DOCS / "rules.md"), "exec"), namespace)
    capsys.readouterr()
    assert main(["explain", "antialiasing.rules:Double", "--rules", "antialiasing"]) == 0
    assert main(["explain", "antialiasing.rules:Double", "--rules", "antialias"]) == 1
    assert "no installed package offers rules called 'antialias'; offered: antialiasing" in re.sub(
        r"\s+", " ", capsys.readouterr().err
    )
