"""`mechscope toy`: the toy models of superposition, trained and drawn."""

from pathlib import Path
from typing import Annotated

import typer

from mechscope.cli.application import JsonOption, SeedOption, app
from mechscope.cli.terminal import bar, emit, say


@app.command()
def toy(
    out: Annotated[Path, typer.Option("--out", help="Folder for toy.html and the numbers of each figure.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train the toy models of superposition and draw why a network stores more features than dimensions."""
    from mechscope.superposition.toy_report import write_toy_figures

    with bar() as tell:
        page = write_toy_figures(out, seed=seed, tell=None if tell is None else lambda line: tell(line, 0.5))
    if as_json:
        emit({"page": str(page), "files": sorted(str(path) for path in out.iterdir())})
        return
    say(str(page))
