"""The verdict as a frozen value: what held, what failed, with effects, intervals, controls and reasons.

Owns the result types of claims and their plain-text and HTML form. They hold numbers only: no model, no
prompts. Invariant: `Verdict.from_json(v.to_json()) == v`.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.claims.predictions import Prediction
from mechscope.data.intervals import Interval
from mechscope.figures.shown import number

ORDINALS = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its 95% interval."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{number(self.value)} [{number(self.interval.low)}, {number(self.interval.high)}]"


@dataclass(frozen=True)
class ControlSummary:
    """How the mechanism stands among its controls.

    Args:
        family: The family's name.
        n_drawn: Controls measured.
        n_members: Members of the family; infinite for a continuous one.
        n_strong: Controls at least as strong as the mechanism.
        p: (1 + n_strong) / (1 + n_drawn); None where the family can't gate.
        quantile: The 95th percentile of the controls' effects.
        margin: The effect minus that percentile, with its interval; None where the family can't gate.
        generated_text: True where 39 draws sufficed because every measurement is a generation.
        shortfall: Why the family can't gate; "" if it can.
    """

    family: str
    n_drawn: int
    n_members: float | int
    n_strong: int
    p: float | None
    quantile: float
    margin: Estimate | None
    generated_text: bool = False
    shortfall: str = ""

    @property
    def rank(self) -> str:
        """The mechanism's place among itself and its controls: "1st of 200"."""
        place = 1 + self.n_strong
        ending = "th" if place % 100 in (11, 12, 13) else ORDINALS.get(place % 10, "th")
        return f"{place}{ending} of {1 + self.n_drawn}"


@dataclass(frozen=True)
class HeldOutSummary:
    """The split that the verdict stands on.

    Args:
        data_hash: Of its prompts and answers.
        n_prompts: Prompts, or pairs.
        n_units: What was resampled; see docs/decisions/0006-units.md.
        effective_units: As many equal units would weigh the same.
        basis: What a unit is: "components", "entities", "templates", "prompts", "given".
        baseline: Mean metric of the untouched model.
        gap: Clean minus corrupt; None where there are no corrupt prompts.
        openings: How often this split was opened, this time included; 0 where no ledger was kept.
        fresh_seed: Where the prompts were drawn anew for this verdict, with which seed.
    """

    data_hash: str
    n_prompts: int
    n_units: int
    effective_units: float
    basis: str
    baseline: float
    gap: Estimate | None
    openings: int = 0
    fresh_seed: int | None = None


