"""`mechscope bench`: run the speed suite of a checkout. It is not part of the installed package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mechscope.cli.application import JsonOption, app
from mechscope.cli.terminal import emit
from mechscope.vocabulary.errors import BadCommand, OptionalPackageMissing


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One benchmark; all by default.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the names and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the speed benchmarks, one line of JSON each; exit 1 if a limit is failed."""
    home = find_suite()
    words = [sys.executable, "-m", "benchmarks", *([name] if name else []), *(["--list"] if listed else [])]
    done = subprocess.run(
        words, cwd=home, stdout=subprocess.PIPE if as_json else None, text=True, check=False
    )
    if done.returncode == 2:
        raise BadCommand(
            "There is no such benchmark.", got=str(name), instead="mechscope bench --list shows the names"
        )
    if as_json:
        lines = done.stdout.splitlines()
        emit({"benchmarks": lines if listed else [json.loads(line) for line in lines]})
    if done.returncode:
        raise typer.Exit(done.returncode)


def find_suite() -> Path:
    """The checkout that holds `benchmarks/`: this folder, or the one the package runs from."""
    places = (Path.cwd(), Path(__file__).resolve().parents[3])
    for place in places:
        if (place / "benchmarks" / "__main__.py").is_file():
            return place
    raise OptionalPackageMissing(
        "The benchmarks are not here.",
        got=str(places[0]),
        because="they live in the repository, beside the package, and are not installed with it",
        instead="run it in a checkout of the repository",
    )
