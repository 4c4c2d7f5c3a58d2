"""Power: the true mechanism of the hand-written specimen, the same less one head, and the same diluted.

Two claims are made of each. *Carries*: ablating it lowers the metric, restoring it alone recovers it. *Is the
circuit* says more: with every other head ablated the behaviour stays, and each of its heads by itself is needed.
In a chain of two heads either head alone carries everything, so the first claim is true of a part and of a diluted
whole; the second is not.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np

from benchmarks.claim_calibration.judging import Measured, predicted_size, split_of, verdict_on
from benchmarks.claim_calibration.measuring import (
    LOWERS,
    RECOVERS,
    Head,
    HeadSet,
    Prompts,
    Source,
    Task,
    chunks,
    measure,
    opened,
    prompts_of,
    table_of,
)
from benchmarks.claim_calibration.outcomes import Gate, Rates, Tally
from benchmarks.claim_calibration.running import Settings
from benchmarks.claim_calibration.wrong_heads import induction_source
from mechscope.claims.controls import SAME_LAYERS, draw_selections
from mechscope.claims.rule import required_draws
from mechscope.claims.verdict import Verdict
from mechscope.records.seeds import generator_for
from mechscope.specimens.induction.truth import HEADS

KEEPS = "keeps"
"""What is left when every head outside the set is ablated."""

CARRIES, CIRCUIT = "carries it", "is the circuit"

N_DILUTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Prompts that claims draw from, and how many each draws.

    Args:
        validation: Of the split's first so many, how many are drawn.
        held_out: The same.
        n_predictions: Most predictions of one claim, which sets how many controls are drawn.
    """

    validation: tuple[int, int] = (100, 80)
    held_out: tuple[int, int]
    n_predictions: int

    def of(self, split: str) -> tuple[int, int]:
        """Prompts and draws of a split."""
        return self.validation if split == "validation" else self.held_out


WIDE = Pool(held_out=(300, 150), n_predictions=5)
NARROW = Pool(held_out=(140, 110), n_predictions=6)
"""For diluted mechanisms, whose control families are large."""


class Bank:
    """Measurements by head set, fetched in one go and then looked up.

    Args:
        settings: Where tables are kept, how many processes.
        source: Model and prompts.
        pool: How many of them.
    """

    def __init__(self, settings: Settings, source: Source, pool: Pool) -> None:
        self.settings, self.source, self.pool = settings, source, pool
        self.n_heads = opened(source.model).n_heads
        self.n_draws = required_draws(pool.n_predictions)
        self.prompts: dict[str, Prompts] = {
            split: prompts_of(source, split, most=pool.of(split)[0]) for split in ("validation", "held_out")
        }
        self._rows: dict[tuple[str, str, HeadSet], np.ndarray] = {}
        self._subspaces: dict[tuple[str, str, HeadSet], np.ndarray] = {}

    def fetch(self, kind: str, split: str, sets: Sequence[HeadSet]) -> None:
        """Measure head sets, or find them on disk."""
        asked = {heads: self._complement(heads) if kind == KEEPS else heads for heads in sets}
        tasks = [
            Task(
                source=self.source,
                split=split,
                kind=RECOVERS if kind == RECOVERS else LOWERS,
                sets=part,
                most=self.pool.of(split)[0],
            )
            for part in chunks(list(asked.values()))
        ]
        self._measure(tasks, f"{kind}, {split}")
        tables = np.concatenate([table_of(task, folder=self.settings.work) for task in tasks])
        self._rows.update({(kind, split, heads): row for heads, row in zip(asked, tables, strict=True)})

    def fetch_subspaces(self, kind: str, heads: HeadSet) -> None:
        """Random subspaces for a set too small to have other heads as controls, on held-out prompts."""
        task = Task(
            source=self.source,
            split="held_out",
            kind=kind,
            sets=(heads,),
            n_subspaces=self.n_draws,
            most=self.pool.held_out[0],
        )
        self._measure([task], f"{kind}, random subspaces")
        self._subspaces[kind, "held_out", heads] = table_of(task, folder=self.settings.work)

    def after(self, kind: str, split: str, heads: HeadSet) -> np.ndarray:
        """The metric per prompt."""
        return self._rows[kind, split, heads]

    def controls(self, kind: str, heads: HeadSet) -> tuple[np.ndarray | None, float]:
        """A set's controls on held-out prompts and the size of their family; what was not fetched has none."""
        if (kind, "held_out", heads) in self._subspaces:
            return self._subspaces[kind, "held_out", heads], float("inf")
        family = self.controls_of(heads)
        rows = [self._rows.get((kind, "held_out", other)) for other in family.sets]
        found = [row for row in rows if row is not None]
        return (np.stack(found) if len(found) == len(rows) and rows else None), family.n_members

    def controls_of(self, heads: HeadSet) -> "ControlSets":
        """As many other heads in each layer."""
        return control_sets(heads, self.n_heads, n_draws=self.n_draws, seed=self.settings.seed)

    def _measure(self, tasks: list[Task], what: str) -> None:
        measure(
            tasks, folder=self.settings.work, n_workers=self.settings.n_workers, told=self.settings.told(what)
        )

    def _complement(self, heads: HeadSet) -> HeadSet:
        return tuple((la, h) for la in range(2) for h in range(self.n_heads) if (la, h) not in heads)


