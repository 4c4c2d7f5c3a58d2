"""Search: the smallest set of heads (and MLPs, if they carry it) that does a behaviour alone.

Backwards, because a serial circuit does nothing until it is whole: start from all heads, hold those that matter
least to the corrupt run's values, and go on while the rest still recovers the gap. Alone is meant as in claims
(docs/decisions/0007). All candidates of a step are one plan. Train prompts only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechscope.claims.mechanisms import Components, ModelSize
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.models.capturing import cache_at
from mechscope.models.model import Model

Part = tuple[str, int, int]
"""("head", layer, head) or ("mlp", layer, -1)."""

ENOUGH = 0.9
"""Parts are taken away as long as the rest recovers this fraction of the gap; then only what costs little is."""

COST = 0.04
"""A part is kept if what is recovered alone falls by this fraction of the gap without it."""

HEADS_CARRY = 0.5
"""If holding every head to the corrupt run costs less than this fraction of the gap, MLPs are searched too."""

MOST_PARTS = 16
"""Beyond this many parts the set is not small, and taking away goes on at a higher cost a part."""


@dataclass(frozen=True)
class Score:
    """How a set does alone and how it is missed, as fractions of the clean-corrupt gap.

    Args:
        recovered: Everything else of its kind held to corrupt values: 0 corrupt, 1 clean.
        lost: The set itself held to corrupt values, everything else free: 0 clean, 1 corrupt.
    """

    recovered: float
    lost: float


@dataclass(frozen=True)
class Step:
    """One step of the search, for the report.

    Args:
        action: In words: "hold 24 parts", "drop 2.3".
        n_parts: Parts left.
        recovered: By them alone.
    """

    action: str
    n_parts: int
    recovered: float


@dataclass(frozen=True)
class Found:
    """What the search found.

    Args:
        mechanism: The set, or None if nothing is carried by parts of these kinds.
        score: Of the set on the prompts searched.
        steps: The way there.
        singles: Loss when one part alone is held to corrupt values, by name.
        n_pairs: Prompts searched.
    """

    mechanism: Components | None
    score: Score
    steps: tuple[Step, ...]
    singles: dict[str, float] = field(default_factory=dict)
    n_pairs: int = 0


def search_components(
    model: Model, pairs: Any, *, allow_mlps: bool = True, progress: Callable[[str], None] | None = None
) -> Found:
    """Find the smallest set of components that does the behaviour alone.

    Args:
        model: An open model.
        pairs: Anything with `clean`, `corrupt` and `metric`: a train split.
        allow_mlps: Search MLPs too where heads don't carry the behaviour.
        progress: Told what is being tried.

    Cost: some hundred experiments on the pairs, packed.
    Caveat: greedy. Of two parts that can stand in for each other, one may be dropped.
    """
    scorer = _Scorer(model, pairs)
    parts: list[Part] = [
        ("head", layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    has_mlps = any(site.point == "mlp_out" for site in model.binding.formed)
    if allow_mlps and has_mlps and scorer.recovered([()])[0] > 1 - HEADS_CARRY:
        parts += [("mlp", layer, -1) for layer in range(model.n_layers)]
        scorer.holds_mlps = True
        if scorer.recovered([()])[0] > 1 - HEADS_CARRY:
            return Found(None, Score(0.0, 0.0), (), {}, scorer.n_pairs)
    tell = progress or (lambda _what: None)
    tell(f"{len(parts)} parts one by one")
    losses = scorer.lost([(part,) for part in parts])
    singles = {part_name(part): loss for part, loss in zip(parts, losses, strict=True)}
    ordered = [part for _, part in sorted(zip(losses, parts, strict=True))]
    kept, steps = _hold_many(scorer, ordered)
    kept, more = _hold_one_by_one(scorer, kept, tell)
    score = Score(scorer.recovered([kept])[0], scorer.lost([kept])[0])
    return Found(components_of(kept), score, (*steps, *more), singles, scorer.n_pairs)


def score_components(model: Model, pairs: Any, mechanism: Components) -> Score:
    """The score of one set on some prompts."""
    scorer = _Scorer(model, pairs)
    scorer.holds_mlps = bool(mechanism.mlps)
    parts = _parts_of(mechanism)
    return Score(scorer.recovered([parts])[0], scorer.lost([parts])[0])


def _hold_many(scorer: "_Scorer", ordered: Sequence[Part]) -> tuple[tuple[Part, ...], list[Step]]:
    """Hold the most parts, least important first, that leaves enough; in rounds, since importance changes."""
    kept = tuple(ordered)
    steps: list[Step] = []
    while True:
        suffixes = [kept[n:] for n in range(1, len(kept))]
        recovered = scorer.recovered(suffixes)
        enough = [n for n, value in enumerate(recovered, start=1) if value >= ENOUGH]
        if not enough:
            return kept, steps
        kept = kept[max(enough) :]
        steps.append(Step(f"hold {max(enough)} parts", len(kept), recovered[max(enough) - 1]))
        without = scorer.recovered([tuple(p for p in kept if p != part) for part in kept])
        kept = tuple(part for _, part in sorted(zip((-value for value in without), kept, strict=True)))


def _hold_one_by_one(
    scorer: "_Scorer", kept: tuple[Part, ...], tell: Callable[[str], None]
) -> tuple[tuple[Part, ...], list[Step]]:
    """Drop the part that costs least, while it costs little or there are too many."""
    steps: list[Step] = []
    now = scorer.recovered([kept])[0]
    while len(kept) > 1:
        tell(f"{len(kept)} parts left")
        smaller = [tuple(p for p in kept if p != part) for part in kept]
        recovered = scorer.recovered(smaller)
        index = int(np.argmax(recovered))
        if now - recovered[index] >= COST and len(kept) <= MOST_PARTS:
            break
        steps.append(Step(f"drop {part_name(kept[index])}", len(kept) - 1, recovered[index]))
        kept, now = smaller[index], recovered[index]
    return kept, steps


class _Scorer:
    """Measures sets of parts on one set of pairs; donor runs and baselines are done once."""

    def __init__(self, model: Model, pairs: Any) -> None:
        self._model, self._pairs = model, pairs
        self._size = ModelSize(model.n_layers, model.n_heads)
        points = {"z", "mlp_out"} & {site.point for site in model.binding.formed}
        self._corrupt_run = cache_at(model, pairs.corrupt, [f"{point}.*" for point in sorted(points)])
        base = [Experiment(inputs=inputs, metric=pairs.metric) for inputs in (pairs.clean, pairs.corrupt)]
        clean, corrupt = run_experiments(model, base).values
        self._clean, self._corrupt = float(clean.mean()), float(corrupt.mean())
        self.n_pairs = len(pairs.clean)
        self.holds_mlps = False

    def recovered(self, sets: Sequence[tuple[Part, ...]]) -> list[float]:
        """What each set recovers alone, as a fraction of the gap."""
        writes = [self._isolation(components_of(parts)) for parts in sets]
        return [(mean - self._corrupt) / (self._clean - self._corrupt) for mean in self._means(writes)]

    def lost(self, sets: Sequence[tuple[Part, ...]]) -> list[float]:
        """What is lost when each set is held to corrupt values, as a fraction of the gap."""
        writes = [components_of(parts).ablation("corrupt", self._corrupt_run) for parts in sets]
        return [(self._clean - mean) / (self._clean - self._corrupt) for mean in self._means(writes)]

    def _isolation(self, mechanism: Components) -> list[Any]:
        size = self._size
        return mechanism.isolation(self._corrupt_run, size, holds_mlps=self.holds_mlps)

    def _means(self, all_writes: Sequence[list[Any]]) -> list[float]:
        experiments = [
            Experiment(inputs=self._pairs.clean, writes=tuple(writes), metric=self._pairs.metric)
            for writes in all_writes
        ]
        return [float(value.mean()) for value in run_experiments(self._model, experiments).values]


def part_name(part: Part) -> str:
    """ "2.1" for a head, "MLP 2" for an MLP."""
    kind, layer, index = part
    return f"{layer}.{index}" if kind == "head" else f"MLP {layer}"


def components_of(parts: Sequence[Part]) -> Components:
    """Parts as a mechanism."""
    return Components(
        tuple((layer, head) for kind, layer, head in parts if kind == "head"),
        tuple(layer for kind, layer, _ in parts if kind == "mlp"),
    )


def _parts_of(mechanism: Components) -> tuple[Part, ...]:
    heads: list[Part] = [("head", layer, head) for layer, head in mechanism.heads]
    return (*heads, *(("mlp", layer, -1) for layer in mechanism.mlps))
