"""Published networks, a process each: equal outputs, an untouched model, and nothing worse than before.

`make sweep` runs all, `make sweep TEST_ARGS="-k timm-resnet"` some.
"""

import importlib.util

import pytest

from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.run import run

pytestmark = pytest.mark.sweep


@pytest.mark.parametrize("entry", catalogue(), ids=str)
def test_a_published_network(entry: Entry) -> None:
    if importlib.util.find_spec(entry.library) is None:
        pytest.skip(f"{entry.library} is not installed: pip install '.[sweep]'")
    result = run(entry)
    if result.skipped:
        pytest.skip(result.skipped)
    assert not result.problems, result.trace
