"""Opening: a dictionary from any folder, file or hub id, in whatever format it is.

Formats register here and are asked in order whether they recognise what lies there. Exactly one must: where
several do, or where a format needs an answer that the files do not give, the question is put to the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.saving import is_ours, open_saved, save_dictionary
from mechscope.vocabulary.errors import BadFile, RegistrationError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A way to lay dictionaries down in files.

    Args:
        name: As people say it: "saelens", "sparsify".
        recognizes: Whether a folder or file is of this format; reads names and small files only.
        open: The dictionary there. Keyword arguments answer the questions that the files leave open.
        save: Writes a dictionary to a folder; None where nobody needs it written.
        fetches: Files in folders beneath its own that it needs as well, as glob patterns, for hub repositories. One
            with a star in it is fetched only where the format is named: others keep other dictionaries there.
    """

    name: str
    recognizes: Callable[[Path], bool]
    open: Callable[..., Dictionary]
    save: Callable[[Dictionary, Path], None] | None = None
    fetches: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {}
"""Every format by name."""


def register_format(new: Format) -> Format:
    """Add a format.

    Raises:
        RegistrationError: the name is taken.
    """
    if new.name in FORMATS:
        raise RegistrationError(
            f'Two formats are called "{new.name}".',
            got=new.name,
            because="a file must be opened by one of them",
        )
    FORMATS[new.name] = new
    return new


def open_dictionary(path: str | Path, *, format: str | None = None, **answers: Any) -> Dictionary:
    """Open a dictionary from a folder or file, in any format that is registered.

    Args:
        path: A folder or file. Hub ids ("owner/name", "owner/name/sub/folder") are fetched where there is a network.
        format: Its format, if the files alone do not tell.
        answers: What a format asks for: `site=`, `k=`, ...

    Raises:
        BadFile: nothing there, no format recognises it, or several do.
    """
    if format is not None:
        if format not in FORMATS:
            raise BadFile(f'"{format}" is no known format.', got=format, instead=", ".join(FORMATS))
        return FORMATS[format].open(find_local(path, FORMATS[format].fetches), **answers)
    named = [file for one in FORMATS.values() for file in one.fetches if "*" not in file]
    place = find_local(path, named)
    fitting = [one for one in FORMATS.values() if one.recognizes(place)]
    if len(fitting) != 1:
        found = sorted(item.name for item in place.iterdir())[:12] if place.is_dir() else [place.name]
        raise BadFile(
            f"{place.name} is a dictionary of {'no known format' if not fitting else 'several formats'}.",
            got=", ".join(found),
            because="no format recognises these files"
            if not fitting
            else f"it could be {', '.join(one.name for one in fitting)}",
            instead=f'format="..." with one of {", ".join(FORMATS)}',
        )
    return fitting[0].open(place, **answers)


def find_local(path: str | Path, beneath: Sequence[str] = ()) -> Path:
    """The folder or file itself; where there is none, what one of the `FINDERS` finds.

    Args:
        path: Of a folder or file, or what a finder understands.
        beneath: Files in folders beneath that are needed as well, as glob patterns.

    Raises:
        BadFile: nothing lies there.
    """
    place = Path(path)
    if place.exists():
        return place
    for find in FINDERS:
        if (found := find(str(path), beneath)) is not None:
            return found
    raise BadFile(
        f'There is no dictionary at "{path}".',
        got=path,
        because="no such folder or file exists here",
        instead="a path, or a hub id where there is a network",
    )


FINDERS: list[Callable[[str, Sequence[str]], Path | None]] = []
"""Ways to find what is not a local path: from its text, and patterns of files beneath, to a local folder, or None."""

register_format(
    Format(
        name="mechscope",
        recognizes=is_ours,
        open=open_saved,
        save=lambda one, path: save_dictionary(one, path),
    )
)
