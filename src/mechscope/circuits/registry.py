"""Registry: ways to find a circuit, by name, and the one door by which they come in, ours and others'.

A method is a function from a model, a split and its settings to a circuit. Refuses one that is registered twice.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.models.model import Model
from mechscope.vocabulary.errors import RegistrationError

Find = Callable[[Model, Split, Any], Circuit]


@dataclass(frozen=True)
class Method:
    """One way to find a circuit.

    Args:
        name: What callers write.
        settings: Its frozen settings; a field `n_edges` takes the size wanted.
        find: The method.
        summary: One line.
    """

    name: str
    settings: type
    find: Find
    summary: str


_METHODS: dict[str, Method] = {}


def discovery(name: str, settings: type) -> Callable[[Find], Find]:
    """Register a method under a name.

    Raises:
        RegistrationError: the name is taken.
    """

    def register(find: Find) -> Find:
        known = _METHODS.get(name)
        if known is not None and known.find.__module__ != find.__module__:
            raise RegistrationError(
                f'Two ways to find circuits are called "{name}".',
                got=f"{find.__module__}, {known.find.__module__}",
                instead="another name",
            )
        _METHODS[name] = Method(name, settings, find, (find.__doc__ or "").strip().splitlines()[0])
        return find

    return register


def methods() -> dict[str, Method]:
    """All methods by name."""
    folder = importlib.import_module("mechscope.circuits.methods")
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))
