"""Lists the models of the installed libraries anew: `python -m tests.sweep.write_catalogue`.

Lines of libraries that are not installed stay as they are.
"""

import importlib
import importlib.util
from typing import Any

from tests.sweep.catalogue import CATALOGUE, Entry, catalogue

LIBRARIES = ("timm", "torchvision", "transformers", "ultralytics")


def main() -> None:
    entries = [entry for library in LIBRARIES for entry in entries_of(library)]
    CATALOGUE.write_text("".join(f"{entry.library} {entry.group} {entry.name}\n" for entry in entries))


def entries_of(library: str) -> list[Entry]:
    if importlib.util.find_spec(library) is None:
        return [entry for entry in catalogue() if entry.library == library]
    models: Any = importlib.import_module(f"tests.sweep.libraries.{library}_models")
    return [Entry(library, group, name) for group, name in models.names()]


if __name__ == "__main__":
    main()
