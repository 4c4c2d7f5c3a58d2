"""The report of an investigation: one offline page that a stranger can read from top to bottom.

Order: the verdicts, the behaviour, where it is carried, the heads and the claim about them, the circuit and the claim
about it, what was not shown, how to run it again. Every figure says its convention; every limit is said where the
result is.
"""

from collections.abc import Sequence

from mechscope.claims.claim_file import ClaimRecord
from mechscope.figures import (
    AttentionView,
    Block,
    Bullets,
    Callout,
    Code,
    Heatmap,
    Prose,
    Report,
    Section,
    Table,
    Verdict,
)
from mechscope.figures.labelled import LabelledArray
from mechscope.investigations.circuit_checks_section import checks_sections
from mechscope.investigations.circuit_section import found_circuit_section
from mechscope.investigations.claim_section import MEANING, claim_section, headline_figures
from mechscope.investigations.heads import HeadPart
from mechscope.investigations.investigate import Investigation
from mechscope.investigations.relation import Relation, relate
from mechscope.patching.grid_result import PatchGrid
from mechscope.vocabulary.errors import NotEnoughEvidence

CLAIM, CIRCUIT_CLAIM = "claim.json", "circuit-claim.json"
"""Names of the claims' files beside the report."""


def build_report(investigation: Investigation) -> Report:
    """The page, not yet written."""
    report = Report(
        f"{investigation.behavior.name} in {investigation.model_name}",
        subtitle="What carries this behaviour, found on one set of prompts and tested on another.",
        verdict=_verdicts(investigation),
        record=_record(investigation),
    )
    report.add(_behaviour(investigation))
    if investigation.grids:
        report.add(_where(investigation))
    if investigation.heads is not None:
        report.add(_heads(investigation.heads))
    if investigation.record is not None:
        report.add(
            claim_section(investigation.record, about="the heads", beside=investigation.circuit_record)
        )
    if investigation.edges is not None:
        name, relation = investigation.behavior.name, relation_of(investigation)
        report.add(found_circuit_section(investigation.edges, relation, name=name))
    if investigation.circuit_record is not None:
        report.add(
            claim_section(investigation.circuit_record, about="the circuit", beside=investigation.record)
        )
        for section in checks_sections(investigation.circuit_record.verdict.checks, about="the circuit"):
            report.add(section)
    report.add(_not_shown(investigation))
    report.add(_again(investigation))
    return report


def relation_of(found: Investigation) -> Relation | None:
    """The heads that were found beside the circuit; None without one of the two."""
    if found.heads is None or found.heads.found.mechanism is None:
        return None
    if found.edges is None or found.edges.circuit is None:
        return None
    return relate(found.heads.found.mechanism, found.edges.circuit)


def _verdicts(found: Investigation) -> list[Verdict]:
    if found.record is None and found.circuit_record is None:
        return [Verdict("no claim", f"No claim about {found.behavior.name} was made.", found.stopped)]
    parts = ((found.record, found.heads, "heads"), (found.circuit_record, found.edges, "edges"))
    return [_verdict(record, "" if part is None else part.stopped, name) for record, part, name in parts]


def _verdict(record: ClaimRecord | None, stopped: str, name: str) -> Verdict:
    if record is None:
        return Verdict("no claim", f"No claim about {name} was made.", stopped)
    verdict = record.verdict
    because = " ".join([MEANING[verdict.outcome], *verdict.reasons[:3]])
    return Verdict(verdict.outcome, record.claim.statement, because, headline_figures(record))


def _behaviour(found: Investigation) -> Section:
    base = found.baseline
    rows = []
    for label, name in (
        ("metric", ""),
        ("answer is the most probable token", "top_"),
        ("answer beats the foil", "preferred_"),
    ):
        names = (f"{name}clean", f"{name}corrupt")
        if all(key in base.numbers["estimates"] for key in names):
            rows.append((label, *(str(base.estimate(key)) for key in names)))
    blocks: list[Block] = [
        Prose(
            f"A prompt is **clean** when it asks for the answer, and **corrupt** when the one thing that decides it is "
            f"changed, so that another answer is right. The metric is the {base.settings['metric'].replace('_', ' ')} "
            f"({base.numbers['unit']}); the gap between clean and corrupt, "
            f"{base.gap}, is what there is to explain. State: **{base.state}**."
        ),
        Table(
            ("clean prompt", "corrupt prompt", "answer", "foil"),
            [tuple(cell.strip() or "–" for cell in row) for row in found.examples],
            caption="Examples from the train split.",
        ),
        Table(
            ("", "clean", "corrupt"),
            rows,
            caption=f"The untouched model on {base.numbers['n']} train pairs in {base.numbers['n_units']} units: "
            "mean [95% interval over units]. On corrupt prompts the clean answer is meant.",
        ),
    ]
    if found.behavior.provenance.changes:
        blocks.append(
            Callout("Prompts were changed", [str(change) for change in found.behavior.provenance.changes])
        )
    return Section("The behaviour", blocks)


