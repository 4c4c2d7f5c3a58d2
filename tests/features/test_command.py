"""`mechscope features`: build, sum up, search, look, label; and the indexes that ship with a bundled model."""

import shutil
from pathlib import Path

import pytest
import torch

import mechscope as ms
from command_line_runs import Shell, is_refusal
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings
from mechscope.features import shipped
from mechscope.features.index import open_index
from mechscope.features.shipping import refuse_if_large
from mechscope.models.opening import BUNDLED
from mechscope.vocabulary.errors import BadFile
from mechscope.vocabulary.sites import Site

TEXT = BUNDLED / "induction" / "calibration.txt"


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a random dictionary on the bundled induction model, built by command."""
    place = tmp_path_factory.mktemp("command")
    width = ms.load("induction", check=False).d_model
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, width, generator=generator)
    port = Port(site=Site("resid_post", 0), shape=(width,))
    settings = Settings(reads=(port,), writes=(port,), n_latents=20, gate=Gate(rule="topk", k=4))
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows}
    tensors |= {"b_enc": torch.zeros(20), "b_dec": torch.zeros(width)}
    Dictionary(settings, tensors).save(place / "dictionary")
    return place


def words(folder: Path, text: Path = TEXT) -> list[object]:
    return ["induction", "--dictionary", folder / "dictionary", "--text", text, "--out", folder / "index"]


def test_an_index_is_built_searched_and_looked_at_by_command(
    shell: Shell, folder: Path, tmp_path: Path
) -> None:
    built = shell("features", *words(folder), "--json")
    assert built.code == 0 and built.json["latents"] == 20 and built.json["tokens"] > 0
    again = shell("features", *words(folder))
    assert again.code == 0 and "most active" not in again.err and "dead" in again.out
    index = folder / "index"
    word = TEXT.read_text().split()[5]
    assert shell("features", index, "--search", word, "--json").json["hits"]
    assert shell("features", index, "--search", word, "--run").code == 0
    page = shell("features", index, "--latent", 3, "--label", "third", "--out", tmp_path / "p.html", "--json")
    assert page.json["index"] == 3 and page.json["label"] == "third" and (tmp_path / "p.html").is_file()
    assert "Latent 3: third" in shell("features", index, "--latent", 3).out


def test_words_that_contradict_each_other_are_refused(shell: Shell, folder: Path, tmp_path: Path) -> None:
    assert is_refusal(shell("features", "induction", "--dictionary", folder / "dictionary"), "BadCommand")
    assert is_refusal(shell("features", "x", "--out", tmp_path / "y"), "BadCommand")
    assert is_refusal(shell("features", "x", "--label", "y"), "BadCommand")
    assert is_refusal(shell("features", tmp_path / "nothing"), "BadFile")


def test_a_bundled_index_is_found_by_its_model_and_site(
    shell: Shell, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (folder / "index").is_dir():
        shell("features", *words(folder))
    monkeypatch.setattr(shipped, "BUNDLED", tmp_path)
    for site in ("resid_post.2", "mlp.0"):
        shutil.copytree(folder / "index", tmp_path / "toy" / "features" / site)
    assert list(shipped.bundled_indexes("toy")) == ["mlp.0", "resid_post.2"]
    assert open_index("toy").folder.name == "resid_post.2" and open_index("toy/mlp.0").folder.name == "mlp.0"
    assert shipped.bundled("toy/mlp.7") is None and shipped.bundled("../toy") is None
    assert shell("features", "toy").code == 0
    assert refuse_if_large([tmp_path / "toy"]) > 0
    with pytest.raises(BadFile, match="too large"):
        refuse_if_large([tmp_path / "toy"], most=10)
