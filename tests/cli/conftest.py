"""A shell for the tests of the command line."""

import pytest

from command_line_runs import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)
