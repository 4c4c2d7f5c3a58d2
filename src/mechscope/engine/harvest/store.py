"""Store: harvested activations on disk, or behind any address that fsspec knows.

A folder of safetensors shards, one a block, and a manifest that names each with its size and checksum. A shard
counts once the manifest names it, so that a torn one is written again; a missing, shortened or altered one is refused
when it is read, and written again when the harvest is.
"""

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.places import Place, place_of
from mechscope.models.fingerprinting import tokenizer_sha256_of
from mechscope.models.inputs import Bos
from mechscope.records.canonical import readable_json
from mechscope.records.files import is_full_disk
from mechscope.vocabulary.errors import BadFile, ChecksumMismatch, DiskFull
from mechscope.vocabulary.sites import Site

MANIFEST = "manifest.json"
FORMAT = "mechscope activations 1"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard as the manifest names it."""

    file: str
    n_tokens: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds.

    Args:
        sites: What each site carries at one position, by name.
        dtype: Of the values.
        model: Fingerprint of the model, as JSON.
        tokenizer_sha256: Of its tokenizer.
        data_sha256: Of the tokens.
        has_bos: Whether rows begin with a beginning-of-sequence token.
        rows_per_shard: Rows of the corpus in a shard.
        n_shards: Shards when complete.
        shards: Those that are written.
        bos: What was done about that token, as `TokenBatch` says it; None in stores that did not note it.
    """

    sites: dict[str, list[int]]
    dtype: str
    model: dict[str, Any]
    tokenizer_sha256: str
    data_sha256: str
    has_bos: bool | None
    rows_per_shard: int
    n_shards: int
    shards: tuple[Shard, ...] = field(default=())
    bos: Bos | None = None

    @property
    def is_complete(self) -> bool:
        return len(self.shards) == self.n_shards

    def to_text(self) -> str:
        """The manifest file."""
        return readable_json({"format": FORMAT, **asdict(self)})


def save_activations(
    blocks: ModelBlocks,
    folder: str | Path,
    *,
    report: Callable[[int, int], None] | None = None,
    stop_after: int | None = None,
) -> "ActivationStore":
    """Harvest every block into a folder; called again, go on where it was interrupted and mend what was damaged.

    Args:
        blocks: What to harvest; `blocks.dtype` is the dtype on disk.
        folder: A path or an fsspec address ("s3://bucket/name").
        report: Called as report(shards that are whole, shards in all).
        stop_after: Write at most so many shards.

    Raises:
        BadFile: the folder holds a harvest of something else.
        DiskFull: no room; what is named in the manifest is whole.

    Cost: the forward passes; writing and hashing happen in a thread beside them. Called again, each shard that was
        written is read once.
    """
    place = place_of(folder)
    wanted = _manifest_of(blocks)
    manifest = _resumed(place, wanted)
    damaged = [index for index, shard in enumerate(manifest.shards) if _is_damaged(place, shard)]
    todo = [*damaged, *range(len(manifest.shards), manifest.n_shards)][:stop_after]
    with _Writer(place, manifest, report, n_whole=len(manifest.shards) - len(damaged)) as writer:
        for index in todo:
            values = {str(site): value.cpu() for site, value in blocks.block(index).items()}
            writer.put(index, values | {f"tokens/{k}": v for k, v in blocks.tokens_of(index).items()})
    return ActivationStore(folder)


