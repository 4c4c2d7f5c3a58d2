"""Contraction: every edge's score from writers' differences and readers' gradients, one product a layer.

The score of an edge is the sum over positions of what its writer changes, times the gradient at what its reader
reads. Readers of one layer see the same writers, so they are one matrix product, pair by pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.attribution.readers import Readers
from mechscope.attribution.writers import Writers, columns_at_once, real_columns
from mechscope.vocabulary.edges import Wiring

_NO_GRADIENT = 1e-9


@dataclass(frozen=True)
class Offsets:
    """Where each reader's edges stand in `Wiring.edges`.

    Args:
        first: By reader: its first edge.
        n_sources: By reader.
    """

    first: tuple[int, ...]
    n_sources: tuple[int, ...]

    @classmethod
    def of(cls, wiring: Wiring) -> "Offsets":
        """Of a wiring."""
        counts = tuple(wiring.n_sources(target) for target, _ in wiring.readers)
        first, total = [], 0
        for count in counts:
            first.append(total)
            total += count
        return cls(tuple(first), counts)


def contract(
    writers: Writers, readers: Readers, mask: Tensor, *, sources: tuple[int, int] | None = None
) -> Tensor:
    """Scores of all edges, [batch, edge], over the positions that a mask selects, in single precision at least.

    Args:
        writers: Differences.
        readers: Gradients.
        mask: [batch, pos] truth values.
        sources: First writer and the one behind the last; other edges get zero. None for all.

    Cost: 2 * edges * positions * d_model operations and the heads' outputs, a few positions at a time.
    """
    wiring, offsets = writers.wiring, Offsets.of(writers.wiring)
    n_rows, width = writers.embed.shape[0], writers.embed.shape[2]
    precision = torch.promote_types(writers.embed.dtype, torch.float32)
    out = writers.embed.new_zeros(n_rows, wiring.n_edges, dtype=precision)
    columns = real_columns(mask)
    size = columns_at_once(len(wiring.writers), n_rows, d_model=width, itemsize=out.element_size())
    for some in columns.split(size):
        place = slice(None) if len(some) == mask.shape[1] else some
        changed = writers.at(place)
        if not bool(mask[:, place].all()):
            changed *= mask[:, place, None].to(changed)
        changed = changed.flatten(2).transpose(0, 1)
        low, high = (0, changed.shape[1]) if sources is None else sources
        for first_reader, gradients in _by_layer(readers, wiring, place):
            against = gradients.flatten(2).transpose(0, 1)
            stop = min(high, offsets.n_sources[first_reader])
            if stop <= low:
                continue
            found = torch.bmm(changed[:, low:stop], against.transpose(1, 2))
            for i in range(len(gradients)):
                start = offsets.first[first_reader + i]
                out[:, start + low : start + stop] += found[..., i]
    return out


def readers_without_gradient(readers: Readers, wiring: Wiring) -> Tensor:
    """True for each reader that no gradient reaches, [reader]."""
    sizes: list[Tensor] = []
    for index, heads in enumerate(readers.heads):
        inner = heads.inner
        n = wiring.n_heads + 2 * wiring.n_kv_heads
        assert readers.logits is not None
        sizes.append(readers.logits.new_zeros(n) if inner is None else inner.detach().abs().amax((1, 2, 3)))
        if wiring.has_mlps:
            mlp = readers.mlps[index]
            sizes.append((readers.logits.new_zeros(()) if mlp is None else mlp.detach().abs().max())[None])
    assert readers.logits is not None
    found = torch.cat([*sizes, readers.logits.detach().abs().max()[None]])
    return found <= _NO_GRADIENT * found.max()


def _by_layer(readers: Readers, wiring: Wiring, columns: Tensor | slice) -> Iterator[tuple[int, Tensor]]:
    """Groups of readers that see the same writers: the first one, and gradients [reader, batch, column, d_model]."""
    place = 0
    for index, heads in enumerate(readers.heads):
        if heads.inner is not None:
            yield place, heads.at(readers.layers[index], columns)
        place += wiring.n_heads + 2 * wiring.n_kv_heads
        if wiring.has_mlps:
            mlp = readers.mlps[index]
            if mlp is not None:
                yield place, mlp[None, :, columns]
            place += 1
    if readers.logits is not None:
        yield place, readers.logits[None, :, columns]
