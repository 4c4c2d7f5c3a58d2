"""Canary: the tests run with shapes checked, functions and dataclasses alike."""

import importlib
import sys
from pathlib import Path

import jaxtyping
import pytest

SAMPLE = """
from dataclasses import dataclass
import numpy as np
from jaxtyping import Float

def halve(x: Float[np.ndarray, "batch 3"]) -> Float[np.ndarray, "batch 3"]:
    return x / 2

@dataclass
class Grid:
    values: Float[np.ndarray, "row column"]
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
