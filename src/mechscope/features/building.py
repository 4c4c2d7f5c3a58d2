"""Build: one pass over a text writes everything that a dictionary's latents did; more text can be added.

The model stops at the last site read, a block of rows is encoded without zeros, and activations are written once
enough of them are held, so that memory does not grow with the text. A manifest is replaced after every write:
called again, an interrupted build goes on from there and ends with the same files.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.reading import fitted
from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.corpus import Text as Corpus
from mechscope.engine.harvest.corpus import TokenCorpus, corpus_of
from mechscope.features.index import FeatureIndex
from mechscope.features.manifest import (
    MANIFEST,
    IndexSettings,
    Manifest,
    Origin,
    StoredFile,
    Text,
    open_manifest,
    remove_strangers,
    save_bytes,
    save_manifest,
)
from mechscope.features.parts import Entries, merged_runs, save_entries, save_tokens
from mechscope.features.relations import final_norm_scale, relations_of
from mechscope.features.shipped import is_shipped
from mechscope.features.statistics import Statistics, narrowed
from mechscope.models.model import Model
from mechscope.records.files import save_json
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import BadFile, DictionaryMismatch

Report = Callable[[int, int], None]
_ROWS_AT_ONCE = 32


def build(
    model: Model,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    folder: str | Path,
    settings: IndexSettings | None = None,
    report: Report | None = None,
) -> FeatureIndex:
    """Index what every latent does over a text; called again, go on where it was interrupted.

    Args:
        model: An open model; left as found.
        dictionary: Of this model.
        corpus: Texts, a path, token ids, or a `TokenCorpus`.
        folder: Gets the index, and a copy of the dictionary so that it is whole by itself.
        settings: How it is laid down.
        report: Called as report(tokens done, tokens in all).

    Returns:
        The index, open, with the model at hand for `search`.

    Raises:
        DictionaryMismatch: the dictionary is not of this model.
        BadFile: the folder holds an index of something else, or float16 is too small for the activations.
        DiskFull: no room; what the manifest names is whole.

    Cost: the text through the model up to the last site read, the encoder's product, and O(tokens x L0) to write.
        docs/methods/feature_index.md.
    """
    folder = Path(folder)
    dictionary = fitted(dictionary, model)
    wanted = settings or IndexSettings()
    origin = _origin_of(model, dictionary)
    if (folder / MANIFEST).is_file():
        manifest = open_manifest(folder)
        _refuse_another(manifest, origin, wanted, folder)
    else:
        manifest = Manifest(origin=origin, settings=wanted)
        save_manifest(folder, manifest)
    _Build(model, dictionary, folder=folder, manifest=manifest, report=report).run(corpus)
    return FeatureIndex(folder).attached(model, dictionary)


def add_text(
    index: FeatureIndex, corpus: Corpus, *, model: Model, dictionary: Dictionary, report: Report | None = None
) -> FeatureIndex:
    """The index with more text in it; also finishes a text whose adding was interrupted.

    Raises:
        DictionaryMismatch: another model or dictionary than the index is of.
        BadFile: an earlier text is not finished yet, or the index ships with the package.
    """
    _refuse_if_shipped(index.folder)
    dictionary = fitted(dictionary, model)
    manifest = open_manifest(index.folder)
    _refuse_another(manifest, _origin_of(model, dictionary), manifest.settings, index.folder)
    _Build(model, dictionary, folder=index.folder, manifest=manifest, report=report, adds=True).run(corpus)
    return FeatureIndex(index.folder, labels=index.labels).attached(model, dictionary)


class _Build:
    """One pass over one text, into one folder."""

    def __init__(
        self,
        model: Model,
        dictionary: Dictionary,
        *,
        folder: Path,
        manifest: Manifest,
        report: Report | None,
        adds: bool = False,
    ) -> None:
        self.model, self.dictionary, self.folder = model, dictionary, folder
        self.manifest, self.report, self.adds = manifest, report, adds

    def run(self, corpus: Corpus) -> None:
        tokens = corpus_of(self.model, corpus, n_context=self.manifest.settings.n_context)
        text = self._text(tokens)
        remove_strangers(self.folder, self.manifest)
        self._describe(tokens)
        if not text.is_complete:
            self._harvest(tokens, text)
        self._relate(tokens)

    def _text(self, corpus: TokenCorpus) -> Text:
        """The entry of this text; refused where another one is unfinished, or this is not the one."""
        texts = {text.data_sha256: text for text in self.manifest.texts}
        unfinished = [text for text in self.manifest.texts if not text.is_complete]
        if found := texts.get(corpus.data_sha256):
            return found
        if unfinished or (texts and not self.adds):
            raise BadFile(
                f"{self.folder.name} holds an index of another text"
                + (", which is not finished." if unfinished else "."),
                got=f"text {corpus.data_sha256[:12]}, there are {', '.join(key[:12] for key in texts)}",
                because="texts are added on purpose, one after the other",
                instead="the same text, an empty folder, or index.add(text) once it is finished",
            )
        return Text(
            data_sha256=corpus.data_sha256, n_rows=corpus.n_rows, n_tokens=corpus.n_tokens, bos=corpus.bos
        )

    def _describe(self, corpus: TokenCorpus) -> None:
        """The dictionary, the tokens' texts, and the norm's scale: once for each index."""
        if not (self.folder / "dictionary" / "dictionary.json").is_file():
            compact(self.dictionary).save(self.folder / "dictionary")
        if not (self.folder / "vocabulary.json").is_file():
            save_json(self.folder / "vocabulary.json", self.model.reader.strings(range(self.model.d_vocab)))

    def _harvest(self, corpus: TokenCorpus, text: Text) -> None:
        """Blocks of rows, from the first that is not in the index."""
        settings = self.manifest.settings
        per_block = max(1, int(settings.tokens_per_block / corpus.lengths.double().mean()))
        blocks = ModelBlocks(
            model=self.model,
            corpus=corpus,
            sites=tuple(dict.fromkeys(self.dictionary.reads)),
            rows_per_block=per_block,
            rows_at_once=_ROWS_AT_ONCE,
        )
        base = self.manifest.tokens[-1].last + 1 if self.manifest.tokens else 0
        base -= int(corpus.offsets[text.rows_done])
        held: list[sparse.csr_matrix] = []
        first, done = text.rows_done, text.rows_done
        n_done = int(corpus.counts[: int(corpus.offsets[first])].sum())
        for index in range(len(blocks.sizes)):
            stop = min((index + 1) * per_block, corpus.n_rows)
            if stop <= first:
                continue
            held.append(self._encoded(blocks, index, corpus))
            done, n_done = stop, n_done + blocks.sizes[index]
            if sum(part.nnz for part in held) >= settings.entries_per_part or done == corpus.n_rows:
                self._write(held, corpus, replace(text, rows_done=done), first, base)
                held, first = [], done
            if self.report is not None:
                self.report(n_done, corpus.n_tokens)

    def _encoded(self, blocks: ModelBlocks, index: int, corpus: TokenCorpus) -> sparse.csr_matrix:
        """Codes of a block of rows, [token, latent], tokens in the order of the text, also those that do not count."""
        start = index * blocks.rows_per_block
        stop = min(start + blocks.rows_per_block, corpus.n_rows)
        low, high = int(corpus.offsets[start]), int(corpus.offsets[stop])
        n_latents = self.dictionary.n_latents
        if not blocks.sizes[index]:
            return sparse.csr_matrix((high - low, n_latents), dtype=np.float32)
        values = blocks.block(index)
        read = torch.cat([values[site] for site in self.dictionary.reads], dim=1)
        codes = self.dictionary.encode_sparse(read)
        told = blocks.tokens_of(index)
        places = corpus.offsets[told["row"].long()] + told["position"].long() - low
        return _in_text_order(codes, places, high - low)

    def _write(self, held: list[Any], corpus: TokenCorpus, text: Text, first_row: int, base: int) -> None:
        """Write what is held: activations, tokens, statistics, then the manifest; then merge."""
        manifest, folder = self.manifest, self.folder
        codes: Any = sparse.vstack(held, format="csr") if len(held) > 1 else held[0]
        low, high = int(corpus.offsets[first_row]), int(corpus.offsets[text.rows_done])
        columns = codes.tocsc()
        entries = Entries(
            np.repeat(np.arange(codes.shape[1], dtype=np.int32), np.diff(columns.indptr)),
            columns.indices.astype(np.int64) + base + low,
            stored_values(columns.data, manifest.settings.value_dtype),
        )
        serial = manifest.next_serial
        activations = save_entries(folder, serial, entries)
        counts = corpus.counts[low:high].numpy()
        arrays = {
            "ids": corpus.ids[low:high].numpy().astype(np.int32),
            "counts": counts,
            "row_starts": (corpus.offsets[first_row : text.rows_done + 1] - low).numpy().astype(np.int64),
            "code_starts": narrowed(codes.indptr),
            "latents": codes.indices.astype(np.uint16 if codes.shape[1] <= 2**16 else np.int32),
        }
        tokens = save_tokens(folder, serial, arrays, first=base + low)
        found = open_statistics(folder, manifest).with_entries(
            entries.value, columns.indptr.astype(np.int64), int(counts.sum())
        )
        manifest = manifest.with_text(text)
        manifest = replace(
            manifest,
            runs=(*manifest.runs, _run_of(activations)),
            tokens=(*manifest.tokens, tokens),
            statistics=save_statistics(folder, serial, found),
            next_serial=serial + 1,
        )
        self._keep(manifest)
        while (merged := merged_runs(folder, self.manifest, found.fires)) is not None:
            self._keep(merged)

    def _keep(self, manifest: Manifest) -> None:
        save_manifest(self.folder, manifest)
        self.manifest = manifest
        remove_strangers(self.folder, manifest)

    def _relate(self, corpus: TokenCorpus) -> None:
        """Neighbours and logit effects, once; the text has no part in them."""
        if self.manifest.relations is not None:
            return
        from safetensors.numpy import save

        scale = final_norm_scale(self.model, corpus)
        settings = self.manifest.settings
        found = relations_of(
            self.model,
            self.dictionary,
            n_neighbors=settings.n_neighbors,
            n_effects=settings.n_effects,
            norm_scale=scale,
        )
        serial = self.manifest.next_serial
        file = save_bytes(self.folder, f"relations-{serial:06d}.safetensors", save(found))
        origin = replace(self.manifest.origin, norm_scale=scale)
        self._keep(replace(self.manifest, relations=file, origin=origin, next_serial=serial + 1))


def compact(dictionary: Dictionary) -> Dictionary:
    """The dictionary in half precision where that loses nothing, else as it is."""
    half = dictionary.to(dtype=torch.float16)
    same = all(torch.equal(half.tensors[k].to(v.dtype), v) for k, v in dictionary.tensors.items())
    return half if same and dictionary.dtype == torch.float32 else dictionary


def stored_values(values: Float[np.ndarray, " entry"], dtype: str) -> Float[np.ndarray, " entry"]:
    """Activations as they are kept: rounded, but none that is not zero becomes zero.

    Raises:
        BadFile: one is larger than the dtype holds.
    """
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    if not np.isfinite(kept).all():
        raise BadFile(
            f"Activations of this dictionary can't be kept as {dtype}.",
            got=f"{np.abs(values).max():.4g}",
            because=f"the largest number that {dtype} holds is {np.finfo(dtype).max:.4g}",
            instead='IndexSettings(value_dtype="float32"), in an empty folder',
        )
    lost = (kept == 0) & (values != 0)
    kept[lost] = np.copysign(np.finfo(dtype).smallest_subnormal, values[lost])
    return kept


def open_statistics(folder: Path, manifest: Manifest) -> Statistics:
    """The running statistics, or those of no text."""
    if manifest.statistics is None:
        return Statistics.nothing(manifest.origin.n_latents)
    return FeatureIndex(folder).statistics


def save_statistics(folder: Path, serial: int, statistics: Statistics) -> StoredFile:
    """Write the statistics under a new name, so that the old ones stay until the manifest names these."""
    from safetensors.numpy import save

    return save_bytes(folder, f"statistics-{serial:06d}.safetensors", save(statistics.arrays()))


def _run_of(file: StoredFile) -> Any:
    from mechscope.features.manifest import Run

    return Run(files=(file,))


def _in_text_order(codes: Any, places: Tensor, n_tokens: int) -> sparse.csr_matrix:
    """Codes of tokens at `places` as rows of a matrix of all tokens."""
    counts = codes.counts.cpu().numpy()
    all_counts = np.zeros(n_tokens, np.int64)
    all_counts[places.numpy()] = counts
    starts = np.concatenate([[0], np.cumsum(all_counts)])
    order = np.argsort(places.numpy())
    offsets = codes.offsets.cpu().numpy()
    kept = counts[order]
    take = np.repeat(offsets[:-1][order] - np.cumsum(kept) + kept, kept) + np.arange(kept.sum())
    values = codes.values.detach().float().cpu().numpy()[take]
    latents = codes.latents.cpu().numpy()[take].astype(np.int32)
    return sparse.csr_matrix((values, latents, starts), shape=(n_tokens, codes.n_latents))


def _origin_of(model: Model, dictionary: Dictionary) -> Origin:
    return Origin(
        model=model.fingerprint.model_dump(),
        tokenizer_sha256=model.tokenizer_sha256,
        dictionary_sha256=hash_tensors(dictionary.tensors),
        kind=dictionary.kind,
        reads=tuple(map(str, dictionary.reads)),
        writes=tuple(map(str, dictionary.writes)),
        n_latents=dictionary.n_latents,
    )


def _refuse_if_shipped(folder: Path) -> None:
    if is_shipped(folder):
        raise BadFile(
            "Text can't be added to a bundled index.",
            got=folder.name,
            because="it ships with the package, and the next installation would replace it",
            instead="an index of your own: ms.features.build(model, index.dictionary(), text, folder=...)",
        )


def _refuse_another(manifest: Manifest, origin: Origin, settings: IndexSettings, folder: Path) -> None:
    known = manifest.origin
    problems: list[str] = []
    if known.model["weights_sha256"] != origin.model["weights_sha256"]:
        problems.append(
            f"its model {known.model['name']} has weights {known.model['weights_sha256'][:12]}, this one "
            f"{origin.model['weights_sha256'][:12]}"
        )
    if known.model["dtype"] != origin.model["dtype"]:
        problems.append(f"it was run in {known.model['dtype']}, this one in {origin.model['dtype']}")
    if known.tokenizer_sha256 != origin.tokenizer_sha256:
        problems.append("its tokenizer is another one")
    if known.dictionary_sha256 != origin.dictionary_sha256 or known.reads != origin.reads:
        problems.append(
            f"its dictionary is {known.dictionary_sha256[:12]} at {', '.join(known.reads)}, this one "
            f"{origin.dictionary_sha256[:12]} at {', '.join(origin.reads)}"
        )
    if problems:
        raise DictionaryMismatch(
            f"{folder.name} is an index of something else.",
            got=f"{origin.model['name']} and a {origin.kind} at {', '.join(origin.reads)}",
            because="; ".join(problems),
            instead="the model and dictionary that it was built with, or another folder",
        )
    if manifest.settings != settings:
        raise BadFile(
            f"{folder.name} was begun with other settings.",
            got=str(settings),
            because=f"it has {manifest.settings}",
            instead="the same settings, or another folder",
        )
