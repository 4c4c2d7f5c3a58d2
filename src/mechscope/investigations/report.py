"""The report of an investigation: one offline page that a stranger can read from top to bottom.

Order: the verdict, the behaviour, where it is carried, the mechanism, the claim, what was not shown, how to run
it again. Every figure says its convention; every limit is said where the result is.
"""

from collections.abc import Sequence

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
from mechscope.investigations.claim_section import MEANING, claim_section, headline_figures
from mechscope.investigations.investigate import Investigation
from mechscope.patching.grid_result import PatchGrid
from mechscope.vocabulary.errors import NotEnoughEvidence


def build_report(investigation: Investigation) -> Report:
    """The page, not yet written."""
    report = Report(
        f"{investigation.behavior.name} in {investigation.model_name}",
        subtitle="What carries this behaviour, found on one set of prompts and tested on another.",
        verdict=_verdict(investigation),
        record=_record(investigation),
    )
    report.add(_behaviour(investigation))
    if investigation.grids:
        report.add(_where(investigation))
    if investigation.found is not None:
        report.add(_mechanism(investigation))
    if investigation.record is not None:
        report.add(claim_section(investigation.record))
    report.add(_not_shown(investigation))
    report.add(_again(investigation))
    return report


def _verdict(found: Investigation) -> Verdict:
    if found.record is None:
        return Verdict("no claim", f"No claim about {found.behavior.name} was made.", found.stopped)
    verdict = found.record.verdict
    because = " ".join([MEANING[verdict.outcome], *verdict.reasons[:3]])
    return Verdict(verdict.outcome, found.record.claim.statement, because, headline_figures(found.record))


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
    heads = (
        set() if found.found is None or found.found.mechanism is None else set(found.found.mechanism.heads)
    )
    for title, grid in found.grids.items():
        array = _shown(grid, title)
        marks = [{"layer": layer, "head": head} for layer, head in sorted(heads)] if "heads" in title else []
        caption = "Outlined: the heads of the mechanism." if marks else ""
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


def _mechanism(found: Investigation) -> Section:
    search = found.found
    assert search is not None
    if search.mechanism is None:
        return Section("The mechanism", [Prose(found.stopped)])
    steps = [(step.action, step.n_parts, f"{step.recovered:.0%}") for step in search.steps]
    singles = sorted(search.singles.items(), key=lambda item: -item[1])[:8]
    name = search.mechanism.name
    blocks: list[Block] = [
        Prose(
            f"**{name[0].upper() + name[1:]}** recover {search.score.recovered:.0%} of the gap alone, and "
            f"{search.score.lost:.0%} is lost without them ({search.n_pairs} train pairs).\n\n"
            "Found backwards: all other parts of the same kind are held to the values of the corrupt run, as many as "
            "the behaviour can do without; then one at a time, until the next one would cost 4% of the gap."
        ),
        Table(("step", "parts left", "they recover alone"), steps, caption="The search, step by step."),
        Table(
            ("part", "lost without it"),
            [(name, f"{loss:.0%}") for name, loss in singles],
            caption="The parts that are missed most when each, by itself, is held to the corrupt run's values.",
        ),
    ]
    blocks += [AttentionView(array, caption=f"Prompt: {text}") for text, array in found.patterns]
    return Section("The mechanism", blocks)


def _not_shown(found: Investigation) -> Section:
    points = [
        "That these parts are the only ones: the search is greedy, and a backup that acts only when another is "
        "removed can be missed.",
        "Which edges connect them, and what each computes: heads are restored and removed with all their inputs.",
        f"Anything about prompts unlike these: {found.behavior.name}, {len(found.behavior)} pairs "
        f"({found.behavior.provenance.source}).",
        "That the metric's answer and foil are the only tokens affected.",
    ]
    points += [f"Not predicted: {reason}." for reason in found.left_out]
    return Section("What was not shown", [Bullets(points)])


def _again(found: Investigation) -> Section:
    blocks: list[Block] = [
        Code(found.command or "mechscope investigate MODEL BEHAVIOR --out DIR", "This report")
    ]
    if found.record is not None:
        blocks.append(
            Code("mechscope claim verify claim.json", "Recompute the claim; exits 0 only if it is the same")
        )
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
    if found.record is not None:
        entries = [*entries, ("claim", found.record.claim.id), ("seed", str(found.record.claim.seed))]
        software = found.record.software.model_dump()
        entries = [
            *entries,
            ("software", ", ".join(f"{name} {version}" for name, version in software.items() if version)),
        ]
    return dict(entries)
