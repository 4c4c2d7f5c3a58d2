"""What a person or a machine sees: text, tables and one JSON object on stdout; progress and refusals on stderr.

Invariant: with `--json`, stdout holds exactly one JSON object, an error's too.
"""

import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from mechscope.vocabulary.errors import MechscopeError

Progress = Callable[[str, float], None]


def say(text: str = "") -> None:
    """A line of text on stdout."""
    typer.echo(text)


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    from mechscope.records.canonical import readable_json

    typer.echo(readable_json(value).rstrip("\n"))


def refuse(error: MechscopeError, *, as_json: bool) -> None:
    """A refusal: four lines on stderr, or one JSON object on stdout."""
    if as_json:
        emit(error.as_json())
    else:
        typer.echo(str(error), err=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows in aligned columns under heads; the last column runs as long as it is."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(pairs: Mapping[str, object]) -> None:
    """Names and values, one pair a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        say(f"{name.ljust(width)}  {value}")


@contextmanager
def bar() -> Generator[Progress | None, None, None]:
    """A progress bar on stderr; None where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(),
        progress.BarColumn(bar_width=30),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("starting", total=1.0)
        yield lambda what, share: shown.update(task, description=what, completed=share)


def by_rows(tell: Progress | None) -> Callable[[str, int, int], None] | None:
    """Progress for what counts rows done and rows in all."""
    return None if tell is None else lambda what, done, total: tell(what, done / max(total, 1))


@contextmanager
def uninterrupted() -> Generator[None, None, None]:
    """Ignore Ctrl-C in the last moment, while files that belong together are written together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
