"""Every refusal is in the one tree, carries its reason or its remedy, and has a page."""

import ast
import re

import pytest

from guards.tree import PACKAGE, ROOT, functions, listing, package_sources

TREE = PACKAGE / "vocabulary" / "errors.py"
PAGES = ROOT / "docs" / "errors"
HEADINGS = ("## Symptom", "## Cause", "## Fix")

# Python's own protocols: what may be raised, and where.
PROTOCOL_RAISES = {
    "AttributeError": {"__getattr__", "__getattribute__", "__setattr__", "__delattr__"},
    "StopIteration": {"__next__"},
    "IndexError": {"__getitem__"},
    "KeyError": {"__getitem__"},
    "AssertionError": None,  # our own mistakes, never the caller's
    "typer.Exit": None,
    "SystemExit": None,
}
# (file, raised name) -> why. May only shrink.
JUSTIFIED: dict[tuple[str, str], str] = {
    (
        "models/session.py",
        "Stopped",
    ): "leaves the forward pass at `stop_after`; no caller sees it",
    (
        "engine/packed_attention.py",
        "Stopped",
    ): "ends the last layer at its attention; caught where it is called",
    ("records/files.py", "ValueError"): "inside json's hooks, where `open_json` turns it into BadFile",
}


def error_classes(source: str) -> list[str]:
    """Names of the classes of the error tree, from its source."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def slug(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def page_problems(text: str) -> list[str]:
    return [f"no {heading!r}" for heading in HEADINGS if heading not in text]


def raise_problems(path: str, source: str, classes: set[str]) -> list[str]:
    """Raises of something outside the tree, and refusals that give neither `because` nor `instead`."""
    tree = ast.parse(source)
    home = {node: function.name for function in functions(tree) for node in ast.walk(function)}
    problems: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        keywords = {item.arg for item in node.exc.keywords} if isinstance(node.exc, ast.Call) else set()
        name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        last = name.split(".")[-1]
        allowed = is_protocol(name, home.get(node, "")) or (path, name) in JUSTIFIED
        if last in classes and not {"because", "instead"} & keywords:
            problems.append(f"{path}:{node.lineno}: {name} says neither because nor instead")
        elif last not in classes and last[:1].isupper() and not allowed:
            problems.append(f"{path}:{node.lineno}: {name} is not in the error tree")
    return problems


def is_protocol(name: str, function: str) -> bool:
    return name in PROTOCOL_RAISES and (PROTOCOL_RAISES[name] is None or function in PROTOCOL_RAISES[name])


def test_every_raise_is_a_refusal_of_the_tree_with_a_reason_or_a_remedy() -> None:
    classes = set(error_classes(TREE.read_text()))
    problems = [p for path, source in package_sources() for p in raise_problems(path, source, classes)]
    assert not problems, listing(problems)


def test_no_exception_outlives_its_reason() -> None:
    sources = dict(package_sources())
    stale = [key for key in JUSTIFIED if f"raise {key[1]}" not in sources.get(key[0], "")]
    assert not stale, f"delete {stale}"


@pytest.mark.parametrize("name", error_classes(TREE.read_text()))
def test_every_error_has_a_page_with_symptom_cause_and_fix(name: str) -> None:
    page = PAGES / f"{slug(name)}.md"
    assert page.is_file(), f"write docs/errors/{page.name}"
    assert not page_problems(page.read_text())


def test_every_page_has_an_error() -> None:
    slugs = {slug(name) for name in error_classes(TREE.read_text())}
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} <= slugs


def test_the_tree_draws_every_class_in_its_docstring() -> None:
    source = TREE.read_text()
    drawing = ast.get_docstring(ast.parse(source)) or ""
    missing = [name for name in error_classes(source) if name not in drawing]
    assert not missing


def test_the_slug_here_is_the_slug_in_the_message() -> None:
    from mechscope.vocabulary.errors import PointUnavailable

    assert PointUnavailable.slug == slug("PointUnavailable") == "point-unavailable"


def test_the_guard_sees_raises_outside_the_tree_and_without_a_reason() -> None:
    def found(source: str) -> list[str]:
        return raise_problems("engine/plan.py", source, {"ShapeError"})

    assert found("raise ValueError('no')")
    assert found("raise KeyError(name)")
    assert found("raise ShapeError('too wide')")
    assert found("raise ShapeError")
    assert not found("raise ShapeError('too wide', because='the point has 8')")
    assert not found("def __getattr__(name):\n    raise AttributeError(name)")
    assert not found("try:\n    f()\nexcept OSError as error:\n    raise error")
    assert not found("raise refusal(name)")


def test_the_guard_sees_a_page_without_its_fix() -> None:
    assert page_problems("# E\n## Symptom\n## Cause\n") == ["no '## Fix'"]
