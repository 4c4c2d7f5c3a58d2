"""The claim in a report: predictions, effects with intervals, controls, and the reasons for the verdict."""

from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.forest import forest_of
from mechscope.claims.verdict import PredictionResult
from mechscope.figures import Block, Callout, Prose, Section, Table
from mechscope.figures.shown import number

MEANING = {
    "supported": "Every prediction held on prompts that were not used to find the mechanism.",
    "refuted": "At least one prediction failed on prompts that were not used to find the mechanism.",
    "inconclusive": "The held-out prompts do not decide: see the reasons below.",
    "no claim": "The search ended before there was anything to claim.",
}

TILES = {
    "lowers": "lost without it",
    "recovers": "recovered by it alone",
    "needs": "lost without its least needed part",
    "raises": "gained by steering along it",
    "spares": "change of the spared behaviour",
}
"""What the numbers at the head of the report are called, by kind of prediction."""


def headline_figures(record: ClaimRecord) -> dict[str, str]:
    """The numbers at the head of a report."""
    verdict = record.verdict
    figures = {
        TILES[result.prediction.kind]: _size(result)
        for result in verdict.predictions
        if result.effect is not None
    }
    figures["held-out prompts"] = f"{verdict.held_out.n_prompts} in {verdict.held_out.n_units} units"
    return figures


def _size(result: PredictionResult) -> str:
    assert result.effect is not None
    if result.prediction.unit == "gap":
        low, high = result.effect.interval.low, result.effect.interval.high
        return f"{result.effect.value:.0%} of the gap [{low:.0%}, {high:.0%}]"
    return str(result.effect)


def claim_section(
    record: ClaimRecord,
    *,
    about: str = "",
    beside: ClaimRecord | None = None,
    sizes: str = "chosen on validation prompts",
) -> Section:
    """What was predicted, what held-out prompts and controls said.

    Args:
        record: The tested claim.
        about: What it is about, where a report has several claims.
        beside: A claim that was frozen before the same opening.
        sizes: Where the predicted sizes come from.
    """
    held_out = record.verdict.held_out
    times = "once" if held_out.openings == 1 else f"{held_out.openings} times"
    opened = f", opened {times}" if held_out.openings else ""
    shared = ""
    if beside is not None:
        shared = (
            f" The claim `{beside.claim.id[:16]}` was frozen by then as well, and is tested in the same opening: "
            "neither could be shaped by the other's result."
        )
    blocks: list[Block] = [
        Prose(
            f"Frozen before any held-out prompt was read: the mechanism, the predictions with their sizes "
            f"({sizes}), the control family ({record.claim.controls}) and the seed. Its hash is "
            f"`{record.claim.id[:16]}`. Tested on {held_out.n_prompts} held-out pairs in {held_out.n_units} units"
            f"{opened}; the clean-corrupt gap there is {held_out.gap}.{shared}"
        ),
        forest_of(record.verdict.predictions, record.evidence),
        Table(
            ("prediction", "outcome", "effect", "bound", "controls", "p", "95th percentile of controls"),
            [_row(result) for result in record.verdict.predictions],
        ),
    ]
    if record.verdict.reasons or record.verdict.notes:
        blocks.append(Callout("Reasons and notes", [*record.verdict.reasons, *record.verdict.notes]))
    return Section(f"The claim about {about}" if about else "The claim", blocks)


def _row(result: PredictionResult) -> tuple[str, str, str, str, str, str, str]:
    controls = result.controls
    return (
        str(result.prediction),
        result.outcome,
        "–" if result.effect is None else str(result.effect),
        number(result.prediction.bound),
        "–" if controls is None else f"{controls.rank} ({controls.family})",
        "–" if controls is None or controls.p is None else number(controls.p),
        "–" if controls is None else number(controls.quantile),
    )
