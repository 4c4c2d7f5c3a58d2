"""The index of public names resolves, and docs/api.md lists the same names."""

import re

import pytest

import mechscope
from guards.tree import ROOT

ROW = re.compile(r"^\| `ms\.(\w+)", re.MULTILINE)


def documented_names(page: str) -> list[str]:
    """Names in the first column of the tables of docs/api.md."""
    return ROW.findall(page)


PAGE = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("name", mechscope.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(mechscope, name) is not None


def test_every_public_name_is_documented_once_and_nothing_else_is() -> None:
    names = documented_names(PAGE)
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(mechscope.__all__) - {"__version__"}


def test_the_editor_sees_the_names_that_the_index_gives() -> None:
    source = (ROOT / "src" / "mechscope" / "__init__.py").read_text()
    block = source.split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    assert set(re.findall(r" as (\w+)", block)) == set(mechscope.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'micoscope'"):
        _ = mechscope.micoscope


def test_the_guard_reads_the_table() -> None:
    assert documented_names("| `ms.load(id)` | opens |\n| `ms.Site` | a site |\n`ms.prose`") == [
        "load",
        "Site",
    ]
