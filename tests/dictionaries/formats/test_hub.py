"""Hub ids: a repository is a folder of fixtures here; what is fetched is what the dictionary asked for needs."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from dictionaries.formats.test_reading import ANSWERS, FIXTURES, opened
from mechscope import dictionaries
from mechscope.dictionaries.formats.hub import files_of
from mechscope.vocabulary.errors import BadFile

SCOPE = "gemma-scope-2b-pt-res"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Hub":
    found = Hub(tmp_path)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda _self, repository: found.listed(repository)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.fetched)
    return found


class Hub:
    """Repositories as folders, and a cache beside them: links to nameless blobs, by the patterns asked for."""

    def __init__(self, place: Path) -> None:
        self.remote, self.cache, self.is_reachable = place / "remote", place / "cache", True

    def holds(self, fixture: str, repository: str) -> None:
        shutil.copytree(FIXTURES / fixture, self.remote / repository, dirs_exist_ok=True)

    def listed(self, repository: str) -> list[str]:
        if not self.is_reachable:
            raise ConnectionError("no route")
        return self.files(self.remote / repository)

    def fetched(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        place = self.cache / repository
        if local_files_only and not place.is_dir():
            raise LocalEntryNotFoundError("nothing cached")
        items = [] if local_files_only else self.files(self.remote / repository)
        for file in filter_repo_objects(items, allow_patterns=allow_patterns):
            blob = self.cache / "blobs" / f"{len(list(self.cache.rglob('*')))}"
            for path in (blob, place / file):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / repository / file, blob)
            (place / file).unlink(missing_ok=True)
            (place / file).symlink_to(blob)
        return str(place)

    def files(self, place: Path) -> list[str]:
        return sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())

    def cached(self, repository: str) -> list[str]:
        return self.files(self.cache / repository)


def same(found: dictionaries.Dictionary, name: str) -> bool:
    return all(torch.equal(found.tensors[key], value) for key, value in opened(name).tensors.items())


def test_a_repository_that_is_a_dictionary_is_fetched_without_others_beneath(hub: Hub) -> None:
    hub.holds("sae_lens_standard", "owner/name")
    hub.holds("sae_lens_topk", "owner/name/other")
    (hub.remote / "owner/name/README.md").write_text("words")
    assert same(dictionaries.open("owner/name"), "sae_lens_standard")
    assert hub.cached("owner/name") == ["cfg.json", "sae_weights.safetensors"]
    hub.is_reachable = False
    assert same(dictionaries.open("owner/name"), "sae_lens_standard")
    with pytest.raises(BadFile, match="no dictionary"):
        dictionaries.open("owner/name/other")


def test_one_of_many_dictionaries_is_fetched_with_the_settings_above_it(hub: Hub) -> None:
    hub.holds("sparsify_topk", "owner/many")
    hub.holds("sparsify_skip_transcoder", "owner/many")
    found = dictionaries.open("owner/many/layers.1")
    assert same(found, "sparsify_topk") and found.settings.source.model == "EleutherAI/pythia-70m"
    assert hub.cached("owner/many") == ["config.json", "layers.1/cfg.json", "layers.1/sae.safetensors"]


def test_one_file_is_fetched_alone(hub: Hub) -> None:
    hub.holds("openai_topk", "owner/files/v5")
    (hub.remote / "owner/files/v5/9.pt").write_bytes(b"another")
    assert same(dictionaries.open("owner/files/v5/8.pt", **ANSWERS["openai_topk"]), "openai_topk")
    assert [file for file in hub.cached("owner/files") if file.endswith(".pt")] == ["v5/8.pt"]


def test_a_whole_collection_is_not_fetched_unasked(hub: Hub) -> None:
    hub.holds(f"gemma_scope_res/{SCOPE}", f"google/{SCOPE}")
    for place in (f"google/{SCOPE}", f"google/{SCOPE}/layer_1"):
        with pytest.raises(BadFile, match="no dictionary in the repository") as refusal:
            dictionaries.open(place)
        assert "not fetched unasked" in refusal.value.because
    assert refusal.value.instead == "one of width_16k" and not hub.cache.exists()
    found = dictionaries.open(f"google/{SCOPE}/layer_1/width_16k/average_l0_3")
    assert same(found, "gemma_scope_res") and found.settings.source.model == "google/gemma-2-2b"


@pytest.mark.parametrize(("name", "format"), [("clt_training_skip", "clt_training"), ("llama_scope_1", None)])
def test_what_a_format_keeps_in_folders_beneath_is_fetched_too(
    hub: Hub, name: str, format: str | None
) -> None:
    hub.holds(name, "owner/layers")
    assert same(dictionaries.open("owner/layers", format=format, **ANSWERS.get(name, {})), name)
    if format is not None:
        shutil.rmtree(hub.cache)
        with pytest.raises(BadFile):  # without its name the layers could be anything
            dictionaries.open("owner/layers")
        assert not any("safetensors" in file for file in hub.files(hub.cache))


def test_patterns_stop_at_folders() -> None:
    files = ["a.json", "x/a.json", "x/y/a.json", "x/y/a.npz", "x/config.json", "config.yaml", "x/y/z/b.pt"]
    assert files_of("", files) == ["a.json", "config.yaml"]
    assert files_of("x/y", files) == ["x/y/a.json", "x/y/a.npz", "x/config.json", "config.yaml"]
    assert files_of("x", files, ["*/*.npz"]) == ["x/a.json", "x/y/a.npz", "x/config.json", "config.yaml"]
    assert files_of("x/y/z/b.pt", files)[-1] == "x/y/z/b.pt" and files_of("q", files) == ["config.yaml"]
