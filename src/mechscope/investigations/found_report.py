"""What the report of every circuit has, whatever the circuit is made of: its head, its foot and the files beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechscope.figures import Block, Code, Prose, Report, Section, Table, Verdict
from mechscope.investigations.claim_section import MEANING, headline_figures
from mechscope.investigations.found_circuit import FoundCircuit
from mechscope.records.files import save_json, save_text

REPORT, RESULT, CLAIM, CIRCUIT = "report.html", "result.json", "claim.json", "circuit.json"


def save_found(
    found: FoundCircuit, out: Path, *, numbers: Mapping[str, Any], report: Report
) -> dict[str, Path]:
    """Write `report.html`, `result.json`, `circuit.json` and `claim.json` into a folder; paths by name."""
    out.mkdir(parents=True, exist_ok=True)
    found.circuit.save(out / CIRCUIT)
    found.record.save(out / CLAIM)
    save_json(out / RESULT, numbers)
    save_text(out / REPORT, report.to_html())
    return {name: out / name for name in (REPORT, RESULT, CIRCUIT, CLAIM)}


def verdict_of(found: FoundCircuit) -> Verdict:
    """What was concluded, and why, for the head of a page."""
    verdict = found.record.verdict
    because = " ".join([MEANING[verdict.outcome], *verdict.reasons[:3]])
    return Verdict(verdict.outcome, found.record.claim.statement, because, headline_figures(found.record))


def behavior_section(found: FoundCircuit) -> Section:
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


def record_of(found: FoundCircuit) -> dict[str, str]:
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


def again_section(found: FoundCircuit, *, asked: str, verified: str, what: str) -> Section:
    """How to ask for the page again (`asked` where the command is not known), and how to recompute what it claims."""
    return Section(
        "How to run it again",
        [
            Code(found.command or asked, "This report"),
            Code(verified, f"Recompute {what}; exits 0 only if all comes out the same"),
        ],
    )
