"""Parts: the files of activations (Parquet, sorted by latent) and of tokens (safetensors, in the order of the text).

A latent's activations lie together, in one or two row groups of each run, and the statistics of the row groups find
them. Beside each token stands what fired at it, memory-mapped, so that latents of the same token are found too.
Imports no torch.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mechscope.features.manifest import Manifest, Run, StoredFile, refuse_unless_intact, save_bytes

ROWS_PER_GROUP = 2**15
MOST_RUNS = 8
"""Runs of one level before they are merged into one of the next."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Activations sorted by latent, then by token.

    Args:
        latent: [entry].
        token: Number of the token in the whole index.
        value: The activation.
    """

    latent: np.ndarray
    token: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.latent)

    @classmethod
    def joined(cls, parts: Iterable["Entries"]) -> "Entries":
        """End to end."""
        found = list(parts)
        return cls(*(np.concatenate([getattr(p, n) for p in found]) for n in ("latent", "token", "value")))

    def part(self, start: int, stop: int) -> "Entries":
        """Some of them."""
        return Entries(self.latent[start:stop], self.token[start:stop], self.value[start:stop])


def save_entries(folder: Path, serial: int, entries: Entries) -> StoredFile:
    """Write one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"latent": entries.latent.astype(np.int32), "token": entries.token, "value": entries.value}
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=["latent"],  # pyright: ignore[reportArgumentType] - a list of columns is allowed
        column_encoding={"token": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
        write_statistics=["latent"],  # pyright: ignore[reportArgumentType] - as above
    )
    span = (int(entries.latent[0]), int(entries.latent[-1])) if len(entries) else (0, -1)
    return save_bytes(
        folder,
        f"activations-{serial:06d}.parquet",
        buffer.getvalue(),
        n_entries=len(entries),
        first=span[0],
        last=span[1],
    )


