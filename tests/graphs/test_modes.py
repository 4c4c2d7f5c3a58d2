"""Interventions on nodes in every mode, against the model in plain arithmetic with the same parts held by hand."""

from collections.abc import Mapping

import numpy as np
import pytest
from torch import Tensor

from arithmetic_forward import Arithmetic, in_double
from graphs.frozen_cases import batch, dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.intervene import intervene
from mechscope.graphs.modes import Mode

Layers = tuple[int, int] | None
MODES: list[tuple[Mode, Layers]] = [
    ("range", (0, 0)),
    ("range", (1, 2)),
    ("range", (0, 2)),
    ("iterative", None),
    ("free", None),
]


def graph_of(family: str) -> AttributionGraph:
    return attribution_graph(exact_model(family), dictionaries(family), prompt(), targets=[3, (4, 5)])


def scales(graph: AttributionGraph) -> dict[int, float]:
    """A token, an error of layer 0 and a latent of each later layer, all early enough to be read."""
    nodes = graph.nodes
    errors = [int(i) for i in nodes.of("error") if nodes.layers[i] == 0 and nodes.positions[i] == 1]
    latents = [graph.latents(layer=layer, position=3)[0].index for layer in (1, 2)]
    return {int(nodes.of("token")[2]): 0.0, errors[0]: -1.0, latents[0]: 0.0, latents[1]: 2.5}


class ByHand:
    """A family in plain arithmetic on the prompt, with its dictionaries; `values` are those of the clean run."""

    def __init__(self, family: str) -> None:
        self.arithmetic = Arithmetic(exact_model(family).hf)
        self.dictionaries = dictionaries(family)
        self.values = self.run({})

    def run(self, edits: Mapping[str, object]) -> dict[str, Tensor]:
        return dict(self.arithmetic.run(batch().ids, batch().n_pad, edits))  # type: ignore[arg-type]

    def codes(self, layer: int, values: Mapping[str, Tensor]) -> Tensor:
        return self.dictionaries[layer].encode(values[f"mlp_in.{layer}"][0])

    def decoded(self, layer: int, codes: Tensor) -> Tensor:
        one = self.dictionaries[layer]
        return codes @ one.W_dec + one.b_dec

    def error(self, layer: int) -> Tensor:
        return self.values[f"mlp_out.{layer}"][0] - self.decoded(layer, self.codes(layer, self.values))

    def read(self, graph: AttributionGraph, values: Mapping[str, Tensor]) -> np.ndarray:
        """What each latent and logit reads, [node]; zero for the others."""
        out = np.zeros(len(graph))
        for index in graph.nodes.of("latent"):
            node, one = graph.nodes[int(index)], self.dictionaries[graph.nodes[int(index)].layer]
            arrived = values[f"mlp_in.{node.layer}"][0, node.position]
            out[index] = float(arrived @ one.W_enc[:, node.number] + one.b_enc[node.number])
        last = values["logits"][0, -1]
        for index, target in zip(graph.nodes.of("logit"), graph.targets, strict=True):
            foil = last.mean() if target.foil is None else last[target.foil]
            out[index] = float(last[target.token] - foil)
        return out

    def scaled(
        self, graph: AttributionGraph, scale: dict[int, float], mode: Mode, layers: Layers
    ) -> np.ndarray:
        """What nodes read when some are scaled and what the mode says is held."""
        nodes = [(graph.nodes[index], factor) for index, factor in scale.items()]

        def tokens(value: Tensor) -> Tensor:
            value = value.clone()
            for node, factor in nodes:
                if node.kind == "token":
                    value[0, node.position] *= factor
            return value

        def mlp(layer: int, value: Tensor) -> Tensor:
            clean, now = self.codes(layer, self.values), self.codes(layer, self.arithmetic.values)
            is_held = layers is not None and layers[0] <= layer <= layers[1]
            errors, wanted, held = self.error(layer).clone(), now.clone(), clean.clone()
            for node, factor in nodes:
                if node.layer == layer and node.kind == "latent":
                    for codes in (wanted, held):
                        codes[node.position, node.number] = factor * clean[node.position, node.number]
                if node.layer == layer and node.kind == "error":
                    errors[node.position] *= factor
            if mode == "iterative":
                return (self.decoded(layer, wanted) + errors)[None]
            if is_held:
                return (self.decoded(layer, held) + errors)[None]
            more = errors - self.error(layer)
            return value + (self.decoded(layer, wanted) - self.decoded(layer, now) + more)[None]

        edits: dict[str, object] = {"resid_pre.0": tokens}
        for layer in range(len(self.dictionaries)):
            edits[f"mlp_out.{layer}"] = lambda value, layer=layer: mlp(layer, value)
            if mode != "free":
                edits[f"pattern.{layer}"] = lambda _, layer=layer: self.values[f"pattern.{layer}"]
        return self.read(graph, self.run(edits))


@pytest.mark.parametrize(("mode", "layers"), MODES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_measured_is_what_arithmetic_gives(family: str, mode: Mode, layers: Layers) -> None:
    model, given = exact_model(family), dictionaries(family)
    with in_double():  # rotary angles too
        graph, by_hand = graph_of(family), ByHand(family)
        clean = by_hand.read(graph, by_hand.values)
        assert np.abs(clean - graph.totals).max() < 1e-9
        scale = scales(graph)
        wanted = by_hand.scaled(graph, scale, mode, layers) - clean
        found = {
            one: intervene(model, graph, transcoders=given, scale=scale, mode=one[0], layers=one[1])
            for one in MODES
        }
    own = found.pop((mode, layers))
    assert np.abs(own.measured - wanted[list(own.nodes)]).max() < 1e-9
    for other in found.values():
        assert np.abs(own.measured - other.measured).max() > 1e-3, other.mode


@pytest.mark.parametrize(("mode", "layers"), MODES)
def test_what_is_foretold_is_the_sum_over_all_paths_that_are_open(mode: Mode, layers: Layers) -> None:
    graph = graph_of("llama")
    scale, dense = scales(graph), graph.adjacency.to_dense()
    moved = np.zeros(len(graph))
    moved[list(scale)] = np.array(list(scale.values())) - 1
    passes_on = np.zeros(len(graph))  # a latent that is free follows what it reads
    free = [i for i in graph.nodes.of("latent") if i not in scale]
    if layers is not None:
        free = [i for i in free if not layers[0] <= graph.nodes.layers[i] <= layers[1]]
    passes_on[free] = 1 / graph.totals[free]
    moved = np.linalg.solve(np.eye(len(graph)) - passes_on[:, None] * dense, moved)
    found = intervene(
        exact_model("llama"), graph, transcoders=dictionaries("llama"), scale=scale, mode=mode, layers=layers
    )
    assert np.abs(found.predicted - (dense @ moved)[list(found.nodes)]).max() < 1e-9


def test_what_was_foretold_stands_beside_what_was_measured() -> None:
    graph = graph_of("llama")
    done = intervene(
        exact_model("llama"), graph, transcoders=dictionaries("llama"), scale=scales(graph), mode="free"
    )
    table = done.table(5)
    assert len(table.rows) == 5
    most = int(np.abs(done.measured).argmax())
    assert table.rows[0] == (done.names[most], done.before[most], done.predicted[most], done.measured[most])
    latents, logits, line = done.plot().data
    assert len(latents.x) == len(graph.nodes.of("latent")) and len(logits.y) == 2
    assert max(line.x) >= max(abs(done.predicted).max(), abs(done.measured).max())
    assert "measured change" in done._repr_html_() and "free" in repr(done)
