"""Harvesting: the numbers of one forward by hand, the same stream after an interruption, stores that notice."""

import errno
import json
import threading
from collections import Counter
from pathlib import Path
from queue import Queue

import pytest
import torch

from family_cases import opened
from mechscope.engine.harvest import store as store_module
from mechscope.engine.harvest.blocks import Blocks, ModelBlocks
from mechscope.engine.harvest.corpus import corpus_of
from mechscope.engine.harvest.places import Place
from mechscope.engine.harvest.store import ActivationStore, save_activations
from mechscope.engine.harvest.stream import ActivationStream
from mechscope.vocabulary.errors import (
    BadFile,
    ChecksumMismatch,
    DiskFull,
    EmptyPrompt,
    NonFiniteActivations,
    PositionOutOfRange,
)
from mechscope.vocabulary.sites import Site
from tiny_models import VOCABULARY

SITES = (Site("resid_post", 0), Site("mlp_out", 1), Site("z", 1))


def corpus(n_rows: int = 23, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (n_rows,), generator=generator).tolist()
    rows = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return corpus_of(opened("llama"), rows)


def blocks(**more) -> ModelBlocks:
    settings = {"rows_per_block": 7, "rows_at_once": 3, **more}
    return ModelBlocks(model=opened("llama"), corpus=corpus(), sites=SITES, **settings)


def test_a_block_holds_what_a_forward_of_each_row_alone_gives() -> None:
    source = blocks()
    assert isinstance(source, Blocks)
    for index in (0, len(source.sizes) - 1):
        found, tokens = source.block(index), source.tokens_of(index)
        assert len(tokens["row"]) == source.sizes[index] == len(found[SITES[0]])
        for row in set(tokens["row"].tolist()):
            run = source.model.run(source.corpus.row(row).long(), capture=list(SITES))
            mine = tokens["row"] == row
            at = tokens["position"][mine].long()
            assert torch.equal(tokens["token"][mine], source.corpus.row(row)[at])
            for site in SITES:
                assert torch.allclose(found[site][mine], run[site][0, at].flatten(1), atol=1e-10)


def test_long_documents_are_cut_and_shuffling_keeps_rows_whole() -> None:
    model = opened("llama")
    long = list(range(VOCABULARY)) * 3
    cut = corpus_of(model, [long, [1, 2]], n_context=10)
    assert cut.lengths.max() == 10 and torch.cat([cut.row(i) for i in range(cut.n_rows - 1)]).tolist() == long
    mixed = corpus().shuffled(3)
    plain = corpus()
    as_rows = [tuple(one.row(i).tolist()) for one in (mixed, plain) for i in range(one.n_rows)]
    assert sorted(as_rows[: plain.n_rows]) == sorted(as_rows[plain.n_rows :])
    assert as_rows[: plain.n_rows] != as_rows[plain.n_rows :]


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_an_epoch_holds_every_token_once_and_any_step_can_be_reached_directly(reads_ahead: bool) -> None:
    stream = ActivationStream(blocks=blocks(), batch=8, seed=1, reads_ahead=reads_ahead)
    site = SITES[0]
    through = [batch[site] for batch in stream.batches(0, 2 * stream.per_epoch)]
    everything = torch.cat([stream.blocks.block(i)[site] for i in range(len(stream.blocks.sizes))])
    for epoch in (through[: stream.per_epoch], through[stream.per_epoch :]):
        assert counted(torch.cat(epoch)) <= counted(everything)
    assert not torch.equal(through[0], through[stream.per_epoch]), "another order in the next epoch"
    for start in (1, 3, stream.per_epoch + 2):
        again = next(iter(stream.batches(start, start + 1)))[site]
        assert torch.equal(again, through[start])


