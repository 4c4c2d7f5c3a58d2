"""Importing the index, the vocabulary, the records or the command line brings no torch and does no work."""

import subprocess
import sys

import pytest

from guards.tree import PACKAGE

HEAVY = ("torch", "transformers", "tokenizers", "sklearn", "scipy", "plotly", "datasets", "networkx")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after `statement` in a fresh interpreter."""
    program = (
        f"{statement}\nimport sys\nsys.stdout.write(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    )
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    run = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def modules_of(folder: str) -> list[str]:
    files = sorted((PACKAGE / folder).rglob("*.py"))
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_importing_the_index_brings_neither_torch_nor_numpy() -> None:
    assert not loaded_by("import mechscope") & {*HEAVY, "numpy", "pydantic", "rich", "typer"}


@pytest.mark.parametrize(
    "folder", [name for name in ("vocabulary", "records", "cli") if (PACKAGE / name).is_dir()]
)
def test_importing_a_light_floor_brings_no_heavy_package(folder: str) -> None:
    statement = "\n".join(f"import {name}" for name in modules_of(folder))
    assert not loaded_by(statement) & set(HEAVY)


def test_the_guard_sees_a_heavy_import() -> None:
    assert "networkx" in loaded_by("import networkx") & set(HEAVY)
