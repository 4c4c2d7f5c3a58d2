"""Double precision for a test, with its models opened before: they keep the frequencies that they were made with."""

from collections.abc import Iterator
from contextlib import contextmanager

from arithmetic_forward import in_double
from family_cases import opened


@contextmanager
def double(*names: str) -> Iterator[None]:
    for name in names:
        opened(name)
    with in_double():
        yield
