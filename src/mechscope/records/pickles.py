"""Pickles are refused before they are opened: by first bytes, by what a zip holds, then by name.

Owns: how a pickle is recognised. Refuses: pickles of every protocol and torch's own checkpoint format.
"""

import re
import zipfile
from pathlib import Path

from mechscope.vocabulary.errors import BadFile, UnsafeFile

PICKLE_NAMES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}
TEXT_PICKLE = re.compile(rb"^[()\]}ld]*(?:p\d+\n)?c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")


def refuse_unless_safe(path: str | Path) -> None:
    """Refuse a missing file and a pickle: by its first bytes, by what a zip holds, then by its name.

    Raises:
        BadFile: no such file.
        UnsafeFile: a pickle in any protocol, a torch checkpoint, or a name that promises one.

    Caveat: it reads the start of the file only. It keeps honest people from accidents; what keeps
        us safe is that nothing here ever unpickles.
    """
    path = Path(path)
    refuse_unless_file(path)
    with path.open("rb") as file:
        head = file.read(1024)
    found = _pickle_evidence(path, head)
    if found:
        raise UnsafeFile(
            f"{path.name} is a pickle.",
            got=path,
            because=f"{found}; opening a pickle runs whatever code its author put in",
            instead="the same weights as .safetensors, or the same data as .json, .jsonl or .csv",
        )


def refuse_unless_file(path: Path) -> None:
    """Refuse, with BadFile, a path at which there is no readable file."""
    if not path.is_file():
        raise BadFile(
            f"{path.name or path} is not a file.", got=path, because="nothing readable is at that path"
        )


def _pickle_evidence(path: Path, head: bytes) -> str:
    is_marked = head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    if is_marked and not _is_safetensors(path, head):
        return "its first bytes are a pickle's"
    if TEXT_PICKLE.match(head):
        return "its first lines are those of a text pickle"
    if head[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith((".pkl", ".pickle"))]
        if inside:
            return f"it is a zip that holds {inside[0]}"
    return f'its name ends in "{path.suffix}"' if path.suffix.lower() in PICKLE_NAMES else ""


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether the first bytes are the length of a JSON header: one of 640 or 1,152 bytes begins like a pickle."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 8 + length <= path.stat().st_size
