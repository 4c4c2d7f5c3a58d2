"""Canary: the tests run with shapes checked, functions and dataclasses alike, whichever folder is run."""

import ast
import importlib
import sys
from pathlib import Path
from typing import Literal

import jaxtyping
import pytest
from beartype.roar import BeartypeCallHintParamViolation

from conftest import imported_early
from guards.tree import ROOT, listing
from shape_checker import needs_shapes

SAMPLE = """
from dataclasses import dataclass
import numpy as np
from jaxtyping import Float

def halve(x: Float[np.ndarray, "batch 3"]) -> Float[np.ndarray, "batch 3"]:
    return x / 2

def double(n: int) -> int:
    return 2 * n

def doubler():
    def double_within(n: int) -> int:
        return 2 * n
    return double_within

@dataclass
class Grid:
    values: Float[np.ndarray, "row column"]

@dataclass
class Size:
    n: int
"""


def sample_module(folder: Path, name: str, prefix: str = ""):
    """The sample, written to `folder` and imported under the hook that conftest puts over mechscope."""
    (folder / f"{name}.py").write_text(prefix + SAMPLE)
    sys.path.insert(0, str(folder))
    try:
        with jaxtyping.install_import_hook(name, "beartype.beartype"):
            return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def test_the_hook_is_over_the_package() -> None:
    assert any(
        "mechscope" in str(vars(finder))
        for finder in sys.meta_path
        if type(finder).__module__.startswith("jaxtyping")
    )


def test_a_wrong_shape_is_caught_in_functions_and_dataclasses(tmp_path: Path) -> None:
    import numpy as np

    module = sample_module(tmp_path, "shape_canary")
    assert module.halve(np.ones((2, 3))).shape == (2, 3)
    assert module.Grid(np.ones((2, 3))).values.shape == (2, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        module.halve(np.ones((2, 4)))
    with pytest.raises(jaxtyping.TypeCheckError):
        module.Grid(np.ones(3))


def test_a_wrong_type_is_caught_where_no_shape_is_named(tmp_path: Path) -> None:
    module = sample_module(tmp_path, "type_canary")
    assert module.double(2) == 4 and module.Size(2).n == 2
    for call in (module.double, module.Size):
        with pytest.raises(BeartypeCallHintParamViolation):
            call("two")


def test_functions_inside_functions_are_left_as_they_are(tmp_path: Path) -> None:
    module = sample_module(tmp_path, "inner_canary")
    assert module.doubler()("two") == "twotwo"
    assert not hasattr(module.doubler(), "__wrapped__")


def test_shapes_are_seen_wherever_an_annotation_names_them() -> None:
    import numpy as np

    def inside(a: dict[str, list[jaxtyping.Float[np.ndarray, "n"]]] | None) -> None: ...
    def quoted(a: "int") -> None: ...
    def within_quotes(a: list["int"]) -> None: ...
    def plain(a: list[int], b: Literal["n"] = "n") -> None: ...

    assert [needs_shapes(f) for f in (inside, quoted, within_quotes, plain)] == [True, True, True, False]


def imports_at_top(source: str) -> set[str]:
    """The packages that a module imports when it is imported itself, the standard library's left out."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_no_conftest_imports_the_package_before_the_hook_stands() -> None:
    """pytest reads the conftest.py of the folders that it is given before it asks tests/conftest.py for the hook."""
    problems = [
        f"{path.relative_to(ROOT)}: {', '.join(early)}"
        for path in sorted((ROOT / "tests").rglob("conftest.py"))
        if (early := sorted(imports_at_top(path.read_text()) - {"pytest", "shape_checker"}))
    ]
    assert not problems, listing(problems)


def test_the_guard_sees_an_early_import() -> None:
    assert imports_at_top("import sys\nfrom features.cases import built\n") == {"features"}
    assert imports_at_top("def fixture():\n    import mechscope\n") == set()
    assert imported_early(["torch", "mechscope.models", "mechscopes"]) == ["mechscope.models"]
