"""Loading: a named behaviour for a model: `load`, `names`, and fresh prompts by `redraw`.

Owns: how many pairs each split gets and that a fresh draw holds no prompt seen before. Refuses a behaviour that the
model's tokenizer can't express, with counts and what it can. Invariant: (name, source, n, seed) gives the prompts.
"""

from collections.abc import Set
from dataclasses import replace
from typing import Any

from mechscope.behaviors import specimens, templates  # noqa: F401 # pyright: ignore[reportUnusedImport] - both register
from mechscope.behaviors.behavior import Behavior, Provenance
from mechscope.behaviors.reading import read_pairs, refuse_text
from mechscope.behaviors.registry import Source, names_for, source_for
from mechscope.behaviors.split import Split, split_of, usual_metric
from mechscope.data.pairs import PromptPair, TokenPair
from mechscope.data.splits import sizes_of
from mechscope.interventions.generated_text import GeneratedText
from mechscope.models.inputs import Reader
from mechscope.models.model import Model
from mechscope.vocabulary.errors import BadPairs, NotEnoughEvidence

Prompts = tuple[tuple[int, ...], tuple[int, ...]]
MOST_TRIES = 5


def names(model: Model) -> list[str]:
    """Names of the behaviours that can be written in this model's tokens; none of a masked language model."""
    return names_for(model.reader) if model.binding.anatomy.head.predicts == "next" else []


def load(name: str, model: Model, *, n: int = 600, seed: int = 0, source: str | None = None) -> Behavior:
    """Draw prompts of a named behaviour for a model.

    Entities are divided between the splits once and for all: whatever the seed, a held-out name is held out.

    Args:
        name: One of `names(model)`: "ioi", "greater-than", "induction", ...
        model: Its tokenizer decides which words can be used. It is not run.
        n: Pairs in all: a third to train, a sixth to validation, half held out.
        seed: Names the draw.
        source: "village", "templates", ...; by default the one written for the model's own language, if any.

    Raises:
        BadPairs: no such behaviour, or too few of its words are one token, or it has no n different pairs.
        NoNextToken: a masked language model.

    Cost: tokenisation only; well under a second for most.
    Caveat: nothing is filtered by whether the model gets it right; see `measure` and `Behavior.only_correct`.
    """
    refuse_text(model, "A behaviour of texts and what follows them")
    chosen = source_for(name, model.reader, origin=source)
    return draw_behavior(chosen, model.reader, n=n, seed=seed)


def draw_behavior(source: Source, reader: Reader, *, n: int, seed: int) -> Behavior:
    """Draw all splits of a behaviour from one source."""
    drawn = {
        split: draw_split(source, reader, split=split, n=size, seed=seed)
        for split, size in sizes_of(n).items()
    }
    settings: dict[str, Any] = {"version": source.version, "n": n, "seed": seed}

    def again(was: Behavior, fresh_seed: int) -> Behavior:
        return _redraw(was, fresh_seed, source=source, reader=reader)

    return Behavior(
        name=source.name,
        splits=_splits(source, reader, drawn),
        provenance=Provenance(source=source.origin, settings=settings),
        draw_again=again,
    )


def draw_split(
    source: Source, reader: Reader, *, split: str, n: int, seed: int, taken: Set[Prompts] = frozenset()
) -> list[TokenPair]:
    """Draw n different pairs of a split, none of them among `taken`.

    Raises:
        BadPairs: the source has no n different pairs.
    """
    wanted, fresh = n, []
    for _ in range(MOST_TRIES):
        found = _read(source.draw(reader, split=split, n=wanted, seed=seed), reader)
        different = {(pair.clean, pair.corrupt): pair for pair in found}
        fresh = [pair for prompts, pair in different.items() if prompts not in taken]
        if len(fresh) >= n:
            return fresh[:n]
        if len(found) < wanted:
            break
        wanted += 2 * (n - len(fresh))
    raise BadPairs(
        f'"{source.name}" has no {n} different pairs for {split}.',
        got=f"n={n}",
        because=f"{len(fresh)} were found in {wanted} draws" + (", the known ones left out" if taken else ""),
        instead="a smaller n",
    )


def _redraw(was: Behavior, seed: int, *, source: Source, reader: Reader) -> Behavior:
    held_out, n = was.held_out, was.sizes["held_out"]
    taken = {(tuple(held_out.clean.row(row)), tuple(held_out.corrupt.row(row))) for row in range(n)}
    try:
        drawn = draw_split(source, reader, split="held_out", n=n, seed=seed, taken=taken)
    except BadPairs as error:
        raise NotEnoughEvidence(
            f'"{was.name}" has too few held-out prompts left for a fresh draw.',
            got=f"seed={seed}, n={n}",
            because=f"{error.what} {error.because}",
            instead="a behaviour of fewer prompts (n), or one whose entities are more",
        ) from error
    told = f"fresh held-out prompts, seed {seed}: none of them is among the {n} that were known"
    change = {"kind": "redrawn", "seed": seed, "without": held_out.data_hash, "told": told}
    known = held_out.metric
    kind = usual_metric(drawn) if isinstance(known, GeneratedText) else known.kind
    fresh = _split("held_out", drawn, of=was.name, metric=kind, reader=reader)
    if isinstance(known, GeneratedText):
        fresh = fresh.with_metric(replace(known, answers=()))
    return was.changed({**was.splits, "held_out": fresh}, change, draw_again=was.draw_again)


def _splits(source: Source, reader: Reader, drawn: dict[str, list[TokenPair]]) -> dict[str, Split]:
    metric = source.metric or usual_metric([pair for pairs in drawn.values() for pair in pairs])
    return {
        name: _split(name, pairs, of=source.name, metric=metric, reader=reader)
        for name, pairs in drawn.items()
    }


def _split(name: str, pairs: list[TokenPair], *, of: str, metric: str, reader: Reader) -> Split:
    bos = "tokenizer" if any(any(pair.texts) for pair in pairs) else "given"
    return split_of(name, pairs, behavior=of, metric=metric, pad_id=reader.pad_id, bos=bos)


def _read(pairs: Any, reader: Reader) -> list[TokenPair]:
    """Pairs as token ids, in their order, whether they were drawn as text or as ids."""
    texts = [pair for pair in pairs if isinstance(pair, PromptPair)]
    return read_pairs(reader, texts) if texts else list(pairs)
