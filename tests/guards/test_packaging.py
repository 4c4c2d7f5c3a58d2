"""The package installs the same for everyone: versions are pinned, and floors give their reasons."""

import re
import tomllib

from guards.tree import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()
PINS = (ROOT / "constraints.txt").read_text()


def package_name(requirement: str) -> str:
    return re.split(r"[<>=\[;! ]", requirement)[0].lower().replace("_", "-")


def pinned(constraints: str) -> set[str]:
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    return {package_name(line) for line in lines if "==" in line}


def floors_without_reason(project: str) -> list[str]:
    """Lines that give a version floor and no comment."""
    return [
        line.strip()
        for line in project.splitlines()
        if re.match(r'\s+"[\w\[\]-]+>=', line) and "#" not in line
    ]


def test_what_install_and_dev_ask_for_is_pinned() -> None:
    project = tomllib.loads(PROJECT)["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not {package_name(item) for item in asked} - pinned(PINS)


def test_every_version_floor_gives_its_reason() -> None:
    assert not floors_without_reason(PROJECT)


def test_the_guard_sees_a_floor_without_reason_and_a_missing_pin() -> None:
    assert floors_without_reason('dependencies = [\n    "numpy>=2.0",\n]')
    assert pinned("numpy==2.4.6\n# torch==1\nscipy>=1") == {"numpy"}
