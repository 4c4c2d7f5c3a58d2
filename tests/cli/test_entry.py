"""The entry: exit codes, one JSON object, help, and a page for every command and option."""

import json
import os
import subprocess
import sys

import pytest

from command_line_runs import Done, Shell, is_refusal
from guards.command_line import commands, declaration, mechscope_app, parameters
from guards.tree import ROOT
from mechscope.cli import main


def test_the_version_is_the_package_s(shell: Shell) -> None:
    import mechscope

    assert shell("--version") == Done(0, f"{mechscope.__version__}\n", "")


def test_no_words_at_all_are_answered_with_the_help(shell: Shell) -> None:
    done = shell()
    assert done.code == 0 and "investigate" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ["investigat", "induction"],
        ["investigate", "induction"],
        ["open", "induction", "--colour"],
        ["patch", "induction", "induction", "--n", "many"],
        ["patch", "induction", "induction", "--direction", "sideways"],
        ["claim"],
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_as_everything_else_is(
    shell: Shell, words: list[str]
) -> None:
    assert is_refusal(shell(*words), "BadCommand")
    told = shell(*words, "--json")
    assert told.code == 2 and told.json["error"] == "BadCommand" and not told.err


def test_a_mistake_of_ours_says_so_and_is_no_refusal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.cli.opening.open_model", lambda *_, **__: 1 / 0)
    done = shell("open", "induction", "--json")
    assert done.code == 70
    assert done.json["error"] == "ZeroDivisionError" and "mistake in mechscope" in done.json["because"]
    assert "Traceback" in done.err
    assert set(done.json) == set(main.unreadable(main.typer.TyperException("x"), []).as_json())


def test_an_interruption_has_its_own_exit_code(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mechscope.cli.opening.open_model", interrupt)
    done = shell("open", "induction")
    assert done.code == 130 and "Interrupted" in done.err and "Traceback" not in done.err
    told = shell("open", "induction", "--json")
    assert told.code == 130 and told.json["error"] == "KeyboardInterrupt"


def test_every_command_and_every_option_stands_in_the_page_of_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert missing_from(page) == []


def test_the_page_is_searched_for_options_too() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert missing_from(page.replace("--fresh", "")) == [
        "mechscope claim test --fresh",
        "mechscope investigate --fresh",
    ]
    assert "mechscope doctor" in missing_from(page.replace("## mechscope doctor", ""))


def missing_from(page: str) -> list[str]:
    """Commands without a section, and flags that a command's section does not name."""
    sections = {
        part.partition("\n")[0].strip(): part for part in page.split("\n## ") if part.startswith("mechscope")
    }
    missing = [name for name, _ in commands(mechscope_app()) if name not in sections]
    for name, function in commands(mechscope_app()):
        flags = [getattr(declaration(item), "default", None) for item in parameters(function)]
        flags = [flag for flag in flags if isinstance(flag, str) and flag.startswith("--")]
        missing += [f"{name} {flag}" for flag in flags if flag not in sections.get(name, flag)]
    return sorted(missing)


def test_in_a_shell_of_its_own_the_libraries_are_silent() -> None:
    done = in_a_shell("open", "induction", "--json")
    assert done.code == 0 and done.err == ""
    assert done.json["model"]["layers"] == 2


def test_where_nobody_silences_them_the_libraries_are_not() -> None:
    program = "import mechscope as ms; ms.load('induction')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert "Loading weights" in done.stderr


def in_a_shell(*words: str) -> Done:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from mechscope.cli.main import run; run()", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}


def test_a_refusal_under_json_is_one_object_on_standard_output_and_nothing_else() -> None:
    done = in_a_shell("open", "no-such-folder-anywhere/model", "--json")
    assert done.code == 2 and done.err == ""
    assert json.loads(done.out)["error"] == "NotAModel"
