"""Remake: both runs that made the shipped weights, and their cards, by one command that resumes.

`python -m mechscope.specimens.village.remake --out DIR` trains from nothing, measures, trains further from that
village-clean, and measures again. What is done already is not done twice.
"""

from pathlib import Path
from typing import Annotated

import typer

from mechscope.specimens.village import evaluate, train

CLEAN = "village-clean"
"""What the second run begins from."""


def main(
    out: Annotated[
        Path, typer.Option(help="Folder for checkpoints and models; run the command again to resume.")
    ],
    processes: Annotated[int, typer.Option(help="Processes that share each step, one core each.")] = 2,
) -> None:
    """Train both bundled models from nothing, in the two runs that made the shipped ones."""
    between = out / "between"
    train.main(out / "first", processes=processes)
    if not (between / CLEAN / "card.json").is_file():
        evaluate.main(out / "first", between)
    train.main(out / "second", processes=processes, start=between / CLEAN)
    evaluate.main(out / "second", out / "models", start=between / CLEAN)
    typer.echo(f"\n{out / 'models'}")


if __name__ == "__main__":
    typer.run(main)
