"""The report of a circuit: the verdict, the graph, what it carries, how stable it is, what was not shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechscope.circuits.evaluation import CircuitEvaluation
from mechscope.figures import Block, Bullets, Code, Lines, Prose, Report, Section, Table, Verdict
from mechscope.figures.shown import number
from mechscope.investigations.circuit_checks_section import checks_sections
from mechscope.investigations.circuit_search import CircuitInvestigation
from mechscope.investigations.circuit_section import HOW_TO_READ, N_EDGES_SHOWN, draw_circuit, edge_table
from mechscope.investigations.claim_section import MEANING, claim_section, headline_figures
from mechscope.investigations.part_search import PartInvestigation
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
        record=record_of(found),
    )
    report.add(behavior_section(found))
    report.add(_graph(found))
    report.add(_measures(found))
    if found.stability is not None:
        report.add(_stability(found))
    report.add(claim_section(found.record, sizes="those of every claim about a circuit"))
    for section in checks_sections(found.record.verdict.checks):
        report.add(section)
    report.add(_not_shown(found))
    report.add(
        Section(
            "How to run it again",
            [
                Code(found.command or "mechscope circuit MODEL BEHAVIOR", "This report"),
                Code(
                    f"mechscope claim verify {CLAIM}",
                    "Recompute the claim and the tests beside it; exits 0 only if they come out the same",
                ),
            ],
        )
    )
    return report


def behavior_section(found: CircuitInvestigation | PartInvestigation) -> Section:
    """What the behaviour is: clean and corrupt prompts, the metric, examples."""
    held_out, evaluation = found.record.verdict.held_out, found.evaluation
    metric = str(evaluation.settings.get("metric", "metric")).replace("_", " ")
    blocks: list[Block] = [
        Prose(
            "A prompt is **clean** when it asks for the answer, and **corrupt** when the one thing that decides it is "
            f"changed, so that another answer is right. The metric is the {metric}: how much the model prefers the "
            f"clean prompt's answer. The **gap** between clean and corrupt prompts, {held_out.gap} on held-out ones, "
            "is what a circuit has to carry. Prompts about the same thing are one **unit**: intervals count units, "
            "not prompts."
        ),
        Table(
            ("clean prompt", "corrupt prompt", "answer", "foil"),
            [tuple(cell.strip() or "–" for cell in row) for row in found.examples],
            caption="Examples from the train split.",
        ),
    ]
    return Section("The behaviour", blocks if found.examples else blocks[:1])


def record_of(found: CircuitInvestigation | PartInvestigation) -> dict[str, str]:
    """What somebody needs who wants to compute it again, for the foot of a page."""
    model, software = found.record.model, found.record.software.model_dump()
    return {
        "model": f"{model.name} ({model.family}, {model.dtype}), weights {model.weights_sha256[:16]}",
        "data": f"held out {found.record.held_out.data_hash[:16]}, searched {str(found.circuit.data_sha256)[:16]}",
        "claim": found.record.claim.id,
        "method": str(found.circuit.settings.get("method", "")),
        "seed": str(found.record.claim.seed),
        "software": ", ".join(f"{name} {version}" for name, version in software.items() if version),
    }


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
    if found.curve is not None:
        blocks.append(
            Lines(
                found.curve.labelled(),
                "The strongest edges by the size of their score, as shares of all edges; edges on no path from the "
                "embedding to the logits are dropped, so that the fewest may carry nothing.",
            )
        )
    return Section("What it carries", blocks)


def _removed(settings: Mapping[str, Any]) -> str:
    """What removed edges carry, in words."""
    if settings["direction"] == "denoising":
        return "The circuit's edges carry the clean prompt's values, in a run of the corrupt one."
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
