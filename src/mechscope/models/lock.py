"""One lock per open model: a second run is refused instead of mixing two runs' hooks."""

from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from mechscope.vocabulary.errors import ModelBusy

_LOCKS: "WeakKeyDictionary[nn.Module, Lock]" = WeakKeyDictionary()


@contextmanager
def held(hf: nn.Module) -> Generator[None, None, None]:
    """Hold a model for a block. Wrapping a model twice gives two views of one lock.

    Raises:
        ModelBusy: another thread runs it, or this is inside an `intervening` block.
    """
    lock = _LOCKS.setdefault(hf, Lock())
    if not lock.acquire(blocking=False):
        raise ModelBusy(
            "The model is in use.",
            got=type(hf).__name__,
            because="another run, or an `intervening` block around this call, has hooks on it",
            instead="wait for it, leave the block first, or add the interventions to one list",
        )
    try:
        yield
    finally:
        lock.release()
