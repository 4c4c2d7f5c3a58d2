"""One pass writes what a dense computation finds; more text, interruptions and merges change nothing."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import mechscope as ms
from features.cases import N_LATENTS, SMALL, built, corpus, dense_codes, dictionary_of, model_of, texts
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.features import parts
from mechscope.features.building import build
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import IndexSettings
from mechscope.features.statistics import N_BINS, Statistics, bin_edges
from mechscope.vocabulary.errors import (
    BadFile,
    ChecksumMismatch,
    DictionaryMismatch,
    DiskFull,
)


def entries_of(index: FeatureIndex) -> np.ndarray:
    """Every activation, [token, latent]."""
    found = np.zeros((index.tokens.n_tokens, N_LATENTS))
    for latent in range(N_LATENTS):
        entries = index.entries(latent)
        assert np.all(np.diff(entries.token) > 0) and set(entries.latent) <= {latent}
        found[entries.token, latent] = entries.value
    return found


@pytest.mark.parametrize("rule", ["relu", "topk", "jumprelu"])
def test_the_index_holds_what_a_dense_computation_finds(tmp_path: Path, rule: str) -> None:
    index, dense = built(tmp_path, rule), dense_codes(corpus(), rule)
    assert len(index.manifest.runs) > 1
    np.testing.assert_allclose(entries_of(index), dense, rtol=1e-6, atol=1e-6)
    kept, counted = index.statistics, corpus().counts.numpy()
    stored = entries_of(index)
    assert index.n_tokens == counted.sum()
    assert np.array_equal(kept.fires, (dense != 0).sum(0))
    np.testing.assert_allclose(kept.total, stored.sum(0), rtol=1e-12)
    np.testing.assert_allclose(kept.squares, (stored**2).sum(0), rtol=1e-12)
    assert np.array_equal(kept.largest, stored.max(0))
    smallest = [column[column != 0].min() if column.any() else 0 for column in stored.T]
    assert np.array_equal(kept.smallest, smallest)
    edges = bin_edges()
    for latent in range(N_LATENTS):
        sizes = stored[stored[:, latent] != 0, latent]
        assert np.array_equal(kept.histogram[latent], np.histogram(sizes, edges)[0])
    assert index.dead() == np.flatnonzero((dense != 0).sum(0) == 0).tolist()


def test_tokens_stand_beside_what_fired_at_them(tmp_path: Path) -> None:
    index, text = built(tmp_path), corpus()
    dense = dense_codes(text)
    everything = np.arange(len(text.ids))
    assert np.array_equal(index.tokens.ids_at(everything), text.ids.numpy())
    rows = np.repeat(np.arange(text.n_rows), text.lengths.numpy())
    assert np.array_equal(index.tokens.rows_at(everything), rows)
    for token in (0, 7, 101, len(text.ids) - 1):
        assert sorted(index.tokens.latents_at(np.array([token]))) == np.flatnonzero(dense[token]).tolist()
        first, ids, row = index.tokens.window(token, 3, 2)
        inside = everything[(rows == rows[token]) & (everything >= token - 3) & (everything <= token + 2)]
        assert row == rows[token] and first == inside[0] and np.array_equal(ids, text.ids.numpy()[inside])


def test_text_that_is_added_gives_the_index_of_all_of_it(tmp_path: Path) -> None:
    first, second = texts(25, 1), texts(20, 2)
    at_once = build(model_of(), dictionary_of(), first + second, folder=tmp_path / "a", settings=SMALL)
    added = build(model_of(), dictionary_of(), first, folder=tmp_path / "b", settings=SMALL).add(second)
    np.testing.assert_allclose(entries_of(added), entries_of(at_once), rtol=1e-6)
    for name, values in at_once.statistics.arrays().items():
        np.testing.assert_allclose(getattr(added.statistics, name), values, rtol=1e-6, err_msg=name)
    assert np.array_equal(added.statistics.fires, at_once.statistics.fires)
    assert added.add(second).n_tokens == added.n_tokens  # a text that is in is in


def test_an_index_in_hand_has_the_added_text_and_another_says_to_open_it_again(tmp_path: Path) -> None:
    index, other = built(tmp_path / "a"), FeatureIndex(tmp_path / "a")
    before = (
        index.n_tokens,
        len(index.entries(6)),
        index.shares(),
        index.query("from activations").fetchall(),
    )
    added = index.add(texts(20, seed=3))
    assert index.n_tokens == added.n_tokens > before[0]
    assert len(index.entries(6)) == len(added.entries(6)) > before[1]
    assert index.shares() == added.shares() and len(index.row_tokens) == 60
    assert len(index.query("from activations").fetchall()) > len(before[3])
    assert repr(index[6]) == repr(added[6])
    with pytest.raises(ChecksumMismatch, match="no longer there") as refused:
        _ = other.statistics
    assert "ms.features.open" in str(refused.value)


def test_a_build_that_was_interrupted_ends_with_the_same_files(tmp_path: Path) -> None:
    whole = built(tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done < total:
            raise Stop

    for _ in range(30):
        try:
            resumed = built(tmp_path / "resumed", report=stop)
            break
        except Stop:
            continue
    resumed = built(tmp_path / "resumed")
    assert resumed.manifest == whole.manifest
    for file in whole.manifest.files:
        assert (resumed.folder / file.file).read_bytes() == (whole.folder / file.file).read_bytes()


def test_a_full_disk_loses_nothing_and_the_build_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sync, written = built(tmp_path / "whole"), os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no room"):
        built(tmp_path / "full")
    monkeypatch.undo()
    named = [file.file for file in FeatureIndex(tmp_path / "full").manifest.files]
    assert all((tmp_path / "full" / name).is_file() for name in named)
    assert built(tmp_path / "full").manifest == whole.manifest


def test_a_part_that_no_manifest_names_is_removed(tmp_path: Path) -> None:
    index = built(tmp_path)
    (tmp_path / "activations-000999.parquet").write_bytes(b"torn")
    built(tmp_path)
    assert not (tmp_path / "activations-000999.parquet").exists()
    assert index.manifest == FeatureIndex(tmp_path).manifest


def test_merging_changes_no_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = built(tmp_path / "plain", settings=IndexSettings(tokens_per_block=30, entries_per_part=150))
    monkeypatch.setattr(parts, "MOST_RUNS", 2)
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 64)
    merged = built(tmp_path / "merged", settings=IndexSettings(tokens_per_block=30, entries_per_part=150))
    assert len(merged.manifest.runs) < len(plain.manifest.runs)
    assert max(run.level for run in merged.manifest.runs) > 1
    assert any(len(run.files) > 1 for run in merged.manifest.runs)
    assert np.array_equal(entries_of(merged), entries_of(plain))
    left = {path.name for path in merged.folder.glob("activations-*")}
    assert left == {file.file for run in merged.manifest.runs for file in run.files}


def test_half_precision_halves_the_values_and_says_so(tmp_path: Path) -> None:
    index = built(tmp_path, settings=IndexSettings(value_dtype="float16"))
    assert index.entries(6).value.dtype == np.float16
    np.testing.assert_allclose(entries_of(index), dense_codes(corpus()), rtol=2e-3, atol=1e-6)
    assert index[6].top[0].value == pytest.approx(index.statistics.largest[6])


def test_activations_that_half_precision_can_not_hold_are_refused_or_stay_firings(tmp_path: Path) -> None:
    def scaled(factor: float) -> FeatureIndex:
        one = dictionary_of("jumprelu")
        tensors = {
            name: value * (1 / factor if name == "W_dec" else 1.0 if name == "b_dec" else factor)
            for name, value in one.tensors.items()
        }
        settings = IndexSettings(value_dtype="float16")
        folder = tmp_path / f"{factor}"
        return build(
            model_of(), Dictionary(one.settings, tensors), corpus(), folder=folder, settings=settings
        )

    with pytest.raises(BadFile, match=r"6\.55e\+04"):
        scaled(1e6)
    small, usual = scaled(1e-12), scaled(1.0)
    assert np.array_equal(small.statistics.fires, usual.statistics.fires)
    assert small.dead() == usual.dead() and 0 < small.statistics.largest.max() < 1e-7
    assert len(small[11].top) == len(usual[11].top)


def test_files_that_were_shortened_or_altered_are_refused(tmp_path: Path) -> None:
    index = built(tmp_path)
    file = tmp_path / index.manifest.runs[0].files[0].file
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    with pytest.raises(ChecksumMismatch, match="bytes"):
        FeatureIndex(tmp_path)
    file.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(ChecksumMismatch, match="sha256"):
        FeatureIndex(tmp_path)[6]
    file.write_bytes(data)
    assert FeatureIndex(tmp_path)[6].activity.fires
    file.unlink()
    with pytest.raises(ChecksumMismatch, match="missing"):
        FeatureIndex(tmp_path)


def test_another_model_dictionary_text_or_setting_is_refused(tmp_path: Path) -> None:
    built(tmp_path)
    other = ms.wrap(model_of().hf, model_of().tokenizer, name="other", check=False)
    assert build(other, dictionary_of(), corpus(), folder=tmp_path, settings=SMALL).n_tokens  # equal weights
    with pytest.raises(DictionaryMismatch, match="dictionary is"):
        build(model_of(), dictionary_of(seed=1), corpus(), folder=tmp_path, settings=SMALL)
    with pytest.raises(DictionaryMismatch, match="weights"):
        build(model_of(torch.float32), dictionary_of(), corpus(), folder=tmp_path, settings=SMALL)
    with pytest.raises(DictionaryMismatch, match="weights"):
        FeatureIndex(tmp_path).attached(model_of(torch.float32))
    with pytest.raises(BadFile, match="another text"):
        build(model_of(), dictionary_of(), texts(9, 9), folder=tmp_path, settings=SMALL)
    with pytest.raises(BadFile, match="other settings"):
        build(model_of(), dictionary_of(), corpus(), folder=tmp_path)
    with pytest.raises(BadFile, match="no feature index"):
        FeatureIndex(tmp_path / "dictionary")
    with pytest.raises(DictionaryMismatch, match="no model at hand"):
        FeatureIndex(tmp_path).add(["w1 w2"])


def test_a_size_lies_in_its_bin_also_at_the_ends() -> None:
    values = np.array([1e-9, 2.0**-16, 0.99, 1.0, 2.0, -2.0, 2.0**16, 1e9])
    found = Statistics.nothing(1).with_entries(values, np.array([0, len(values)]), 8)
    assert np.array_equal(found.histogram[0], np.histogram(np.abs(values), bin_edges())[0])
    assert found.histogram.shape == (1, N_BINS) and found.smallest[0] == -2 and found.largest[0] == 1e9
