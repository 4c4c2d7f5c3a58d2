"""`mechscope patch`: one patching grid, as a table and as a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechscope.cli.application import (
    BehaviorArgument,
    DeviceOption,
    Direction,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    PairsOption,
    SeedOption,
    app,
)
from mechscope.cli.opening import open_model
from mechscope.cli.terminal import bar, by_rows, emit, say, table
from mechscope.vocabulary.errors import BadCommand, NotEnoughEvidence

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray
    from mechscope.patching.grid_result import PatchGrid

N_TOP = 10
SUFFIXES = (".html", ".json")


@app.command()
def patch(
    model: ModelArgument,
    behavior: BehaviorArgument,
    site: Annotated[
        str, typer.Option("--site", help="A point, or one at some layers: resid_pre, z, mlp_post.2-3.")
    ] = "resid_pre",
    direction: Annotated[
        Direction, typer.Option("--direction", help="Clean values into the corrupt run, or the reverse.")
    ] = Direction.denoising,
    n: Annotated[int, typer.Option("--n", min=1, help="Pairs that are patched, of the train split.")] = 32,
    seed: SeedOption = 0,
    pairs: PairsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="FILE.html for a figure, FILE.json for the numbers.")
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Patch one activation a cell, over layers and positions or heads, and show the strongest cells."""
    refuse_other_suffixes(out)
    opened = open_model(model, dtype=dtype.value, device=device)
    from mechscope.engine.cells import sites_of
    from mechscope.investigations.prompts import open_behavior
    from mechscope.patching.grid import patch_grid

    sites_of(opened, site)  # refused before prompts are drawn
    train = open_behavior(behavior, opened, pairs=pairs, n=max(600, 3 * n), seed=seed).train
    chosen = train.select(range(min(n, len(train))))
    positions = (
        "from-end" if chosen.clean.is_padded and "head" not in sites_of(opened, site)[0].row.axes else None
    )
    with bar() as tell:
        counted = by_rows(tell)
        grid = patch_grid(
            opened,
            chosen,
            site=site,
            direction=direction.value,
            positions=positions,
            progress=None
            if counted is None
            else lambda done, total: counted(f"patching {site}", done, total),
        )
    if out is not None:
        save_grid(grid, out, title=f"{site} in {model}: {behavior}")
    show_grid(grid, out, as_json=as_json)


def refuse_other_suffixes(out: Path | None) -> None:
    """Refuse a file of no known form, before any work is done."""
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise BadCommand(
            f'"{out.name}" has no form that a grid can be saved in.',
            got=f"--out {out}",
            because="the ending says which",
            instead="FILE.html for a figure, FILE.json for the numbers",
        )


def save_grid(grid: "PatchGrid", out: Path, *, title: str) -> None:
    """The figure as one offline page, or the record that `PatchGrid.load` reads."""
    if out.suffix.lower() == ".json":
        grid.save(out)
        return
    from mechscope.figures import Report, Section
    from mechscope.figures.choice import figure_of
    from mechscope.records.files import save_text

    section = Section("Patching", [figure_of(shown_values(grid))])
    record = {
        "data sha256": grid.data_sha256 or "",
        "weights sha256": grid.model.weights_sha256 if grid.model else "",
    }
    page = Report(title, subtitle=gap_text(grid), record=record).add(section)
    save_text(out, page.to_html())


def show_grid(grid: "PatchGrid", out: Path | None, *, as_json: bool) -> None:
    """The gap and the strongest cells."""
    shown = shown_values(grid)
    top = shown.top(N_TOP)
    if as_json:
        emit(
            {
                "settings": dict(grid.settings),
                "gap": dict(zip(("mean", "low", "high"), grid.gap, strict=True)),
                "grid": shown.to_json(),
                "top": [{**where, "value": value} for where, value in top],
                "out": None if out is None else str(out),
            }
        )
        return
    say(gap_text(grid))
    table((*shown.dims, shown.unit), [[*_names(shown, where), f"{value:.3f}"] for where, value in top])
    if out is not None:
        say(f"\n{out}")


def shown_values(grid: "PatchGrid") -> "LabelledArray":
    """Fractions recovered, or effects where the gap may be nothing."""
    try:
        return grid.recovered
    except NotEnoughEvidence:
        return grid.effects


def gap_text(grid: "PatchGrid") -> str:
    """What there is to explain, in one line."""
    mean, low, high = grid.gap
    return (
        f"{grid.settings['direction']}, {grid.n_pairs} pairs; clean less corrupt {mean:.3g} {grid.unit}, "
        f"95% interval [{low:.3g}, {high:.3g}]"
    )


def _names(array: "LabelledArray", where: dict[str, Any]) -> list[str]:
    names = []
    for dim, label in where.items():
        text = array.labels(dim)[array.index_of(dim, label)]
        names.append(str(label) if text == str(label) else f"{label} {text!r}")
    return names
