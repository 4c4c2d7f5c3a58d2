"""The report of a circuit: the verdict, the graph, what it carries, how stable it is, what was not shown."""

from pathlib import Path
from typing import Any

from mechscope.circuits.evaluation import CircuitEvaluation
from mechscope.figures import Block, Bullets, Code, Lines, Prose, Report, Section, Table, Verdict
from mechscope.figures.shown import number
from mechscope.investigations.circuit_search import CircuitInvestigation
from mechscope.investigations.circuit_section import HOW_TO_READ, N_EDGES_SHOWN, draw_circuit, edge_table
from mechscope.investigations.claim_section import MEANING, claim_section, headline_figures
from mechscope.records.files import save_json, save_text

REPORT, RESULT, CLAIM, CIRCUIT = "report.html", "result.json", "claim.json", "circuit.json"


def save_circuit_investigation(found: CircuitInvestigation, out: Path) -> dict[str, Path]:
    """Write `report.html`, `result.json`, `circuit.json` and `claim.json` into a folder; paths by name."""
    out.mkdir(parents=True, exist_ok=True)
    found.circuit.save(out / CIRCUIT)
    found.record.save(out / CLAIM)
    save_json(out / RESULT, circuit_to_json(found))
    save_text(out / REPORT, build_circuit_report(found).to_html())
    return {name: out / name for name in (REPORT, RESULT, CIRCUIT, CLAIM)}


def circuit_to_json(found: CircuitInvestigation) -> dict[str, Any]:
    """Numbers of the investigation; per-prompt measurements are in the claim file."""
    stability = found.stability
    return {
        "model": found.model_name,
        "behavior": found.behavior.name,
        "circuit": found.circuit.to_json(),
        "evaluation": found.evaluation.to_json(),
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
    verdict = found.record.verdict
    because = " ".join([MEANING[verdict.outcome], *verdict.reasons[:3]])
    head = Verdict(verdict.outcome, found.record.claim.statement, because, headline_figures(found.record))
    report = Report(
        f"The circuit of {found.behavior.name} in {found.model_name}",
        subtitle="Which edges carry this behaviour, found on one set of prompts and tested on another.",
        verdict=head,
        record={"claim": found.record.claim.id, "method": str(found.circuit.settings.get("method", ""))},
    )
    report.add(_graph(found))
    report.add(_measures(found))
    if found.stability is not None:
        report.add(_stability(found))
    report.add(claim_section(found.record))
    report.add(_not_shown(found))
    report.add(
        Section(
            "How to run it again", [Code(found.command or "mechscope circuit MODEL BEHAVIOR", "This report")]
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
            caption=f"On {len(found.evaluation.values)} held-out pairs. Removed edges carry the value "
            f'"{settings["ablation"]}", {settings["direction"]}. Faithfulness is a ratio of means with its 95% '
            "interval over units; 1 is the model, 0 is no edge at all.",
        )
    ]
    if found.evaluation.edge_needs is not None:
        unneeded = found.evaluation.unneeded_edges
        blocks.append(
            Prose(
                f"Taking away a single edge changes the metric by at least 1% of the gap, but for {len(unneeded)}."
                if unneeded
                else "Taking away any single edge changes the metric by at least 1% of the gap."
            )
        )
    if found.curve is not None:
        blocks.append(Lines(found.curve.labelled()))
    return Section("What it carries", blocks)


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
    blocks: list[Block] = [
        Prose(
            f"The search was run again on {len(stability.sizes)} resamples of the train units. Two runs' circuits "
            f"overlap by {stability.jaccard:.2f} on average (Jaccard; 95% interval {low:.2f} to {high:.2f}). "
            f"{len(stability.stable)} edges were found in at least {stability.share:.0%} of the runs."
        ),
        Table(
            ("edge", "share of runs"), [(str(edge), share) for edge, share in stability.top(N_EDGES_SHOWN)]
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
