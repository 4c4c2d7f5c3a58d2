"""The Python of the README and of the quick start runs as it is printed, page by page, top to bottom."""

import re

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
def test_the_page_runs(path: str) -> None:
    program = python_of((ROOT / path).read_text())
    exec(compile(program, path, "exec"), {"__name__": "page"})


def test_the_guard_reads_every_block_and_sees_unknown_names() -> None:
    page = "```python\nx = ms.lode(1)\n```\ntext\n```sh\nls\n```\n```python\ny = ms.Site('z', 1)\n```\n"
    assert python_of(page) == "x = ms.lode(1)\n\ny = ms.Site('z', 1)\n"
    assert missing_names(python_of(page)) == ["lode"]