class ControlSets:
    """Head sets of a control family.

    Args:
        sets: As drawn.
        n_members: Of the family.
    """

    def __init__(self, sets: list[HeadSet], n_members: int) -> None:
        self.sets, self.n_members = sets, n_members


def control_sets(heads: HeadSet, n_heads: int, *, n_draws: int, seed: int) -> ControlSets:
    """The family "other components, same layers" of a head set."""
    by_layer: dict[Hashable, Sequence[Hashable]] = {
        la: tuple(h for at, h in heads if at == la) for la in sorted({la for la, _ in heads})
    }
    universe: dict[Hashable, Sequence[Hashable]] = {layer: range(n_heads) for layer in range(2)}
    drawn = draw_selections(by_layer, universe, n_draws=n_draws, seed=seed, name=SAME_LAYERS)
    sets = [
        tuple(sorted((int(la), int(h)) for la, chosen in member.items() for h in chosen))  # type: ignore[call-overload]
        for member in drawn.members
    ]
    return ControlSets(sets, drawn.n_members)


def run(settings: Settings) -> Rates:
    """Claims about the truth and its neighbours.

    Cost: some 3,000 head sets x 140 to 300 prompts once, then about 0.3 s a claim.
    """
    start = perf_counter()
    source = induction_source(settings.seed)
    wide, narrow = (Bank(settings, source, pool) for pool in (WIDE, NARROW))
    truth: HeadSet = tuple(sorted(HEADS))
    lacking: list[HeadSet] = [(head,) for head in truth]
    diluted = [dilute(truth, wide.n_heads, seed=settings.seed, index=i) for i in range(N_DILUTIONS)]
    _fetch_truth(wide, truth, lacking)
    _fetch_diluted(narrow, truth, diluted)
    tallies: dict[str, tuple[Gate, Tally]] = {}
    for name, gate, bank, mechanisms in (
        ("true", "power", wide, [truth]),
        ("true less a head", "unsupported", wide, lacking),
        ("true diluted", "unsupported", narrow, diluted),
    ):
        for claimed in (CIRCUIT, CARRIES):
            tally = Tally()
            for index in range(settings.n_power):
                heads = mechanisms[index % len(mechanisms)]
                tally.add(claim_on(bank, heads, truth, claimed=claimed, index=index))
            is_gated = claimed == CIRCUIT or gate == "power"
            tallies[f"{name}: {claimed}"] = (Gate(kind=gate if is_gated else "shown"), tally)
    fingerprint = opened(source.model).fingerprint
    return Rates(
        name="power",
        settings=settings.facts()
        | {"behavior": "induction", "wide": asdict(WIDE), "narrow": asdict(NARROW), "diluted": diluted},
        hashes={"weights_sha256": fingerprint.weights_sha256}
        | {f"{split}_sha256": prompts.data_hash for split, prompts in wide.prompts.items()},
        independence=(
            "A claim draws 80 of 100 validation and 150 of 300 held-out prompts (110 of 140 for diluted mechanisms), "
            "without replacement. One model; claims overlap in prompts."
        ),
        tallies=tallies,
        seconds=perf_counter() - start,
    )


