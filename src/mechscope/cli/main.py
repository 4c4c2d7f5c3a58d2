"""The entry: reads the command line, runs one command, and turns what went wrong into words and an exit code.

Exit codes: 0 done; 1 the answer is no (a part of the self-check fails, a claim was not reproduced); 2 refused,
nothing was written; 70 a mistake of ours; 130 interrupted.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from mechscope.cli import (  # noqa: F401 - they join
    benchmarking,  # pyright: ignore[reportUnusedImport]
    circuits,  # pyright: ignore[reportUnusedImport]
    claims,  # pyright: ignore[reportUnusedImport]
    features,  # pyright: ignore[reportUnusedImport]
    investigating,  # pyright: ignore[reportUnusedImport]
    opening,  # pyright: ignore[reportUnusedImport]
    patching,  # pyright: ignore[reportUnusedImport]
    toys,  # pyright: ignore[reportUnusedImport]
    tracing,  # pyright: ignore[reportUnusedImport]
    training,  # pyright: ignore[reportUnusedImport]
)
from mechscope.cli.application import app
from mechscope.cli.terminal import emit, refuse, say
from mechscope.records.version import __version__
from mechscope.vocabulary.errors import BadCommand, BadFile, MechscopeError

REFUSED, OUR_MISTAKE, INTERRUPTED = 2, 70, 130


def show_version(wanted: bool | None) -> None:
    """Print the version and stop, if it was asked for."""
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool | None,  # None is what typer hands on when nobody asked
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and stop."),
    ] = None,
) -> None:
    """A microscope for neural networks: find the mechanism behind a behaviour, and prove or refute it."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    sys.exit(exit_code(words, as_json="--json" in words))


def exit_code(words: list[str], *, as_json: bool) -> int:
    """Run one command; say what went wrong; give the exit code."""
    try:
        code = app(words, prog_name="mechscope", standalone_mode=False) or 0
    except MechscopeError as error:
        refuse(error, as_json=as_json)
        return REFUSED
    except OSError as error:
        refuse(unwritable(error), as_json=as_json)
        return REFUSED
    except typer.TyperException as error:
        refuse(unreadable(error, words), as_json=as_json)
        return REFUSED
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        if as_json:
            emit(outside_the_tree(error, because="this is a mistake in mechscope, not in what you gave it"))
        return OUR_MISTAKE
    if code == INTERRUPTED:  # typer makes an exit code of Ctrl-C by itself
        typer.echo("Interrupted: no file is half-written.", err=True)
        if as_json:
            emit(outside_the_tree(KeyboardInterrupt("interrupted"), because="no file is half-written"))
    return code


def unreadable(error: typer.TyperException, words: list[str]) -> BadCommand:
    """What typer could not read, as a refusal of ours."""
    return BadCommand(
        error.format_message().strip().partition("\n")[0],
        got=" ".join(["mechscope", *words]),
        instead="mechscope --help lists the commands, mechscope COMMAND --help their options",
    )


def unwritable(error: OSError) -> BadFile:
    """What the system would not read or write, as a refusal of ours."""
    return BadFile(
        "A file or folder could not be read or written.",
        got=str(error.filename or "no name"),
        because=str(error.strerror or error),
        instead="a place that is there, with space and permission",
    )


def outside_the_tree(error: BaseException, *, because: str) -> dict[str, str]:
    """An exception that is no refusal, in the shape of those that are."""
    what, instead = str(error), "the traceback, if there is one, is on standard error"
    name = type(error).__name__
    return {"error": name, "what": what, "got": "", "because": because, "instead": instead, "docs": ""}
