"""Things that do not occur in the code: each is a rule over source text with a sample that breaks it."""

import ast
import re
from collections.abc import Iterator

import pytest

from guards.tree import ROOT, listing, package_sources, python_sources, repository_files

PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

# Files that may hold a foreign name, e.g. TransformerLens' `hook_z`.
TRANSLATORS = ("vocabulary/foreign_names.py", "models/native/")
FOREIGN = re.compile(
    r"\bhook_(?:[qkvz]|rot_[qk]|resid_\w+|attn_\w+|mlp_\w+|pattern|result|scale|normalized|embed|pos_embed"
    r"|pre|post|pre_linear|name|point|sae_\w+)\b|\bblocks\.\d+\.(?:attn|mlp|ln1|ln2|hook)"
)

REGISTRIES = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "registry\\." + "npm", "deb\\." + "debian"])
)
PLACES = re.compile(r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers/\w+)/")
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".json",
    ".yaml",
    ".yml",
    ".cfg",
    ".html",
    ".js",
    ".css",
    ".jsonl",
    ".csv",
    "",
}


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def called_lines(source: str, name: str) -> list[int]:
    return [node.lineno for node in calls(source) if isinstance(node.func, ast.Name) and node.func.id == name]


def prints(source: str) -> list[int]:
    return called_lines(source, "print")


def guesses_by_hasattr(source: str) -> list[int]:
    return called_lines(source, "hasattr")


def future_annotations(source: str) -> list[int]:
    """Lines with the import that turns annotations into strings, which the shape checks cannot read."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]


def pickles(source: str) -> list[int]:
    """Lines that import a pickler, or load with torch or numpy without forbidding pickled code."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if set(names) - {"UnpicklingError"} else []  # to catch it is fine
        found += [node.lineno for name in names if name.split(".")[0] in PICKLES]
    for call in calls(source):
        keywords = {item.arg: ast.unparse(item.value) for item in call.keywords}
        unsafe_torch = ast.unparse(call.func) == "torch.load" and keywords.get("weights_only") != "True"
        if unsafe_torch or keywords.get("allow_pickle") == "True":
            found.append(call.lineno)
    return found


def foreign_names(source: str) -> list[int]:
    """Lines with a foreign name; docstrings may show that such names are understood."""
    documented = {line for node in ast.walk(ast.parse(source)) for line in docstring_lines(node)}
    lines = enumerate(source.splitlines(), 1)
    return [number for number, line in lines if FOREIGN.search(line) and number not in documented]


def docstring_lines(node: ast.AST) -> range:
    """Lines of a string that stands alone as a statement; empty for every other node."""
    is_docstring = (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return range(node.lineno, (node.end_lineno or node.lineno) + 1) if is_docstring else range(0)


def places(text: str) -> list[int]:
    """Lines that name a package registry's host or an absolute path of somebody's machine."""
    return [
        n for n, line in enumerate(text.splitlines(), 1) if REGISTRIES.search(line) or PLACES.search(line)
    ]


PACKAGE_RULES = {
    "print": (prints, "print('done')", "progress.print('done')"),
    "hasattr": (guesses_by_hasattr, "if hasattr(module, 'c_attn'): ...", "getattr(module, name)"),
    "pickle": (pickles, "import pickle", "import json"),
    "from pickle": (pickles, "from pickle import loads", "from pickle import UnpicklingError"),
    "torch.load": (pickles, "torch.load(path)", "torch.load(path, weights_only=True)"),
    "numpy pickles": (pickles, "numpy.load(path, allow_pickle=True)", "numpy.load(path)"),
    "foreign names": (foreign_names, 'name = "blocks.6.attn.hook_z"', "layer.register_forward_hook(capture)"),
}


@pytest.mark.parametrize("rule", PACKAGE_RULES)
def test_the_package_has_none_of(rule: str) -> None:
    check, _, _ = PACKAGE_RULES[rule]
    problems = [
        f"{path}:{line}: {rule}"
        for path, source in package_sources()
        if not (check is foreign_names and path.startswith(TRANSLATORS))
        for line in check(source)
    ]
    assert not problems, listing(problems)


@pytest.mark.parametrize("rule", PACKAGE_RULES)
def test_the_rule_tells_a_bad_sample_from_a_good_one(rule: str) -> None:
    check, bad, good = PACKAGE_RULES[rule]
    assert check(bad)
    assert not check(good)


def test_no_file_turns_its_annotations_into_strings() -> None:
    problems = [f"{path}:{line}" for path, source in python_sources() for line in future_annotations(source)]
    assert not problems, listing(problems)


def test_the_future_import_would_be_seen() -> None:
    assert future_annotations("from __future__ import annotations")


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in repository_files()
        if path.suffix in TEXT
        for line in places(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not problems, listing(problems)


def test_a_registry_and_a_path_would_be_seen() -> None:
    assert places("see https://py" + "pi.org/simple")
    assert places("open('/ho" + "me/ada/model')")
    assert not places("../models/tiny and https://example.org/network/")
