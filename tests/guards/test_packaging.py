"""The package installs the same for everyone: versions are pinned, and floors give their reasons."""

import re
import tomllib

from guards.tree import ROOT, repository_files

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


MIB = 2**20
SHIPPED = "src/mechscope/models/bundled"
LARGE = {
    f"{SHIPPED}/village/model.safetensors": "the bundled model, bfloat16",
    f"{SHIPPED}/village-clean/model.safetensors": "its twin without planted behaviors, bfloat16",
    f"{SHIPPED}/induction/model.safetensors": "written-down weights, exact in float32 only",
}
"""Files over 2 MiB that the repository holds on purpose, and why."""
SIZES = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in repository_files()}


def large_files(sizes: dict[str, int]) -> set[str]:
    """Those over 2 MiB."""
    return {path for path, size in sizes.items() if size > 2 * MIB}


def sizes_under(*folders: str) -> int:
    """Bytes of everything that is kept under folders."""
    return sum(size for path, size in SIZES.items() if path.startswith(folders))


def test_only_what_is_meant_to_be_shipped_is_large() -> None:
    assert large_files(SIZES) == set(LARGE)


def test_what_is_bundled_keeps_to_its_limits() -> None:
    models = sum(SIZES[f"{SHIPPED}/{name}/model.safetensors"] for name in ("village", "village-clean"))
    assert models <= 20e6
    assert sizes_under(f"{SHIPPED}/village/features/") <= 25e6


def test_the_guard_sees_a_large_file() -> None:
    assert large_files({"a": 2 * MIB, "b": 2 * MIB + 1}) == {"b"}


def test_what_install_and_dev_ask_for_is_pinned() -> None:
    project = tomllib.loads(PROJECT)["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not {package_name(item) for item in asked} - pinned(PINS)


def test_every_version_floor_gives_its_reason() -> None:
    assert not floors_without_reason(PROJECT)


def test_the_guard_sees_a_floor_without_reason_and_a_missing_pin() -> None:
    assert floors_without_reason('dependencies = [\n    "numpy>=2.0",\n]')
    assert pinned("numpy==2.4.6\n# torch==1\nscipy>=1") == {"numpy"}
