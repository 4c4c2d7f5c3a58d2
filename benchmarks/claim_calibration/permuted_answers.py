"""Permuted answers: village on indirect objects, asked for names that belong to other prompts.

All head pairs are ablated once, and the logits of all names kept; a claim permutes the answers, finds the pair
whose ablation lowers *that* metric most on train, and is judged on held-out prompts. Answers move between couples
of names as a whole, so that held-out units stay independent of one another, and a coin for each couple says which
of its two names is the answer. Without the coin the null is not exact: the pool that all claims draw from asks for
some names more often than for their partners, by chance, and that lean is the same in every claim.

Two rates are told apart. An investigation makes a claim where validation prompts bear one out, and permutations are
drawn until there are enough of these. Where every permutation is claimed, with the least size that can be predicted,
the true effect stands exactly at the bound, and the rate is that of the rule at its bound.
"""

from itertools import combinations, product
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.columns import ColumnTask, answer_columns, measure_columns
from benchmarks.claim_calibration.judging import (
    LEAST_OF_METRIC,
    Measured,
    predicted_size,
    split_of,
    verdict_on,
)
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    HeadSet,
    Prompts,
    Source,
    behavior_of,
    chunks,
    in_workers,
    opened,
)
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally
from benchmarks.claim_calibration.running import Settings
from mechscope.claims.evidence import HeldOut
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_tensors
from mechscope.records.seeds import generator_for

N_POOL = 600
"""Pairs in all: 200 train, 100 validation, 300 held out."""

N_DRAWN = {"train": 80, "validation": 60, "held_out": 120}
SPLITS = tuple(N_DRAWN)
METRIC, AT_BOUND, GAP, CHEAT = (
    "found on train, borne out on validation",
    "found on train, any lowering at all",
    "found on train, fraction of the gap",
    "found on held-out",
)

MOST_PERMUTATIONS = 100
"""Permutations that are drawn for each claim at most."""


class NameTables:
    """Logits of all names under each pair's ablation, by split.

    Args:
        settings: Where tables are kept, how many processes.
        source: Model and prompts.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source
        model = opened(source.model)
        heads = list(product(range(model.n_layers), range(model.n_heads)))
        self.pairs: list[HeadSet] = list(combinations(heads, 2))
        self.behavior = behavior_of(source)
        self.clean: dict[str, np.ndarray] = {}
        self.corrupt: dict[str, np.ndarray] = {}
        self.after: dict[str, np.ndarray] = {}
        for split in SPLITS:
            self.clean[split] = self._measured(split, [()])[0]
            self.corrupt[split] = self._measured(split, [()], corrupt=True)[0]
            self.after[split] = self._measured(split, self.pairs)

    def _measured(self, split: str, sets: list[HeadSet], *, corrupt: bool = False) -> np.ndarray:
        folder = self.settings.work
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [
            ColumnTask(source=self.source, split=split, sets=part, corrupt=corrupt)
            for part in chunks(sets, 15)
        ]
        files = [folder / f"{task.key}.safetensors" for task in tasks]
        missing = [(task, str(folder)) for task, file in zip(tasks, files, strict=True) if not file.is_file()]
        if len(missing) == 1:
            measure_columns(missing[0])
        else:
            told = self.settings.told(f"names, {split}")
            in_workers(measure_columns, missing, n_workers=self.settings.n_workers, told=told)
        return np.concatenate([open_tensors(file)["logits"] for file in files])

    def controls_of(self, pair: HeadSet) -> list[int]:
        """Places of the pairs that share no head with this one: the family "other components, any layer"."""
        return [index for index, other in enumerate(self.pairs) if not set(other) & set(pair)]


class Permuted:
    """One claim's metric: drawn prompts of a split, each asked for another couple's names.

    Args:
        tables: Logits.
        split: Which.
        rng: Draws prompts and the permutation.
    """

    def __init__(self, tables: NameTables, split: str, rng: np.random.Generator) -> None:
        part = tables.behavior.splits[split]
        n_drawn = min(N_DRAWN[split], len(part))
        self.rows = np.sort(rng.choice(len(part), size=n_drawn, replace=False))
        place = {token: index for index, token in enumerate(answer_columns(part))}
        own = [(place[part.answers[row][0]], place[part.wrong[row][0]]) for row in self.rows]
        couples = [frozenset(part.entities[row]) for row in self.rows]
        asked = permute_between(couples, own, rng)
        self._answer, self._wrong = (np.array(column) for column in zip(*asked, strict=True))
        self.prompts = Prompts(
            self.of(tables.clean[split]),
            self.of(tables.corrupt[split]),
            tuple(part.entities[row] for row in self.rows),
            tuple(part.templates[row] for row in self.rows),
            hash_json([part.data_hash, [list(pair) for pair in asked]]),
        )
        self.after = self.of(tables.after[split])

    def of(self, logits: np.ndarray) -> np.ndarray:
        """The permuted logit difference from logits [..., prompt, name]."""
        at = np.arange(len(self.rows))
        drawn = logits[..., self.rows, :]
        return (drawn[..., at, self._answer] - drawn[..., at, self._wrong]).astype(np.float64)


def permute_between(
    groups: list[frozenset[str]], labels: list[tuple[int, int]], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Each prompt's label from another group: groups trade places as a whole, and none keeps its own.

    A coin for each group says whether its labels are turned round.
    """
    members: dict[frozenset[str], list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    order = [int(i) for i in rng.permutation(len(names))]
    moved: list[tuple[int, int]] = [(0, 0)] * len(groups)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):  # one cycle leaves nothing in place
        given = members[names[there]]
        way = 1 if rng.integers(2) else -1
        for rank, index in enumerate(members[names[here]]):
            answer, wrong = labels[given[rank % len(given)]][::way]
            moved[index] = (answer, wrong)
    return moved


