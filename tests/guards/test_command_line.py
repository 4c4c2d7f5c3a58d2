"""The command line is what the snapshot says, and every option has a help text."""

import json
from typing import Annotated

import pytest

from guards.command_line import SNAPSHOT, command_line, mechscope_app, undocumented
from guards.tree import PACKAGE, listing

needs_commands = pytest.mark.skipif(
    not (PACKAGE / "cli" / "main.py").exists(), reason="the command line is not built yet"
)


@needs_commands
def test_the_command_line_equals_its_snapshot() -> None:
    assert SNAPSHOT.exists(), "write the first one: make cli-snapshot"
    assert command_line(mechscope_app()) == json.loads(SNAPSHOT.read_text()), "if meant: make cli-snapshot"


@needs_commands
def test_every_command_and_option_has_a_help_text() -> None:
    missing = undocumented(mechscope_app())
    assert not missing, listing(missing)


def test_the_snapshot_sees_a_new_option_and_a_missing_help_text() -> None:
    import typer

    def patch(
        behavior: Annotated[str, typer.Argument(help="what to explain")],
        site: Annotated[str, typer.Option("--site", "-s", help="where")] = "resid_pre",
    ) -> None:
        """Patch."""

    def seeded(seed: int = 0) -> None: ...

    app = typer.Typer()
    app.command("patch")(patch)
    before = command_line(app)
    assert before == {
        "mechscope patch": ["argument behavior str required", "option --site/-s str default 'resid_pre'"]
    }
    assert not undocumented(app)
    app.command("seeded")(seeded)
    assert command_line(app) != before
    assert undocumented(app) == ["mechscope seeded", "mechscope seeded seed"]