def _where(found: Investigation) -> Section:
    blocks: list[Block] = [
        Prose(
            "Each cell is one experiment: one activation of the corrupt run is replaced by its value in the clean run "
            "of the same pair, and the metric is read. 0 is the corrupt run, 1 the clean one. (The last grid is the "
            "reverse: corrupt values in the clean run; there a low value means that the head is needed.) Train prompts."
        )
    ]
    mechanism = None if found.heads is None else found.heads.found.mechanism
    heads = set() if mechanism is None else set(mechanism.heads)
    for title, grid in found.grids.items():
        array = _shown(grid, title)
        marks = [{"layer": layer, "head": head} for layer, head in sorted(heads)] if "heads" in title else []
        caption = "Outlined: the heads of the claim." if marks else ""
        blocks.append(Heatmap(array, caption, marks=marks))
    return Section("Where it is carried", blocks)


def _shown(grid: PatchGrid, title: str) -> LabelledArray:
    try:
        array = grid.recovered
    except NotEnoughEvidence:
        array = grid.effects
    return LabelledArray(
        array.values,
        dims=array.dims,
        coords=array.coords,
        texts=array.texts,
        unit=array.unit,
        title=title[0].upper() + title[1:],
        conventions=array.conventions,
    )


def _heads(part: HeadPart) -> Section:
    search = part.found
    if search.mechanism is None:
        return Section("The heads", [Prose(part.stopped)])
    steps = [(step.action, step.n_parts, f"{step.recovered:.0%}") for step in search.steps]
    singles = sorted(search.singles.items(), key=lambda item: -item[1])[:8]
    name = search.mechanism.name
    blocks: list[Block] = [
        Prose(
            f"**{name[0].upper() + name[1:]}** recover {search.score.recovered:.0%} of the gap alone, and "
            f"{search.score.lost:.0%} is lost without them ({search.n_pairs} train pairs).\n\n"
            "Found backwards: all other parts of the same kind are held to the values of the corrupt run, as many as "
            "the behaviour can do without; then one at a time, until the next one would cost 4% of the gap."
            + ("" if search.mechanism.mlps else " MLPs are left free.")
        ),
        Table(("step", "parts left", "they recover alone"), steps, caption="The search, step by step."),
        Table(
            ("part", "lost without it"),
            [(name, f"{loss:.0%}") for name, loss in singles],
            caption="The parts that are missed most when each, by itself, is held to the corrupt run's values.",
        ),
    ]
    blocks += [AttentionView(array, caption=f"Prompt: {text}") for text, array in part.patterns]
    return Section("The heads", blocks)


def _not_shown(found: Investigation) -> Section:
    has_circuit = found.edges is not None and found.edges.circuit is not None
    points = [
        "That these parts are the only ones: the search is greedy, and a backup that acts only when another is "
        "removed can be missed." + (" Edges are ranked to first order." if has_circuit else ""),
        "What each part computes, and at which positions: heads and edges are removed and restored as wholes, not read."
        if has_circuit
        else "Which edges connect them, and what each computes: heads are restored and removed with all their inputs.",
        f"Anything about prompts unlike these: {found.behavior.name}, {len(found.behavior)} pairs "
        f"({found.behavior.provenance.source}).",
        "That the metric's answer and foil are the only tokens affected.",
    ]
    if found.edges is not None and found.record is not None and found.circuit_record is None:
        points.append(f"Edges: {found.edges.stopped}")
    if found.record is not None and found.circuit_record is not None:
        points.append(
            "That two claims err no more often than one: both were frozen before one opening of the held-out prompts, "
            "and each verdict has an error rate of its own. That at least one of them is wrongly supported can happen "
            "up to twice as often; that both are, no more often."
        )
    for part, what in ((found.heads, "the heads"), (found.edges, "the circuit")):
        points += [
            f"Not predicted of {what}: {reason}." for reason in (() if part is None else part.left_out)
        ]
    return Section("What was not shown", [Bullets(points)])


def _again(found: Investigation) -> Section:
    blocks: list[Block] = [
        Code(found.command or "mechscope investigate MODEL BEHAVIOR --out DIR", "This report")
    ]
    for record, name in ((found.record, CLAIM), (found.circuit_record, CIRCUIT_CLAIM)):
        if record is not None:
            told = f"Recompute {name}; exits 0 only if it comes out the same"
            blocks.append(Code(f"mechscope claim verify {name}", told))
    blocks.append(
        Table(
            ("stage", "seconds"),
            list(found.seconds.items()),
            caption="Time taken, on the machine that made this report.",
        )
    )
    return Section("How to run it again", blocks)


def _record(found: Investigation) -> dict[str, str]:
    fingerprint = found.baseline.model
    recipe = found.behavior.recipe()
    entries: Sequence[tuple[str, str]] = [
        (
            "data",
            ", ".join(f"{name} {split['data_sha256'][:16]}" for name, split in recipe["splits"].items()),
        ),
        ("recipe", f"{recipe['source']}, {', '.join(f'{k} {v}' for k, v in recipe['settings'].items())}"),
    ]
    if fingerprint is not None:
        weights = fingerprint.weights_sha256[:16]
        model = f"{fingerprint.name} ({fingerprint.family}, {fingerprint.dtype}), weights {weights}"
        entries = [("model", model), *entries]
    for record, name in ((found.record, "claim"), (found.circuit_record, "claim about the circuit")):
        if record is not None:
            entries = [*entries, (name, record.claim.id)]
    tested = found.record or found.circuit_record
    if tested is not None:
        software = tested.software.model_dump()
        told = ", ".join(f"{name} {version}" for name, version in software.items() if version)
        entries = [*entries, ("seed", str(tested.claim.seed)), ("software", told)]
    return dict(entries)
