"""A test that asks for `compiled` is run on every program. mechscope is imported late: tests/conftest.py says why."""

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from mechscope.specimens.compiled import PROGRAMS

    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", list(PROGRAMS), indirect=True)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> object:
    from specimens.compiled.programs import compiled_program

    return compiled_program(request.param)
