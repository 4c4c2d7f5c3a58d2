"""A claim's predictions drawn under each other: effect, interval, bound, and where controls lie.

Used by reports, which have the evidence, and by verdicts, which know of their controls only how they end.
"""

from collections.abc import Sequence

from mechscope.claims.evidence import Evidence
from mechscope.claims.verdict import PredictionResult
from mechscope.figures.forest import ForestPlot, ForestRow

CAPTION = (
    "Effect with its 95% interval over held-out units (90% for sparing), the bound that was predicted, "
    "and the same effect for each control. A prediction holds if the interval clears the bound and at most 5% "
    "of controls are as strong."
)


def forest_of(
    results: Sequence[PredictionResult], evidence: Sequence[Evidence] = (), *, title: str = "Predictions"
) -> ForestPlot:
    """The predictions whose effect is defined.

    Args:
        results: Of a verdict.
        evidence: One entry for each result, for every control's effect; without it their 95th percentile is drawn.
        title: Such as what was claimed.

    Raises:
        ShapeError: no effect is defined.
    """
    beside = [*evidence] or [None] * len(results)
    rows = [
        _row(result, measured)
        for result, measured in zip(results, beside, strict=True)
        if result.effect is not None
    ]
    return ForestPlot(rows, title=title, caption=CAPTION)


def _row(result: PredictionResult, evidence: Evidence | None) -> ForestRow:
    prediction, effect, summary = result.prediction, result.effect, result.controls
    assert effect is not None
    is_spared = prediction.kind == "spares"
    interval = result.inner if is_spared and result.inner is not None else effect.interval
    controls: list[float] = [] if summary is None else [summary.quantile]
    if evidence is not None:
        controls = (evidence.control_effects.mean(axis=1) / float(evidence.denominator.mean())).tolist()
    return ForestRow(
        label=str(prediction),
        effect=effect.value,
        low=interval.low,
        high=interval.high,
        unit="fraction of the gap" if prediction.unit == "gap" else "metric",
        at_least=None if is_spared else prediction.bound,
        within=prediction.bound if is_spared else None,
        controls=controls,
        p=None if summary is None else summary.p,
        outcome=result.outcome,
        note="" if summary is None else f"{summary.rank}, {summary.family}",
    )
