"""Modes: how a change of nodes is put into the model, from all held to nothing held.

constrained   patterns, denominators and everything cut are held: the change is exactly the graph's direct effects
range         as the model is, except that patterns are held, and what is cut in `layers`
iterative     patterns held; the replacement model runs: dictionaries encode anew, errors stay
free          nothing held; nodes are written and the model does what it does
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mechscope.graphs.held import Change, Holding, added_at, codes_now
from mechscope.graphs.local import Local
from mechscope.graphs.stations import PER_LAYER, site_of
from mechscope.models.model import Model

Mode = Literal["constrained", "range", "iterative", "free"]
MODES: tuple[Mode, ...] = ("constrained", "range", "iterative", "free")


def hold(
    model: Model, local: Local, *, change: Change, mode: Mode, layers: tuple[int, int] | None
) -> Holding:
    """Interventions that put a change of nodes into the model, in one of the modes of `intervene`."""
    holding = Holding(model, local)
    holding.tokens(change)
    if mode != "free":
        holding.patterns()
    if mode == "constrained":
        _hold_all(holding, change)
    elif mode == "iterative":
        _run_replacement(holding, change)
    else:
        _write_nodes(holding, change, held=layers)
    return holding


def _hold_all(holding: Holding, change: Change) -> None:
    """Everything cut keeps its value, but for what the change adds; skip connections follow what they read."""
    local = holding.local
    readers: dict[int, Callable[[], Tensor]] = {}
    for station, more in added_at(local, change).items():
        clean = local.frozen.value(site_of(station, local.frozen.n_layers)) + more

        def held(_value: Tensor, station: int = station, clean: Tensor = clean) -> Tensor:
            for read, matrix in local.cuts.skips.get(station, ()):
                moved = readers[read]() - local.frozen.value(site_of(read, local.frozen.n_layers))
                clean = clean + moved @ matrix
            return clean

        holding.put(station, held)
    # Where a site is cut, what follows sees the value put there, so these come after.
    for skips in local.cuts.skips.values():
        readers |= {read: holding.record(read) for read, _ in skips}
    holding.denominators()
    holding.gates()


def _run_replacement(holding: Holding, change: Change) -> None:
    """Dictionaries encode anew and stand in for what they write; errors stay, scaled where asked."""
    local = holding.local
    codes: list[Tensor | None] = [None] * len(local.actives)
    readers = {active.part.reads: None for active in local.actives}
    has_writer = {station for active in local.actives for station in active.part.writes}

    def encode(value: Tensor, station: int) -> None:
        for index, active in enumerate(local.actives):
            if active.part.reads == station:
                now = active.part.encode(value).to(value.dtype)
                now[list(local.left_out)] = 0
                held = change.latents[index] != 1
                places = (active.positions[held], active.latents[held])
                now[places] = (active.values * change.latents[index])[held]
                codes[index] = now

    seen: dict[int, Tensor] = {}

    def take(value: Tensor, station: int) -> Tensor:
        seen[station] = value
        encode(value, station)
        return value

    def stand_in(value: Tensor, station: int) -> Tensor:
        if station in readers:
            take(value, station)
        error = local.errors[station] * change.errors.get(station, torch.ones_like(change.tokens))[:, None]
        total = local.constants[station] + error
        for active, now in zip(local.actives, codes, strict=True):
            if station in active.part.writes and now is not None:
                place = active.part.writes.index(station)
                rows = active.part.decoder_rows(torch.arange(active.part.n_latents, device=value.device))[
                    place
                ]
                total = total + now @ rows.to(now.dtype)
        for read, matrix in local.cuts.skips.get(station, ()):
            total = total + seen[read] @ matrix
        return total

    for station in readers:
        if station not in has_writer:
            holding.put(station, lambda value, s=station: take(value, s))
    for station in has_writer:
        holding.put(station, lambda value, s=station: stand_in(value, s))
    _scale_bare_errors(holding, change, has_writer)


def _write_nodes(holding: Holding, change: Change, *, held: tuple[int, int] | None) -> None:
    """Nodes are written where they write, at factor times clean value; cut stations of `held` layers keep theirs."""
    local = holding.local
    added = added_at(local, change)
    moved = [i for i, factors in enumerate(change.latents) if bool((factors != 1).any())]
    now: dict[int, Tensor] = {}

    def take(value: Tensor, station: int) -> Tensor:
        for index in moved:
            if local.actives[index].part.reads == station:
                now[index] = codes_now(local.actives[index], value)
        return value

    def write(value: Tensor, station: int) -> Tensor:
        take(value, station)
        if held is not None and held[0] <= station // PER_LAYER <= held[1]:
            return local.frozen.value(site_of(station, local.frozen.n_layers)) + added[station]
        if station in change.errors:
            value = value + (change.errors[station] - 1)[:, None] * local.errors[station]
        for index in moved:
            active, factors = local.actives[index], change.latents[index]
            if station in active.part.writes:
                wanted = torch.where(factors != 1, active.values * factors - now[index], 0)
                rows = active.written[station] * (wanted / active.values)[:, None]
                value = value.index_add(0, active.positions, rows)
        return value

    stations = set(added)
    for index in moved:
        if (read := local.actives[index].part.reads) not in stations:
            holding.put(read, lambda value, s=read: take(value, s))
            stations.add(read)
    for station in added:
        holding.put(station, lambda value, s=station: write(value, s))


def _scale_bare_errors(holding: Holding, change: Change, has_writer: set[int]) -> None:
    """Scale the errors that stand for whole MLPs, which run as they are."""
    for station, factors in change.errors.items():
        if station not in has_writer:
            added = (factors - 1)[:, None] * holding.local.errors[station]
            holding.put(station, lambda value, more=added: value + more)
