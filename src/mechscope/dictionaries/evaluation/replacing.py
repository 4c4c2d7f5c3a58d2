"""Replacing: a dictionary's reconstruction in the place of what the model computes, at the sites WRITTEN.

A transcoder reads at one site and replaces another; a cross-layer transcoder reads on in the changed run. Where that
is not possible in one pass (a site that can only be read, a crosscoder whose codes need later layers), the values
read are those of the clean run, and results say so.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.interventions.replace import edit
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site

Reads = Literal["changed run", "clean run"]
Change = Callable[[Tensor, Tensor], Tensor]
"""From values read and values written [token, d], both as they stand, to the new values written [token, d_out]."""


def reading_of(dictionary: Dictionary) -> Reads:
    """From which run values are read when the dictionary is in place."""
    settings = dictionary.settings
    if not all(site.row.is_writable for site in dictionary.reads):
        return "clean run"
    if settings.is_cross_layer:
        in_order = all(
            dictionary.reads[block] <= dictionary.writes[target]
            for block, targets in enumerate(settings.targets)
            for target in targets
        )
        return "changed run" if in_order and not settings.normalization.is_per_token else "clean run"
    return "changed run" if max(dictionary.reads) <= min(dictionary.writes) else "clean run"


def replacing(
    dictionary: Dictionary,
    model: Model,
    *,
    batch: TokenBatch,
    counts: Bool[Tensor, "batch pos"],
    change: Change | None = None,
) -> list[Write]:
    """Interventions that put the reconstruction (or what `change` makes) in place at the tokens that count.

    Args:
        dictionary: Fitted to the model.
        model: An open model; it runs once if values are read from the clean run.
        batch: The prompts.
        counts: Tokens at which the model is changed; the others keep their own values.
        change: Another way to make the new values; the dictionary itself by default.
    """
    make = change if change is not None else lambda read, _: _applied(dictionary, read)
    relay = _Relay(dictionary, make)
    positions = _positions(batch, counts)
    if reading_of(dictionary) == "clean run":
        cache = model.run(batch, capture=list(dictionary.reads)).cache
        for site in dictionary.reads:
            relay.keep(site, cache[site][counts.to(cache[site].device)])
    else:
        relay.needs = set(dictionary.reads)
    sites: list[Site] = sorted({*relay.needs, *dictionary.writes})
    return [edit(site, relay.at(site), positions=positions) for site in sites]


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


def _applied(dictionary: Dictionary, read: Tensor) -> Tensor:
    codes = dictionary.encode_sparse(read)
    return dictionary.decode(codes, read).reshape(len(read), -1)


def _positions(batch: TokenBatch, counts: Tensor) -> list[list[int]]:
    """Positions among each row's real tokens."""
    return [
        [int(column - n_pad) for column in row.nonzero()[:, 0]]
        for row, n_pad in zip(counts, batch.n_pad, strict=True)
    ]


class _Relay:
    """What was read so far in one pass, for what is written later in it."""

    def __init__(self, dictionary: Dictionary, make: Change) -> None:
        self.dictionary = dictionary
        self.make = make
        self.needs: set[Site] = set()
        self._read: dict[Site, Tensor] = {}

    def keep(self, site: Site, value: Tensor) -> None:
        self._read[site] = value.flatten(1)

    def at(self, site: Site) -> Callable[[Tensor], Tensor]:
        def pass_on(value: Tensor) -> Tensor:
            if site in self.needs:
                self.keep(site, value)
            if site not in self.dictionary.writes:
                return value
            return self._written(site, value)

        return pass_on

    def _written(self, site: Site, value: Tensor) -> Tensor:
        """Sites that are read later count as zero: nothing of theirs is written here."""
        settings = self.dictionary.settings
        flat = value.flatten(1)
        read = [self._read.get(port.site, flat.new_zeros(len(flat), port.width)) for port in settings.reads]
        starts = [
            sum(port.width for port in settings.writes[:index]) for index in range(len(settings.writes) + 1)
        ]
        index = self.dictionary.writes.index(site)
        old = flat.new_zeros(len(flat), settings.d_out)
        old[:, starts[index] : starts[index + 1]] = flat
        new = self.make(torch.cat([one.to(flat) for one in read], dim=1), old)
        return new[:, starts[index] : starts[index + 1]].to(value).reshape(value.shape)
