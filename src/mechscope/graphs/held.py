"""Held: interventions that make the model itself the frozen model, through the project's own run.

An independent way to the same numbers: the transformers model runs, and at each site that is held an edit puts what
the frozen model has there. Used to measure what a graph predicts, and by the tests that compare the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mechscope.graphs.frozen import FrozenNorm
from mechscope.graphs.local import Active, Local
from mechscope.graphs.stations import site_of, station_of
from mechscope.interventions.intervention import Intervention
from mechscope.interventions.replace import edit, freeze
from mechscope.models.model import Model
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """What is done to nodes: each is scaled.

    Args:
        latents: For each block of latents, the factor of each active latent, [n].
        errors: By cut station, the factor of the error at each position, [pos].
        tokens: The factor of each token, [pos].
    """

    latents: list[Tensor]
    errors: Mapping[int, Tensor]
    tokens: Tensor


@dataclass
class Holding:
    """Interventions under construction, and what they record while a run is under way.

    Args:
        model: The model.
        local: Its local replacement model on the prompt that will run.
    """

    model: Model
    local: Local
    writes: list[Intervention] = field(default_factory=list)
    _seen: dict[Site, Tensor] = field(default_factory=dict)
    _formed: set[Site] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._formed = set(self.model.binding.formed)

    def patterns(self) -> None:
        """Hold attention patterns."""
        for layer in range(self.model.n_layers):
            self.writes.append(freeze(f"pattern.{layer}", to=self.local.frozen.cache))

    def denominators(self) -> None:
        """Hold the denominators of every norm."""
        frozen = self.local.frozen
        for index, layer in enumerate(frozen.layers):
            pre, middle = Site("resid_pre", index), Site("resid_mid", index)
            middle = middle if middle in self._formed else pre
            self._norm(pre, Site("ln1", index), layer.norm1)
            if layer.has_mlp and Site("ln2", index) in self._formed:
                self._norm(middle, Site("ln2", index), layer.norm2)
            for factor, raw, out in (
                (layer.attn_factor, "attn_raw", "attn_out"),
                (layer.mlp_factor, "mlp_raw", "mlp_out"),
            ):
                cut = station_of(Site(out, index)) in self.local.cuts.written
                if isinstance(factor, Tensor) and not cut:
                    self._held(Site(raw, index), Site(out, index), lambda x, f=factor: x * f)
        self._norm(Site("resid_post", frozen.n_layers - 1), Site("ln_final"), frozen.norm_final)

    def gates(self) -> None:
        """Hold the gates of MLPs whose linear path is kept."""
        for index, layer in enumerate(self.local.frozen.layers):
            if layer.mlp is not None:
                gate = layer.mlp.gate
                self._held(Site("mlp_pre", index), Site("mlp_post", index), lambda x, g=gate: x * g)

    def tokens(self, change: Change) -> None:
        """Scale what tokens bring into the first layer."""
        added = (change.tokens - 1)[:, None] * self.local.tokens
        self.put(0, lambda value: value + added)

    def put(self, station: int, function: Callable[[Tensor], Tensor]) -> None:
        """What a station holds, from what arrives there."""
        dtype = self.local.frozen.dtype
        site = site_of(station, self.model.n_layers)
        self.writes.append(edit(site, lambda value: function(value.to(dtype)).to(value.dtype)))

    def record(self, station: int) -> Callable[[], Tensor]:
        """Note what arrives at a station; returns what reads it later in the same run."""
        site = site_of(station, self.model.n_layers)
        self._note(site)
        return lambda: self._seen[site]

    def _note(self, site: Site) -> None:
        dtype = self.local.frozen.dtype

        def note(value: Tensor) -> Tensor:
            self._seen[site] = value.to(dtype)
            return value

        self.writes.append(edit(site, note))

    def _norm(self, before: Site, after: Site, norm: FrozenNorm | None) -> None:
        if norm is not None:
            self._held(before, after, lambda x: norm.forward(x, with_bias=True))

    def _held(self, before: Site, after: Site, function: Callable[[Tensor], Tensor]) -> None:
        self._note(before)
        self.writes.append(edit(after, lambda value: function(self._seen[before]).to(value.dtype)))


def added_at(local: Local, change: Change) -> dict[int, Tensor]:
    """What a change of nodes adds at each cut station when nothing else moves, [pos, d_model]."""
    added = {}
    for station, error in local.errors.items():
        total = (change.errors[station] - 1)[:, None] * error if station in change.errors else error * 0
        for active, factors in zip(local.actives, change.latents, strict=True):
            if station in active.part.writes:
                total = total.index_add(0, active.positions, active.written[station] * (factors - 1)[:, None])
        added[station] = total
    return added


def codes_now(active: Active, value: Tensor) -> Tensor:
    """Codes in a run under way of the latents that were active in the graph's own run, [n]."""
    return active.part.encode(value)[active.positions, active.latents].to(active.values.dtype)
