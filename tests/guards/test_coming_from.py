"""Each call in docs/coming_from.md runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest

import mechscope as ms

ROW = re.compile(r"^\| .+ \| `([^`]+)` \|$", re.MULTILINE)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def calls_of(page: str) -> list[str]:
    """The code of a page: its blocks, then the right-hand column of its tables."""
    return [*BLOCK.findall(page), *ROW.findall(page)]


def run_all(calls: list[str]) -> dict[str, object]:
    """Execute calls one after another in one namespace."""
    names: dict[str, object] = {}
    for call in calls:
        exec(compile(call, f"<{call.splitlines()[0]}>", "exec"), names)  # our own documentation
    return names


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")


def test_every_call_in_the_table_runs(page: str) -> None:
    calls = calls_of(page)
    assert len(calls) > 25
    names = run_all(calls)
    assert isinstance(names["model"], ms.Model)
    assert isinstance(names["story"], str)


def test_every_row_is_read(page: str) -> None:
    rows = [line for line in page.splitlines() if line.startswith("| `") or line.startswith("| the same")]
    assert len(ROW.findall(page)) == len(rows)


def test_a_call_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AttributeError):
        run_all(["import mechscope as ms", "ms.from_pretrained('gpt2')"])
