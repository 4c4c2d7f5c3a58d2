"""Saving an investigation: report, numbers, claim and pairs appear together, at the end, or not at all."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mechscope.investigations.investigate import Investigation
from mechscope.investigations.report import build_report
from mechscope.investigations.search import Step
from mechscope.records.files import save_json, save_text

REPORT, RESULT, CLAIM = "report.html", "result.json", "claim.json"


def save_investigation(found: Investigation, out: Path, *, pairs: Path | None = None) -> dict[str, Path]:
    """Write `report.html`, `result.json` and, if a claim was tested, `claim.json` into a folder.

    Everything is written beside the folder first and moved into it once it is whole. A claim of an earlier
    investigation is removed where this one has none.

    Args:
        found: What to save.
        out: The folder; made if it is not there.
        pairs: A file of the user's own prompts; a copy goes with the claim, so that it can be verified.

    Returns:
        Paths by name.
    """
    names = [REPORT, RESULT, *([CLAIM] if found.record else []), *([pairs.name] if pairs else [])]
    beside = out if out.is_dir() else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=beside) as folder:
        stage = Path(folder)
        if pairs is not None:
            shutil.copyfile(pairs, stage / pairs.name)
        if found.record is not None:
            found.record.save(stage / CLAIM)
        save_json(stage / RESULT, investigation_to_json(found))
        save_text(stage / REPORT, build_report(found).to_html())
        out.mkdir(exist_ok=True)
        for name in names:
            (stage / name).replace(out / name)
    if found.record is None:
        (out / CLAIM).unlink(missing_ok=True)
    return {name: out / name for name in names}


def investigation_to_json(found: Investigation) -> dict[str, Any]:
    """Everything but the per-prompt measurements, which the claim file carries."""
    search = found.found
    verdict = None if found.record is None else found.record.verdict
    return {
        "model": found.model_name,
        "behavior": found.behavior.recipe(),
        "outcome": found.outcome,
        "stopped": found.stopped,
        "baseline": {"state": found.baseline.state, **found.baseline.numbers["estimates"]},
        "grids": {title: grid.effects.to_json() for title, grid in found.grids.items()},
        "mechanism": None if search is None or search.mechanism is None else search.mechanism.to_json(),
        "search": [] if search is None else [_step(step) for step in search.steps],
        "left_out": list(found.left_out),
        "claim": None if found.record is None else found.record.claim.id,
        "verdict": None if verdict is None else verdict.to_json(),
        "seconds": found.seconds,
    }


def _step(step: Step) -> dict[str, Any]:
    return {"action": step.action, "n_parts": step.n_parts, "recovered": step.recovered}
