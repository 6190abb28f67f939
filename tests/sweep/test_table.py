"""The page of results: rows of models that were not run again stay."""

import pytest

from tests.sweep.catalogue import Entry
from tests.sweep.table import PAGE, Row, Rows, page, rows_of


@pytest.fixture
def rows() -> Rows:
    return rows_of(PAGE.read_text())


def test_a_page_is_its_rows(rows: Rows) -> None:
    assert len(rows) > 300
    assert rows_of(page(rows)) == rows


def test_a_new_row_takes_the_place_of_the_old_one(rows: Rows) -> None:
    entry: Entry = next(iter(rows))
    new = Row("With a problem", f"| {entry.name} | takes more than 1 s |")
    found = rows_of(page({**rows, entry: new}))
    assert found == {**rows, entry: new}
