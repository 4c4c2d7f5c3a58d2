"""Saving an investigation: report, numbers, claims, circuit and pairs appear together, at the end, or not at all."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mechscope.claims.claim_file import ClaimRecord
from mechscope.investigations.edges import EdgePart
from mechscope.investigations.heads import HeadPart
from mechscope.investigations.investigate import Investigation, outcome_of
from mechscope.investigations.relation import Relation
from mechscope.investigations.report import CIRCUIT_CLAIM, CLAIM, build_report, relation_of
from mechscope.investigations.search import Step
from mechscope.records.files import save_json, save_text

REPORT, RESULT = "report.html", "result.json"
CIRCUIT = ("circuit.json", "circuit.safetensors")
"""The circuit's record and its scores."""

OPTIONAL = (CLAIM, CIRCUIT_CLAIM, *CIRCUIT)
"""Files that an investigation may have none of; those of an earlier one do not stay."""


def save_investigation(found: Investigation, out: Path, *, pairs: Path | None = None) -> dict[str, Path]:
    """Write `report.html` and `result.json`, and what there is of claims and circuit, into a folder.

    Everything is written beside the folder first and moved into it once it is whole. A claim or circuit of an earlier
    investigation is removed where this one has none.

    Args:
        found: What to save.
        out: The folder; made if it is not there.
        pairs: A file of the user's own prompts; a copy goes with the claims, so that they can be verified.

    Returns:
        Paths by name.
    """
    beside = out if out.is_dir() else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=beside) as folder:
        stage = Path(folder)
        if pairs is not None:
            shutil.copyfile(pairs, stage / pairs.name)
        for record, name in ((found.record, CLAIM), (found.circuit_record, CIRCUIT_CLAIM)):
            if record is not None:
                record.save(stage / name)
        if found.edges is not None and found.edges.circuit is not None:
            found.edges.circuit.save(stage / CIRCUIT[0])
        save_json(stage / RESULT, investigation_to_json(found))
        save_text(stage / REPORT, build_report(found).to_html())
        names = sorted(path.name for path in stage.iterdir())
        out.mkdir(exist_ok=True)
        for name in names:
            (stage / name).replace(out / name)
    for name in OPTIONAL:
        if name not in names:
            (out / name).unlink(missing_ok=True)
    return {name: out / name for name in names}


def investigation_to_json(found: Investigation) -> dict[str, Any]:
    """Everything but the per-prompt measurements, which the claim files carry."""
    return {
        "model": found.model_name,
        "behavior": found.behavior.recipe(),
        "outcome": found.outcome,
        "stopped": found.stopped,
        "baseline": {"state": found.baseline.state, **found.baseline.numbers["estimates"]},
        "grids": {title: grid.effects.to_json() for title, grid in found.grids.items()},
        **_heads(found.heads, found.record),
        "circuit": None if found.edges is None else _circuit(found.edges, found.circuit_record),
        "relation": None if (relation := relation_of(found)) is None else _relation(relation),
        "seconds": found.seconds,
    }


def _heads(part: HeadPart | None, record: ClaimRecord | None) -> dict[str, Any]:
    search = None if part is None else part.found
    return {
        "mechanism": None if search is None or search.mechanism is None else search.mechanism.to_json(),
        "search": [] if search is None else [_step(step) for step in search.steps],
        "left_out": [] if part is None else list(part.left_out),
        **_verdict(record),
    }


def _circuit(part: EdgePart, record: ClaimRecord | None) -> dict[str, Any]:
    curve = part.curve
    return {
        "outcome": outcome_of(record),
        "stopped": part.stopped,
        "edges": None if part.circuit is None else part.circuit.to_json(),
        "validation": None if part.evaluation is None else part.evaluation.to_json(),
        "sizes": None
        if curve is None
        else {
            "asked": list(part.sizes),
            "n_edges": list(curve.n_edges),
            "faithfulness": list(curve.faithfulness),
            "chosen": part.chosen,
        },
        "left_out": list(part.left_out),
        **_verdict(record),
    }


def _relation(relation: Relation) -> dict[str, Any]:
    return {
        "claimed": {str(part.node): part.is_in_circuit for part in relation.claimed},
        "other_parts": [str(part.node) for part in relation.others],
        "between": {str(edge): score for edge, score in relation.between},
    }


def _verdict(record: ClaimRecord | None) -> dict[str, Any]:
    return {
        "claim": None if record is None else record.claim.id,
        "verdict": None if record is None else record.verdict.to_json(),
    }


def _step(step: Step) -> dict[str, Any]:
    return {"action": step.action, "n_parts": step.n_parts, "recovered": step.recovered}
