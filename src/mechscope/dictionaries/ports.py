"""Ports: which of the numbers that a dictionary reads and writes belong to which site.

Values of several sites are stacked where they have one shape, or lie end to end in one long vector; both are taken.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechscope.dictionaries.settings import Port, Settings
from mechscope.vocabulary.errors import DictionaryMismatch
from mechscope.vocabulary.sites import Site


def leading_shape(values: Tensor, ports: tuple[Port, ...], verb: str = "read") -> tuple[int, ...]:
    """The shape of `values` before what the sites carry.

    Raises:
        DictionaryMismatch: the last axes are not what the sites carry.
    """
    for tail in _tails(ports):
        if tuple(values.shape[-len(tail) :]) == tail:
            return tuple(values.shape[: values.ndim - len(tail)])
    wanted = " or ".join("[..., " + ", ".join(map(str, tail)) + "]" for tail in _tails(ports))
    raise DictionaryMismatch(
        f"These are not values of the sites that the dictionary {verb}s.",
        got=f"shape {list(values.shape)}",
        because=f"{', '.join(str(port.site) for port in ports)} carries {wanted}",
        instead="a run's values at these sites, of the model that the dictionary was trained on",
    )


def _tails(ports: tuple[Port, ...]) -> list[tuple[int, ...]]:
    widths = [port.width for port in ports]
    if len(ports) == 1:
        return list(dict.fromkeys([ports[0].shape, (widths[0],)]))
    tails: list[tuple[int, ...]] = []
    if len({port.shape for port in ports}) == 1:
        tails.append((len(ports), *ports[0].shape))
    if len(set(widths)) == 1:
        tails.append((len(ports), widths[0]))
    tails.append((sum(widths),))
    return list(dict.fromkeys(tails))


def gathered(heard: Mapping[Site, Tensor], settings: Settings) -> Tensor:
    """Values of the sites read, in token form, end to end: [token, d_in]; sites that are missing count as zero.

    Raises:
        DictionaryMismatch: they are sites of several models.
    """
    refuse_several_models(settings)
    known = next(heard[port.site] for port in settings.reads if port.site in heard).flatten(1)
    parts = [
        heard[port.site].flatten(1).to(known)
        if port.site in heard
        else known.new_zeros(len(known), port.width)
        for port in settings.reads
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def refuse_several_models(settings: Settings) -> None:
    """Refuse a crosscoder over models where one model's values are at hand.

    Raises:
        DictionaryMismatch
    """
    models = list(dict.fromkeys(port.model for port in (*settings.reads, *settings.writes)))
    if len(models) > 1:
        raise DictionaryMismatch(
            "This crosscoder reads several models.",
            got="one model",
            because=f"its codes are of the values of {', '.join(models)} at the same token, together",
            instead="ms.dictionaries.compare_models, or dictionary.encode of all values",
        )


def told(sites: tuple[Port, ...]) -> str:
    """Sites in words, with their models where those have labels."""
    return ", ".join(f"{port.model}: {port.site}" if port.model else str(port.site) for port in sites)


def part_at(written: Tensor, site: Site, settings: Settings) -> Tensor:
    """The part of what is written at all sites that belongs to one of them: [..., *shape]."""
    ports = settings.writes
    leading = leading_shape(written, ports, "write")
    index = [port.site for port in ports].index(site)
    start = sum(port.width for port in ports[:index])
    flat = written.reshape(*leading, -1)[..., start : start + ports[index].width]
    return flat.reshape(*leading, *ports[index].shape)


def sites_of(latent: int, settings: Settings) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Sites that a latent reads, and sites that it writes.

    Raises:
        DictionaryMismatch: there is no such latent, or the sites are of several models.
    """
    refuse_several_models(settings)
    if not 0 <= latent < settings.n_latents:
        raise DictionaryMismatch(
            f"There is no latent {latent}.",
            got=latent,
            because=f"the dictionary has {settings.n_latents}, counted from 0",
            instead=f"0 to {settings.n_latents - 1}",
        )
    reads, writes = (tuple(port.site for port in ports) for ports in (settings.reads, settings.writes))
    if not settings.is_cross_layer:
        return reads, writes
    block = latent // (settings.n_latents // len(reads))
    return (reads[block],), tuple(writes[target] for target in settings.targets[block])
