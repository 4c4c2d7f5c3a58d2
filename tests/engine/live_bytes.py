"""Bytes of tensors that are alive, counted operator by operator."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made and somebody still holds, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {key for key, _ in _storages((args, kwargs or {})) if key not in self._holders}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            for key, size in _storages(leaf):
                if key not in given:
                    self.now += 0 if key in self._holders else size
                    self._holders[key] = self._holders.get(key, 0) + 1
                    weakref.finalize(leaf, self._drop, key, size)
        self.peak = max(self.peak, self.now)
        return out

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.now -= size


def _storages(tree: Any) -> list[tuple[int, int]]:
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [(storage._cdata, storage.nbytes()) for storage in found]
