"""Investigate: the whole loop for one behaviour of one model, in order, with nothing looked at too early.

measure      does the model show the behaviour? (train)         if not, stop and say so
localise     where is it carried? grids by patching (train)
heads        the smallest set of heads and MLPs that carries it (train)
edges        the smallest faithful circuit (scored on train, its size chosen on validation)
predict      how much of each (validation)
freeze       a claim about the heads and one about the circuit, both before any held-out prompt is read
test         both on held-out prompts, opened once, each against its own controls
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechscope.behaviors import Baseline, Behavior, measure
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim import Claim
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.ledger import Ledger
from mechscope.claims.testing import open_held_out, test_opened
from mechscope.investigations.edges import EdgePart, claim_edges, find_edges
from mechscope.investigations.grids import draw_grids
from mechscope.investigations.heads import HeadPart, claim_heads, find_heads
from mechscope.investigations.stages import Progress, Stages
from mechscope.models.model import Model
from mechscope.patching.grid_result import PatchGrid

N_SEARCHED = 64
"""Train pairs that grids and searches use."""


@dataclass(frozen=True, kw_only=True)
class Investigation:
    """What an investigation found. Holds numbers and prompts, not the model.

    Args:
        model_name: As it was opened.
        behavior: Its name and recipe.
        baseline: The behaviour on train prompts.
        grids: Patching grids by title.
        heads: The search of heads and MLPs; None where the behaviour is absent.
        edges: The search of edges; None where there was nothing to look for.
        record: The tested claim about the heads with all its measurements, or None.
        circuit_record: The tested claim about the circuit, or None.
        stopped: Why it ended before any claim; "" if it did not.
        examples: Some (clean, corrupt, answer, foil) as text.
        seconds: By stage.
        command: How to run it again, for the report.
    """

    model_name: str
    behavior: Behavior
    baseline: Baseline
    grids: dict[str, PatchGrid]
    heads: HeadPart | None
    edges: EdgePart | None
    record: ClaimRecord | None
    circuit_record: ClaimRecord | None
    stopped: str
    examples: tuple[tuple[str, str, str, str], ...]
    seconds: dict[str, float]
    command: str = ""

    @property
    def outcome(self) -> str:
        """Of the claim about the heads: supported, refuted, inconclusive, or "no claim"."""
        return outcome_of(self.record)

    @property
    def circuit_outcome(self) -> str:
        """Of the claim about the circuit, likewise."""
        return outcome_of(self.circuit_record)


def outcome_of(record: ClaimRecord | None) -> str:
    """The verdict in a word; "no claim" without one."""
    return "no claim" if record is None else record.verdict.outcome


def investigate(
    model: Model,
    behavior: Behavior,
    *,
    others: tuple[Behavior, ...] = (),
    seed: int = 0,
    ledger: Path | None = None,
    checks: CheckSettings | None = None,
    progress: Progress | None = None,
) -> Investigation:
    """Find what carries a behaviour, heads and then edges, claim both, and test the claims.

    Args:
        model: An open model.
        behavior: With train, validation and held-out splits.
        others: Behaviours that the mechanism might spare.
        seed: Of controls and resamples.
        ledger: Folder of the ledger of held-out openings.
        checks: What the circuit is held against beside its claim, deciding nothing; None for nothing.
        progress: Told the stage and the share done.

    Cost: a minute and a half on two cores for a model of a few million parameters.
    """
    stages = Stages(progress)
    grids: dict[str, PatchGrid] = {}
    heads: HeadPart | None = None
    edges: EdgePart | None = None
    train = behavior.train.select(range(min(N_SEARCHED, len(behavior.train))))
    stages.begin("measuring the behaviour", 0.0, 0.01)
    baseline = measure(model, behavior.train)
    if baseline.is_present:
        stages.begin("patching layers, positions and heads", 0.01, 0.04)
        grids = draw_grids(model, train)
        stages.begin("searching the smallest set of heads", 0.04, 0.08)
        heads = find_heads(model, behavior, train)
    if heads is not None and not heads.stopped:
        stages.begin("searching the smallest circuit of edges", 0.08, 0.13)
        edges = find_edges(model, behavior, train)
        stages.begin("choosing what to predict", 0.13, 0.15)
        heads = claim_heads(model, behavior, part=heads, others=others, seed=seed)
        edges = claim_edges(model, behavior, part=edges, others=others, seed=seed)
    claims = [None if part is None else part.claim for part in (heads, edges)]
    record, circuit_record = _test(model, claims, others, ledger, stages, checks)
    stages.begin("writing", 0.99, 1.0)
    return Investigation(
        model_name=model.identity.name,
        behavior=behavior,
        baseline=baseline,
        grids=grids,
        heads=heads,
        edges=edges,
        record=record,
        circuit_record=circuit_record,
        stopped="" if record or circuit_record else _why_stopped(baseline, heads, edges),
        examples=examples_of(model, behavior),
        seconds=stages.seconds,
    )


def _test(
    model: Model,
    claims: Sequence[Claim | None],
    others: Sequence[Behavior],
    ledger: Path | None,
    stages: Stages,
    checks: CheckSettings | None,
) -> tuple[ClaimRecord | None, ...]:
    """Test what was claimed, in one opening: every claim is frozen by now (docs/decisions/0010).

    Checks are done of a circuit alone, after its verdict was made.
    """
    frozen = [claim for claim in claims if claim is not None]
    if not frozen:
        return tuple(None for _ in claims)
    stages.begin("opening the held-out prompts", 0.15, 0.16)
    bench = EngineBench(model, {other.name: other for other in others}, progress=stages.tell)
    opened = open_held_out(frozen, bench, ledger=None if ledger is None else Ledger(ledger))
    records: list[ClaimRecord | None] = []
    for claim, name, start, stop in zip(
        claims, ("heads", "circuit"), (0.16, 0.55), (0.55, 0.99), strict=True
    ):
        if claim is not None:
            stages.begin(f"testing the {name} on held-out prompts", start, stop)
        records.append(None if claim is None else test_opened(claim, bench, opened, checks=checks))
    return tuple(records)


def examples_of(model: Model, behavior: Behavior, n: int = 3) -> tuple[tuple[str, str, str, str], ...]:
    """A few train pairs as text, with answer and foil."""
    train = behavior.train
    rows = []
    for row in range(min(n, len(train))):
        answer, foil = train.answers[row], train.wrong[row] if train.wrong else ()
        words = [", ".join(model.reader.strings(list(ids)[:4])) for ids in (answer, foil)]
        rows.append((*train.texts[row], *words))
    return tuple(rows)


def _why_stopped(baseline: Baseline, heads: HeadPart | None, edges: EdgePart | None) -> str:
    if heads is None:
        return (
            "The model does not show this behaviour clearly enough to explain it: "
            f"it is {baseline.state}, the gap between clean and corrupt prompts is {baseline.gap} "
            f"({baseline.numbers['unit']}). Nothing was localised and no claim was made."
        )
    return " ".join(part.stopped for part in (heads, edges) if part is not None and part.stopped)
