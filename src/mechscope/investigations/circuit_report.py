"""The report of a circuit: the verdict, the graph, what it carries, how stable it is, what was not shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.circuits.evaluation import CircuitEvaluation
from mechscope.circuits.size_curve import SizeCurve
from mechscope.figures import Block, Bullets, LabelledArray, Lines, Prose, Report, Section, Table
from mechscope.figures.shown import number
from mechscope.investigations.circuit_checks_section import checks_sections
from mechscope.investigations.circuit_search import CircuitInvestigation
from mechscope.investigations.circuit_section import HOW_TO_READ, N_EDGES_SHOWN, draw_circuit, edge_table
from mechscope.investigations.claim_section import claim_section
from mechscope.investigations.found_report import (
    CLAIM,
    again_section,
    behavior_section,
    record_of,
    save_found,
    verdict_of,
)


def save_circuit_investigation(found: CircuitInvestigation, out: Path) -> dict[str, Path]:
    """Write `report.html`, `result.json`, `circuit.json` and `claim.json` into a folder; paths by name."""
    return save_found(found, out, numbers=circuit_to_json(found), report=build_circuit_report(found))


def circuit_to_json(found: CircuitInvestigation) -> dict[str, Any]:
    """Numbers of the investigation; per-prompt measurements are in the claim file."""
    stability = found.stability
    return {
        "model": found.model_name,
        "behavior": found.behavior.name,
        "circuit": found.circuit.to_json(),
        "evaluation": found.evaluation.to_json(),
        "sizes": {
            curve.by: {
                "fractions": list(curve.fractions),
                "n_edges": list(curve.n_edges),
                "faithfulness": list(curve.faithfulness),
                "cpr": curve.cpr,
                "cmd": curve.cmd,
            }
            for curve in found.curves
        },
        "stability": None
        if stability is None
        else {
            "jaccard": stability.jaccard,
            "interval": list(stability.jaccard_interval),
            "n_runs": len(stability.sizes),
            "stable": stability.stable.to_json(),
        },
        "stable_evaluation": None if found.stable is None else found.stable.to_json(),
        "verdict": found.record.verdict.to_json(),
    }


def build_circuit_report(found: CircuitInvestigation) -> Report:
    """The page, not yet written."""
    report = Report(
        f"The circuit of {found.behavior.name} in {found.model_name}",
        subtitle="Which edges carry this behaviour, found on one set of prompts and tested on another.",
        verdict=verdict_of(found),
        record=record_of(found),
    )
    report.add(behavior_section(found))
    report.add(_graph(found))
    report.add(_measures(found))
    if found.stability is not None:
        report.add(_stability(found))
    report.add(claim_section(found.record, sizes="those of every claim about a circuit"))
    for section in checks_sections(found.record.verdict.checks, more_controls="--runs 0,19"):
        report.add(section)
    report.add(_not_shown(found))
    report.add(
        again_section(
            found,
            asked="mechscope circuit MODEL BEHAVIOR --out DIR",
            verified=f"mechscope claim verify {CLAIM}",
            what="the claim and the tests beside it",
        )
    )
    return report


def _graph(found: CircuitInvestigation) -> Section:
    circuit = found.circuit
    share = len(circuit) / circuit.wiring.n_edges
    blocks: list[Block] = [
        Prose(
            f"**{len(circuit)} of the model's {circuit.wiring.n_edges:,} edges ({share:.1%})**, found on train "
            f"prompts. {HOW_TO_READ}"
        ),
        draw_circuit(circuit, title=f"The circuit of {found.behavior.name}"),
        edge_table(circuit, found.evaluation),
    ]
    return Section("The circuit", blocks)


def _measures(found: CircuitInvestigation) -> Section:
    rows = [("the circuit", *_row(found.evaluation))]
    if found.stable is not None:
        rows.append(("its stable edges", *_row(found.stable)))
    settings = found.evaluation.settings
    blocks: list[Block] = [
        Table(
            ("", "edges", "faithfulness", "mean of ratios", "5% to 95% of pairs", "incompleteness"),
            rows,
            caption=f"On {len(found.evaluation.values)} held-out pairs. {_removed(settings)} Faithfulness is a ratio "
            "of means with its 95% interval over units; 1 is the model, 0 is no edge at all. The mean of ratios and "
            "the quantiles take each pair by itself. Incompleteness is the largest difference between circuit and "
            "model, of the gap, when some of the circuit's nodes are removed from both.",
        )
    ]
    if found.evaluation.edge_needs is not None:
        unneeded = found.evaluation.unneeded_edges
        blocks.append(
            Prose(
                f"{len(unneeded)} of its {len(found.circuit)} edges can be removed, each by itself, for less than 1% "
                "of the gap: it is a faithful circuit, not a minimal one."
                if unneeded
                else "Removing any single edge changes the metric by at least 1% of the gap."
            )
        )
    if found.curves:
        blocks += _sizes(found.curves)
    return Section("What it carries", blocks)


def _sizes(curves: Sequence[SizeCurve]) -> list[Block]:
    """Faithfulness by size, and the areas that benchmarks compare methods by."""
    first = curves[0]
    shares = [f"{share:g}" for share in first.fractions]
    array = LabelledArray(
        np.array([curve.faithfulness for curve in curves]),
        ("strongest by", "share of edges"),
        coords={"strongest by": [curve.by for curve in curves], "share of edges": shares},
        unit="faithfulness",
        title="Faithfulness by size",
        conventions=first.settings,
    )
    return [
        Lines(
            array,
            "The strongest edges by the magnitude of their score, and by the signed score, as shares of all edges; "
            "edges on no path from the embedding to the logits are dropped, so that the fewest may carry nothing.",
        ),
        Prose(_areas(curves)),
        Table(
            ("strongest by", "edges of each size", "CPR", "CMD", "CPR over log size", "CMD over log size"),
            [_areas_row(curve) for curve in curves],
            caption="Areas over the share of edges as it is, and over its logarithm. Half of the first kind is the "
            "last half of the edges, where all methods are alike: the second kind says more of small circuits. The "
            "number of edges is what is left on a path.",
        ),
    ]


def _areas(curves: Sequence[SizeCurve]) -> str:
    """The two numbers that benchmarks print, in words."""
    by = {curve.by: curve for curve in curves}
    told = [f"**CPR {by['signed'].cpr:.3f}** (of signed scores)"] if "signed" in by else []
    told += [f"**CMD {by['magnitude'].cmd:.3f}** (of magnitudes)"] if "magnitude" in by else []
    return (
        f"In the numbers that benchmarks compare searches by: {' and '.join(told)}. CPR is the area under the curve: "
        "about 1 if few edges do all that the model does, more if circuits do better than the model. CMD is the area "
        "between the curve and 1: 0 at best."
    )


def _areas_row(curve: SizeCurve) -> tuple[str, ...]:
    areas = (curve.cpr, curve.cmd, curve.cpr_log, curve.cmd_log)
    return (curve.by, ", ".join(map(str, curve.n_edges)), *(f"{area:.3f}" for area in areas))


def _removed(settings: Mapping[str, Any]) -> str:
    """What removed edges carry, in words."""
    if settings["direction"] == "denoising" and settings["ablation"] == "resample":
        return "The circuit's edges carry the clean prompt's values, in a run of the corrupt one."
    if settings["direction"] == "denoising":
        started = {"mean": "its writer's mean", "zero": "nothing"}.get(
            settings["ablation"], settings["ablation"]
        )
        return f"The circuit's edges carry the clean prompt's values, in a run in which each edge carries {started}."
    carried = {"resample": "the corrupt prompt's values", "mean": "their mean", "zero": "nothing"}
    return f"Removed edges carry {carried.get(settings['ablation'], settings['ablation'])}."


def _row(evaluation: CircuitEvaluation) -> tuple[Any, ...]:
    interval, spread = evaluation.interval, evaluation.quantiles
    return (
        len(evaluation.circuit),
        f"{evaluation.faithfulness:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
        number(evaluation.mean_of_ratios),
        f"{number(spread[0.05])} to {number(spread[0.95])}",
        None if evaluation.completeness is None else number(evaluation.completeness),
    )


def _stability(found: CircuitInvestigation) -> Section:
    stability = found.stability
    assert stability is not None
    low, high = stability.jaccard_interval
    shares = {str(edge): share for edge, share in stability.top(stability.circuit.wiring.n_edges)}
    top = [(str(edge), score) for edge, score in found.circuit.top(N_EDGES_SHOWN)]
    blocks: list[Block] = [
        Prose(
            f"The search was run again on {len(stability.sizes)} resamples of the train units. Two runs' circuits "
            f"overlap by {stability.jaccard:.2f} on average (Jaccard; 95% interval {low:.2f} to {high:.2f}). "
            f"{len(stability.stable)} edges were found in at least {stability.share:.0%} of the runs."
        ),
        Table(
            ("edge", "score", "found in"),
            [(name, score, f"{shares.get(name, 0.0):.0%}") for name, score in top],
            caption=f"The {len(top)} strongest edges of the circuit, and the share of runs that found each.",
        ),
    ]
    return Section("Would other prompts give the same circuit?", blocks)


def _not_shown(found: CircuitInvestigation) -> Section:
    points = [
        "That these edges are the only ones: edges that act only when others are gone can be missed.",
        "What each part computes: edges are removed and kept, not read.",
        f"Anything about prompts unlike these: {found.behavior.name} ({found.behavior.provenance.source}).",
    ]
    return Section("What was not shown", [Bullets(points)])
