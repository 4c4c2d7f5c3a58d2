"""Latents that write several sites: some are kept, the others carry what they carry elsewhere, at all of their sites.

A cross-layer transcoder's latents are read on the way, each before the first site that it writes. A crosscoder's are
not known before the last site is through, so theirs are those of the prompts' own run; what is left over at each site
is the run's own. Removing a latent takes what it writes away at every site alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mechscope.engine.kept_parts.homes import sees_ahead
from mechscope.engine.kept_parts.removed_latents import CountedCodec
from mechscope.engine.kept_parts.run import where_unlike
from mechscope.interventions.token_memory import TokenMemory
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.splicing import FittedCodec, joined_values, part_written
from mechscope.models.writing import to_token_form
from mechscope.vocabulary.protocols import Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where


@dataclass(frozen=True)
class RemovedAcross:
    """What a dictionary's latents carry where they are removed, and each site that it writes where its error is.

    Args:
        codes: [batch, pos, n_latents]; [n_latents] for every token alike; None: zero.
        written: Values by site, [batch, pos, d_out] or [d_out]; None: what codes of zero decode to.
        alike: Tokens where nothing is removed, [batch, pos]; None: nowhere.
        own: Codes of the prompts' own run, [batch, pos, n_latents]; None where they are read on the way.
    """

    codes: Tensor | None = None
    written: Mapping[Site, Tensor] | None = None
    alike: Tensor | None = None
    own: Tensor | None = None


def record_across(model: Model, codec: CountedCodec, batch: TokenBatch) -> RemovedAcross:
    """Codes and values of prompts.

    Cost: one forward pass up to the last site, and one product with the encoder.
    """
    wanted = sorted({*codec.reads, *codec.writes})
    run = model.run(batch, capture=wanted, stop_after=wanted[-1])
    flat = {site: to_token_form(run.cache[site], site.row).flatten(2) for site in wanted}
    shape = flat[wanted[0]].shape[:2]
    codes = codec.encode(joined_values(codec, {site: flat[site].flatten(0, 1) for site in codec.reads}))
    return RemovedAcross(codes.unflatten(0, shape), {site: flat[site] for site in codec.writes})


def average_across(model: Model, codec: CountedCodec, batches: Iterable[TokenBatch]) -> RemovedAcross:
    """Means over all real tokens of prompts."""
    sums: dict[Site | None, Tensor] = {}
    n_tokens, dtype = 0, torch.float32
    for batch in batches:
        real = batch.mask.bool()
        n_tokens += int(real.sum())
        found = record_across(model, codec, batch)
        assert found.codes is not None and found.written is not None
        dtype = found.codes.dtype
        for site, values in {None: found.codes, **found.written}.items():
            mine = values[real.to(values.device)].sum(0, dtype=torch.float64)
            sums[site] = sums[site] + mine if site in sums else mine
    means = {site: total.div(n_tokens).to(dtype) for site, total in sums.items()}
    return RemovedAcross(means[None], {site: value for site, value in means.items() if site is not None})


def removed_across(
    model: Model, codec: CountedCodec, tokens: TokenBatch, *, like: RemovedAcross | TokenBatch
) -> RemovedAcross:
    """What is removed in some prompts: a constant, or what twins carry; with the prompts' own codes where needed."""
    found = like if isinstance(like, RemovedAcross) else record_across(model, codec, like)
    if not sees_ahead(codec):
        return found
    return replace(found, own=record_across(model, codec, tokens).codes)


def written_at(codec: CountedCodec, codes: Tensor, site: Site) -> Tensor:
    """What codes add at a site, [n_tokens, d_out]: linear in the codes."""
    nothing = codes.new_zeros(1, codes.shape[-1])
    both = [part_written(codec, codec.decode(one), site).flatten(1) for one in (codes, nothing)]
    return both[0] - both[1]


def nothing_at(codec: CountedCodec, like: Tensor, site: Site) -> Tensor:
    """What codes of zero decode to at a site, [1, d_out]."""
    return part_written(codec, codec.decode(like.new_zeros(1, codec.n_latents)), site).flatten(1)


@dataclass(frozen=True, eq=False)
class KeptAcross:
    """Some latents of a dictionary of several sites, kept in a run; satisfies `Write`.

    Args:
        codec: The dictionary.
        kept: Which latents, [n_latents] truth values.
        keeps_error: For each site written whether what the dictionary leaves over stays.
        removed: What the others carry.
        where: At which tokens.
    """

    codec: CountedCodec
    kept: Tensor
    keeps_error: Mapping[Site, bool]
    removed: RemovedAcross
    where: Where = field(default_factory=Where)

    @property
    def at(self) -> str:
        reads = () if self.removed.own is not None else self.codec.reads
        return ",".join(str(site) for site in sorted({*reads, *self.codec.writes}))

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        """With a memory of its own for one run."""
        return _Acting(self)

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        """Never called: `prepare` gives what acts."""
        return _Acting(self).apply(value, tokens)


class _Acting:
    """Kept latents of several sites in one run; satisfies `Write`."""

    def __init__(self, kept: KeptAcross) -> None:
        self.at, self.where = kept.at, kept.where
        self._kept, self._codec, self._removed = kept, kept.codec, kept.removed
        self._heard = {
            site: TokenMemory(f"latents read at {site}, kept later")
            for site in ([] if kept.removed.own is not None else kept.codec.reads)
        }

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        return where_unlike(value, tokens, self._removed.alike, self._act)

    def _act(self, value: Tensor, tokens: Tokens) -> Tensor:
        if tokens.site in self._heard:
            self._heard[tokens.site].put(tokens, value.flatten(1))
        return self._put(value, tokens) if tokens.site in self._codec.writes else value

    def _codes(self, tokens: Tokens, site: Site) -> Tensor:
        own = self._removed.own
        if own is not None:
            return _rows(own, tokens)
        sources = self._codec.sources_of(site) if isinstance(self._codec, FittedCodec) else self._codec.reads
        return self._codec.encode(
            joined_values(self._codec, {one: self._heard[one].of(tokens) for one in sources})
        )

    def _put(self, value: Tensor, tokens: Tokens) -> Tensor:
        codec, kept, site = self._codec, self._kept, tokens.site
        codes = self._codes(tokens, site)
        theirs = codes.new_zeros(()) if self._removed.codes is None else _rows(self._removed.codes, tokens)
        keeps = kept.keeps_error[site]
        which = (~kept.kept if keeps else kept.kept).to(codes.device)
        moved = written_at(codec, (codes - theirs.to(codes)) * which, site).to(value).reshape(value.shape)
        if keeps:
            return value - moved
        if self._removed.written is None:
            base = nothing_at(codec, codes, site)
        else:
            base = _rows(self._removed.written[site], tokens)
        return base.to(value).reshape(-1, *value.shape[1:]) + moved


def _rows(tensor: Tensor, tokens: Tokens) -> Tensor:
    if tensor.ndim == 1:
        return tensor[None]
    return tensor[tokens.rows.to(tensor.device), tokens.columns.to(tensor.device)]
