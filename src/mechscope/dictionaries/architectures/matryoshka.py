"""Matryoshka (Bussmann et al. 2025): BatchTopK whose first latents must reconstruct alone, at several sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechscope.dictionaries.architectures.base import Fired, View, register_architecture
from mechscope.dictionaries.architectures.batch_topk import BatchTopK
from mechscope.dictionaries.kernels.pattern import Pattern
from mechscope.dictionaries.kernels.rows import decode_rows


@register_architecture("matryoshka")
@dataclass(frozen=True, kw_only=True)
class Matryoshka(BatchTopK):
    """Nested dictionaries, trained together.

    Args:
        width: Latents.
        k: Active latents per token, on average, of the whole dictionary.
        sizes: Latents of the nested dictionaries, increasing; the last is `width`. None: width / 16, 8, 4, 2 and 1.
    """

    sizes: tuple[int, ...] | None = None

    @property
    def prefixes(self) -> tuple[int, ...]:
        if self.sizes is not None:
            return self.sizes
        return tuple(sorted({max(1, self.width // part) for part in (16, 8, 4, 2, 1)}))

    def parts(self, view: View, fired: Fired) -> list[Tensor]:
        sizes = torch.tensor(self.prefixes, device=view.decoder.device)
        pattern = fired.active.pattern
        if pattern is None:
            cuts = fired.values.split(sizes.diff(prepend=sizes.new_zeros(1)).tolist(), dim=1)
            rows = view.decoder.split([cut.shape[1] for cut in cuts])
            return [cut @ own for cut, own in zip(cuts, rows, strict=True)]
        # Every (token, nested part) becomes a row of its own, so that one sparse product gives all parts.
        n = len(sizes)
        part = torch.bucketize(pattern.latents, sizes, right=True)
        key = pattern.rows * n + part
        order = key.argsort(stable=True)
        finer = Pattern.of_entries(key[order], pattern.latents[order], pattern.n_rows * n, pattern.n_latents)
        written = decode_rows(fired.values.index_select(0, order), view.decoder, finer)
        return list(written.view(pattern.n_rows, n, -1).unbind(1))
