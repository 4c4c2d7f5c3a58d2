"""Run the command line in this process, and say what a shell would have seen."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from mechscope.cli.main import run


@dataclass(frozen=True)
class Done:
    """What a shell sees of a command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON object that it must be."""
        return json.loads(self.out)


class Shell:
    """`shell("open", "induction")`: runs `mechscope open induction`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Done:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run([str(word) for word in words])
        said = self._capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)


def is_refusal(done: Done, name: str) -> bool:
    """Exit code 2, nothing on stdout, and the four-line form on stderr, naming the error and its page."""
    lines = done.err.strip().splitlines()
    labels = [line.split()[0] for line in lines[1:] if line.startswith("  ") and not line.startswith("   ")]
    known = [label for label in ("got:", "because:", "instead:") if label in labels]
    return (
        done.code == 2
        and not done.out
        and lines[0].startswith(f"{name}: ")
        and labels == known
        and bool(known)
        and lines[-1].endswith("]")
        and "[docs/errors/" in lines[-1]
    )
