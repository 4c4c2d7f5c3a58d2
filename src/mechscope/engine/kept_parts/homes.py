"""Homes: where a circuit keeps the latents of dictionaries: each at one site, though it may write several.

A latent's home is the first site that it writes, and a site's error is at home there. A cross-layer transcoder's
latents are so at home layer by layer, a crosscoder's all at its first site; its other sites are home to errors only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechscope.engine.kept_parts.removed_latents import CountedCodec
from mechscope.models.model import Model
from mechscope.models.splicing import FittedCodec, links_of
from mechscope.vocabulary.errors import InterventionMismatch
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True)
class Home:
    """Latents and the error that are at home at one site.

    Args:
        codec: Whose they are.
        site: Where.
        latents: Which of the dictionary's; may be none.
    """

    codec: CountedCodec
    site: Site
    latents: slice

    @property
    def n_latents(self) -> int:
        """How many latents."""
        return self.latents.stop - self.latents.start

    @property
    def is_alone(self) -> bool:
        """Whether the dictionary reads one site and writes this one only."""
        return len(self.codec.reads) == len(self.codec.writes) == 1


def homes_of(codec: CountedCodec) -> list[Home]:
    """A dictionary's homes, one for each site that it writes."""
    starts = _starts(codec)
    first: dict[Site, list[slice]] = {site: [] for site in codec.writes}
    for start, stop in zip(starts, [*starts[1:], codec.n_latents], strict=True):
        written = codec.sites_of(start)[1] if isinstance(codec, FittedCodec) else codec.writes
        first[min(written)].append(slice(start, stop))
    return [
        Home(codec, site, slice(parts[0].start, parts[-1].stop) if parts else slice(0, 0))
        for site, parts in first.items()
    ]


def sees_ahead(codec: CountedCodec) -> bool:
    """Whether a site's latents depend on later sites, as a crosscoder's do: no run knows them before it is through."""
    return any(
        source > written
        for written in codec.writes
        for source in (codec.sources_of(written) if isinstance(codec, FittedCodec) else codec.reads)
    )


def homes_at(model: Model, dictionaries: Sequence[Any]) -> dict[str, Home]:
    """Homes by site, in the order of the forward pass.

    Raises:
        InterventionMismatch: none, something else, two at one site, or a decoder that needs values of several sites.
        DictionaryMismatch: a dictionary of another model, site, width or tokenizer.
    """
    problems = ["none was given"] * (not dictionaries)
    found: dict[Site, Home] = {}
    for codec in dictionaries:
        if not isinstance(codec, CountedCodec):
            problems.append(f"{type(codec).__name__} does not say how many latents it has")
            continue
        if isinstance(codec, FittedCodec) and sees_ahead(codec):
            codec.refuse_unless_fits(model)
        else:
            links_of(model, [codec])
        problems += _of_several_sites(codec)
        for home in homes_of(codec):
            site = model.binding.site(home.site) if home.site.layer is not None else home.site
            problems += [f"{site} is at no layer"] * (site.layer is None)
            problems += [f"two of them write {site}"] * (site in found)
            found[site] = home
    if problems:
        raise InterventionMismatch(
            "A circuit of latents needs one dictionary at each of some sites.",
            got=f"{len(dictionaries)} dictionaries",
            because="; ".join(problems),
            instead="SAEs, transcoders and crosscoders, such as those of ms.features.open(...).dictionary()",
        )
    return {str(site): found[site] for site in sorted(found)}


def _of_several_sites(codec: CountedCodec) -> list[str]:
    if len(codec.reads) == len(codec.writes) == 1:
        return []
    if not isinstance(codec, FittedCodec):
        return [f"{type(codec).__name__} does not say which of its sites belong together"]
    if codec.needs_values:
        return [
            "what one of several sites writes depends on the values read, by a skip connection or token by token"
        ]
    return []


def _starts(codec: CountedCodec) -> list[int]:
    """First latents of the groups that read the same sites."""
    n, groups = codec.n_latents, len(codec.reads)
    is_split = groups > 1 and isinstance(codec, FittedCodec) and len(codec.sites_of(0)[0]) == 1
    return list(range(0, n, n // groups)) if is_split else [0]
