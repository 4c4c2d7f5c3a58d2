"""A shell for the tests of the command line, in which Ctrl-C is heard."""

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_line_runs import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> "Shell":
    from command_line_runs import Shell

    return Shell(capsys)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A job started in the background of a script inherits a SIGINT that is ignored; these tests send it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
