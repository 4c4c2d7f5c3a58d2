"""Hub ids: "owner/name", "owner/name/sub/folder" and their files, fetched once and kept by huggingface_hub.

Only the files of the dictionary asked for are fetched: what lies in its folder itself, the settings in the folders
above it, and what its format says that it keeps in folders beneath. Offline, what was fetched before is found; the rest
is refused by saying so.
"""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from mechscope.vocabulary.errors import BadFile, OptionalPackageMissing

_ID = re.compile(r"[\w.-]+/[\w.-]+(?:/[^\s]+)?")
_SUFFIXES = (".json", ".yaml", ".safetensors", ".npz", ".pt")


def find_on_hub(text: str, beneath: Sequence[str] = ()) -> Path | None:
    """A local folder with the files of a hub id; None if the text is no such id.

    Args:
        text: What may be an id.
        beneath: Files in folders beneath the dictionary's own that are fetched too, as glob patterns.

    Raises:
        BadFile: there is no such repository or folder, or no network and nothing fetched before.
    """
    if not _ID.fullmatch(text) or text.startswith((".", "/")):
        return None
    owner, name, *inside = text.split("/")
    folder = "/".join(inside)
    root = _fetched(text, f"{owner}/{name}", folder, beneath)
    place = root / folder
    if not place.exists():
        raise _nothing_there(text, folder, [str(file.relative_to(root)) for file in root.rglob("*")])
    return place


def _fetched(text: str, repository: str, folder: str, beneath: Sequence[str]) -> Path:
    """The local folder of a repository, with the files of the dictionary in a folder of it."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise OptionalPackageMissing(
            "Hub ids need huggingface_hub.",
            got=text,
            instead="pip install huggingface_hub, or a local folder",
        ) from error
    try:
        try:
            files = HfApi().list_repo_files(repository)
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:  # no network: which error that is depends on the library that it speaks by
            return Path(snapshot_download(repository, allow_patterns=[], local_files_only=True))
        wanted = files_of(folder, files, beneath)
        if not any(PurePosixPath(file).is_relative_to(folder) for file in wanted):
            raise _nothing_there(text, folder, files)
        return Path(snapshot_download(repository, allow_patterns=[glob.escape(file) for file in wanted]))
    except LocalEntryNotFoundError as error:
        raise BadFile(
            f'"{text}" is no local path, and the hub can\'t be reached.',
            got=text,
            because="there is no network (or HF_HUB_OFFLINE is set), and it was not fetched before",
            instead="a local folder, or the same call where there is a network",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise BadFile(
            f'"{text}" could not be fetched from the hub.',
            got=text,
            because=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
            instead="a repository that exists and that you may read, or a local folder",
        ) from error


def files_of(folder: str, files: Iterable[str], beneath: Sequence[str] = ()) -> list[str]:
    """Of a repository's files those that belong to the dictionary in a folder, or to that one file.

    Args:
        folder: Inside the repository; "" is its root.
        files: Paths of all files.
        beneath: As in `find_on_hub`.
    """
    parts = PurePosixPath(folder).parts
    above = {PurePosixPath(*parts[:depth]) for depth in range(len(parts))}
    own = PurePosixPath(folder)

    def belongs(file: PurePosixPath) -> bool:
        if file == own or (file.parent == own and file.suffix in _SUFFIXES):
            return True
        if file.parent in above and file.stem == "config":
            return True
        return file.is_relative_to(own) and any(_matches(file.relative_to(own), one) for one in beneath)

    return [file for file in files if belongs(PurePosixPath(file))]


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Part by part, so that "*" stops at a folder."""
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def _nothing_there(text: str, folder: str, files: Sequence[str]) -> BadFile:
    own = PurePosixPath(folder)
    beneath = [path for path in map(PurePosixPath, files) if path.is_relative_to(own) and path != own]
    names = sorted({path.relative_to(own).parts[0] for path in beneath})
    if not names:
        names = sorted({PurePosixPath(file).parts[0] for file in files})
    return BadFile(
        f'There is no dictionary in the repository at "{text}".',
        got=text,
        because="what lies beneath may be many dictionaries, and is not fetched unasked" if beneath else "",
        instead=f"one of {', '.join(names[:12])}" if names else "another folder",
    )
