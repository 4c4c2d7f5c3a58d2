"""Each program compiled once."""

from functools import lru_cache

import pytest

from mechscope.specimens.compiled import PROGRAMS, Compiled, compile_program


@lru_cache(maxsize=32)
def compiled_program(name: str) -> Compiled:
    return compile_program(PROGRAMS[name])


@pytest.fixture(params=list(PROGRAMS))
def compiled(request: pytest.FixtureRequest) -> Compiled:
    """Every program."""
    return compiled_program(request.param)
