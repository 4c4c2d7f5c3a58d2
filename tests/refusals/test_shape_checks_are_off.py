"""Canary: this folder runs without the shape checks, so that our own refusals are what a caller sees."""

import sys


def test_no_hook_is_over_the_package() -> None:
    hooks = [finder for finder in sys.meta_path if type(finder).__module__.startswith("jaxtyping")]
    assert not hooks
