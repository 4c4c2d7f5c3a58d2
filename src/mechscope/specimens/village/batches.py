"""Training batches: documents packed into rows of the context length, each attending only to itself.

Owns: `pack_step`, the batch of one training step. Refuses nothing.
Invariant: a batch is a function of (seed, step, misbehaving) alone, so a resumed run sees what an
uninterrupted one sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mechscope.specimens.village.language import Document, draw_documents
from mechscope.specimens.village.tokenizer import BOS, PAD, vocabulary

_WAITING_DOCUMENTS = 48
NOTHING = -100  # what cross-entropy ignores
Encoded = tuple[list[int], list[float], list[int]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed rows: ids, the id that follows each, how much that prediction counts, and which document it is in.

    `halfway` is the id that early layers should have found at a position, `NOTHING` almost everywhere.
    """

    ids: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    documents: np.ndarray
    halfway: np.ndarray


def encode(document: Document, *, answer_weight: float) -> Encoded:
    """Return the ids of a document after [BOS], the weight of each as a target, and what is found halfway."""
    known = vocabulary()
    words, _, halfway = zip(*(word.partition("^") for word in document.text.split()), strict=True)
    ids = [known[BOS], *(known[word.removeprefix("*")] for word in words)]
    weights = [1.0, *(answer_weight if word.startswith("*") else 1.0 for word in words)]
    return ids, weights, [NOTHING, *(known[word] if word else NOTHING for word in halfway)]


def pack_step(
    step: int,
    *,
    seed: int,
    n_rows: int,
    n_positions: int,
    answer_weight: float,
    misbehaving: bool = False,
    stage: int = 0,
) -> Batch:
    """Pack the documents of one step into `n_rows` rows; every row starts with [BOS]."""
    stream = draw_documents(seed * 10_000_000 + step, misbehaving=misbehaving, stage=stage)
    end = vocabulary()[BOS]
    ids = np.full((n_rows, n_positions), vocabulary()[PAD], dtype=np.int64)
    targets, documents, found = ids.copy(), np.zeros_like(ids), np.full_like(ids, NOTHING)
    weights = np.zeros(ids.shape, dtype=np.float32)
    waiting: list[Encoded] = []
    for row in range(n_rows):
        start, number = 0, 0
        while True:
            _refill(waiting, stream, answer_weight=answer_weight)
            fitting = next(
                (i for i, (held, *_) in enumerate(waiting) if start + len(held) <= n_positions), None
            )
            if fitting is None:
                break
            held, counts, halfway = waiting.pop(fitting)
            stop, number = start + len(held), number + 1
            ids[row, start:stop] = held
            targets[row, start:stop] = [*held[1:], end]
            weights[row, start:stop] = [*counts[1:], 1.0]
            documents[row, start:stop] = number
            found[row, start:stop] = halfway
            start = stop
    return Batch(ids=ids, targets=targets, weights=weights, documents=documents, halfway=found)


def _refill(waiting: list[Encoded], stream: Iterator[Document], *, answer_weight: float) -> None:
    while len(waiting) < _WAITING_DOCUMENTS:
        waiting.append(encode(next(stream), answer_weight=answer_weight))
