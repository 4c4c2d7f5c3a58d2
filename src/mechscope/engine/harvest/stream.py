"""Stream: shuffled batches of activations, the same ones however often the run was interrupted.

Tokens are shuffled twice: rows over the whole corpus, then the tokens of each block. Batch b of an epoch is a
function of the seed, the epoch and b, so that resuming at a step needs no saved buffer.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from queue import Full, Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.harvest.blocks import Blocks
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import EmptyPrompt
from mechscope.vocabulary.sites import Site

Batch = dict[Site, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class ActivationStream:
    """Batches of activations, without end: the corpus is read again in another order.

    Args:
        blocks: Where activations come from.
        batch: Tokens of a batch.
        seed: Of the order.
        reads_ahead: A thread prepares the next block meanwhile. Helps where blocks come from a disk or another device.
    """

    blocks: Blocks
    batch: int
    seed: int = 0
    reads_ahead: bool = False

    def __post_init__(self) -> None:
        if self.per_epoch == 0:
            raise EmptyPrompt(
                "The text is shorter than one batch.",
                got=f"{sum(self.blocks.sizes)} tokens, batches of {self.batch}",
                because="a batch never holds a token twice",
                instead="more text, or a smaller batch: Training(batch=...), on the command line --tokens N,BATCH",
            )

    @property
    def per_epoch(self) -> int:
        """Batches of one pass through the corpus; what is left over is shorter than a batch."""
        return sum(self.blocks.sizes) // self.batch

    @cached_property
    def _ends(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    @cached_property
    def _begun(self) -> dict[tuple[int, int], Batch]:
        """Shuffled blocks of batch 0 by epoch and block, until the batches behind it are read."""
        return {}

    @cached_property
    def first_batch(self) -> Batch:
        """Batch 0, kept: what is calibrated on it is measured on it too, and its blocks are computed once."""
        parts: list[Batch] = []
        for _, epoch, block, first, last in self._pieces(0):
            shuffled = self._begun[epoch, block] = self.shuffled_block(epoch, block)
            parts.append({site: values[first:last] for site, values in shuffled.items()})
        return {site: values.clone() for site, values in _joined(parts).items()}

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of an epoch in their order, and the number of tokens up to the end of each."""
        if epoch not in self._ends:
            blocks = generator_for(self.seed, "blocks", epoch).permutation(len(self.blocks.sizes))
            self._ends[epoch] = blocks, np.cumsum(np.asarray(self.blocks.sizes)[blocks])
        return self._ends[epoch]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` of the endless stream."""
        plan = [piece for step in range(start, stop) for piece in self._pieces(step)]
        needed = list(dict.fromkeys((epoch, block) for _, epoch, block, _, _ in plan))
        with _Reader(self, needed, self.reads_ahead, begun=self._begun) as reader:
            at = 0
            for step in range(start, stop):
                parts: list[Batch] = []
                while at < len(plan) and plan[at][0] == step:
                    _, epoch, block, first, last = plan[at]
                    shuffled = reader.get((epoch, block))
                    parts.append({site: values[first:last] for site, values in shuffled.items()})
                    at += 1
                yield _joined(parts)

    def _pieces(self, step: int) -> list[tuple[int, int, int, int, int]]:
        """(step, epoch, block, first, last) of what a batch is made of."""
        epoch, index = divmod(step, self.per_epoch)
        blocks, ends = self.order(epoch)
        low, high = index * self.batch, (index + 1) * self.batch
        place = int(np.searchsorted(ends, low, side="right"))
        found: list[tuple[int, int, int, int, int]] = []
        while low < high:
            begin = int(ends[place - 1]) if place else 0
            stop = min(high, int(ends[place]))
            if stop > low:
                found.append((step, epoch, int(blocks[place]), low - begin, stop - begin))
            low, place = stop, place + 1
        return found

    def shuffled_block(self, epoch: int, block: int) -> Batch:
        """One block, its tokens in the epoch's order."""
        values = self.blocks.block(block)
        order = generator_for(self.seed, "tokens", epoch, block).permutation(self.blocks.sizes[block])
        index = torch.from_numpy(order)
        return {site: value[index.to(value.device)] for site, value in values.items()}


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}


class _Reader:
    """Shuffled blocks in the order in which they are needed; the last two are kept, perhaps one read ahead."""

    def __init__(
        self,
        stream: ActivationStream,
        needed: list[tuple[int, int]],
        reads_ahead: bool,
        *,
        begun: dict[tuple[int, int], Batch],
    ) -> None:
        self._stream = stream
        self._begun = begun
        self._needed = [key for key in needed if key not in begun]
        self._kept: dict[tuple[int, int], Batch] = {}
        self._queue: Queue[Any] = Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True) if reads_ahead else None

    def __enter__(self) -> "_Reader":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def get(self, key: tuple[int, int]) -> Batch:
        if key not in self._kept:
            found = self._begun.pop(key, None)
            if found is None:
                found = self._stream.shuffled_block(*key) if self._thread is None else self._next()
            self._kept = dict(list(self._kept.items())[-1:]) | {key: found}
        return self._kept[key]

    def _next(self) -> Batch:
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _read(self) -> None:
        for key in self._needed:
            try:
                found: Any = self._stream.shuffled_block(*key)
            except BaseException as error:
                found = error
            while not self._stop.is_set():
                try:
                    self._queue.put(found, timeout=0.1)
                    break
                except Full:
                    continue
            if self._stop.is_set() or isinstance(found, BaseException):
                return
