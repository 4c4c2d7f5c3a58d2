"""Tables in the documentation equal the code that they describe."""

import runpy

from guards.tree import ROOT

WRITER = runpy.run_path(str(ROOT / "docs" / "write_tables.py"))
POINTS_PAGE = ROOT / "docs" / "methods" / "points.md"


def test_every_table_from_code_is_current() -> None:
    assert not WRITER["stale_pages"](), "run docs/write_tables.py"


def test_the_page_of_points_holds_the_table_of_points() -> None:
    assert WRITER["points_table"]() in POINTS_PAGE.read_text()
    assert WRITER["dimensions_table"]() in POINTS_PAGE.read_text()


def test_a_changed_row_would_be_seen() -> None:
    page = POINTS_PAGE.read_text()
    assert WRITER["with_tables"](page.replace("| `resid_post` |", "| `resid_pots` |")) == page
