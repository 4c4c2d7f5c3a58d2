"""Prompts of an investigation: whose behaviour, what it is held against, and prompts that nobody has opened.

Refuses nothing itself. Invariant: nothing here runs the model.
"""

from pathlib import Path

from mechscope.behaviors import Behavior, from_pairs, load, names
from mechscope.claims.ledger import Ledger
from mechscope.models.model import Model

PAIR_FILES = (".csv", ".tsv", ".jsonl", ".json")
MOST_OTHERS = 3


def open_behavior(
    name: str, model: Model, *, pairs: Path | None = None, n: int = 600, seed: int = 0
) -> Behavior:
    """A named behaviour, or the one in a file of pairs.

    Args:
        name: One of `ms.behaviors.names(model)`, or the path of a file; with `pairs`, what to call it.
        model: Its tokenizer decides.
        pairs: A file of pairs.
        n: Pairs in all, for a named behaviour.
        seed: Names the draw, or the assignment of the file's pairs to splits.
    """
    if pairs is not None:
        return from_pairs(pairs, model, seed=seed, name=name)
    if Path(name).suffix.lower() in PAIR_FILES:
        return from_pairs(name, model, seed=seed)
    return load(name, model, n=n, seed=seed)


def other_behaviors(behavior: Behavior, model: Model, *, n: int = 600, seed: int = 0) -> tuple[Behavior, ...]:
    """Behaviours that a mechanism might spare: the first three that this model has prompts for."""
    others = [name for name in names(model) if name != behavior.name][:MOST_OTHERS]
    return tuple(load(name, model, n=n, seed=seed) for name in others)


def unopened(behavior: Behavior, ledger: Path) -> Behavior:
    """New held-out prompts, the first draw that this ledger has not seen opened.

    Raises:
        NotEnoughEvidence: there is no generator, or it has no more prompts.
    """
    book, seed = Ledger(ledger), 1
    while book.openings((fresh := behavior.redraw(seed)).held_out.data_hash):
        seed += 1
    return fresh
