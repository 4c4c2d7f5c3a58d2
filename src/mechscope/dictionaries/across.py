"""Across: one crosscoder for the same site of several models, trained on the same tokens through each of them.

A latent has one code and a decoder for each model: what the models share is written to all, what only one has is
written to that one alone. Ports carry the model's label. Refuses models that would read other tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mechscope.dictionaries.architectures.base import Architecture
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Port, Source
from mechscope.dictionaries.train import refuse_attention_maps, run_trainer, source_of
from mechscope.dictionaries.training.spec import Job, Training
from mechscope.dictionaries.training.trainer import Reporter, Trainer
from mechscope.engine.harvest.aligned import AlignedBlocks, SiteOf
from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.corpus import Text, TokenCorpus, corpus_of
from mechscope.engine.harvest.store import rows_for
from mechscope.models.model import Model
from mechscope.records.canonical import hash_json
from mechscope.vocabulary.errors import DictionaryMismatch, PositionOutOfRange
from mechscope.vocabulary.sites import Site

_ROWS_AT_ONCE = 32


def train_across(
    models: Mapping[str, Model],
    *,
    site: str | Site | Sequence[str | Site],
    text: Text,
    config: Architecture,
    training: Training | None = None,
    folder: str | Path | None = None,
    report: Reporter | None = None,
) -> Dictionary:
    """Train a crosscoder on what a site carries in several models over the same tokens.

    Each model's values are scaled by their own mean square, and a latent's decoders begin alike in all models (of one
    width), so that one becomes a single model's own by training only.

    Args:
        models: By label: `{"base": ms.load(...), "tuned": ms.load(...)}`, of one tokenizer.
        site: One site, or several, read in every model; a negative layer counts from each model's end.
        text: As in `train`; cut to the shortest context.
        config: Architecture and width: `ms.dictionaries.BatchTopK(width=4096, k=32)`.
        training: As in `train`.
        folder: As in `train`.
        report: As in `train`.

    Returns:
        A crosscoder whose ports carry the labels, in the order of `models`; `compare_models` says what is whose.

    Raises:
        DictionaryMismatch: fewer than two models, or models of different tokenizers.
        PointUnavailable: a model does not form such a site.
        PositionOutOfRange: a token that a model's vocabulary lacks.

    Cost: the text through every model up to the site, and one step for each batch.
    """
    refuse_other_tokenizers(models)
    training, first = training or Training(), next(iter(models.values()))
    names = [site] if isinstance(site, str | Site) else list(site)
    sites = {label: tuple(model.binding.site(name) for name in names) for label, model in models.items()}
    refuse_attention_maps([one for found in sites.values() for one in found])
    corpus = corpus_of(first, text, n_context=min(model.n_context for model in models.values()))
    _refuse_unknown_tokens(models, corpus)
    corpus = corpus.shuffled(training.seed)
    parts = {
        label: ModelBlocks(model=model, corpus=corpus, sites=sites[label], rows_at_once=_ROWS_AT_ONCE)
        for label, model in models.items()
    }
    n_numbers = sum(torch.Size(shape).numel() for shape in AlignedBlocks(parts).shapes.values())
    n_rows = max(_ROWS_AT_ONCE, rows_for(corpus.lengths, 4 * n_numbers))
    blocks = AlignedBlocks({label: replace(part, rows_per_block=n_rows) for label, part in parts.items()})
    reads = tuple(SiteOf(one.point, one.layer, label) for label, found in sites.items() for one in found)
    trainer = Trainer(
        blocks,
        [Job(reads=reads, config=config)],
        training=training,
        source=source_of_models(models, corpus),
        reads_ahead=first.device.type != "cpu",
        device=first.device,
    )
    return run_trainer(trainer, folder, report)[0]


def source_of_models(models: Mapping[str, Model], corpus: TokenCorpus) -> Source:
    """What a crosscoder says about its models: names and one hash over all weights; fingerprints under "models"."""
    known = {label: model.fingerprint for label, model in models.items()}
    source = source_of(
        next(iter(models.values())),
        data_sha256=corpus.data_sha256,
        has_bos=corpus.has_bos,
        bos=corpus.bos,
    )
    return replace(
        source,
        model=", ".join(f"{label}: {one.name}" for label, one in known.items()),
        revision="",
        weights_sha256=hash_json({label: one.weights_sha256 for label, one in known.items()}),
        dtype=", ".join(dict.fromkeys(one.dtype for one in known.values())),
        notes={**source.notes, "models": {label: one.model_dump() for label, one in known.items()}},
    )


def labels_of(ports: Sequence[Port]) -> tuple[str, ...]:
    """The models that ports belong to, in order."""
    return tuple(dict.fromkeys(port.model for port in ports))


def refuse_other_tokenizers(models: Mapping[str, Model]) -> None:
    """Refuse models that are too few, or that do not read the same tokens.

    Raises:
        DictionaryMismatch
    """
    if len(models) < 2:
        raise DictionaryMismatch(
            "A crosscoder over models needs at least two of them.",
            got=", ".join(models) or "none",
            instead="ms.dictionaries.train, for one model",
        )
    hashed = {label: model.tokenizer_sha256 for label, model in models.items() if model.tokenizer_sha256}
    if len(set(hashed.values())) > 1:
        raise DictionaryMismatch(
            "The models have different tokenizers.",
            got=", ".join(f"{label}: {one[:12]}" for label, one in hashed.items()),
            because="token i of one would be another piece of text than token i of the other",
            instead="models that share a tokenizer: a base model and what was made of it",
        )


def _refuse_unknown_tokens(models: Mapping[str, Model], corpus: TokenCorpus) -> None:
    fewest = min(models, key=lambda label: models[label].d_vocab)
    if int(corpus.ids.max()) >= models[fewest].d_vocab:
        raise PositionOutOfRange(
            f'A token id is outside the vocabulary of "{fewest}".',
            got=f"id {int(corpus.ids.max())}",
            because=f"its embedding has {models[fewest].d_vocab} rows",
            instead="text in tokens that all models have",
        )