class ActivationStore:
    """Activations read back, block by block; satisfies `Blocks`.

    Args:
        folder: What `save_activations` wrote.

    Raises:
        BadFile: no manifest, or not of this format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.place = place_of(folder)
        self.manifest = read_manifest(self.place)
        self._checked: set[str] = set()

    @property
    def shapes(self) -> dict[Site, tuple[int, ...]]:
        return {Site.parse(name): tuple(shape) for name, shape in self.manifest.sites.items()}

    @property
    def sizes(self) -> list[int]:
        return [shard.n_tokens for shard in self.manifest.shards]

    def block(self, index: int) -> dict[Site, Tensor]:
        """Values of one shard by site, [tokens, width].

        Raises:
            ChecksumMismatch: the shard is missing, or was shortened or altered.
        """
        return {Site.parse(k): v for k, v in self._open(index).items() if not k.startswith("tokens/")}

    def tokens_of(self, index: int) -> dict[str, Tensor]:
        """Token id, row of the corpus and position of every value of a shard."""
        return {k.removeprefix("tokens/"): v for k, v in self._open(index).items() if k.startswith("tokens/")}

    def _open(self, index: int) -> dict[str, Tensor]:
        from safetensors.torch import load

        shard = self.manifest.shards[index]
        data = read_shard(self.place, shard, checks_hash=shard.file not in self._checked)
        self._checked.add(shard.file)
        return load(data)


def read_shard(place: Place, shard: Shard, *, checks_hash: bool = True) -> bytes:
    """The bytes of a shard, which are those that were written.

    Raises:
        ChecksumMismatch
    """
    try:
        data = place.read(shard.file)
    except FileNotFoundError as error:
        raise _altered(shard, "no such file") from error
    if len(data) != shard.n_bytes:
        raise _altered(shard, f"{len(data)} bytes, {shard.n_bytes} on record")
    if checks_hash and (found := hashlib.sha256(data).hexdigest()) != shard.sha256:
        raise _altered(shard, f"sha256 {found[:12]}, on record {shard.sha256[:12]}")
    return data


def _is_damaged(place: Place, shard: Shard) -> bool:
    try:
        read_shard(place, shard)
    except ChecksumMismatch:
        return True
    return False


def read_manifest(place: Place) -> Manifest:
    """The manifest of a store.

    Raises:
        BadFile
    """
    try:
        saved = json.loads(place.read(MANIFEST))
        if saved.pop("format") != FORMAT:
            raise BadFile(f"{place} is of another format.", got=place, instead=FORMAT)
        shards = tuple(Shard(**shard) for shard in saved.pop("shards"))
        return Manifest(**saved, shards=shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(
            f"{place} is no store of activations.",
            got=place,
            because=f"its {MANIFEST} is missing or not whole: {error}",
            instead="a folder that save_activations wrote",
        ) from error


def _manifest_of(blocks: ModelBlocks) -> Manifest:
    dtype = blocks.dtype or blocks.model.dtype
    return Manifest(
        sites={str(site): list(shape) for site, shape in blocks.shapes.items()},
        dtype=str(dtype).removeprefix("torch."),
        model=blocks.model.fingerprint.model_dump(),
        tokenizer_sha256=tokenizer_sha256_of(blocks.model.tokenizer),
        data_sha256=blocks.corpus.data_sha256,
        has_bos=blocks.corpus.has_bos,
        rows_per_shard=blocks.rows_per_block,
        n_shards=len(blocks.sizes),
        bos=blocks.corpus.bos,
    )


def _resumed(place: Place, wanted: Manifest) -> Manifest:
    if not place.has(MANIFEST):
        return wanted
    found = read_manifest(place)
    # The same tokens are the same harvest, however they came by their first one; the first note stands. So are the
    # same weights, however they were called.
    model = {**found.model, "name": wanted.model["name"]}
    if (bare := replace(found, shards=(), bos=wanted.bos, model=model)) != wanted:
        differing = [name for name in asdict(bare) if getattr(bare, name) != getattr(wanted, name)]
        raise BadFile(
            f"{place} holds a harvest of something else.",
            got=", ".join(differing),
            because="shards of two harvests must not be mixed",
            instead="an empty folder, or the same model, text, sites and dtype",
        )
    return found


def _altered(shard: Shard, got: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{shard.file} is not the shard that was written.",
        got=got,
        because="it was deleted, shortened or altered since",
        instead="save_activations with the same text again: it writes this shard anew and leaves the others",
    )


class _Writer:
    """A thread that writes shards one after the other; the model goes on meanwhile, at most one shard ahead."""

    def __init__(
        self, place: Place, manifest: Manifest, report: Callable[[int, int], None] | None, *, n_whole: int
    ) -> None:
        self.place, self.manifest, self.report, self.n_whole = place, manifest, report, n_whole
        self._queue: queue.Queue[tuple[int, dict[str, Tensor]] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Writer":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Hand over a shard; one that the manifest names already takes its place there.

        Raises:
            DiskFull: an earlier one could not be written.
        """
        self._raise()
        self._queue.put((index, tensors))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (handed := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(*handed)
                except BaseException as error:
                    self._error = self._explained(error)

    def _write(self, index: int, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        file = f"shard-{index:05d}.safetensors"
        self.place.write(file, data)
        n_tokens = len(next(iter(tensors.values())))
        shard = Shard(
            file=file, n_tokens=n_tokens, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        before = self.manifest.shards
        grown = replace(self.manifest, shards=(*before[:index], shard, *before[index + 1 :]))
        self.place.write(MANIFEST, grown.to_text().encode())
        self.manifest = grown
        self.n_whole += 1
        if self.report is not None:
            self.report(self.n_whole, grown.n_shards)

    def _explained(self, error: BaseException) -> BaseException:
        if not is_full_disk(error):
            return error
        return DiskFull(
            "There is no room for another shard.",
            got=str(error),
            because=f"{self.n_whole} of {self.manifest.n_shards} shards are written and whole",
            instead="make room and run the same command again: it goes on from there",
        )


def rows_for(corpus_lengths: Sequence[int] | Tensor, width_bytes: int, budget_bytes: int = 2**28) -> int:
    """Rows whose activations fit a budget, at least one."""
    mean = float(torch.as_tensor(corpus_lengths).double().mean())
    return max(1, int(budget_bytes / max(1.0, mean * width_bytes)))
