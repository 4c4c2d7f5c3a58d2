"""The ledger: how often each held-out split was opened, one JSON line each, beside the claims.

A held-out split proves something once. Whoever looks, changes the claim and looks again is selecting on it,
so every opening is written down before the split is read, and from the second on the verdict says so. Claims that
were all frozen before one opening share it and its line: none of them can have been chosen by another's result.
Refuses a torn or edited line rather than to undercount. Invariant: an opening is on disk before `record`
returns, and concurrent processes never lose one. Needs a file system with POSIX locks.
"""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechscope.records.canonical import canonical_json
from mechscope.records.record import now
from mechscope.vocabulary.errors import BadFile, OptionalPackageMissing

FILE_NAME = "claims-ledger.jsonl"
TEST, FRESH, VERIFY = "test", "fresh", "verify"
COUNTED = (TEST, FRESH)
"""Recomputing a claim file changes nothing that could be selected, so it is recorded and not counted."""


@dataclass(frozen=True)
class Opening:
    """One line: which split, for which claim, why ("test", "fresh" draws or "verify") and when.

    Args:
        also: Other claims that were frozen before this opening and are tested in it.
    """

    data_hash: str
    claim_id: str
    purpose: str
    opened: str
    also: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Opening":
        """Inverse of `to_json`."""
        return cls(**{**plain, "also": tuple(plain.get("also", ()))})

    def to_json(self) -> dict[str, Any]:
        """A line's fields; `also` only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "also" or value}


class Ledger:
    """A ledger file.

    Args:
        where: Its folder (the file is then `claims-ledger.jsonl`), or the file itself, ending in ".jsonl".
    """

    def __init__(self, where: str | Path) -> None:
        where = Path(where)
        self.path = where if where.suffix == ".jsonl" else where / FILE_NAME

    def record(self, data_hash: str, *, claim_id: str, purpose: str = TEST, also: Sequence[str] = ()) -> int:
        """Write down an opening, durably, before the split is read.

        Args:
            data_hash: Of the split.
            claim_id: For which claim.
            purpose: "test", "fresh" or "verify".
            also: Further claims, all of them frozen by now, that this same opening tests.

        Returns:
            How often this split has been opened, this time included; verifications do not count.

        Raises:
            BadFile: the ledger is torn or edited.
        """
        if purpose not in (TEST, FRESH, VERIFY):
            raise BadFile("an opening for no known purpose", got=purpose, instead="test, fresh or verify")
        opening = Opening(data_hash, claim_id, purpose, now(), tuple(also))
        line = canonical_json(opening.to_json()) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path) as descriptor:
            before = _parse(_read_all(descriptor), self.path)
            os.write(descriptor, line.encode("ascii"))
            os.fsync(descriptor)
        return _count(before, data_hash) + (purpose in COUNTED)

    def openings(self, data_hash: str) -> int:
        """How often this split has been opened so far; verifications do not count."""
        return _count(self.entries(), data_hash)

    def entries(self) -> list[Opening]:
        """All lines, in order; none where no ledger was begun."""
        return _parse(self.path.read_bytes(), self.path) if self.path.exists() else []


@contextmanager
def _locked(path: Path) -> Generator[int, None, None]:
    try:
        import fcntl
    except ImportError as error:
        raise OptionalPackageMissing(
            "the ledger needs POSIX file locks", because="two processes could lose each other's line"
        ) from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the descriptor is closed, also by a crash
        yield descriptor
    finally:
        os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(descriptor, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _parse(content: bytes, path: Path) -> list[Opening]:
    lines = content.split(b"\n")
    torn = lines.pop() != b""
    openings = []
    for number, line in enumerate(lines, start=1):
        try:
            openings.append(Opening.from_json(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise _bad_line(path, number, str(error)) from error
    if torn:
        raise _bad_line(path, len(lines) + 1, "it does not end")
    return openings


def _bad_line(path: Path, number: int, why: str) -> BadFile:
    return BadFile(
        f"the ledger {path.name} has a broken line",
        got=f"line {number}",
        because=f"{why}; skipping it could hide that a held-out split was opened",
        instead="restore the line, or move the ledger away and say so beside the claims",
    )


def _count(openings: list[Opening], data_hash: str) -> int:
    return sum(entry.data_hash == data_hash and entry.purpose in COUNTED for entry in openings)
