"""Splicing: a dictionary in the forward pass, its codes recorded, what it does not explain kept or dropped.

A dictionary that writes where it reads is one write. One that reads elsewhere (a transcoder) listens at the sites it
reads and writes later in the same pass; each run has listeners of its own. Refuses dictionaries that would have to
know a later site before they write an earlier one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechscope.vocabulary.errors import InterventionMismatch, SiteAfterStop
from mechscope.vocabulary.protocols import Codec, Facts, Tokens, Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

if TYPE_CHECKING:
    import mechscope.models.model

ErrorTerm = Literal["keep", "drop"]


@dataclass(frozen=True)
class Spliced:
    """A dictionary with what happens to its error.

    Args:
        codec: The dictionary.
        error: "keep": the forward pass is unchanged, codes are recorded, and gradients go through them; "drop": the
            reconstruction takes the place of the value.
    """

    codec: Any
    error: Any = "keep"


@runtime_checkable
class FittedCodec(Protocol):
    """A dictionary that knows which model it belongs to, and what each site written depends on."""

    def sources_of(self, written: Site) -> Sequence[Site]: ...

    def refuse_unless_fits(self, model: Any) -> None: ...


@dataclass
class Link:
    """One dictionary in one run.

    Args:
        spliced: The dictionary.
        heard: Values read so far, in token form.
        codes: Its codes, [n_tokens, n_latents], once it has written.
        tokens: Which tokens they are.
    """

    spliced: Spliced
    heard: dict[Site, Tensor] = field(default_factory=dict)
    codes: Tensor | None = None
    tokens: Tokens | None = None

    def listen(self, site: Site, value: Tensor, tokens: Tokens) -> None:
        """Keep what was read at a site in this pass."""
        self.heard[site], self.tokens = value, tokens

    def written_at(self, site: Site, old: Tensor) -> Tensor:
        """The value that takes the place of the old one."""
        codec = self.spliced.codec
        values = self._values(old)
        self.codes = codes = codec.encode(values)
        if torch.is_grad_enabled() and codes.requires_grad:
            codes.retain_grad()
        if self.spliced.error == "keep" and not torch.is_grad_enabled():
            return old
        decoded = codec.decode(codes, values)
        if len(codec.writes) > 1:
            decoded = decoded[:, list(codec.writes).index(site)]
        decoded = decoded.reshape(old.shape)
        if self.spliced.error == "drop":
            return decoded
        return decoded + (old - decoded).detach()

    def latents(self, shape: tuple[int, int]) -> Tensor:
        """Codes [batch, pos, n_latents], zero at padding.

        Raises:
            SiteAfterStop: the run stopped before the dictionary wrote.
        """
        if self.codes is None or self.tokens is None:
            raise SiteAfterStop(
                "This run has no codes of that dictionary.",
                got=str(self.spliced.codec),
                because="it stopped before the site that the dictionary writes",
                instead="a run without stop_after, or one that stops later",
            )
        whole = self.codes.new_zeros(*shape, self.codes.shape[-1])
        at = (self.tokens.rows.to(whole.device), self.tokens.columns.to(whole.device))
        is_real = (self.tokens.positions >= 0).to(self.codes)
        return whole.index_put(at, self.codes * is_real[:, None])

    def _values(self, old: Tensor) -> Tensor:
        reads = list(self.spliced.codec.reads)
        if len(reads) == 1:
            return self.heard[reads[0]]
        known = next(iter(self.heard.values()))
        # Sites that come later read zero: what is written here does not depend on them.
        return torch.stack([self.heard.get(site, torch.zeros_like(known)) for site in reads], dim=1)


@dataclass(frozen=True, eq=False)
class SplicedSite:
    """One end of a spliced dictionary, at one site; satisfies `Write`.

    Args:
        at: The site.
        link: What both ends share.
        listens: The dictionary reads here.
        writes: It writes here.
    """

    at: str
    link: Link
    listens: bool
    writes: bool
    where: Where = field(default_factory=Where)

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> Write:
        """Ready as it is."""
        return self

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        if self.listens:
            self.link.listen(tokens.site, value, tokens)
        return self.link.written_at(tokens.site, value) if self.writes else value


def links_of(model: "mechscope.models.model.Model", splice: Sequence[Any]) -> list[Link]:
    """A fresh link for each dictionary (or `Spliced`, or (dictionary, "drop")).

    Raises:
        InterventionMismatch: no dictionary, or one that would have to look ahead.
        DictionaryMismatch: a dictionary of another model, site, width or tokenizer.
    """
    links: list[Link] = []
    for item in splice:
        spliced = (
            item if isinstance(item, Spliced) else Spliced(*(item if isinstance(item, tuple) else (item,)))
        )
        if not isinstance(spliced.codec, Codec) or spliced.error not in ("keep", "drop"):
            raise InterventionMismatch(
                "This can't be spliced into a run.",
                got=repr(item)[:80],
                because='splicing takes dictionaries, alone or with "keep" or "drop"',
                instead='splice=[sae] or splice=[(sae, "drop")]',
            )
        if isinstance(spliced.codec, FittedCodec):
            spliced.codec.refuse_unless_fits(model)
        _refuse_looking_ahead(spliced.codec)
        links.append(Link(spliced))
    return links


def writes_of(link: Link) -> list[SplicedSite]:
    """The writes that splice a dictionary in, one for each of its sites."""
    reads, writes = list(link.spliced.codec.reads), list(link.spliced.codec.writes)
    sites = sorted({*reads, *writes})
    return [SplicedSite(str(site), link, site in reads, site in writes) for site in sites]


def _refuse_looking_ahead(codec: Codec) -> None:
    for written in codec.writes:
        sources = codec.sources_of(written) if isinstance(codec, FittedCodec) else codec.reads
        later = [str(site) for site in sources if site > written]
        if later:
            raise InterventionMismatch(
                "This dictionary can't be spliced into a forward pass.",
                got=f"it writes {written}, which depends on {', '.join(later)}",
                because="those sites are computed later than the one it would write",
                instead="dictionary.encode on captured values",
            )
