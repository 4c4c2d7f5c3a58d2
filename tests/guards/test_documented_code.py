"""The Python of the README and of the quick start runs as it is printed, page by page, top to bottom."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import mechscope
from guards.tree import ROOT

PAGES = ("README.md", "docs/quick_start.md")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def python_of(page: str) -> str:
    """All Python blocks of a page as one program."""
    return "\n".join(BLOCK.findall(page))


def missing_names(program: str) -> list[str]:
    """Names of `ms.` that the index does not have."""
    return sorted(set(re.findall(r"\bms\.(\w+)", program)) - set(mechscope.__all__))


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_python_of_names_that_exist(path: str) -> None:
    program = python_of((ROOT / path).read_text())
    compile(program, path, "exec")
    assert not missing_names(program)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_the_page_runs_and_its_claim_reaches_the_verdict_that_it_says(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page: dict[str, Any] = {"__name__": "page"}
    program = python_of((ROOT / path).read_text())
    exec(compile(program, path, "exec"), page)
    assert page["verdict"].outcome == "supported", str(page["verdict"])
    assert len(list((tmp_path / "claims").iterdir())) > 0, "the opening was counted"


def test_seven_lines_are_seven_statements() -> None:
    first = BLOCK.findall((ROOT / "README.md").read_text())[0]
    assert len(ast.parse(first).body) == 7


def test_the_guard_reads_every_block_and_sees_unknown_names() -> None:
    page = "```python\nx = ms.lode(1)\n```\ntext\n```sh\nls\n```\n```python\ny = ms.Site('z', 1)\n```\n"
    assert python_of(page) == "x = ms.lode(1)\n\ny = ms.Site('z', 1)\n"
    assert missing_names(python_of(page)) == ["lode"]
