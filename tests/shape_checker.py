"""The type checker behind jaxtyping's import hook: beartype, taking an int where a float is asked for."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

CONFIGURATION = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and result checked at every call."""
    return beartype(function, conf=CONFIGURATION)
