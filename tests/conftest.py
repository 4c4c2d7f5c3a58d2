"""What every test run shares: no network, one thread, shape checks on, and the material beside the checkout.

Shape checks (jaxtyping + beartype over the whole package) are on unless the run was given only paths inside
tests/refusals. Under the checks, a mismatch between two annotated arguments raises the checker's error before
ours, so refusals are tested without them, in a run of their own: `pytest tests/refusals`. A wider run leaves
that folder out and says so in its header; `make test` does both.

A module that is imported before the hook stands is never checked, and pytest reads the conftest.py of the folders
that it is given before. So no conftest.py imports mechscope at its top; a run in which one does is refused.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

import pytest

import shape_checker

ROOT = Path(__file__).resolve().parent.parent
REFUSALS = ROOT / "tests" / "refusals"
SHAPE_CHECKS = pytest.StashKey[bool]()


def refusals_among(arguments: list[str], base: Path) -> list[bool]:
    """For each path that pytest was given: does it lie inside tests/refusals?"""
    paths = [(base / argument.split("::")[0]).resolve() for argument in arguments]
    return [path.is_relative_to(REFUSALS) for path in paths]


def imported_early(modules: list[str]) -> list[str]:
    """Modules of mechscope among those imported so far, which the import hook can no longer check."""
    return [name for name in modules if name.split(".")[0] == "mechscope"]


def pytest_configure(config: pytest.Config) -> None:
    chosen = refusals_among(config.args, config.invocation_params.dir)
    if any(chosen) and not all(chosen):
        raise pytest.UsageError("tests/refusals runs without shape checks: give it to pytest on its own")
    config.stash[SHAPE_CHECKS] = not any(chosen)
    if config.stash[SHAPE_CHECKS]:
        if early := imported_early(list(sys.modules)):
            raise pytest.UsageError(f"{early} are imported before the shape checks: import in the fixtures")
        shape_checker.install("mechscope")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.stash[SHAPE_CHECKS] and collection_path == REFUSALS else None


def pytest_report_header(config: pytest.Config) -> str:
    if not config.stash[SHAPE_CHECKS]:
        return "shape checks: off (tests/refusals)"
    left_out = "; tests/refusals is left out, run it on its own" if REFUSALS.is_dir() else ""
    return f"shape checks: on{left_out}"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models, tokenizers and texts beside the checkout; without it the test is skipped."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real models and texts beside the checkout")
    return folder
