"""The programs that once failed."""

from pathlib import Path

from tests.fuzz.program import Program, from_json

SAVED = Path(__file__).with_name("saved")


def saved() -> dict[str, Program]:
    """Program by name."""
    return {path.stem: from_json(path.read_text()) for path in sorted(SAVED.glob("*.json"))}
