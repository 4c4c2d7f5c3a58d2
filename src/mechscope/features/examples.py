"""Examples: where to look at a latent: its strongest tokens and some of every quantile, each from another row.

The choice is the same on every machine: ties go to the earlier token, and what is drawn at random is drawn by the
latent's number. Two windows with equal tokens count once.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from mechscope.features.page import Example, ExampleGroup
from mechscope.features.parts import Entries, TokenReader
from mechscope.records.seeds import generator_for

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
N_TOP, N_BAND = 12, 4
BEFORE, AFTER = 20, 8


def groups_of(
    entries: Entries, reader: TokenReader, strings: Sequence[str], *, latent: int
) -> tuple[ExampleGroup, ...]:
    """The top examples, then those of each quarter of the firings, strongest quarter first."""
    if not len(entries):
        return ()
    show = shower(entries, reader, strings=strings)
    by_value = np.lexsort((entries.token, -entries.value.astype(np.float64)))
    seen: set[tuple[str, ...]] = set()
    found = [_group("top", by_value, entries, show, N_TOP, seen)]
    n = len(by_value)
    for low, high in reversed(list(pairwise(QUANTILES))):
        band = by_value[int(n * (1 - high)) : int(n * (1 - low))]
        if len(band):
            picked = band[generator_for(latent, "examples", f"{low:g}").permutation(len(band))[: 8 * N_BAND]]
            name = f"quantiles {low:g} to {high:g}"
            found.append(_group(name, picked, entries, show, N_BAND, seen, band))
    return tuple(found)


def shower(
    entries: Entries, reader: TokenReader, *, strings: Sequence[str], before: int = BEFORE, after: int = AFTER
) -> Callable[[int], Example]:
    """A function from a token's number to the text around it, with the latent's activations."""

    def show(token: int) -> Example:
        first, ids, row = reader.window(token, before, after)
        values = np.zeros(len(ids))
        low, high = np.searchsorted(entries.token, [first, first + len(ids)])
        values[entries.token[low:high] - first] = entries.value[low:high]
        return Example(
            tuple(strings[int(i)] for i in ids),
            tuple(values.tolist()),
            int(token - first),
            int(token),
            int(row),
        )

    return show


def _group(
    name: str,
    order: np.ndarray,
    entries: Entries,
    show: Callable[[int], Example],
    n: int,
    seen: set[tuple[str, ...]],
    band: np.ndarray | None = None,
) -> ExampleGroup:
    chosen: list[Example] = []
    rows: set[int] = set()
    for place in order[: 40 * n]:
        example = show(int(entries.token[place]))
        if example.row in rows or example.tokens in seen:
            continue
        rows.add(example.row)
        seen.add(example.tokens)
        chosen.append(example)
        if len(chosen) == n:
            break
    values = entries.value[order if band is None else band]
    if band is None:
        values = np.array([one.value for one in chosen])
    chosen.sort(key=lambda one: -one.value)
    return ExampleGroup(name, float(values.min()), float(values.max()), tuple(chosen))