class EntryReader:
    """Reads activations of an index back, latent by latent; checks each file once.

    Args:
        folder: Of the index.
        runs: Which runs.
    """

    def __init__(self, folder: Path, runs: tuple[Run, ...]) -> None:
        self.folder, self.runs = folder, runs
        self._opened: dict[str, tuple[Any, np.ndarray]] = {}

    def of(self, latent: int, last: int | None = None) -> Entries:
        """Everything of a latent, or of latents up to `last`, in the order of latents and tokens.

        Raises:
            ChecksumMismatch: a file was altered.
        """
        last = latent if last is None else last
        found = [part for run in self.runs for part in self._of_run(run, latent, last)]
        if not found:
            return Entries(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        joined = Entries.joined(found)
        if last == latent or len(self.runs) == 1:
            return joined
        order = np.argsort(joined.latent, kind="stable")
        return Entries(joined.latent[order], joined.token[order], joined.value[order])

    def by_run(self, latent: int) -> Iterator[Entries]:
        """Everything of a latent, run by run: no more than one run's in memory."""
        for run in self.runs:
            yield from self._of_run(run, latent, latent)

    def _of_run(self, run: Run, first: int, last: int) -> Iterator[Entries]:
        for file in run.files:
            if file.n_entries and file.first <= last and file.last >= first:
                part = self._of_file(file, first, last)
                if len(part):
                    yield part

    def _of_file(self, file: StoredFile, first: int, last: int) -> Entries:
        parquet, spans = self._open(file)
        groups = np.flatnonzero((spans[:, 0] <= last) & (spans[:, 1] >= first))
        table = parquet.read_row_groups(groups.tolist())
        latent = table.column("latent").to_numpy()
        start, stop = np.searchsorted(latent, [first, last + 1])
        columns = (table.column(name).to_numpy()[start:stop] for name in ("token", "value"))
        return Entries(latent[start:stop], *columns)

    def _open(self, file: StoredFile) -> tuple[Any, np.ndarray]:
        if file.file not in self._opened:
            import pyarrow.parquet as pq

            refuse_unless_intact(self.folder, file)
            parquet = pq.ParquetFile(self.folder / file.file, memory_map=True)
            described = parquet.metadata
            found = [described.row_group(i).column(0).statistics for i in range(described.num_row_groups)]
            self._opened[file.file] = parquet, np.array([(one.min, one.max) for one in found]).reshape(-1, 2)
        return self._opened[file.file]


def merged_runs(folder: Path, manifest: Manifest, fires: Int[np.ndarray, " latent"]) -> Manifest | None:
    """The manifest after one merge, or None if no level has enough runs.

    Entries of a range of latents at a time, or of one latent run by run, so that memory does not grow with the text.

    Args:
        folder: Of the index.
        manifest: As it is now.
        fires: How often each latent fired in all.
    """
    from dataclasses import replace

    levels = [run.level for run in manifest.runs]
    full = [level for level in sorted(set(levels)) if levels.count(level) >= MOST_RUNS]
    if not full:
        return None
    level = full[0]
    start = levels.index(level)
    chosen = manifest.runs[start : start + levels.count(level)]
    writer = _RunWriter(folder, manifest.next_serial, manifest.settings.entries_per_part)
    reader = EntryReader(folder, chosen)
    for first, last in _ranges(fires, manifest.settings.entries_per_part):
        if first == last:
            for part in reader.by_run(first):
                writer.put(part)
        else:
            writer.put(reader.of(first, last))
    run = Run(files=tuple(writer.finished()), level=level + 1)
    runs = (*manifest.runs[:start], run, *manifest.runs[start + len(chosen) :])
    return replace(manifest, runs=runs, next_serial=writer.serial)


class _RunWriter:
    """Collects sorted entries and writes files of about the same size."""

    def __init__(self, folder: Path, serial: int, most: int) -> None:
        self.folder, self.serial, self.most = folder, serial, most
        self._held: list[Entries] = []
        self._files: list[StoredFile] = []

    def put(self, entries: Entries) -> None:
        """More, of the same latents or of later ones."""
        for start in range(0, len(entries), self.most):
            self._held.append(entries.part(start, start + self.most))
            if sum(map(len, self._held)) >= self.most:
                self._write()

    def finished(self) -> list[StoredFile]:
        """All files."""
        self._write()
        return self._files

    def _write(self) -> None:
        if self._held:
            self._files.append(save_entries(self.folder, self.serial, Entries.joined(self._held)))
            self._held, self.serial = [], self.serial + 1


def _ranges(fires: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of latents with at most so many activations together; a latent with more stands alone."""
    first, held = 0, 0
    for latent, count in enumerate(fires.tolist()):
        if held and held + count > most:
            yield first, latent - 1
            first, held = latent, 0
        held += count
    yield first, len(fires) - 1


def save_tokens(folder: Path, serial: int, arrays: dict[str, np.ndarray], *, first: int) -> StoredFile:
    """Write tokens and what fired at each.

    Args:
        folder: Of the index.
        serial: Number of the file.
        arrays: `ids`, `counts` by token; `row_starts` and `code_starts`, one more than there are rows and tokens;
            `latents` by activation.
        first: Number of the first token.
    """
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    n = len(arrays["ids"])
    return save_bytes(
        folder, f"tokens-{serial:06d}.safetensors", data, n_entries=n, first=first, last=first + n - 1
    )


class TokenReader:
    """Reads tokens back by their number in the whole index; memory-mapped.

    Args:
        folder: Of the index.
        files: In order.
    """

    def __init__(self, folder: Path, files: tuple[StoredFile, ...]) -> None:
        self.folder, self.files = folder, files
        self._opened: dict[int, dict[str, np.ndarray]] = {}

    @property
    def n_tokens(self) -> int:
        """Tokens, those that do not count too."""
        return self.files[-1].last + 1 if self.files else 0

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.array([file.last for file in self.files])

    def window(self, token: int, before: int, after: int) -> tuple[int, np.ndarray, int]:
        """(number of its first token, ids, row) of the text around a token, within its row."""
        index = int(np.searchsorted(self._ends, token))
        arrays, base = self.arrays(index), self.files[index].first
        place = token - base
        row = int(np.searchsorted(arrays["row_starts"], place, side="right")) - 1
        low = max(int(arrays["row_starts"][row]), place - before)
        high = min(int(arrays["row_starts"][row + 1]), place + after + 1)
        return base + low, np.asarray(arrays["ids"][low:high]), self._rows_before[index] + row

    def ids_at(self, tokens: Int[np.ndarray, " token"]) -> Int[np.ndarray, " token"]:
        """Token ids."""
        found = np.zeros(len(tokens), np.int64)
        for index, inside in self._by_file(tokens):
            found[inside] = self.arrays(index)["ids"][tokens[inside] - self.files[index].first]
        return found

    def rows_at(self, tokens: Int[np.ndarray, " token"]) -> Int[np.ndarray, " token"]:
        """Rows of the text, counted over the whole index."""
        found = np.zeros(len(tokens), np.int64)
        for index, inside in self._by_file(tokens):
            starts, places = self.arrays(index)["row_starts"], tokens[inside] - self.files[index].first
            found[inside] = self._rows_before[index] + np.searchsorted(starts, places, side="right") - 1
        return found

    def latents_at(self, tokens: Int[np.ndarray, " token"]) -> Int[np.ndarray, " entry"]:
        """What fired at some tokens, all together."""
        found: list[np.ndarray] = []
        for index, inside in self._by_file(tokens):
            arrays = self.arrays(index)
            places = tokens[inside] - self.files[index].first
            starts, stops = (arrays["code_starts"][at].astype(np.int64) for at in (places, places + 1))
            counts = stops - starts
            take = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            found.append(np.asarray(arrays["latents"][take]).astype(np.int64))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one file, checked once.

        Raises:
            ChecksumMismatch
        """
        if index not in self._opened:
            refuse_unless_intact(self.folder, self.files[index])
            self._opened[index] = mapped_tensors(self.folder / self.files[index].file)
        return self._opened[index]

    @cached_property
    def _rows_before(self) -> list[int]:
        counts = [len(self.arrays(i)["row_starts"]) - 1 for i in range(len(self.files))]
        return [sum(counts[:i]) for i in range(len(counts))]

    def _by_file(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        owner = np.searchsorted(self._ends, tokens)
        for index in np.unique(owner):
            yield int(index), np.flatnonzero(owner == index)


_DTYPES = {"I64": np.int64, "I32": np.int32, "U16": np.uint16, "U32": np.uint32, "BOOL": np.bool_}


def mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file of ours without reading them into memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found: dict[str, np.ndarray] = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        start, stop = told["data_offsets"]
        dtype = _DTYPES[told["dtype"]]
        if start == stop:
            found[name] = np.zeros(told["shape"], dtype)
            continue
        found[name] = np.memmap(
            path, dtype=dtype, mode="r", offset=8 + length + start, shape=tuple(told["shape"])
        )
    return found