@dataclass(frozen=True)
class PredictionResult:
    """One prediction's outcome and everything it was judged by.

    Args:
        prediction: What was predicted.
        outcome: "holds", "fails" or "undecided".
        effect: Mean effect with its 95% interval; None where the ratio is undefined.
        inner: The 90% interval, for the equivalence test of "spares"; else None.
        controls: Summary of the confirmatory family; None where the rule asks for none.
        p_failure: p of "the prediction is true".
        p_failure_holm: The same, Holm-adjusted over the claim's predictions.
        n_prompts: Held-out prompts of this prediction.
        n_units: Held-out units of this prediction.
        reasons: Why it fails or is undecided; empty where it holds.
        by_stratum: Effect within each template.
        others: The mechanism's rank in the other families that fit it; they are shown and decide nothing.
    """

    prediction: Prediction
    outcome: str
    effect: Estimate | None
    inner: Interval | None
    controls: ControlSummary | None
    p_failure: float
    p_failure_holm: float
    n_prompts: int
    n_units: int
    reasons: tuple[str, ...] = ()
    by_stratum: tuple[tuple[str, float], ...] = ()
    others: tuple[ControlSummary, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """supported, refuted or inconclusive, with all that was found.

    Args:
        outcome: "supported", "refuted" or "inconclusive".
        predictions: One result per prediction, in the claim's order.
        held_out: The split of the claim's own behaviour.
        reasons: Why it is not supported.
        notes: What a reader must know beside it: repeated openings, generated text, fixed templates.
        seed: Of resamples and controls.
        claim_id: The claim's hash.
        statement: The claim's sentence.
        checks: Of a claim about a circuit, the tests and controls that are shown and decide nothing; None if none
            were done.
    """

    outcome: str
    predictions: tuple[PredictionResult, ...]
    held_out: HeldOutSummary
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    claim_id: str = ""
    statement: str = ""
    checks: CircuitChecks | None = field(default=None, hash=False)

    @property
    def supported(self) -> bool:
        """True only for "supported": inconclusive is not support."""
        return self.outcome == "supported"

    def plot(self) -> Any:
        """A Plotly figure: each prediction's effect, interval and bound, and its controls' 95th percentile."""
        from mechscope.claims.forest import forest_of

        title = f"{self.outcome}: {self.statement}" if self.statement else self.outcome
        return forest_of(self.predictions, title=title).plot()

    def to_json(self) -> dict[str, Any]:
        """All of it as plain dictionaries, lists and numbers."""
        plain = asdict(replace(self, checks=None))
        for result, entry in zip(self.predictions, plain["predictions"], strict=True):
            entry["prediction"] = result.prediction.to_json()
        plain["checks"] = None if self.checks is None else self.checks.to_json()
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_json`, also after a trip through a file."""
        held_out = {**plain["held_out"], "gap": _estimate(plain["held_out"]["gap"])}
        checks = plain.get("checks")
        return cls(
            **{
                **plain,
                "predictions": tuple(_result(entry) for entry in plain["predictions"]),
                "held_out": HeldOutSummary(**held_out),
                "reasons": tuple(plain["reasons"]),
                "notes": tuple(plain["notes"]),
                "checks": None if checks is None else CircuitChecks.from_json(checks),
            }
        )

    def __str__(self) -> str:
        held_out = self.held_out
        lines = [f"{self.outcome.upper()}: {self.statement}" if self.statement else self.outcome.upper()]
        lines += [f"  because  {reason}" for reason in self.reasons]
        rows = [COLUMNS, *(_row(result) for result in self.predictions)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines += [
            "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.append(
            f"  {held_out.n_prompts} held-out prompts in {held_out.n_units} units ({held_out.basis}); "
            f"baseline {number(held_out.baseline)}"
            + (f"; clean-corrupt gap {held_out.gap}" if held_out.gap else "")
        )
        lines += [f"  note     {note}" for note in self.notes]
        if self.checks is not None:
            lines.append("  beside it, shown only:")
            lines += [f"    {line}" for line in self.checks.lines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cells(row: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        sentences = [f"because {reason}" for reason in self.reasons] + list(self.notes)
        beside = "" if self.checks is None else f"<p>Beside it, shown only:</p>{self.checks._repr_html_()}"
        return (
            f'<div class="ms-verdict ms-{html.escape(self.outcome)}">'
            f"<p><strong>{html.escape(self.outcome)}</strong>: {html.escape(self.statement)}</p>"
            f"<table><thead>{cells(COLUMNS, 'th')}</thead>"
            f"<tbody>{''.join(cells(_row(result), 'td') for result in self.predictions)}</tbody></table>"
            f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>{beside}</div>"
        )


COLUMNS = ("prediction", "outcome", "effect [95%]", "controls", "p", "fails p (Holm)")


def _row(result: PredictionResult) -> tuple[str, ...]:
    controls = result.controls
    effect = "undefined" if result.effect is None else str(result.effect)
    if result.inner is not None:
        effect += f", 90% [{number(result.inner.low)}, {number(result.inner.high)}]"
    return (
        str(result.prediction),
        result.outcome,
        effect,
        "none needed" if controls is None else f"{controls.rank}, {controls.family}{_marked(controls)}",
        "–" if controls is None or controls.p is None else number(controls.p),
        number(result.p_failure_holm),
    )


def _marked(controls: ControlSummary) -> str:
    return f" (generated text, {controls.n_drawn} draws)" if controls.generated_text else ""


def _interval(plain: Mapping[str, Any] | None) -> Interval | None:
    return None if plain is None else Interval(**plain)


def _estimate(plain: Mapping[str, Any] | None) -> Estimate | None:
    return None if plain is None else Estimate(plain["value"], Interval(**plain["interval"]))


def _controls(plain: Mapping[str, Any]) -> ControlSummary:
    return ControlSummary(**{**plain, "margin": _estimate(plain["margin"])})


def _result(plain: Mapping[str, Any]) -> PredictionResult:
    controls = plain["controls"]
    return PredictionResult(
        **{
            **plain,
            "prediction": Prediction.from_json(plain["prediction"]),
            "effect": _estimate(plain["effect"]),
            "inner": _interval(plain["inner"]),
            "controls": None if controls is None else _controls(controls),
            "others": tuple(_controls(entry) for entry in plain.get("others", ())),
            "reasons": tuple(plain["reasons"]),
            "by_stratum": tuple((name, value) for name, value in plain["by_stratum"]),
        }
    )
