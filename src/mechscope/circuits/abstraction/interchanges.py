"""Interchanges: which examples are put together, and what the causal model says must come of it.

Owns: the draw. Pairs use no example twice where there are enough, so that they are independent; half of them are
*decisive*: their predicted answer is not the base's own, so that a place without effect can't pass. Pairs for which
the causal model has no answer are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples
from mechscope.data.units import Units
from mechscope.models.inputs import TokenBatch
from mechscope.records.canonical import hash_json
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadPairs, BadProgram, NotEnoughEvidence

TRIES = 60
"""Sources that are tried for a base before any will do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interchanges:
    """Bases, and for each variable the source that it takes its value from.

    Args:
        examples: What rows count.
        base: Row of each base, [pair].
        sources: Row of each source by variable, [pair] each.
        labels: Token that the causal model predicts, [pair].
        unchanged: Token that is right on the base itself, [pair].
        name: Of the causal model.
    """

    examples: Examples
    base: np.ndarray
    sources: Mapping[str, np.ndarray]
    labels: np.ndarray
    unchanged: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.base)

    @property
    def decisive(self) -> np.ndarray:
        """Where the prediction is not the base's own answer, [pair] truth values."""
        return self.labels != self.unchanged

    @cached_property
    def base_prompts(self) -> TokenBatch:
        """The bases, one row a pair."""
        return self.examples.prompts.select(self.base.tolist())

    @cached_property
    def answer_ids(self) -> tuple[int, ...]:
        """Every token that is an answer of some example or pair."""
        return tuple(sorted({*self.examples.answers.tolist(), *self.labels.tolist()}))

    @cached_property
    def units(self) -> Units:
        """What is resampled: pairs where no unit is used twice, else the units of base and sources, crossed."""
        rows = [self.base, *self.sources.values()]
        used = np.stack([self.examples.units[row] for row in rows])
        if len(np.unique(used)) == used.size:
            return Units(np.arange(len(self))[None], pools=(0,), basis="pairs")
        levels = np.unique(used, return_inverse=True)[1].reshape(used.shape)
        return Units(levels[:2], pools=(0, 0), basis="examples")

    @cached_property
    def data_sha256(self) -> str:
        """Hash of the prompts and of which are put together."""
        rows = {name: rows.tolist() for name, rows in self.sources.items()}
        return hash_json([self.examples.data_sha256, self.base.tolist(), rows, self.labels.tolist()])

    def select(self, rows: Sequence[int] | np.ndarray) -> "Interchanges":
        """Some of the pairs."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            base=self.base[index],
            sources={name: own[index] for name, own in self.sources.items()},
            labels=self.labels[index],
            unchanged=self.unchanged[index],
        )

    def relabelled(self, high: CausalModel, *, seed: int) -> np.ndarray:
        """Labels of the wrong sources: each pair's prediction with the sources of another pair, [pair].

        The bases are the same, and so is how often each answer comes; only which source belongs to which pair is lost.
        """
        order = one_cycle(len(self), seed)
        labels = self.labels.copy()
        for pair in range(len(self)):
            sources = {name: int(rows[order[pair]]) for name, rows in self.sources.items()}
            found = prediction(high, self.examples, int(self.base[pair]), sources)
            labels[pair] = self.labels[order[pair]] if found is None else found
        return labels

    def labels_of(self, high: CausalModel) -> np.ndarray:
        """What another causal model predicts for the same pairs, [pair]; -1 where it has no answer."""
        found = np.full(len(self), -1, dtype=np.int64)
        for pair in range(len(self)):
            sources = {name: int(rows[pair]) for name, rows in self.sources.items()}
            token = prediction(high, self.examples, int(self.base[pair]), sources)
            found[pair] = -1 if token is None else token
        return found


def draw_interchanges(
    high: CausalModel,
    examples: Examples,
    *,
    variables: Sequence[str],
    n: int | None = None,
    seed: int = 0,
    decisive: float = 0.5,
) -> Interchanges:
    """Draw bases and sources.

    Args:
        high: Predicts.
        examples: Bases and sources are among them.
        variables: Each takes its value from a source of its own.
        n: Pairs. None is as many as there are without using an example twice; more use them again.
        seed: Equal seeds give equal pairs.
        decisive: Share of the pairs whose prediction should not be the base's own answer, 0 to 1.

    Raises:
        BadProgram: no such variable.
        BadPairs: fewer than two examples, or a share outside 0 to 1.
        NotEnoughEvidence: no pair is decisive: the variable never matters on these examples.
    """
    high.refuse_unless_it_has(tuple(variables))
    _refuse_unusable(examples, variables, n=n, decisive=decisive)
    most = len(examples) // (1 + len(variables))
    count = most if n is None else n
    draw = _Draw(high, examples, variables=tuple(variables), seed=seed, reuses=count > most)
    pairs = [draw.pair(_wants(index, decisive)) for index in range(count)]
    kept = [pair for pair in pairs if pair is not None]
    found = Interchanges(
        examples=examples,
        base=np.array([base for base, _, _ in kept], dtype=np.int64),
        sources={
            name: np.array([rows[at] for _, rows, _ in kept], dtype=np.int64)
            for at, name in enumerate(variables)
        },
        labels=np.array([label for _, _, label in kept], dtype=np.int64),
        unchanged=examples.answers[[base for base, _, _ in kept]],
        name=high.name,
    )
    if decisive > 0 and not found.decisive.any():
        raise NotEnoughEvidence(
            f'No interchange of {", ".join(variables)} changes what "{high.name}" predicts.',
            got=f"{len(found)} pairs of {len(examples)} examples",
            because="a place without any effect would pass such a test",
            instead="examples on which the variable differs and matters",
        )
    return found


def prediction(high: CausalModel, examples: Examples, base: int, sources: Mapping[str, int]) -> int | None:
    """The token predicted for a pair; None where the causal model has no answer."""
    settings = {name: examples.settings[row] for name, row in sources.items()}
    try:
        return examples.token_of(high.predict(examples.settings[base], settings))
    except BadProgram:  # a copy of two values, say: nothing that the model does could be right or wrong
        return None


def one_cycle(n: int, seed: int) -> np.ndarray:
    """A permutation that leaves nothing in its place, [n]."""
    order = generator_for(seed, "interchanges", "one cycle").permutation(n)
    found = np.empty(n, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return found


Pair = tuple[int, list[int], int]


class _Draw:
    """Draws pair after pair, and remembers what is used up."""

    def __init__(
        self, high: CausalModel, examples: Examples, *, variables: tuple[str, ...], seed: int, reuses: bool
    ) -> None:
        self.high, self.examples, self.variables, self.reuses = high, examples, variables, reuses
        self.random = generator_for(seed, "interchanges", *variables)
        self.left = self.random.permutation(len(examples)).tolist()

    def pair(self, wants_decisive: bool) -> Pair | None:
        """A pair of the wanted kind, or any if none was found; None where the causal model has no answer."""
        base = self._base()
        any_pair: Pair | None = None
        for sources in self._candidates(base):
            named = dict(zip(self.variables, sources, strict=True))
            label = prediction(self.high, self.examples, base, named)
            if label is None:
                continue
            any_pair = (base, sources, label)
            if (label != self.examples.answers[base]) == wants_decisive:
                break
        if any_pair is not None and not self.reuses:
            self.left = [row for row in self.left if row not in any_pair[1]]
        return any_pair

    def _base(self) -> int:
        return int(self.random.integers(len(self.examples))) if self.reuses else self.left.pop()

    def _candidates(self, base: int) -> list[list[int]]:
        pool = [row for row in (range(len(self.examples)) if self.reuses else self.left) if row != base]
        n = len(self.variables)
        if len(pool) < n:
            return []
        if n == 1:
            return [[int(row)] for row in self.random.permutation(pool)[:TRIES]]
        return [[int(row) for row in self.random.choice(pool, n, replace=False)] for _ in range(TRIES)]


def _wants(index: int, share: float) -> bool:
    """Spreads the decisive pairs evenly."""
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


def _refuse_unusable(examples: Examples, variables: Sequence[str], *, n: int | None, decisive: float) -> None:
    problems: list[str] = []
    if len(examples) < 1 + len(variables):
        problems.append(f"a base and {len(variables)} sources are {1 + len(variables)} examples at least")
    if not variables:
        problems.append("no variable is named")
    if n is not None and n < 1:
        problems.append("there must be a pair")
    if not 0 <= decisive <= 1:
        problems.append("a share is from 0 to 1")
    if problems:
        raise BadPairs(
            "No interchanges can be drawn from this.",
            got=f"{len(examples)} examples, variables {list(variables)}, n={n}, decisive={decisive}",
            because="; ".join(problems),
        )
