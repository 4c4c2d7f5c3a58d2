"""Hub ids: "owner/name", "owner/name/sub/folder" and their files, fetched once and kept by huggingface_hub.

Only the files of dictionaries are fetched. Offline, what was fetched before is found; the rest is refused by saying so.
"""

import re
from pathlib import Path

from mechscope.vocabulary.errors import BadFile, OptionalPackageMissing

_ID = re.compile(r"[\w.-]+/[\w.-]+(?:/[^\s]+)?")
_WANTED = ("*.json", "*.yaml", "*.safetensors", "*.npz", "*.pt")


def find_on_hub(text: str) -> Path | None:
    """A local folder with the files of a hub id; None if the text is no such id.

    Raises:
        BadFile: there is no such repository or folder, or no network and nothing fetched before.
    """
    if not _ID.fullmatch(text) or text.startswith((".", "/")):
        return None
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )
    except ImportError as error:
        raise OptionalPackageMissing(
            "Hub ids need huggingface_hub.",
            got=text,
            instead="pip install huggingface_hub, or a local folder",
        ) from error
    owner, name, *inside = text.split("/")
    folder = "/".join(inside)
    wanted = [f"{folder}/{pattern}" for pattern in _WANTED] + [folder] if folder else list(_WANTED)
    parents = ["/".join(inside[:depth]) for depth in range(len(inside))]
    beside = [f"{parent}/config.*" if parent else "config.*" for parent in parents]
    try:
        root = Path(snapshot_download(f"{owner}/{name}", allow_patterns=wanted + beside))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
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
    place = root / folder if folder else root
    if not place.exists():
        raise BadFile(
            f'"{owner}/{name}" has no folder "{folder}".',
            got=text,
            instead=", ".join(sorted(item.name for item in root.iterdir())[:12]) or "another folder",
        )
    return place
