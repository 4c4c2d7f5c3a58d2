"""One file a family: each registers a function from the configuration to an `Anatomy`.

Third parties register through the same door with an entry point in the group `mechscope.families`.
"""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points


@cache
def load_adapters() -> None:
    """Import every adapter once, so that they register."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in entry_points(group="mechscope.families"):
        entry.load()
