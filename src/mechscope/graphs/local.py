"""Local: the local replacement model of one prompt: what is active, what is left over, and the frozen paths between.

Every cut station's value is, exactly, what its latents write + their biases and skip connections + an error that is
constant. Sources are grouped by station and position; a source's column is its place in the graph's order.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mechscope.graphs.flow import Flow, Rows
from mechscope.graphs.frozen import Frozen, freeze_model
from mechscope.graphs.push import push
from mechscope.graphs.replacement import Replacement
from mechscope.graphs.stations import MLP_OUT, PER_LAYER, site_of
from mechscope.graphs.sweep import Cuts, Sweep
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import DictionaryMismatch

FEW_POSITIONS = 96
"""Up to so many, what first-layer heads bring of each token to each position is kept: positions squared vectors."""


Meet = Callable[[Tensor, Flow, Rows], None]
"""Adds to [row, source], in place, what rows that arrive at a layer have to do with sources that wait there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Active:
    """Active latents of one replacement, sorted by position, then latent.

    Args:
        part: The replacement.
        latents: Within its block, [n].
        positions: [n].
        values: Codes, [n].
        bounds: Where each position begins, [pos + 1].
        first: Column of the first.
    """

    part: Replacement
    latents: Tensor
    positions: Tensor
    values: Tensor
    bounds: list[int]
    first: int

    @cached_property
    def written(self) -> dict[int, Tensor]:
        """What each active latent writes, code times decoder row, by station, [n, d_model]."""
        rows = self.part.decoder_rows(self.latents)
        return {
            station: row.to(self.values.dtype) * self.values[:, None]
            for station, row in zip(self.part.writes, rows, strict=True)
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Local:
    """A local replacement model.

    Args:
        frozen: The frozen model.
        parts: Its dictionaries.
        actives: Active latents of each of them.
        errors: By cut station, what the dictionaries leave over, [pos, d_model]; zero where positions are left out.
        constants: By cut station, biases (and whole values at positions left out), [pos, d_model].
        cuts: Where paths end.
        left_out: Positions without latents and errors.
    """

    frozen: Frozen
    parts: list[Replacement]
    actives: list[Active]
    errors: dict[int, Tensor]
    constants: dict[int, Tensor]
    cuts: Cuts
    left_out: tuple[int, ...]

    @property
    def n_latents(self) -> int:
        return sum(len(active.latents) for active in self.actives)

    @property
    def n_sources(self) -> int:
        """Latents, errors and tokens: the columns of a row."""
        return self.n_latents + (len(self.errors) + 1) * self.frozen.n_positions

    @cached_property
    def error_columns(self) -> dict[int, int]:
        """Column of the error at position 0 of each cut station."""
        n = self.frozen.n_positions
        return {station: self.n_latents + i * n for i, station in enumerate(self.errors)}

    @property
    def token_column(self) -> int:
        return self.n_latents + len(self.errors) * self.frozen.n_positions

    @cached_property
    def tokens(self) -> Tensor:
        """What enters the first layer, [pos, d_model]: embeddings, of positions too where they are learned."""
        return self.frozen.value(site_of(0, self.frozen.n_layers))

    @cached_property
    def arriving_constants(self) -> dict[int, Tensor]:
        """What biases alone bring to each station that something reads, [pos, d_model]."""
        return push(self.frozen, self.cuts, dict(self.constants), with_bias=True)

    @cached_property
    def _writers(self) -> dict[int, list[Active]]:
        found: dict[int, list[Active]] = defaultdict(list)
        for active in self.actives:
            for station in active.part.writes:
                found[station].append(active)
        return dict(found)

    def rows(
        self,
        start: int,
        positions: Tensor,
        *,
        vectors: Tensor,
        before_cut: bool = False,
        floor: int = 0,
        meet: Meet | None = None,
    ) -> Tensor:
        """Direct effects of every source on what `vectors` read at `start`, [row, source].

        Args:
            start: The station read.
            positions: Of each row, falling.
            vectors: [row, d_model].
            before_cut: See `Sweep.run`.
            floor: Layer to whose input rows are carried down; sources below it are left to `meet`.
            meet: What is done there.

        Cost: see `Sweep.run`, and one product of row and source for each pair that paths connect.
        """
        out = vectors.new_zeros(len(vectors), self.n_sources)

        def visit(station: int, flow: Flow, rows: Rows) -> None:
            if meet is not None and station == PER_LAYER * floor and station not in self.cuts.written:
                meet(out, flow, rows)
                return
            for position, gradient, window in flow.per_position(rows):
                self._collect(out[window], station, position, gradient)

        def finish(_station: int, flow: Flow, rows: Rows) -> None:
            for position, gradient, window in flow.per_position(rows):
                carried = self._carried[position]
                columns = slice(self.token_column, self.token_column + len(carried))
                out[window, columns] += (carried @ gradient.T).T

        sweep = Sweep(
            self.frozen,
            self.cuts,
            rows=Rows.of_targets(positions, self.frozen.n_positions, is_causal=self.frozen.is_causal),
            visit=visit,
            finish=finish if floor == 0 and self.frozen.n_positions <= FEW_POSITIONS else None,
            floor=floor,
        )
        sweep.run(start, vectors, before_cut=before_cut)
        return out

    @cached_property
    def _carried(self) -> list[Tensor]:
        """What the first layer's heads bring of each token to each position's `attn_raw`, [key, d_model] each."""
        layer = self.frozen.layers[0]
        read = self.tokens if layer.norm1 is None else layer.norm1.forward(self.tokens, with_bias=False)
        values = torch.einsum("sd,kde->ske", read, layer.W_V)
        values = values.repeat_interleave(len(layer.W_O) // len(layer.W_V), dim=1)
        outputs = torch.einsum("she,hed->hsd", values, layer.W_O)
        n = self.frozen.n_positions
        seen = [position + 1 if self.frozen.is_causal else n for position in range(n)]
        return [
            torch.einsum(
                "hs,hsd->sd", layer.pattern[:, position, : seen[position]], outputs[:, : seen[position]]
            )
            for position in range(n)
        ]

    def _collect(self, out: Tensor, station: int, position: int, gradient: Tensor) -> None:
        if station == 0:
            out[:, self.token_column + position] += gradient @ self.tokens[position]
            return
        for active in self._writers.get(station, ()):
            low, high = active.bounds[position], active.bounds[position + 1]
            if low < high:
                columns = slice(active.first + low, active.first + high)
                # The few latents first: a product of many rows by a few columns takes twice as long.
                out[:, columns] += (active.written[station][low:high] @ gradient.T).T
        column = self.error_columns[station] + position
        out[:, column] += gradient @ self.errors[station][position]


def open_local(
    model: Model,
    parts: Sequence[Replacement],
    *,
    batch: TokenBatch,
    mlps: str = "constant",
    left_out: tuple[int, ...] = (),
) -> Local:
    """Freeze a model on one prompt and put dictionaries in the place of what they write.

    Args:
        model: An open model.
        parts: From `replacements_of`.
        batch: One prompt.
        mlps: What becomes of MLPs that no dictionary stands in for: "constant" makes each an error node,
            "gates" keeps their linear path with the gates held.
        left_out: Positions whose latents and errors count as constants.

    Raises:
        DictionaryMismatch: an unknown rule for MLPs.

    Cost: one forward pass, and one product with each encoder.
    """
    if mlps not in ("constant", "gates"):
        raise DictionaryMismatch(
            "There are two rules for MLPs without a dictionary.",
            got=repr(mlps),
            instead='"constant" or "gates"',
        )
    written = {station for part in parts for station in part.writes}
    has_mlp = {
        site.layer for site in model.binding.formed if site.point == "mlp_out" and site.layer is not None
    }
    bare = [
        layer
        for layer in sorted(has_mlp)
        if not {PER_LAYER * layer + MLP_OUT, PER_LAYER * layer + MLP_OUT - 1} & written
    ]
    if mlps == "constant":
        written |= {PER_LAYER * layer + MLP_OUT for layer in bare}
    frozen = freeze_model(model, batch, linear_mlps=bare if mlps == "gates" else ())
    skips = {
        station: [(part.reads, part.skip.to(frozen.dtype))]
        for part in parts
        if part.skip is not None
        for station in part.writes
    }
    cuts = Cuts(written=frozenset(written), skips=skips)
    actives = _actives(frozen, parts, left_out)
    local = Local(
        frozen=frozen,
        parts=list(parts),
        actives=actives,
        errors={},
        constants={},
        cuts=cuts,
        left_out=left_out,
    )
    errors, constants = _left_over(local)
    return replace(local, errors=errors, constants=constants)


def _actives(frozen: Frozen, parts: Sequence[Replacement], left_out: tuple[int, ...]) -> list[Active]:
    found, first = [], 0
    for part in parts:
        codes = part.encode(frozen.value(site_of(part.reads, frozen.n_layers)))
        codes[list(left_out)] = 0
        positions, latents = codes.nonzero(as_tuple=True)
        counts = torch.bincount(positions, minlength=frozen.n_positions)
        bounds = [0, *counts.cumsum(0).tolist()]
        found.append(
            Active(
                part=part,
                latents=latents,
                positions=positions,
                values=codes[positions, latents].to(frozen.dtype),
                bounds=bounds,
                first=first,
            )
        )
        first += len(latents)
    return found


def _left_over(local: Local) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Errors and constants of each cut station, in forward order."""
    frozen = local.frozen
    errors, constants = {}, {}
    for station in sorted(local.cuts.written):
        value = frozen.value(site_of(station, frozen.n_layers))
        constant = torch.zeros_like(value)
        for part in local.parts:
            if station in part.biases:
                constant = constant + part.biases[station].to(frozen.dtype)
        explained = constant.clone()
        for active in local._writers.get(station, ()):
            explained.index_add_(0, active.positions, active.written[station])
        for read, matrix in local.cuts.skips.get(station, ()):
            explained = explained + frozen.value(site_of(read, frozen.n_layers)) @ matrix
        error = value - explained
        for position in local.left_out:
            constant[position] = constant[position] + error[position]
            error[position] = 0
        errors[station], constants[station] = error, constant
    return errors, constants