def run(settings: Settings) -> Rates:
    """Claims found under permuted answers.

    Cost: all pairs of heads on 600 prompts once, then some hundredths of a second a permutation.
    """
    start = perf_counter()
    source = Source(model=settings.village, behavior="ioi", n=N_POOL, seed=settings.seed)
    tables = NameTables(settings, source)
    tallies = {name: Tally() for name in (METRIC, AT_BOUND, GAP, CHEAT)}
    told = settings.told("claims under permuted answers")
    index = 0
    while index < settings.n_claims or tallies[METRIC].n < settings.n_claims:
        if index >= MOST_PERMUTATIONS * settings.n_claims:
            break
        drawn = Draw(tables, settings.seed, index)
        if drawn.is_borne_out and tallies[METRIC].n < settings.n_claims:
            tallies[METRIC].add(drawn.verdict("metric"))
        if index < settings.n_claims:
            tallies[AT_BOUND].add(drawn.verdict("metric"))
            tallies[GAP].add(drawn.verdict("gap"))
        if index < settings.n_power:
            tallies[CHEAT].add(drawn.cheating())
        index += 1
        told(f"{index} permutations, {tallies[METRIC].n} claims, {tallies[METRIC].n_supported} supported")
    gates = {METRIC: "false", AT_BOUND: "boundary", GAP: "false", CHEAT: "exceeds"}
    fingerprint = opened(source.model).fingerprint
    return Rates(
        name="permuted-answers",
        settings=settings.facts()
        | {"behavior": "ioi", "n_pool": N_POOL, "n_drawn": N_DRAWN, "n_permutations": index},
        hashes={
            "weights_sha256": fingerprint.weights_sha256,
            **{f"{split}_sha256": tables.behavior.splits[split].data_hash for split in SPLITS},
        },
        independence=(
            "Every claim has a permutation of its own and draws 80 of 200 train, 60 of 100 validation and 120 of "
            "300 held-out prompts. One model: claims overlap in prompts, not in what is asked of them."
        ),
        tallies={name: (Gate(kind=gates[name]), tally) for name, tally in tallies.items()},
        seconds=perf_counter() - start,
    )


class Draw:
    """One permutation: the pair found on train, and the claims that may be made about it.

    Args:
        tables: Logits.
        seed: Root.
        index: Of the permutation; seeds the draws and the verdict.
    """

    def __init__(self, tables: NameTables, seed: int, index: int) -> None:
        self._tables, self._index = tables, index
        self._parts = {
            split: Permuted(tables, split, generator_for(seed, "permuted", split, index)) for split in SPLITS
        }
        self._found = best_pair(self._parts["train"])
        self._size = self._sized("validation", self._found, "metric")

    @property
    def is_borne_out(self) -> bool:
        """Whether an investigation would predict a lowering from these validation prompts."""
        return self._size > LEAST_OF_METRIC

    def verdict(self, unit: str) -> Any:
        """On the pair found on train, sized on validation."""
        size = self._size if unit == "metric" else self._sized("validation", self._found, unit)
        return self._judged(self._found, size, unit)

    def cheating(self) -> Any:
        """On the pair found, and sized, on the held-out prompts."""
        found = best_pair(self._parts["held_out"])
        return self._judged(found, self._sized("held_out", found, "metric"), "metric")

    def _as_split(self, name: str, unit: str) -> HeldOut:
        part = self._parts[name]
        return split_of(part.prompts, np.arange(len(part.rows)), has_corrupt=unit == "gap")

    def _sized(self, name: str, found: int, unit: str) -> float:
        return predicted_size(self._as_split(name, unit), LOWERS, self._parts[name].after[found], unit=unit)

    def _judged(self, found: int, size: float, unit: str) -> Any:
        others = self._tables.controls_of(self._tables.pairs[found])
        table = self._parts["held_out"].after
        measured = Measured(LOWERS, table[found], table[others], len(others), unit)
        return verdict_on(self._as_split("held_out", unit), [measured], [size], seed=self._index)


def best_pair(drawn: Permuted) -> int:
    """Place of the pair whose ablation lowers the metric most."""
    return int(np.argmax((drawn.prompts.clean - drawn.after).mean(axis=1)))