def dilute(truth: HeadSet, n_heads: int, *, seed: int, index: int) -> HeadSet:
    """The truth with as many random heads more, one in each layer."""
    rng = generator_for(seed, "diluted", index)
    more: list[Head] = []
    for layer, true_head in truth:
        others = [head for head in range(n_heads) if head != true_head]
        more.append((layer, int(rng.choice(others))))
    return tuple(sorted((*truth, *more)))


def claim_on(bank: Bank, heads: HeadSet, truth: HeadSet, *, claimed: str, index: int) -> Verdict:
    """A claim about a head set with the sizes that validation shows for the *true* one, judged on held-out prompts.

    What single heads are needed for is sized on the true heads: every head has to meet the smaller of the two.
    "Keeps" is left out for diluted mechanisms, where it could only make support rarer.
    """
    rng = generator_for(bank.settings.seed, "power rows", index)
    rows = {}
    for name in ("validation", "held_out"):
        n_pool, n_drawn = bank.pool.of(name)
        rows[name] = rng.choice(n_pool, size=n_drawn, replace=False)
    validation = split_of(bank.prompts["validation"], rows["validation"])

    def size(kind: str, of: HeadSet) -> float:
        after = bank.after(kind, "validation", of)[rows["validation"]]
        return predicted_size(validation, _form(kind), after)

    asked: list[tuple[str, HeadSet, float]] = [
        (kind, heads, size(kind, truth)) for kind in (LOWERS, RECOVERS)
    ]
    if claimed == CIRCUIT:
        if len(heads) <= len(truth):
            asked.append((KEEPS, heads, size(KEEPS, truth)))
        needed = min(size(LOWERS, (head,)) for head in truth)
        asked += [(LOWERS, (head,), needed) for head in heads if len(heads) > 1]
    measured = []
    for kind, of, _ in asked:
        controls, n_members = bank.controls(kind, of)
        after = bank.after(kind, "held_out", of)[rows["held_out"]]
        drawn = None if controls is None else controls[:, rows["held_out"]]
        measured.append(Measured(_form(kind), after, drawn, n_members))
    split = split_of(bank.prompts["held_out"], rows["held_out"])
    return verdict_on(split, measured, [entry[2] for entry in asked], seed=index)


def _form(kind: str) -> str:
    """What is kept of the gap is judged as what is recovered of it."""
    return LOWERS if kind == LOWERS else RECOVERS


def _fetch_truth(bank: Bank, truth: HeadSet, lacking: list[HeadSet]) -> None:
    """The truth and its parts, with their controls."""
    controls = bank.controls_of(truth).sets
    beside = [other for heads in lacking for other in bank.controls_of(heads).sets]
    for kind in (LOWERS, RECOVERS, KEEPS):
        bank.fetch(kind, "validation", sorted({truth, *lacking}))
        bank.fetch(kind, "held_out", sorted({truth, *lacking, *controls, *(beside if kind == KEEPS else [])}))
    for heads in lacking:
        for kind in (LOWERS, RECOVERS):
            bank.fetch_subspaces(kind, heads)


def _fetch_diluted(bank: Bank, truth: HeadSet, diluted: list[HeadSet]) -> None:
    """Diluted mechanisms and their single heads, with the controls of the whole sets."""
    singles = {(head,) for heads in (truth, *diluted) for head in heads}
    controls = {other for heads in diluted for other in bank.controls_of(heads).sets}
    for kind in (LOWERS, RECOVERS):
        bank.fetch(kind, "validation", sorted({truth, *singles}))
        bank.fetch(kind, "held_out", sorted({*diluted, *controls, *singles}))
    for head in truth:
        bank.fetch_subspaces(LOWERS, (head,))
