"""One index for the tests that only look, and copies for those that write labels."""

import shutil
from pathlib import Path

import pytest

from features.cases import built, dictionary_of, model_of
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import IndexSettings


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("index") / "i", settings=IndexSettings(entries_per_part=1500)).folder


@pytest.fixture
def index(index_folder: Path, tmp_path: Path) -> FeatureIndex:
    shutil.copytree(index_folder, tmp_path / "copy")
    return FeatureIndex(tmp_path / "copy").attached(model_of(), dictionary_of())
