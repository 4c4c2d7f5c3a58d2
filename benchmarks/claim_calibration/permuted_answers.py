"""Permuted answers: village on indirect objects, asked for names that belong to other prompts.

All head pairs are ablated once, and the logits of all names kept; a claim permutes the answers, finds the pair
whose ablation lowers *that* metric most on train, and is judged on held-out prompts. Answers move between couples
of names as a whole, so that held-out units stay independent of one another.
"""

from itertools import combinations, product
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.claim_calibration.columns import ColumnTask, answer_columns, measure_columns
from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
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
from mechscope.records.canonical import hash_json
from mechscope.records.files import open_tensors
from mechscope.records.seeds import generator_for

N_POOL = 600
"""Pairs in all: 200 train, 100 validation, 300 held out."""

N_DRAWN = {"train": 80, "validation": 60, "held_out": 120}
SPLITS = tuple(N_DRAWN)
METRIC, GAP, CHEAT = "found on train", "found on train, fraction of the gap", "found on held-out"


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
    """Each prompt's label from another group: groups trade places as a whole, and none keeps its own."""
    members: dict[frozenset[str], list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    order = [int(i) for i in rng.permutation(len(names))]
    moved: list[tuple[int, int]] = [(0, 0)] * len(groups)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):  # one cycle leaves nothing in place
        given = members[names[there]]
        for rank, index in enumerate(members[names[here]]):
            moved[index] = labels[given[rank % len(given)]]
    return moved


def run(settings: Settings) -> Rates:
    """Claims found under permuted answers.

    Cost: all pairs of heads on 600 prompts once, then about 0.3 s a claim.
    """
    start = perf_counter()
    source = Source(model=settings.village, behavior="ioi", n=N_POOL, seed=settings.seed)
    tables = NameTables(settings, source)
    tallies = {METRIC: Tally(), GAP: Tally(), CHEAT: Tally()}
    told = settings.told("claims under permuted answers")
    for index in range(settings.n_claims):
        drawn = {
            split: Permuted(tables, split, generator_for(settings.seed, "permuted", split, index))
            for split in SPLITS
        }
        found = best_pair(drawn["train"])
        tallies[METRIC].add(_verdict(tables, drawn, found, "metric", seed=index))
        tallies[GAP].add(_verdict(tables, drawn, found, "gap", seed=index))
        if index < settings.n_power:
            cheat = drawn | {"validation": drawn["held_out"]}
            tallies[CHEAT].add(_verdict(tables, cheat, best_pair(drawn["held_out"]), "metric", seed=index))
        told(f"{index + 1} of {settings.n_claims}, {tallies[METRIC].n_supported} supported")
    gates = {METRIC: "false", GAP: "false", CHEAT: "exceeds"}
    fingerprint = opened(source.model).fingerprint
    return Rates(
        name="permuted-answers",
        settings=settings.facts() | {"behavior": "ioi", "n_pool": N_POOL, "n_drawn": N_DRAWN},
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


def best_pair(drawn: Permuted) -> int:
    """Place of the pair whose ablation lowers the metric most."""
    return int(np.argmax((drawn.prompts.clean - drawn.after).mean(axis=1)))


def _verdict(tables: NameTables, drawn: dict[str, Permuted], found: int, unit: str, *, seed: int) -> Any:
    splits = {
        name: split_of(part.prompts, np.arange(len(part.rows)), has_corrupt=unit == "gap")
        for name, part in drawn.items()
        if name != "train"
    }
    size = predicted_size(splits["validation"], LOWERS, drawn["validation"].after[found], unit=unit)
    others = tables.controls_of(tables.pairs[found])
    table = drawn["held_out"].after
    measured = Measured(LOWERS, table[found], table[others], len(others), unit)
    return verdict_on(splits["held_out"], [measured], [size], seed=seed)
