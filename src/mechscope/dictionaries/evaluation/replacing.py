"""Replacing: a dictionary's reconstruction in the place of what the model computes, at the sites WRITTEN.

`models.splicing` puts it there; here is at which tokens, and from which run values are read. A transcoder reads at
one site and replaces another; a cross-layer transcoder reads on in the changed run. Where that is not possible in one
pass (a site that can only be read, a crosscoder whose codes need later layers), the values read are those of the clean
run, and results say so.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.interventions.replace import edit
from mechscope.models.capturing import cache_at
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.splicing import Link, Replacement, Spliced, writes_of
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

Reads = Literal["changed run", "clean run"]


def reading_of(dictionary: Dictionary) -> Reads:
    """From which run values are read when the dictionary is in place."""
    settings = dictionary.settings
    if not all(site.row.is_writable for site in dictionary.reads):
        return "clean run"
    if settings.is_cross_layer and settings.normalization.is_per_token:
        return "clean run"
    in_order = all(
        source <= written for written in dictionary.writes for source in dictionary.sources_of(written)
    )
    return "changed run" if in_order else "clean run"


def replacing(
    dictionary: Dictionary,
    model: Model,
    *,
    batch: TokenBatch,
    counts: Bool[Tensor, "batch pos"],
    replacement: Replacement | None = None,
) -> Sequence[Write]:
    """Interventions that put the reconstruction (or something else) in place at the tokens that count.

    Args:
        dictionary: Fitted to the model.
        model: An open model; it runs once if values are read from the clean run.
        batch: The prompts.
        counts: Tokens at which the model is changed; the others keep their own values.
        replacement: What is put there; the reconstruction by default.
    """
    given: dict[Site, Tensor] = {}
    if reading_of(dictionary) == "clean run":
        cache = cache_at(model, batch, list(dictionary.reads))
        given = {site: cache[site][counts.to(cache[site].device)] for site in dictionary.reads}
    put = replacement or Replacement(lambda read: applied(dictionary, read))
    link = Link(Spliced(dictionary, "drop"), replacement=put, given=given)
    return writes_of(link, where=Where.of(_positions(batch, counts)))


def constant(values: Tensor, dictionary: Dictionary, batch: TokenBatch, counts: Tensor) -> list[Write]:
    """Interventions that put one constant [d_out] at the sites written: zero, or a mean."""
    positions, writes, start = _positions(batch, counts), [], 0
    for port in dictionary.settings.writes:
        part = values[start : start + port.width]
        start += port.width
        writes.append(
            edit(
                port.site,
                lambda old, part=part: part.to(old).reshape(old.shape[1:]).expand_as(old),
                positions=positions,
            )
        )
    return writes


def applied(dictionary: Dictionary, read: Tensor) -> Tensor:
    """The reconstruction [token, d_out] of values read, by sparse codes."""
    return dictionary.decode(dictionary.encode_sparse(read), read).reshape(len(read), -1)


def _positions(batch: TokenBatch, counts: Tensor) -> list[list[int]]:
    """Positions among each row's real tokens."""
    return [
        [int(column - n_pad) for column in row.nonzero()[:, 0]]
        for row, n_pad in zip(counts, batch.n_pad, strict=True)
    ]