class CountedBlocks:
    """Blocks of 8 tokens, which note when one is read."""

    def __init__(self, n_blocks: int = 12) -> None:
        self.sizes = (8,) * n_blocks
        self.shapes = {SITES[0]: (4,)}
        self.n_read = 0
        self.changed = threading.Condition()

    def block(self, index: int) -> dict[Site, torch.Tensor]:
        with self.changed:
            self.n_read += 1
            self.changed.notify_all()
        return {SITES[0]: torch.full((8, 4), float(index))}

    def waits_for(self, n: int) -> bool:
        """Whether so many blocks are read, nobody taking a batch meanwhile; gives up after ten seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.n_read >= n, timeout=10)


def test_the_next_blocks_are_read_while_one_is_trained_on_and_no_more() -> None:
    """By counting, not by the clock: a trainer stays with a batch until what comes next was read behind its back."""
    source = CountedBlocks()
    n_steps, n_blocks = 2 * len(source.sizes), len(source.sizes)
    batches = ActivationStream(blocks=source, batch=4, reads_ahead=True).batches(0, n_steps)
    for step in range(n_steps):
        assert source.n_read <= min(step // 2 + 3, n_blocks), (
            "memory is bounded: one waits, one is in the hand"
        )
        next(batches)
        assert source.waits_for(min(step // 2 + 3, n_blocks)), (
            f"step {step}: {source.n_read} blocks were read"
        )
    batches.close()


def test_what_is_not_read_ahead_is_read_when_it_is_needed() -> None:
    """The twin of the count above."""
    source = CountedBlocks()
    batches = ActivationStream(blocks=source, batch=4).batches(0, 24)
    for step in range(24):
        next(batches)
        assert source.n_read == step // 2 + 1


def test_reading_without_a_bound_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.engine.harvest.stream.Queue", lambda maxsize: Queue())
    source = CountedBlocks()
    batches = ActivationStream(blocks=source, batch=4, reads_ahead=True).batches(0, 24)
    next(batches)
    assert source.waits_for(12), "the whole text lies in memory"
    batches.close()


def counted(rows: torch.Tensor) -> Counter[bytes]:
    return Counter(row.numpy().tobytes() for row in rows)


def test_a_batch_mixes_rows() -> None:
    source = blocks(rows_per_block=23)
    stream = ActivationStream(blocks=source, batch=16)
    site, tokens = SITES[0], source.tokens_of(0)
    batch = next(iter(stream.batches(0, 1)))[site]
    everything = source.block(0)[site]
    where = torch.tensor([(everything == row).all(1).nonzero()[0, 0] for row in batch])
    assert len(tokens["row"][where].unique()) > 6


def test_a_store_gives_the_blocks_back_and_resumes(tmp_path: Path) -> None:
    source = blocks()
    partial = save_activations(source, tmp_path / "acts", stop_after=2)
    assert len(partial.sizes) == 2 and not partial.manifest.is_complete
    seen: list[int] = []
    whole = save_activations(source, tmp_path / "acts", report=lambda done, _total: seen.append(done))
    assert seen == [3, 4] and whole.manifest.is_complete and isinstance(whole, Blocks)
    assert whole.shapes == source.shapes and whole.sizes == source.sizes
    for index in range(len(whole.sizes)):
        assert all(
            torch.equal(whole.block(index)[site], value) for site, value in source.block(index).items()
        )
        assert torch.equal(whole.tokens_of(index)["row"], source.tokens_of(index)["row"])


def test_a_store_resumes_under_another_name_of_the_same_weights(tmp_path: Path) -> None:
    save_activations(blocks(), tmp_path, stop_after=1)
    manifest = tmp_path / "manifest.json"
    plain = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**plain, "model": {**plain["model"], "name": "last-part"}}))
    assert save_activations(blocks(), tmp_path).manifest.is_complete
    manifest.write_text(json.dumps({**plain, "model": {**plain["model"], "weights_sha256": "0" * 64}}))
    with pytest.raises(BadFile, match="something else"):
        save_activations(blocks(), tmp_path)


def test_a_store_behind_fsspec_is_the_same() -> None:
    pytest.importorskip("fsspec")
    source = blocks(dtype=torch.bfloat16)
    found = save_activations(source, "memory://harvest-test")
    assert torch.equal(found.block(1)[SITES[1]], source.block(1)[SITES[1]])
    assert found.block(1)[SITES[1]].dtype == torch.bfloat16


def test_a_torn_shard_is_written_again_and_an_altered_one_refused(tmp_path: Path) -> None:
    save_activations(blocks(), tmp_path, stop_after=1)
    torn = tmp_path / "shard-00001.safetensors"
    torn.write_bytes(b"half a shard")
    assert torch.equal(save_activations(blocks(), tmp_path).block(1)[SITES[0]], blocks().block(1)[SITES[0]])
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-10])
    with pytest.raises(ChecksumMismatch, match="shard-00001"):
        ActivationStore(tmp_path).block(1)
    torn.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ChecksumMismatch, match="shard-00001"):
        ActivationStore(tmp_path).block(1)
    torn.write_bytes(whole)
    ActivationStore(tmp_path).block(1)


DAMAGES = {
    "deleted": lambda file: file.unlink(),
    "shortened": lambda file: file.write_bytes(file.read_bytes()[:-10]),
    "altered": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused_and_alone_written_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save_activations(blocks(), tmp_path)
    values = [whole.block(index) for index in range(len(whole.sizes))]
    DAMAGES[damage](tmp_path / "shard-00001.safetensors")
    with pytest.raises(ChecksumMismatch, match="shard-00001") as refusal:
        ActivationStore(tmp_path).block(1)
    assert "save_activations" in refusal.value.instead
    write, written, told = Place.write, [], []
    monkeypatch.setattr(
        Place, "write", lambda self, name, data: (written.append(name), write(self, name, data))
    )
    mended = save_activations(blocks(), tmp_path, report=lambda *now: told.append(now))
    assert written == ["shard-00001.safetensors", "manifest.json"] and told == [(4, 4)]
    assert mended.manifest == whole.manifest
    for index, block in enumerate(values):
        assert all(torch.equal(mended.block(index)[site], value) for site, value in block.items())
    written.clear()
    save_activations(blocks(), tmp_path)
    assert not written, "what is whole is left alone"


def test_a_harvest_that_goes_on_mends_what_was_damaged_meanwhile(tmp_path: Path) -> None:
    save_activations(blocks(), tmp_path, stop_after=2)
    (tmp_path / "shard-00000.safetensors").unlink()
    told: list[int] = []
    found = save_activations(blocks(), tmp_path, report=lambda done, _total: told.append(done))
    assert told == [2, 3, 4] and found.manifest.is_complete
    assert torch.equal(found.block(0)[SITES[0]], blocks().block(0)[SITES[0]])


def test_another_harvest_is_not_mixed_in(tmp_path: Path) -> None:
    save_activations(blocks(), tmp_path, stop_after=1)
    with pytest.raises(BadFile, match="something else") as refusal:
        save_activations(blocks(dtype=torch.bfloat16), tmp_path)
    assert "dtype" in refusal.value.got
    (tmp_path / "manifest.json").write_text('{"format":')
    with pytest.raises(BadFile, match="no store"):
        ActivationStore(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written = Place.write, []

    def full(self: Place, name: str, data: bytes) -> None:
        if len(written) >= 4 and name.startswith("shard"):
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        whole(self, name, data)

    monkeypatch.setattr(Place, "write", full)
    with pytest.raises(DiskFull, match="no room"):
        save_activations(blocks(), tmp_path)
    monkeypatch.undo()
    assert len(ActivationStore(tmp_path).sizes) == 2
    assert save_activations(blocks(), tmp_path).manifest.is_complete
    assert store_module.MANIFEST in [file.name for file in tmp_path.iterdir()]


def test_bad_text_and_bad_values_are_refused(tmp_path: Path) -> None:
    model = opened("llama")
    with pytest.raises(PositionOutOfRange, match="vocabulary"):
        corpus_of(model, [[1, VOCABULARY]])
    with pytest.raises(EmptyPrompt):
        corpus_of(model, [])
    with pytest.raises(EmptyPrompt, match="shorter"):
        ActivationStream(blocks=blocks(), batch=10_000)
    with pytest.raises(BadFile, match="no text"):
        corpus_of(model, tmp_path / "nothing.txt")
    source = blocks()
    weight = model.hf.get_parameter("model.layers.0.mlp.down_proj.weight")
    before = weight.data.clone()
    try:
        weight.data[0, 0] = torch.nan
        with pytest.raises(NonFiniteActivations, match=r"resid_post\.0"):
            source.block(0)
    finally:
        weight.data.copy_(before)
