"""Splicing: a dictionary in the forward pass, its codes recorded, what it does not explain kept or dropped.

A dictionary that writes where it reads is one write. One that reads elsewhere (a transcoder) listens at the sites it
reads and writes later in the same pass; each run has listeners of its own. Evaluations put other things than the
reconstruction in place through the same link. Refuses dictionaries that would have to know a later site before they
write an earlier one.
"""

from collections.abc import Callable, Mapping, Sequence
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
    """A dictionary that knows which model it belongs to, and which of its values belong to which site."""

    @property
    def needs_values(self) -> bool: ...

    def sources_of(self, written: Site) -> Sequence[Site]: ...

    def sites_of(self, latent: int) -> tuple[Sequence[Site], Sequence[Site]]: ...

    def gathered(self, heard: Mapping[Site, Tensor]) -> Tensor: ...

    def part_at(self, written: Tensor, site: Site) -> Tensor: ...

    def refuse_unless_fits(self, model: Any) -> None: ...


@dataclass(frozen=True)
class Replacement:
    """What an evaluation puts at the sites written, other than codes decoded.

    Args:
        of: From the values read, as the dictionary takes them, to all that is written, as it gives it.
        is_added: It is added to the value that is there instead of taking its place.
    """

    of: Callable[[Tensor], Tensor]
    is_added: bool = False


@dataclass
class Link:
    """One dictionary in one run.

    Args:
        spliced: The dictionary.
        replacement: Put in place instead of the reconstruction; no codes are recorded then.
        given: Values of another run, for sites that are not listened to.
        heard: Values read so far in this pass, in token form.
        codes: Its codes, [n_tokens, n_latents], once it has written.
        tokens: Which tokens they are.
    """

    spliced: Spliced
    replacement: Replacement | None = None
    given: Mapping[Site, Tensor] = field(default_factory=dict)
    heard: dict[Site, Tensor] = field(default_factory=dict)
    codes: Tensor | None = None
    tokens: Tokens | None = None

    def listen(self, site: Site, value: Tensor, tokens: Tokens) -> None:
        """Keep what was read at a site in this pass; what later sites said is from the pass before."""
        self.heard = {known: old for known, old in self.heard.items() if known < site} | {site: value}
        self.tokens = tokens

    def written_at(self, site: Site, old: Tensor) -> Tensor:
        """The value that takes the place of the old one."""
        codec = self.spliced.codec
        values = joined_values(codec, {**self.given, **self.heard})
        if self.replacement is not None:
            new = part_written(codec, self.replacement.of(values), site).reshape(old.shape).to(old)
            return old + new if self.replacement.is_added else new
        self.codes = codes = codec.encode(values)
        if torch.is_grad_enabled() and codes.requires_grad:
            codes.retain_grad()
        if self.spliced.error == "keep" and not torch.is_grad_enabled():
            return old
        decoded = part_written(codec, codec.decode(codes, values), site).reshape(old.shape).to(old.device)
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


def joined_values(codec: Codec, heard: Mapping[Site, Tensor]) -> Tensor:
    """What a dictionary reads, from the values heard so far.

    Sites that come later count as zero: what is written before them does not depend on them.

    Raises:
        SiteAfterStop: the pass began behind every site that the dictionary reads.
    """
    if not any(site in heard for site in codec.reads):
        raise SiteAfterStop(
            "A dictionary writes in this run, but none of the sites that it reads is computed.",
            got=f"reads {', '.join(map(str, codec.reads))}",
            because="the run starts behind them",
            instead="a run that starts earlier",
        )
    if isinstance(codec, FittedCodec):
        return codec.gathered(heard)
    known = next(iter(heard.values()))
    parts = [heard.get(site, torch.zeros_like(known)) for site in codec.reads]
    return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)


def part_written(codec: Codec, written: Tensor, site: Site) -> Tensor:
    """The part of what a dictionary writes that belongs to one site."""
    if isinstance(codec, FittedCodec):
        return codec.part_at(written, site)
    return written if len(codec.writes) == 1 else written[:, list(codec.writes).index(site)]


@dataclass(frozen=True, eq=False)
class SplicedSite:
    """One end of a spliced dictionary, at one site; satisfies `Write`.

    Args:
        at: The site.
        link: What both ends share.
        listens: The dictionary reads here.
        writes: It writes here.
        where: At which tokens; the same at both ends.
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


def writes_of(link: Link, *, where: Where | None = None) -> list[SplicedSite]:
    """The writes that splice a dictionary in, one for each of its sites.

    Args:
        link: Sites whose values it was given are not listened to.
        where: At which tokens; None means all.
    """
    reads = [site for site in link.spliced.codec.reads if site not in link.given]
    writes = list(link.spliced.codec.writes)
    return [
        SplicedSite(str(site), link, site in reads, site in writes, where or Where())
        for site in sorted({*reads, *writes})
    ]


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
