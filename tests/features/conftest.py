"""One index for the tests that only look, and copies for those that write labels.

mechscope is imported inside the fixtures: tests/conftest.py says why.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from features.cases import built
    from mechscope.features.manifest import IndexSettings

    return built(tmp_path_factory.mktemp("index") / "i", settings=IndexSettings(entries_per_part=1500)).folder


@pytest.fixture
def index(index_folder: Path, tmp_path: Path) -> "FeatureIndex":
    from features.cases import dictionary_of, model_of
    from mechscope.features.index import FeatureIndex

    shutil.copytree(index_folder, tmp_path / "copy")
    return FeatureIndex(tmp_path / "copy").attached(model_of(), dictionary_of())
