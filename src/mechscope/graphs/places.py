"""Places: where a graph's nodes lie in the local replacement model that it was read from."""

from collections.abc import Sequence

from torch import Tensor

from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.local import Active, Local
from mechscope.graphs.nodes import Node
from mechscope.graphs.stations import LN_FINAL, PER_LAYER, site_of
from mechscope.graphs.targets import target_vectors
from mechscope.models.model import Model


class Places:
    """From nodes to columns, vectors and stations.

    Args:
        model: The model.
        graph: The graph; perhaps of some of the active latents only.
        local: The local replacement model, opened again.
    """

    def __init__(self, model: Model, graph: AttributionGraph, local: Local) -> None:
        self._model = model
        self._graph = graph
        self._local = local
        n_layers = local.frozen.n_layers
        self._station = {str(site_of(station, n_layers)): station for station in local.errors}
        self._latents: dict[tuple[str, int, int], tuple[int, int]] = {}
        for i, active in enumerate(local.actives):
            site, first = str(site_of(active.part.reads, n_layers)), active.part.first_latent
            found = zip(active.latents.tolist(), active.positions.tolist(), strict=True)
            self._latents |= {(site, latent + first, p): (i, j) for j, (latent, p) in enumerate(found)}

    def latent(self, node: Node) -> tuple[int, int]:
        """Which block of latents, and which of its active ones."""
        return self._latents[self.site(node), node.number, node.position]

    def node_of(self) -> dict[tuple[int, int], int]:
        """The graph's node of each active latent that is one."""
        nodes = self._graph.nodes
        return {self.latent(nodes[int(i)]): int(i) for i in nodes.of("latent")}

    def site(self, node: Node) -> str:
        """The site that a latent reads, or at which an error stands."""
        return self._graph.nodes.site_names[int(self._graph.nodes.sites[node.index])]

    def error_station(self, node: Node) -> int:
        """The station at which an error stands."""
        return self._station[self.site(node)]

    def column(self, node: Node) -> int:
        """A source's column in the rows of the local replacement model."""
        if node.kind == "token":
            return self._local.token_column + node.position
        if node.kind == "error":
            return self._local.error_columns[self.error_station(node)] + node.position
        i, j = self.latent(node)
        return self._local.actives[i].first + j

    def columns(self, nodes: Sequence[Node]) -> list[int]:
        """Columns of several sources."""
        return [self.column(node) for node in nodes]

    def writing(self, node: Node) -> dict[int, Tensor]:
        """What a source writes, by station, [d_model]."""
        if node.kind == "token":
            return {0: self._local.tokens[node.position]}
        if node.kind == "error":
            station = self.error_station(node)
            return {station: self._local.errors[station][node.position]}
        i, j = self.latent(node)
        return {station: rows[j] for station, rows in self._local.actives[i].written.items()}

    def reading(self, node: Node) -> tuple[int, int, Tensor, bool]:
        """Where a target reads: station, position, vector [d_model], and whether before a cut there."""
        frozen = self._local.frozen
        if node.kind == "logit":
            vectors, _ = target_vectors(self._model, self._graph.targets, frozen.dtype)
            start = PER_LAYER * frozen.n_layers + (LN_FINAL if frozen.norm_final is not None else 0)
            return start, node.position, vectors[node.number], False
        i, j = self.latent(node)
        active: Active = self._local.actives[i]
        vectors, _ = active.part.encoder_rows(active.latents[j : j + 1])
        start = active.part.reads
        return start, node.position, vectors[0].to(frozen.dtype), start in active.part.writes
