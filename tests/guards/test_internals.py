"""docs/internals.md has one paragraph per source file, and none for a file that is gone."""

import ast
import re

from guards.tree import ROOT, package_sources

ENTRY = re.compile(r"^`([\w/]+\.py)`: \S", re.MULTILINE)


def described_files(page: str) -> list[str]:
    """Files that have a paragraph, i.e. a line that starts with "`folder/file.py`: "."""
    return ENTRY.findall(page)


def source_files() -> set[str]:
    """Files to describe: all but a folder's `__init__.py` that is only its docstring."""
    return {
        path
        for path, source in package_sources()
        if not path.endswith("/__init__.py") or len(ast.parse(source).body) > 1
    }


def test_every_source_file_has_its_paragraph() -> None:
    described = described_files((ROOT / "docs" / "internals.md").read_text())
    missing = sorted(source_files() - set(described))
    assert not missing, f"add a paragraph to docs/internals.md for {missing}"


def test_no_paragraph_describes_a_file_that_is_gone_or_described_already() -> None:
    described = described_files((ROOT / "docs" / "internals.md").read_text())
    assert sorted(described) == sorted(set(described))
    assert not set(described) - {path for path, _ in package_sources()}


def test_the_guard_reads_paragraphs_only() -> None:
    page = "`engine/plan.py`: plans.\n\nSee `engine/rows.py`: not an entry.\n"
    assert described_files(page) == ["engine/plan.py"]
