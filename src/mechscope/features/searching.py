"""Searching: latents for a text: those that fire on it, those labelled with it, those that fire where it stands.

Three sources, each with its own score, joined by rank. What fires needs the model at hand; labels and the text of
the index do not. A latent's activation is compared with its own largest, and one that fires everywhere counts for
less: score = activation / largest x log(1 / density) / log(tokens).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mechscope.vocabulary.errors import BadCommand, EmptyPrompt

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex

SOURCES = ("fires", "labels", "text")
Ranking = Literal["specific", "relative", "activation"]
MOST_PLACES = 2000
"""Places of the index's text at which latents are counted."""

_HALF = 60
"""Reciprocal rank fusion: rank r counts 1 / (60 + r)."""


@dataclass(frozen=True)
class Hit:
    """A latent that was found.

    Args:
        latent: Which.
        score: Of the search, larger is better.
        why: In words: "fires 4.1 on ' gate'".
        label: What it is taken to mean.
        value: Its activation, or another number of the source.
    """

    latent: int
    score: float
    why: str
    label: str = ""
    value: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; `result[0].latent`, iteration, and a table in a notebook."""

    query: str
    hits: tuple[Hit, ...]

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]

    @property
    def latents(self) -> list[int]:
        """Latents found, best first."""
        return [hit.latent for hit in self.hits]

    def __repr__(self) -> str:
        lines = [
            f"  {h.latent:>6}  {h.score:8.4f}  {h.why}{'  · ' + h.label if h.label else ''}"
            for h in self.hits
        ]
        return "\n".join([f"{len(self.hits)} latents for {self.query!r}", *lines])

    def _repr_html_(self) -> str:
        from mechscope.figures.prose import Table
        from mechscope.figures.shown import shown

        rows = [[h.latent, h.score, shown(h.why), shown(h.label) if h.label else None] for h in self.hits]
        return Table(
            ["latent", "score", "why", "label"], rows, caption=f"Search: {shown(self.query)}"
        )._repr_html_()


def search(
    index: "FeatureIndex",
    query: str | Sequence[str],
    *,
    k: int = 10,
    over: str | Sequence[str] | None = None,
    rank: Ranking = "specific",
) -> SearchResult:
    """Find latents for a text.

    Args:
        index: Open; with its model at hand if `over` holds "fires".
        query: A text, or several.
        k: How many.
        over: "fires" (run the model on it), "labels", "text" (where it stands in the index's own text); by default
            labels, and "fires" if the model is at hand, else "text".
        rank: Of what fires: "specific" (relative activation, rare latents first), "relative", or "activation".

    Raises:
        EmptyPrompt: an empty query.
        BadCommand: no such place to search, or no such ranking.
        DictionaryMismatch: "fires" without the model.
    """
    queries = [query] if isinstance(query, str) else list(query)
    if not queries or not all(one.strip() for one in queries):
        raise EmptyPrompt("A search needs words.", got=repr(query), instead='index.search("golden gate")')
    _refuse_other_ranking(rank)
    over = [over] if isinstance(over, str) else over
    chosen = tuple(over) if over is not None else ("labels", "fires" if index.has_model else "text")
    unknown = sorted(set(chosen) - set(SOURCES))
    if unknown:
        raise BadCommand(
            "There is no such place to search.", got=", ".join(unknown), instead="fires, labels, text"
        )
    lists: list[list[Hit]] = []
    if "labels" in chosen:
        lists.append(in_labels(index, queries))
    if "fires" in chosen:
        lists.append(by_firing(index, queries, rank=rank, k=5 * k))
    if "text" in chosen:
        lists.append(in_text(index, queries, k=5 * k))
    lists = [one for one in lists if one]
    found = lists[0] if len(lists) == 1 else fused(lists)
    return SearchResult(" | ".join(queries), tuple(found[:k]))


def _refuse_other_ranking(rank: str) -> None:
    if rank not in get_args(Ranking):
        raise BadCommand(
            "What fires is not ranked so.", got=f"rank={rank!r}", instead=", ".join(get_args(Ranking))
        )


def rerank(
    index: "FeatureIndex", latents: Sequence[int], query: str | Sequence[str], **options: Any
) -> SearchResult:
    """Latents that are given, reordered by a text; those that it does not find come last, in the order given.

    Args:
        index: Open.
        latents: Which: what another search, a circuit or a contrast named.
        query: As in `search`.
        options: `over` and `rank`, as in `search`.

    Raises:
        PositionOutOfRange: no such latent.
    """
    given = list(dict.fromkeys(index.known(latent) for latent in latents))
    found = search(index, query, k=index.n_latents, **options)
    hits = [hit for hit in found.hits if hit.latent in set(given)]
    named = {hit.latent for hit in hits}
    rest = [latent for latent in given if latent not in named]
    hits += [Hit(i, 0.0, "not found", label.text if (label := index.labels.get(i)) else "") for i in rest]
    return SearchResult(found.query, tuple(hits))


def fused(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Several rankings as one, by reciprocal rank."""
    scores: dict[int, float] = {}
    hits: dict[int, list[Hit]] = {}
    for one in lists:
        for place, hit in enumerate(one):
            scores[hit.latent] = scores.get(hit.latent, 0.0) + 1 / (_HALF + place + 1)
            hits.setdefault(hit.latent, []).append(hit)
    order = sorted(scores, key=lambda latent: (-scores[latent], latent))
    return [
        Hit(i, scores[i], "; ".join(h.why for h in hits[i]), hits[i][0].label, hits[i][-1].value)
        for i in order
    ]


def in_labels(index: "FeatureIndex", queries: Sequence[str]) -> list[Hit]:
    """Latents whose label holds words of the query; the share of its words."""
    words = {word for one in queries for word in _words(one)}
    found: list[Hit] = []
    for latent in index.labels:
        label = index.labels[latent]
        shared = words & set(_words(label.text))
        if shared:
            value = len(shared) / len(words)
            found.append(Hit(latent, value, f"label says {', '.join(sorted(shared))}", label.text, value))
    return sorted(found, key=lambda hit: (-hit.score, hit.latent))


def by_firing(index: "FeatureIndex", queries: Sequence[str], *, rank: Ranking, k: int) -> list[Hit]:
    """Latents that fire on the query: the model is run on it."""
    largest, where = peaks(index, list(queries))
    strongest = largest.max(0)
    score = _ranked(index, strongest, rank)
    order = [int(i) for i in np.argsort(-score, kind="stable")[:k] if strongest[i] > 0]
    at = largest.argmax(0)
    return [
        _hit(
            index, i, float(score[i]), f"fires {strongest[i]:.3g} on {where[at[i]][i]!r}", float(strongest[i])
        )
        for i in order
    ]


def in_text(index: "FeatureIndex", queries: Sequence[str], *, k: int) -> list[Hit]:
    """Latents that fire where the words stand in the index's own text, compared with how often they fire at all."""
    places = np.concatenate([places_of(index, one) for one in queries])
    if not len(places):
        return []
    if len(places) > MOST_PLACES:
        places = places[np.linspace(0, len(places) - 1, MOST_PLACES).astype(int)]
    share = np.bincount(index.tokens.latents_at(places), minlength=index.n_latents) / len(places)
    density = index.statistics.density
    score = share * np.log2(np.maximum(share, 1e-12) / np.maximum(density, 1e-12)).clip(0)
    order = [int(i) for i in np.argsort(-score, kind="stable")[:k] if score[i] > 0]
    return [
        _hit(index, i, float(score[i]), f"fires at {share[i]:.0%} of {len(places)} places", float(share[i]))
        for i in order
    ]


def contrast(
    index: "FeatureIndex", these: Any, *, those: Any, k: int = 10, least: float = 0.0
) -> SearchResult:
    """Latents that tell two sets of prompts apart, by the area under the curve of their largest activation.

    Args:
        index: With its model at hand.
        these: Prompts on which the latents should fire.
        those: Prompts on which they should not.
        k: How many.
        least: Leave out latents whose largest activation on `these` is a smaller share of their largest anywhere.

    Returns:
        Score is the area (1: every one of these above every one of those); ties go to the larger difference of means.
    """
    here, where = peaks(index, these)
    there, _ = peaks(index, those)
    area = areas_under_curve(here, there)
    own = np.maximum(index.statistics.largest, 1e-12)
    difference = (here.mean(0) - there.mean(0)) / own
    fires = (here.max(0) > 0) & (here.max(0) >= least * own)
    order = np.lexsort((np.arange(len(area)), -difference, -np.where(fires, area, -1.0)))[:k]
    hits = [
        _hit(
            index,
            int(i),
            float(area[i]),
            f"mean {here[:, i].mean():.3g} against {there[:, i].mean():.3g}, on "
            f"{where[int(here[:, i].argmax())][i]!r}",
            float(difference[i]),
        )
        for i in order
        if fires[i]
    ]
    return SearchResult(f"{len(here)} prompts against {len(there)}", tuple(hits))


def areas_under_curve(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Of each column: the probability that a row of `here` exceeds one of `there`, ties half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([here, there]), axis=0)
    n, m = len(here), len(there)
    return (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)


def peaks(index: "FeatureIndex", prompts: Any) -> tuple[np.ndarray, list[dict[int, str]]]:
    """Largest activation of each latent on each prompt, [prompt, latent], and the token where it is."""
    from mechscope.dictionaries.evaluation.reading import pieces

    model, dictionary = index.at_hand()
    n = len(model.tokens(prompts))
    largest, where = np.zeros((n, index.n_latents)), [dict[int, str]() for _ in range(n)]
    for piece in pieces(dictionary, model, text=prompts):
        codes = dictionary.encode_sparse(piece.read)
        ids = piece.batch.ids[piece.counts].tolist()
        columns = (codes.tokens.tolist(), codes.latents.tolist(), codes.values.double().tolist())
        for token, latent, value in zip(*columns, strict=True):
            row = int(piece.units[token])
            if value > largest[row, latent]:
                largest[row, latent] = value
                where[row][latent] = index.strings[ids[token]]
    return largest, where


def places_of(index: "FeatureIndex", words: str) -> np.ndarray:
    """Numbers of the last tokens of every place where words stand in the index's text, in any case."""
    wanted, found = words.strip().casefold(), []
    for number, file in enumerate(index.manifest.tokens):
        arrays = index.tokens.arrays(number)
        pieces = [index.strings[i] for i in np.asarray(arrays["ids"]).tolist()]
        pieces = _spaced(pieces, wanted)
        ends = np.cumsum([len(piece) for piece in pieces])
        text = "".join(pieces).casefold()
        if len(text) != (ends[-1] if len(ends) else 0):
            continue
        stops = [match.end() for match in re.finditer(re.escape(wanted), text)]
        found.append(file.first + np.searchsorted(ends, stops))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _spaced(pieces: list[str], wanted: str) -> list[str]:
    """Pieces that join to readable text: a space between them where the tokenizer drops it (whole-word tokenizers)."""
    share = sum(piece[:1] == " " for piece in pieces) / max(1, len(pieces))
    lower = [piece if len(piece.casefold()) == len(piece) else "?" * len(piece) for piece in pieces]
    return [piece + " " for piece in lower] if share < 0.02 and " " in wanted else lower


def _ranked(index: "FeatureIndex", strongest: np.ndarray, rank: Ranking) -> np.ndarray:
    if rank == "activation":
        return strongest
    relative = strongest / np.maximum(index.statistics.largest, np.maximum(strongest, 1e-12))
    if rank == "relative":
        return relative
    n = max(2, index.n_tokens)
    rarity = -np.log(np.maximum(index.statistics.density, 1 / n)) / np.log(n)
    return relative * rarity


def _hit(index: "FeatureIndex", latent: int, score: float, why: str, value: float) -> Hit:
    label = index.labels.get(latent)
    return Hit(latent, score, why, label.text if label else "", value)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
