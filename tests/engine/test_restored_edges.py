"""Edges restored over constants equal the slow forward: all start at constants, some carry clean values again."""

import numpy as np
import pytest
import torch
from torch import Tensor

from arithmetic_forward import in_double
from engine.edges_by_hand import Added, EdgesByHand
from engine.test_edge_runs import IN_REACH, METRIC, difference_of, random_circuits, twins
from family_cases import opened
from mechscope.engine.edge_runs.ablations import Constant, Restored, mean_of, zero
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.edges import Edge, Node, Wiring

TIGHT = 1e-10
OF_NOTHING = 1e-7
"""Where all edges carry zero, a norm behind attention divides rounding by next to nothing."""
SOME = [name for name in IN_REACH if name in ("gpt2", "gemma2", "llama", "gpt_neox", "mixtral")]


@pytest.fixture(autouse=True)
def double():
    with in_double():
        yield


class RestoredByHand(EdgesByHand):
    """The definition, reader by reader."""

    def restored(
        self, batch: TokenBatch, wiring: Wiring, restored: set[Edge], constants: dict[Node, Tensor]
    ) -> Tensor:
        """Logits, [batch, pos, d_vocab]."""
        clean = self.added_in(batch)

        def from_constants(node: Node, _which: str, rest: Tensor, _own: Added) -> Tensor:
            return rest + sum(constants[source] for source in wiring.sources(node))

        base, _ = self._pass(batch, from_constants)

        def see(node: Node, which: str, rest: Tensor, own: Added) -> Tensor:
            seen = rest
            for source in wiring.sources(node):
                edge = Edge(source=source, target=node, input=which)  # type: ignore[arg-type]
                if edge in restored:
                    seen = seen + clean[source]
                elif source.kind == "embed":
                    seen = seen + constants[source]
                else:
                    seen = seen + constants[source] + own[source] - base[source]
            return seen

        return self._pass(batch, see)[1]


def runs_of(name: str, how: str, **more) -> tuple[EdgeRuns, Constant]:
    model = opened(name)
    constants = zero(model) if how == "zero" else mean_of(model, twins()[1])
    runs = EdgeRuns(model, twins()[0], metric=METRIC, ablation=Restored(constants=constants), **more)
    return runs, constants


def by_hand(name: str, runs: EdgeRuns, constants: Constant, kept: np.ndarray) -> Tensor:
    values = constants.values.tensor
    by_node = {node: values[i].expand(2, 9, -1) for i, node in enumerate(runs.wiring.writers)}
    restored = {edge for edge, is_kept in zip(runs.wiring.edges(), kept, strict=True) if not is_kept}
    found = RestoredByHand(opened(name).hf).restored(twins()[0], runs.wiring, restored, by_node)
    return difference_of(found)


@pytest.mark.parametrize("how", ["mean", "zero"])
@pytest.mark.parametrize("name", SOME)
def test_restored_edges_equal_the_definition(name, how):
    runs, constants = runs_of(name, how)
    circuits = random_circuits(runs.wiring.n_edges, 3)
    for circuit, values in zip(circuits, runs.measure(circuits), strict=True):
        gap = (values - by_hand(name, runs, constants, circuit)).abs().max()
        assert gap < (OF_NOTHING if (name, how) == ("gemma2", "zero") else TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_REACH)
def test_restored_edges_equal_the_definition_in_every_family(name):
    test_restored_edges_equal_the_definition(name, "mean")


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_all_restored_is_the_model_and_none_is_every_edge_at_its_constant(how):
    runs, constants = runs_of("llama", how)
    model, clean = opened("llama"), twins()[0]
    none, every = runs.measure([runs.every, runs.none])
    plain = EdgeRuns(model, clean, metric=METRIC, ablation=constants)
    assert (every - plain.measure([plain.every])[0]).abs().max() < TIGHT
    assert (none - plain.measure([plain.none])[0]).abs().max() < TIGHT
    assert (every - none).abs().max() > 1e-3


def test_it_is_not_noising_of_the_same_edges():
    runs, constants = runs_of("llama", "mean")
    plain = EdgeRuns(opened("llama"), twins()[0], metric=METRIC, ablation=constants)
    circuits = random_circuits(runs.wiring.n_edges, 3)
    assert (runs.measure(circuits) - plain.measure(~circuits)).abs().min() > 1e-4


def test_weights_of_nought_and_one_and_small_memory_give_the_same():
    runs, _ = runs_of("gemma2", "mean")
    circuits = random_circuits(runs.wiring.n_edges, 3)
    found = runs.measure(circuits)
    weighted = runs.measure_weighted(torch.from_numpy(circuits).double()).detach()
    assert (weighted - found).abs().max() < TIGHT
    small, _ = runs_of("gemma2", "mean", memory=1)
    assert len(small.blocks) > 1 and (small.measure(circuits) - found).abs().max() < TIGHT


def test_differences_from_a_base_circuit_give_the_same():
    runs, _ = runs_of("gpt2", "zero")
    first, second = random_circuits(runs.wiring.n_edges)
    walked = runs.walk(second[None], runs.state(first)).values[0]
    assert (walked - runs.measure([second])[0]).abs().max() < TIGHT
