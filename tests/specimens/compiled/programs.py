"""Each program compiled once."""

from functools import lru_cache

from mechscope.specimens.compiled import PROGRAMS, Compiled, compile_program


@lru_cache(maxsize=32)
def compiled_program(name: str) -> Compiled:
    return compile_program(PROGRAMS[name])
