"""Describing one latent of an open index: its page, its neighbours, what fires with it. Imports no torch.

Everything is read from the index's files when it is asked for; nothing is computed over the whole text.
"""

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mechscope.features.examples import groups_of
from mechscope.features.page import Activity, FeaturePage, Related
from mechscope.features.parts import Entries
from mechscope.features.statistics import LOWEST_OCTAVE, bin_edges
from mechscope.figures.labelled import LabelledArray
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadCommand

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex

DENSE = 0.1
"""A latent that fires at a larger fraction of tokens is called dense."""

MOST_FIRINGS = 4096
"""Firings of a latent at which co-activation is counted; of more, so many are drawn."""

By = Literal["decoder", "encoder", "behavior"]


def page_of(index: "FeatureIndex", latent: int) -> FeaturePage:
    """Everything about one latent.

    Cost: its own activations, read from one or two row groups of each run.
    """
    entries = index.entries(latent)
    behavior, together = _fires_with(index, latent, entries)
    return FeaturePage(
        latent=latent,
        source=index.source,
        activity=_activity(index, latent, entries),
        groups=groups_of(entries, index.tokens, index.strings, latent=latent),
        promoted=_effects(index, latent, "top"),
        suppressed=_effects(index, latent, "bottom"),
        neighbors={
            "decoder": neighbors_of(index, latent, by="decoder"),
            "encoder": neighbors_of(index, latent, by="encoder"),
            "behavior": behavior,
        },
        together=together,
        label=index.labels.get(latent),
        conventions={
            "logit effects": "direct path, per unit of activation",
            "final norm": f"held at its median scale {index.manifest.origin.norm_scale:.4g}",
            "special tokens": "left out",
            "interval of the density": "95%, over rows of the text",
        },
    )


def neighbors_of(index: "FeatureIndex", latent: int, *, by: By, k: int = 10) -> tuple[Related, ...]:
    """The nearest latents: by cosine of decoder rows or encoder columns, or by firing at the same tokens.

    Raises:
        BadCommand: another `by`.
    """
    if by not in get_args(By):
        raise BadCommand(
            f"Neighbours are not found by {by!r}.", got=by, instead=", ".join(map(repr, get_args(By)))
        )
    if by == "behavior":
        return _fires_with(index, latent, index.entries(latent), k)[0]
    found = index.relations
    if f"{by}/latents" not in found:
        return ()
    latents, cosines = (found[f"{by}/{name}"][latent] for name in ("latents", "cosines"))
    if k > len(latents) and len(latents) < index.n_latents - 1:
        from mechscope.features.relations import nearest_to

        latents, cosines = nearest_to(index.dictionary(), latent, by=by, k=k)
    latents, cosines = latents[:k], cosines[:k]
    return tuple(_related(index, int(i), float(v)) for i, v in zip(latents, cosines, strict=True))


def _related(index: "FeatureIndex", latent: int, value: float) -> Related:
    label = index.labels.get(latent)
    return Related(latent, value, label.text if label else "")


def _activity(index: "FeatureIndex", latent: int, entries: Entries) -> Activity:
    from mechscope.features.rates import (
        density_interval,
    )  # brings scipy, which opening an index does not need

    found, (low, high) = index.statistics, density_interval(index, entries)
    fires, n = int(found.fires[latent]), index.n_tokens
    flag = "dead" if not fires else "dense" if fires > DENSE * n else ""
    return Activity(
        fires=fires,
        n_tokens=n,
        density_low=low,
        density_high=high,
        mean=float(found.mean[latent]),
        largest=float(found.largest[latent]),
        smallest=float(found.smallest[latent]),
        flag=flag,
        histogram=_histogram(found.histogram[latent]),
    )


def _effects(index: "FeatureIndex", latent: int, side: str) -> LabelledArray | None:
    if f"{side}/tokens" not in index.relations:
        return None
    ids, logits = (index.relations[f"{side}/{name}"][latent] for name in ("tokens", "logits"))
    return LabelledArray(
        logits,
        ("token",),
        coords={"token": [int(i) for i in ids]},
        texts={"token": [index.strings[i] for i in ids]},
        unit="logits per unit of activation",
        title="raises" if side == "top" else "lowers",
    )


def _fires_with(
    index: "FeatureIndex", latent: int, entries: Entries, n: int = 10
) -> tuple[tuple[Related, ...], tuple[Related, ...]]:
    """Latents by correlation of firing, and by the share of this latent's firings at which they fire too."""
    if not len(entries):
        return (), ()
    tokens = entries.token
    if len(tokens) > MOST_FIRINGS:
        drawn = generator_for(latent, "co-activation").choice(len(tokens), MOST_FIRINGS, replace=False)
        tokens = tokens[np.sort(drawn)]
    share = np.bincount(index.tokens.latents_at(tokens), minlength=index.n_latents) / len(tokens)
    density = index.statistics.density
    own = density[latent]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(own * (1 - own) * density * (1 - density))
        correlation = np.where(spread > 0, own * (share - density) / spread, 0.0)
    share[latent] = correlation[latent] = -1
    nearest, often = (np.argsort(-one, kind="stable")[:n] for one in (correlation, share))
    return (
        tuple(_related(index, int(i), float(correlation[i])) for i in nearest if correlation[i] > 0),
        tuple(_related(index, int(i), float(share[i])) for i in often if share[i] > 0),
    )


def _histogram(counts: np.ndarray) -> LabelledArray:
    """The bins between the first and the last that hold something."""
    filled = np.flatnonzero(counts)
    low, high = (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)
    edges = bin_edges()[low : high + 1]
    return LabelledArray(
        counts[low : high + 1],
        ("size",),
        coords={"size": [float(f"{edge:.6g}") for edge in edges]},
        unit="tokens",
        title="activations",
        conventions={"bins": f"lower edges, four to the octave, from 2^{LOWEST_OCTAVE}"},
    )
