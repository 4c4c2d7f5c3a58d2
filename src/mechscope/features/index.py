"""FeatureIndex: an index on disk, opened: pages, neighbours, search, labels, queries. Imports no torch.

Reads what it needs when it is asked: a page touches one or two row groups of each run. Files are compared with
their checksums when they are first read. One process writes into a folder at a time.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechscope.features.describing import DENSE, By, neighbors_of, page_of
from mechscope.features.labels import LABELS, Label, Labels
from mechscope.features.manifest import open_manifest, refuse_unless_intact
from mechscope.features.page import FeaturePage, Related
from mechscope.features.parts import Entries, EntryReader, TokenReader
from mechscope.features.statistics import Statistics
from mechscope.records.files import open_json, open_tensors
from mechscope.vocabulary.errors import BadFile, DictionaryMismatch, PositionOutOfRange

if TYPE_CHECKING:
    from mechscope.data.intervals import Interval
    from mechscope.dictionaries.dictionary import Dictionary
    from mechscope.features.searching import SearchResult
    from mechscope.models.model import Model

_OF_THE_TEXT = ("statistics", "connection", "reader", "tokens", "row_tokens")
"""What is read once and changes with the text."""


class FeatureIndex:
    """What every latent of a dictionary does over a text.

    Args:
        folder: What `ms.features.build` wrote.
        labels: A file of labels to use in place of the one in the folder.

    Raises:
        BadFile: no index, or one whose building was not finished.
        ChecksumMismatch: a file is missing or shortened.
    """

    def __init__(self, folder: str | Path, *, labels: Labels | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = open_manifest(self.folder)
        self.labels = Labels(self.folder / LABELS) if labels is None else labels
        self._model: Model | None = None
        self._dictionary: Dictionary | None = None

    @property
    def n_latents(self) -> int:
        return self.manifest.origin.n_latents

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        return int(self.statistics.n_tokens[0])

    @property
    def source(self) -> str:
        """Model and sites, in one line."""
        origin = self.manifest.origin
        sites = ", ".join(origin.reads)
        if origin.writes != origin.reads:
            sites += f" -> {', '.join(origin.writes)}"
        return f"{origin.model['name']}, {sites}"

    def __len__(self) -> int:
        return self.n_latents

    def __iter__(self) -> Iterator[FeaturePage]:
        return (self.page(latent) for latent in range(self.n_latents))

    def __repr__(self) -> str:
        dead, dense = len(self.dead()), len(self.dense())
        return (
            f"<FeatureIndex of {self.source}: {self.n_latents:,} latents over {self.n_tokens:,} tokens, "
            f"{dead} dead, {dense} dense, {len(self.labels)} labelled>"
        )

    @cached_property
    def statistics(self) -> Statistics:
        """How often and how much each latent fired."""
        if self.manifest.statistics is None:
            raise BadFile(
                f"{self.folder.name} holds no text yet.",
                got=self.folder,
                because="its building was interrupted before the first part was written",
                instead="run ms.features.build again: it goes on",
            )
        refuse_unless_intact(self.folder, self.manifest.statistics)
        return Statistics.from_arrays(open_tensors(self.folder / self.manifest.statistics.file))

    def __getitem__(self, latent: int) -> FeaturePage:
        """Everything about one latent.

        Raises:
            PositionOutOfRange: no such latent.

        Cost: its own activations, read from one or two row groups of each run.
        """
        return self.page(latent)

    def page(self, latent: int) -> FeaturePage:
        """Everything about one latent; see `index[latent]`."""
        return page_of(self, self.known(latent))

    def neighbors(self, latent: int, *, by: By = "decoder", k: int = 10) -> tuple[Related, ...]:
        """The nearest latents: by cosine of decoder rows or encoder columns, or by firing at the same tokens.

        Raises:
            BadCommand: another `by`.

        Cost: of more than the index keeps (ten, unless built otherwise), a look at the whole dictionary.
        """
        return neighbors_of(self, self.known(latent), by=by, k=k)

    def dead(self) -> list[int]:
        """Latents that never fired."""
        return np.flatnonzero(self.statistics.fires == 0).tolist()

    def dense(self, above: float = DENSE) -> list[int]:
        """Latents that fire at more than a fraction of the tokens, the densest first."""
        density = self.statistics.density
        order = np.argsort(-density, kind="stable")
        return order[density[order] > above].tolist()

    def shares(self, *, dense: float = DENSE) -> "dict[str, tuple[float, Interval]]":
        """Shares of latents that are "dead" and "dense" on this text, with 95% intervals over its rows."""
        from mechscope.features.rates import shares_of_latents

        return shares_of_latents(self, dense=dense)

    def label(self, latent: int, text: str, *, by: str = "hand") -> Label:
        """Say what a latent is taken to mean; kept beside the index."""
        return self.labels.put(self.known(latent), text, by=by)

    def search(self, query: str | list[str], *, k: int = 10, **options: Any) -> "SearchResult":
        """Latents for a text; see `features.searching.search`."""
        from mechscope.features.searching import search

        return search(self, query, k=k, **options)

    def rerank(self, latents: Sequence[int], query: str | list[str], **options: Any) -> "SearchResult":
        """These latents reordered by a text; see `features.searching.rerank`."""
        from mechscope.features.searching import rerank

        return rerank(self, latents, query, **options)

    def contrast(self, these: Any, those: Any, *, k: int = 10, **options: Any) -> "SearchResult":
        """Latents that fire on these prompts and not on those; see `features.searching.contrast`."""
        from mechscope.features.searching import contrast

        return contrast(self, these, those=those, k=k, **options)

    def query(self, sql: str) -> Any:
        """Ask DuckDB; see `features.tables` for the tables.

        Returns:
            A DuckDB relation: `.fetchall()`, `.df()`, `.arrow()`.
        """
        return self.connection.sql(sql)

    @cached_property
    def connection(self) -> Any:
        """A DuckDB connection in memory, over the Parquet files: tables activations, tokens, latents."""
        from mechscope.features.tables import connected

        return connected(self)

    def add(self, text: Any, *, report: Any = None) -> "FeatureIndex":
        """The index with more text, which this one is too from then on; needs the model at hand.

        Raises:
            DictionaryMismatch: the model is not at hand, or is another one.
            BadFile: the index ships with the package.
        """
        from mechscope.features.building import add_text

        model, dictionary = self.at_hand()
        found = add_text(self, text, model=model, dictionary=dictionary, report=report)
        self.manifest = found.manifest
        for name in _OF_THE_TEXT:
            self.__dict__.pop(name, None)
        return found

    def attached(self, model: "Model", dictionary: "Dictionary | None" = None) -> "FeatureIndex":
        """The same index with its model at hand, for `search` by what fires and for `add`.

        Raises:
            DictionaryMismatch: another model than the index was built with.
        """
        known = self.manifest.origin.model
        if model.fingerprint.weights_sha256 != known["weights_sha256"]:
            raise DictionaryMismatch(
                f"{self.folder.name} is not an index of {model.identity.name}.",
                got=f"weights {model.fingerprint.weights_sha256[:12]}",
                because=f"it was built with {known['name']}, weights {known['weights_sha256'][:12]}",
                instead=f"ms.load({known['name']!r})",
            )
        found = FeatureIndex(self.folder, labels=self.labels)
        found._model, found._dictionary = model, dictionary
        return found

    def at_hand(self) -> "tuple[Model, Dictionary]":
        """The model and the dictionary.

        Raises:
            DictionaryMismatch: no model is at hand.
        """
        if self._model is None:
            raise DictionaryMismatch(
                "The index has no model at hand.",
                got=repr(self.folder.name),
                because="what fires on a new text is found by running the model on it",
                instead=f"index.attached(ms.load({self.manifest.origin.model['name']!r}))",
            )
        if self._dictionary is None:
            from mechscope.dictionaries.evaluation.reading import fitted

            self._dictionary = fitted(self.dictionary(), self._model)
        return self._model, self._dictionary

    def dictionary(self) -> "Dictionary":
        """The dictionary that was indexed; in single precision if it is kept in half."""
        import torch

        from mechscope.dictionaries.dictionary import Dictionary

        found = Dictionary.open(self.folder / "dictionary")
        return found.to(dtype=torch.float32) if found.dtype == torch.float16 else found

    @property
    def has_model(self) -> bool:
        """Whether a model is at hand."""
        return self._model is not None

    def entries(self, latent: int) -> Entries:
        """Every activation of a latent, in the order of the text."""
        return self.reader.of(self.known(latent))

    @cached_property
    def reader(self) -> EntryReader:
        """Activations by latent."""
        return EntryReader(self.folder, self.manifest.runs)

    @cached_property
    def tokens(self) -> TokenReader:
        """The text, and what fired at each token."""
        return TokenReader(self.folder, self.manifest.tokens)

    @cached_property
    def row_tokens(self) -> np.ndarray:
        """Tokens that count in each row of the text."""
        from mechscope.features.rates import tokens_of_rows

        return tokens_of_rows(self)

    @cached_property
    def strings(self) -> list[str]:
        """Text of every token id."""
        found = open_json(self.folder / "vocabulary.json")
        return [str(text) for text in found] if isinstance(found, list) else []

    @cached_property
    def relations(self) -> dict[str, np.ndarray]:
        """Neighbours by decoder and encoder, and logit effects; empty if none were found."""
        if self.manifest.relations is None:
            return {}
        refuse_unless_intact(self.folder, self.manifest.relations)
        return open_tensors(self.folder / self.manifest.relations.file)

    def known(self, latent: int) -> int:
        """The latent's number.

        Raises:
            PositionOutOfRange: no such latent.
        """
        if not isinstance(latent, int | np.integer) or not 0 <= latent < self.n_latents:
            raise PositionOutOfRange(
                f"There is no latent {latent}.",
                got=latent,
                because=f"the dictionary has {self.n_latents}",
                instead=f"0 to {self.n_latents - 1}",
            )
        return int(latent)


def open_index(place: str | Path, *, labels: str | Path | None = None) -> FeatureIndex:
    """Open an index: a folder, or one that ships with a bundled model: "village", "village/resid_post.2".

    Args:
        place: Folder or name.
        labels: A file of your own labels; it begins with the index's. By default those in the folder, which
            can't be changed if the index ships with the package.

    Raises:
        BadFile: neither, or not a file of labels.
    """
    from mechscope.features.shipped import bundled, is_shipped

    folder = bundled(str(place)) or Path(place)
    own = folder / LABELS
    found = Labels(own, read_only=is_shipped(folder)) if labels is None else Labels(labels, start=own)
    return FeatureIndex(folder, labels=found)
