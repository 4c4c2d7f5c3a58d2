"""Keeping: some latents of a dictionary keep what the run gives them, the others carry what they carry elsewhere.

With every latent and the error kept nothing changes, to the bit; with nothing kept the site carries the other run's
value. A transcoder's latents are read earlier than they act, and are remembered on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechscope.engine.kept_parts.removed_latents import RemovedLatents, depends_on_values, written_by
from mechscope.engine.kept_parts.run import where_unlike
from mechscope.interventions.token_memory import TokenMemory
from mechscope.models.splicing import joined_values
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.protocols import Codec, Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where


@dataclass(frozen=True, eq=False)
class KeptLatents:
    """Some latents of one dictionary, kept in a run; satisfies `Write`.

    Args:
        codec: The dictionary; it reads one site and writes one.
        kept: Which latents, [n_latents] truth values.
        keeps_error: Whether what the dictionary leaves over stays; else the site's is the removed one.
        removed: What the others carry.
        where: At which tokens.
    """

    codec: Codec
    kept: Tensor
    keeps_error: bool
    removed: RemovedLatents
    where: Where = field(default_factory=Where)

    @property
    def read(self) -> Site:
        """Where latents are read."""
        return self.codec.reads[0]

    @property
    def written(self) -> Site:
        """Where they act."""
        return self.codec.writes[0]

    @property
    def at(self) -> str:
        return ",".join(str(site) for site in sorted({self.read, self.written}))

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        """With a memory of its own for one run, where latents are read elsewhere than they act."""
        if self.read not in sites:
            raise InterventionMismatch(
                "These latents can't be kept in one forward pass.",
                got=f"read at {self.read}",
                because="the model computes that when it is asked for; nobody can listen to it on the way",
                instead="a dictionary that reads a formed site, such as mlp_in",
            )
        return self if self.read == self.written else _Listening(self)

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        def new(value: Tensor, tokens: Tokens) -> Tensor:
            return self.put(value, self.moved(value, tokens), tokens)

        return where_unlike(value, tokens, self.removed.alike, new)

    def moved(self, value: Tensor, tokens: Tokens) -> Tensor:
        """From the value read: what differs at the site written from what stands there, [n_tokens, d_out]."""
        codec, removed = self.codec, self.removed
        values = joined_values(codec, {self.read: value})
        codes = codec.encode(values)
        theirs, other = removed.codes_of(tokens, codes), removed.read_of(tokens)
        which = (~self.kept if self.keeps_error else self.kept).to(codes.device)
        if other is None or not depends_on_values(codec):
            found = written_by(codec, (codes - theirs) * which, values)
        else:
            found = written_by(codec, codes * which, values) - written_by(codec, theirs * which, other)
        if self.keeps_error or removed.written is not None:
            return found
        return found + codec.decode(torch.zeros_like(codes), values).flatten(1)

    def put(self, value: Tensor, moved: Tensor, tokens: Tokens) -> Tensor:
        """The new value at the site written."""
        moved = moved.reshape(value.shape).to(value)
        if self.keeps_error:
            return value - moved
        base = self.removed.written_of(tokens)
        return moved if base is None else base.to(value).reshape(-1, *value.shape[1:]) + moved


class _Listening:
    """Kept latents in one run, of a dictionary that writes elsewhere than it reads; satisfies `Write`."""

    def __init__(self, kept: KeptLatents) -> None:
        self.at, self.where = kept.at, kept.where
        self._kept = kept
        self._moved = TokenMemory(f"latents read at {kept.read}, kept at {kept.written}")

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        acts = self._listen if tokens.site == self._kept.read else self._put
        return where_unlike(value, tokens, self._kept.removed.alike, acts)

    def _listen(self, value: Tensor, tokens: Tokens) -> Tensor:
        self._moved.put(tokens, self._kept.moved(value, tokens))
        return value

    def _put(self, value: Tensor, tokens: Tokens) -> Tensor:
        return self._kept.put(value, self._moved.of(tokens), tokens)
