"""What removed latents carry, and a site whose error is removed: another run's values, their means, or nothing.

Latents of a dictionary and its error make up a site's value: value = what latents write + the rest, and the rest is
the error with the decoder's bias (and a skip connection's path). Taking both from another run gives that run's value.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.splicing import FittedCodec, joined_values
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.protocols import Codec, Tokens


@runtime_checkable
class CountedCodec(Codec, Protocol):
    """A dictionary that says how many latents it has."""

    @property
    def n_latents(self) -> int: ...


@dataclass(frozen=True)
class RemovedLatents:
    """What one dictionary's latents carry where they are removed, and the site that it writes where its error is.

    Args:
        codes: [batch, pos, n_latents]; [n_latents] for every token alike; None: zero.
        written: The value at the site written, [batch, pos, d_out] or [d_out]; None: what codes of zero decode to.
        read: The value read, [batch, pos, d_in], where decoding depends on it; else None.
        alike: Tokens where nothing is removed, since the prompts are alike up to there, [batch, pos]; None: nowhere.
    """

    codes: Tensor | None = None
    written: Tensor | None = None
    read: Tensor | None = None
    alike: Tensor | None = None

    def codes_of(self, tokens: Tokens, like: Tensor) -> Tensor:
        """Codes of tokens, [n_tokens, n_latents] or something that spreads to it."""
        return like.new_zeros(()) if self.codes is None else _rows(self.codes, tokens).to(like)

    def written_of(self, tokens: Tokens) -> Tensor | None:
        """The value at the site written, [n_tokens, d_out] or [d_out]."""
        return None if self.written is None else _rows(self.written, tokens)

    def read_of(self, tokens: Tokens) -> Tensor | None:
        """The values read, [n_tokens, d_in]."""
        return None if self.read is None else _rows(self.read, tokens)


def numbers_per_token(model: Model, codecs: Mapping[str, CountedCodec]) -> int:
    """Numbers that codes and values of a token are, at all sites."""
    return sum(2 * model.d_model + codec.n_latents for codec in codecs.values())


def depends_on_values(codec: Codec) -> bool:
    """Whether what codes write depends on the values that were read."""
    return not isinstance(codec, FittedCodec) or codec.needs_values


def written_by(codec: Codec, codes: Tensor, values: Tensor) -> Tensor:
    """What codes add to the site written, [n_tokens, d_out]: linear in the codes."""
    rows = values if depends_on_values(codec) else values[:1]
    nothing = codec.decode(codes.new_zeros(len(rows), codes.shape[-1]), rows).flatten(1)
    return codec.decode(codes, values).flatten(1) - nothing


def record_removed(
    model: Model, codecs: Mapping[str, CountedCodec], batch: TokenBatch
) -> dict[str, RemovedLatents]:
    """Codes and values of prompts, by site written.

    Cost: one forward pass up to the last site, and one product with each encoder.
    """
    wanted = sorted({site for codec in codecs.values() for site in (*codec.reads, *codec.writes)})
    run = model.run(batch, capture=wanted, stop_after=wanted[-1])
    found: dict[str, RemovedLatents] = {}
    for name, codec in codecs.items():
        flat = {
            site: to_token_form(run.cache[site], site.row).flatten(2)
            for site in {*codec.reads, *codec.writes}
        }
        read = flat[codec.reads[0]]
        codes = codec.encode(joined_values(codec, {codec.reads[0]: read.flatten(0, 1)}))
        found[name] = RemovedLatents(
            codes=codes.unflatten(0, read.shape[:2]),
            written=flat[codec.writes[0]],
            read=read if depends_on_values(codec) else None,
        )
    return found


def average_removed(
    model: Model, codecs: Mapping[str, CountedCodec], batches: Iterable[TokenBatch]
) -> dict[str, RemovedLatents]:
    """Means over all real tokens of prompts, by site written.

    Cost: that of `record_removed` for every batch.
    """
    sums: dict[str, list[Tensor]] = {}
    dtypes: dict[str, list[torch.dtype]] = {}
    n_tokens = 0
    for batch in batches:
        real = batch.mask.bool()
        n_tokens += int(real.sum())
        for name, one in record_removed(model, codecs, batch).items():
            assert one.codes is not None and one.written is not None
            parts = (one.codes, one.written)
            mine = [part[real.to(part.device)].sum(0, dtype=torch.float64) for part in parts]
            sums[name] = [a + b for a, b in zip(sums[name], mine, strict=True)] if name in sums else mine
            dtypes[name] = [part.dtype for part in parts]
    means = {
        name: [total.div(n_tokens).to(dtype) for total, dtype in zip(totals, dtypes[name], strict=True)]
        for name, totals in sums.items()
    }
    return {name: RemovedLatents(codes, value) for name, (codes, value) in means.items()}


def _rows(tensor: Tensor, tokens: Tokens) -> Tensor:
    if tensor.ndim == 1:
        return tensor
    return tensor[tokens.rows.to(tensor.device), tokens.columns.to(tensor.device)]
