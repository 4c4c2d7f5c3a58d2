"""The report of a circuit of latents or experts: the verdict, the parts, what they carry, what was not shown."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from mechscope.figures import (
    Block,
    Bullets,
    LabelledArray,
    Lines,
    Prose,
    Report,
    Section,
    Table,
)
from mechscope.figures.shown import number
from mechscope.investigations.circuit_checks_section import checks_sections
from mechscope.investigations.claim_section import claim_section
from mechscope.investigations.found_report import (
    CLAIM,
    again_section,
    behavior_section,
    record_of,
    save_found,
    verdict_of,
)
from mechscope.investigations.part_search import (
    GRAINS,
    N_NEEDS,
    PartInvestigation,
    name_of,
    strongest_parts,
)

CONVENTIONS = ("split", "metric", "ablation", "direction", "routing")
"""What a figure says of its numbers; the rest is in the record, and the sites whose errors are kept in the table."""

NEEDED = 0.01
"""A part that is missed by less than this share of the gap is told as not needed by itself."""


def save_part_investigation(found: PartInvestigation, out: Path) -> dict[str, Path]:
    """Write `report.html`, `result.json`, `circuit.json` and `claim.json` into a folder; paths by name."""
    return save_found(found, out, numbers=parts_to_json(found), report=build_part_report(found))


def parts_to_json(found: PartInvestigation) -> dict[str, Any]:
    """Numbers of the investigation; per-prompt measurements are in the claim file."""
    return {
        "model": found.model_name,
        "behavior": found.behavior.name,
        "grain": found.search.grain,
        "circuit": found.circuit.to_json(),
        "evaluation": found.evaluation.to_json(),
        "sizes": [one.to_json() for one in found.sizes],
        "needs": dict(found.needs),
        "labels": dict(found.labels),
        "verdict": found.record.verdict.to_json(),
    }


def build_part_report(found: PartInvestigation) -> Report:
    """The page, not yet written."""
    part = found.circuit.part
    report = Report(
        f"The {part}s of {found.behavior.name} in {found.model_name}",
        subtitle=f"Which {part}s carry this behaviour, chosen on one set of prompts and tested on another.",
        verdict=verdict_of(found),
        record=record_of(found),
    )
    report.add(behavior_section(found))
    report.add(_parts(found))
    report.add(_measures(found))
    report.add(claim_section(found.record, sizes="those of every claim about a circuit"))
    for section in checks_sections(found.record.verdict.checks):
        report.add(section)
    report.add(_not_shown(found))
    local = [place for place in found.search.dictionaries if Path(place).exists()]
    verified = ["mechscope", "claim", "verify", CLAIM]
    verified += [word for place in local for word in ("--dictionary", place)]
    report.add(
        again_section(
            found,
            asked="mechscope parts MODEL BEHAVIOR --out DIR",
            verified=shlex.join(verified),
            what="the claim and the tests beside it",
        )
    )
    return report


def _parts(found: PartInvestigation) -> Section:
    circuit, part = found.circuit, found.circuit.part
    top = strongest_parts(circuit, N_NEEDS)
    rows: list[tuple[Any, ...]] = []
    for site, index, score in top:
        name = name_of(circuit, site, index)
        rows.append((name, found.labels.get(name, "–"), score, f"{found.needs[name]:.1%}"))
    heads = [part, "taken to mean", "score", "change when it alone is removed, of the gap"]
    if not found.labels:
        heads, rows = [heads[0], *heads[2:]], [(row[0], *row[2:]) for row in rows]
    left = len(circuit) - len(top)
    more = f"; {left} more are in `circuit.json`" if left > 0 else ""
    n_idle = sum(abs(need) < NEEDED for need in found.needs.values())
    idle = (
        f" {n_idle} of them can each be left out for less than 1% of the gap: a faithful circuit, not a minimal one."
        if n_idle
        else ""
    )
    blocks: list[Block] = [
        Prose(_how_read(found)),
        Table(
            ("site", "kept", "of all"),
            [
                (site, kept, len(circuit.kept[site]) - (part == "latent"))
                for site, kept in circuit.sizes.items()
            ],
            caption=f"Where the {part}s are.",
        ),
        Table(
            heads,
            rows,
            caption=f"The {len(top)} strongest by score{more}. A score is how much the metric would change, to first "
            f"order, if that {part} alone carried what it carries in the corrupt prompt.{idle}",
        ),
    ]
    return Section("The circuit", blocks)


def _how_read(found: PartInvestigation) -> str:
    circuit, part = found.circuit, found.circuit.part
    n_all = sum(len(which) - (part == "latent") for which in circuit.kept.values())
    told = f"**{len(circuit)} of {n_all:,} {part}s ({len(circuit) / n_all:.1%})**, chosen on train prompts. "
    if part == "expert":
        told += (
            "`m3:5` is expert 5 of layer 3's mixture. Removed experts add what they add in the corrupt prompt; "
            "attention stays free. "
        )
    else:
        told += (
            "`mlp_out.3:417` is latent 417 of the dictionary that writes that site: a direction that is added as much "
            "as the latent is on. Removed latents carry what they carry in the corrupt prompt; what is in no "
            "dictionary, such as attention between MLPs that transcoders stand for, stays free. "
        )
    return told + f"The grain is `{found.search.grain}`: {GRAINS[found.search.grain]}."


def _measures(found: PartInvestigation) -> Section:
    evaluation, part = found.evaluation, found.circuit.part
    series = {
        "the strongest": [one.faithfulness for one in found.sizes],
        "the model without them": [one.complement for one in found.sizes],
        "random ones": [float(np.mean(one.random_faithfulness)) for one in found.sizes],
    }
    array = LabelledArray(
        np.array(list(series.values())),
        ("series", f"{part}s kept"),
        coords={"series": list(series), f"{part}s kept": [len(one.circuit) for one in found.sizes]},
        unit="faithfulness",
        title=f"How many {part}s are enough",
        conventions={name: told for name, told in evaluation.settings.items() if name in CONVENTIONS},
    )
    table = evaluation.table()
    random = evaluation.random_faithfulness
    told = (
        "Faithfulness is 1 for the model and 0 with no part kept"
        f"; {number(evaluation.faithfulness)} for the circuit, on {len(evaluation.values)} held-out pairs. "
        f"As many random {part}s at each site, of those that are active, reach {number(float(random.max()))} at most; "
        "some of the circuit's own may be among these, and none among the claim's controls."
    )
    if evaluation.errors_alone is not None:
        told += (
            f" What the dictionaries leave over reaches {number(evaluation.errors_alone)} by itself: what the circuit "
            "has beyond that is its latents'."
        )
    return Section(
        "What it carries",
        [
            Prose(told),
            table,
            Lines(
                array,
                f"The strongest {part}s by the same scores, in other numbers, and 5 random choices of each.",
            ),
        ],
    )


def _not_shown(found: PartInvestigation) -> Section:
    part = found.circuit.part
    points = [
        f"That these {part}s are the only ones: they are ranked to first order, and one that acts only when others are "
        "gone can be missed.",
        f"Which {part}s act on which: they are kept and removed as wholes, at all positions.",
        f"Anything about prompts unlike these: {found.behavior.name} ({found.behavior.provenance.source}).",
    ]
    if part == "latent":
        points.append(
            "That a latent means what its label says, or anything: labels were made from other text and decide nothing."
        )
    return Section("What was not shown", [Bullets(points)])
