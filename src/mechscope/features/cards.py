"""Cards of shipped dictionaries: their figures on held-out text, one JSON file each, and a table of all in Markdown.

Invariant: the same dictionary, model and text give the same bytes. Reading a card imports no torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechscope.records.files import open_json, save_json, save_text

if TYPE_CHECKING:
    from mechscope.dictionaries.dictionary import Dictionary
    from mechscope.dictionaries.evaluation.result import Evaluation

FILE = "card.json"
FORMAT = "mechscope dictionary card 1"
FIGURES = (
    "l0",
    "fvu",
    "cosine",
    "shrinkage",
    "ce",
    "ce_replaced",
    "ce_ablated",
    "ce_increase",
    "ce_recovered",
    "kl_replaced",
    "kl_recovered",
    "dead",
    "dense_10_percent",
)
"""What a card tells of an evaluation, where it has it."""

_DIGITS = 6


def save_card(
    folder: Path, dictionary: "Dictionary", evaluation: "Evaluation", *, text: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a dictionary's card.

    Args:
        folder: Of its index.
        dictionary: As it is shipped.
        evaluation: On text that it was not trained on.
        text: Which text that was.
    """
    from mechscope.records.fingerprint import hash_tensors

    settings = dictionary.settings
    card = {
        "format": FORMAT,
        "kind": dictionary.kind,
        "reads": [str(site) for site in dictionary.reads],
        "writes": [str(site) for site in dictionary.writes],
        "n_latents": dictionary.n_latents,
        "dictionary_sha256": hash_tensors(dictionary.tensors),
        "trained_as": settings.source.trained_as,
        "train_tokens": settings.source.n_tokens,
        "model": settings.source.model,
        "weights_sha256": settings.source.weights_sha256,
        "made_by": settings.source.made_by,
        "notes": dict(settings.source.notes),
        "figures": {
            name: _rounded(evaluation.figures[name].to_json())
            for name in FIGURES
            if name in evaluation.figures
        },
        "n_tokens": evaluation.n_tokens,
        "text": {**text, "data_sha256": evaluation.data_sha256},
        "conventions": dict(evaluation.settings),
    }
    save_json(folder / FILE, card)
    return card


def open_card(folder: Path) -> dict[str, Any] | None:
    """An index's card, or None where it has none."""
    path = folder / FILE
    if not path.is_file():
        return None
    found: Any = open_json(path)
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def is_measured(folder: Path, dictionary: "Dictionary", *, text: Mapping[str, Any]) -> bool:
    """Whether a folder has the card of this very dictionary on this text."""
    from mechscope.records.fingerprint import hash_tensors

    card = open_card(folder)
    if card is None or card.get("dictionary_sha256") != hash_tensors(dictionary.tensors):
        return False
    return all(card["text"].get(name) == value for name, value in text.items())


def save_table(path: Path, cards: Mapping[str, Mapping[str, Any]], *, model: str, command: str) -> None:
    """Write a Markdown page with a line for each dictionary."""
    first = next(iter(cards.values()))
    heads = ("dictionary", "latents", "L0", "FVU", "loss recovered", "KL recovered", "dead")
    names = ("l0", "fvu", "ce_recovered", "kl_recovered")
    lines = [
        f"| `{site}` | {card['n_latents']:,} | "
        + " | ".join(_shown(card["figures"].get(name)) for name in names)
        + f" | {card['figures']['dead']['value']:.1%} |"
        for site, card in cards.items()
    ]
    text = first["text"]
    page = [
        f"# Dictionaries of {model}",
        "",
        f"Trained on {first['train_tokens']:,} tokens (repeats counted) of the model's own language by "
        f"`{command}`,",
        "rounded to half precision, and measured as they are shipped. `resid_post.N` is an SAE of the residual stream",
        "after layer N, `mlp.N` a transcoder from what the MLP of layer N reads to what it adds.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *lines,
        "",
        f"Figures: {first['n_tokens']:,} tokens of {text['n_documents']:,} documents drawn apart from those trained "
        "on and indexed (short",
        "ones recur in any draw), with 95% intervals over documents. FVU: share of the variance at the site written",
        "that is not explained (0 is perfect, 1 is the mean). Loss and KL recovered: 1 is the untouched model, 0 the",
        "site replaced by its mean; where that costs little, the share is uncertain. Dead: never active on this text.",
        "Settings and all figures are in each `card.json`.",
        "",
    ]
    save_text(path, "\n".join(page))


def _shown(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    digits = 1 if figure["value"] >= 2 else 3
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _rounded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Six digits; an end of an interval that there is not is null."""
    return {
        name: value if not isinstance(value, float) else _number(value) if math.isfinite(value) else None
        for name, value in plain.items()
    }


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
