"""Manifest: what an index holds, of which model, dictionary and texts, and which files are whole.

Every file is named here with its size and checksum before anybody reads it, and the manifest is replaced in one
step: an interrupted build goes on from it. Refuses files that were shortened or altered. Imports no torch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mechscope.records.files import open_json, save_json, write_atomically
from mechscope.vocabulary.errors import BadFile, ChecksumMismatch

FORMAT = "mechscope feature index 1"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How an index is laid down. What is found does not depend on it, but for `value_dtype`.

    Args:
        n_context: Longest row of text, in tokens; None takes the model's, at most 1,024.
        entries_per_part: Activations held in memory before they are written: bounds memory.
        tokens_per_block: Tokens of text that go through the model before they are encoded.
        value_dtype: Of activations on disk: "float32", or "float16" to halve them.
        n_effects: Logit effects kept at each end.
        n_neighbors: Nearest latents kept, by decoder and by encoder.
    """

    n_context: int | None = None
    entries_per_part: int = 2**22
    tokens_per_block: int = 2**13
    value_dtype: str = "float32"
    n_effects: int = 10
    n_neighbors: int = 10

    def __post_init__(self) -> None:
        if self.value_dtype not in ("float32", "float16"):
            raise BadFile(
                f'Activations can\'t be kept as "{self.value_dtype}".',
                got=self.value_dtype,
                instead="float32 or float16",
            )


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of an index.

    Args:
        file: Name.
        n_bytes: Size.
        sha256: Of its bytes.
        n_entries: Activations, or tokens, that it holds.
        first: First latent (of activations) or token (of text) in it.
        last: Last one, included.
    """

    file: str
    n_bytes: int
    sha256: str
    n_entries: int = 0
    first: int = 0
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """Activations of some stretch of text, sorted by latent, in files of ascending latents.

    Args:
        files: In order.
        level: How often it was merged.
    """

    files: tuple[StoredFile, ...]
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text in the index.

    Args:
        data_sha256: Hash of its rows.
        n_rows: Rows in all.
        n_tokens: Tokens that count, in all.
        rows_done: Rows that are in the index.
        bos: What was done about the beginning-of-sequence token: "tokenizer", "added", "removed" or "given", as
            `TokenBatch` says it; None in indexes that did not note it.
    """

    data_sha256: str
    n_rows: int
    n_tokens: int
    rows_done: int = 0
    bos: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.rows_done == self.n_rows


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Of which model and dictionary an index is.

    Args:
        model: Its fingerprint.
        tokenizer_sha256: Hash of its tokenizer.
        dictionary_sha256: Hash of the dictionary's tensors.
        kind: Of dictionary.
        reads: Sites read.
        writes: Sites written.
        n_latents: Width.
        norm_scale: Median of what the final norm divides by, over the first rows; 1 without a norm.
    """

    model: Mapping[str, Any]
    tokenizer_sha256: str
    dictionary_sha256: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    n_latents: int
    norm_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is in an index.

    Args:
        origin: Model and dictionary.
        settings: How it is laid down.
        texts: In the order in which they were added.
        runs: Activations, oldest first.
        tokens: Files of tokens and of what fired at each, oldest first.
        statistics: The running statistics.
        relations: Neighbours and logit effects.
        next_serial: Number of the next file.
    """

    origin: Origin
    settings: IndexSettings = field(default_factory=IndexSettings)
    texts: tuple[Text, ...] = ()
    runs: tuple[Run, ...] = ()
    tokens: tuple[StoredFile, ...] = ()
    statistics: StoredFile | None = None
    relations: StoredFile | None = None
    next_serial: int = 0

    @property
    def is_complete(self) -> bool:
        return all(text.is_complete for text in self.texts) and self.relations is not None

    @property
    def files(self) -> list[StoredFile]:
        """Every file that belongs to it."""
        found = [file for run in self.runs for file in run.files] + list(self.tokens)
        return found + [file for file in (self.statistics, self.relations) if file is not None]

    def with_text(self, text: Text) -> "Manifest":
        """With one more text, or with its last one replaced."""
        others = tuple(one for one in self.texts if one.data_sha256 != text.data_sha256)
        return replace(self, texts=(*others, text))


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically."""
    save_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


def open_manifest(folder: Path) -> Manifest:
    """Read a manifest, and see that every file is there in its full length.

    Raises:
        BadFile: no index, or of another format.
        ChecksumMismatch: a file is missing or shortened.
    """
    try:
        saved: Any = open_json(folder / MANIFEST)
        if saved.pop("format") != FORMAT:
            raise BadFile(f"{folder.name} is of another format.", got=folder, instead=FORMAT)
        found = _manifest_of(saved)
    except (OSError, AttributeError, KeyError, TypeError, BadFile) as error:
        raise BadFile(
            f"{folder.name} is no feature index.",
            got=folder,
            because=f"its {MANIFEST} is missing or not whole: {_reason(error)}",
            instead="a folder that ms.features.build wrote",
        ) from error
    for file in found.files:
        path = folder / file.file
        size = path.stat().st_size if path.is_file() else -1
        if size != file.n_bytes:
            raise altered(file, "missing" if size < 0 else f"{size} bytes, {file.n_bytes} on record")
    return found


def save_bytes(folder: Path, file: str, data: bytes, **span: int) -> StoredFile:
    """Write a file of the index, whole or not at all."""
    with write_atomically(folder / file) as handle:
        handle.write(data)
    return StoredFile(file=file, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **span)


def refuse_unless_intact(folder: Path, file: StoredFile) -> None:
    """Compare a file's bytes with its checksum.

    Raises:
        ChecksumMismatch: altered, or no longer there: text that was added meanwhile replaces files.
    """
    try:
        with (folder / file.file).open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ChecksumMismatch(
            f"{file.file} is no longer there.",
            got=folder,
            because="it was removed since the index was opened; adding text does so, and writes others",
            instead="the index opened again: ms.features.open(folder)",
        ) from error
    if found != file.sha256:
        raise altered(file, f"sha256 {found[:12]}, on record {file.sha256[:12]}")


def remove_strangers(folder: Path, manifest: Manifest) -> None:
    """Remove files that an interrupted build left and no manifest names."""
    known = {file.file for file in manifest.files}
    for path in folder.iterdir():
        is_ours = path.name.startswith(("activations-", "tokens-", "statistics-", "relations-"))
        if is_ours and path.is_file() and path.name not in known:
            path.unlink()


def altered(file: StoredFile, got: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{file.file} is not the file that was written.",
        got=got,
        because="it was shortened, altered or removed since",
        instead="the folder as it was built; build it again, or restore the file",
    )


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, BadFile) else repr(error)


def _manifest_of(saved: dict[str, Any]) -> Manifest:
    origin = dict(saved["origin"])
    origin |= {side: tuple(origin[side]) for side in ("reads", "writes")}
    files = {
        name: None if saved[name] is None else StoredFile(**saved[name])
        for name in ("statistics", "relations")
    }
    known = {item.name for item in fields(IndexSettings)}
    return Manifest(
        origin=Origin(**origin),
        settings=IndexSettings(**{k: v for k, v in saved["settings"].items() if k in known}),
        texts=tuple(Text(**text) for text in saved["texts"]),
        runs=tuple(
            Run(level=run["level"], files=tuple(StoredFile(**file) for file in run["files"]))
            for run in saved["runs"]
        ),
        tokens=tuple(StoredFile(**file) for file in saved["tokens"]),
        next_serial=saved["next_serial"],
        **files,
    )
