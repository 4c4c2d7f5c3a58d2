"""Docstring examples run."""

import doctest
import importlib

import pytest

from guards.tree import package_sources

WITH_EXAMPLES = [path for path, source in package_sources() if ">>>" in source]


def module_name(path: str) -> str:
    return "mechscope." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("path", WITH_EXAMPLES)
def test_the_examples_of(path: str) -> None:
    result = doctest.testmod(importlib.import_module(module_name(path)), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0, "the examples are not in a docstring that doctest finds"
    assert result.failed == 0


def test_a_wrong_example_fails() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda _: None).failed == 1
