"""Edge attribution from ordinary runs equals gradients at split inputs, on every family and along every path."""

from typing import Any

import pytest
import torch
from torch import Tensor

from attribution.precision import double
from attribution.split_inputs import SplitInputs, changes_of, edge_scores, gradients_at
from family_cases import FAMILIES, opened
from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.settings import EdgeSettings
from mechscope.vocabulary.errors import PointUnavailable
from patching.drawn_pairs import DrawnPairs, random_pairs

OUT_OF_REACH = ("bloom", "falcon_7b", "falcon_40b", "falcon_rw")
NORMED_STREAMS = ("bert", "bert_decoder")
CLOSE = 1e-10


def pairs_for(name: str) -> DrawnPairs:
    return random_pairs(opened(name), lengths=(9, 6), differ_at=(1, 3))


class Defined:
    """Scores by definition for the pairs of one family."""

    def __init__(self, name: str) -> None:
        self.pairs, self.arithmetic = pairs_for(name), SplitInputs(opened(name).hf)
        self.noising = changes_of(self.arithmetic, self.pairs.corrupt, self.pairs.clean)
        self.runs = [
            {k: v.detach() for k, v in self.arithmetic.run(b.ids, b.n_pad).items()}
            for b in (self.pairs.corrupt, self.pairs.clean)
        ]

    def metric(self, logits: Tensor) -> Tensor:
        metric: Any = self.pairs.metric
        last = logits[:, -1]
        return (last.gather(1, torch.tensor(metric.answers)) - last.gather(1, torch.tensor(metric.wrong)))[
            :, 0
        ]

    def gradients(self, batch: Any, edits: Any = None) -> list[tuple[int, Tensor]]:
        return gradients_at(self.arithmetic, batch, self.metric, edits)[1]

    def between(self, site: str, place: float) -> dict[str, Any]:
        corrupt, clean = (run[site] for run in self.runs)
        return {site: lambda _: corrupt + place * (clean - corrupt)}


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in (*OUT_OF_REACH, *NORMED_STREAMS)])
def test_scores_equal_gradients_at_split_inputs(name: str) -> None:
    with double(name):
        defined = Defined(name)
        found = attribute_edges(opened(name), defined.pairs, method="eap", direction="noising")
        wanted = edge_scores(defined.noising, defined.gradients(defined.pairs.clean))
    assert found.pairs is not None
    assert found.pairs.shape == wanted.shape
    assert float((found.pairs - wanted).abs().max()) < CLOSE * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_denoising_takes_the_gradient_in_the_corrupt_run(name: str) -> None:
    with double(name):
        defined = Defined(name)
        found = attribute_edges(opened(name), defined.pairs, direction="denoising").pairs
        wanted = edge_scores(-defined.noising, defined.gradients(defined.pairs.corrupt))
        other = edge_scores(-defined.noising, defined.gradients(defined.pairs.clean))
    torch.testing.assert_close(found, wanted, rtol=0, atol=CLOSE)
    assert float((wanted - other).abs().max()) > 1e-3  # the twin: the other run's gradient is something else


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "gpt_neox"))]
)
def test_steps_along_the_inputs_are_those_gradients_averaged(name: str) -> None:
    with double(name):
        defined = Defined(name)
        found = attribute_edges(opened(name), defined.pairs, method="eap-ig", settings=EdgeSettings(steps=3))
        runs = [
            defined.gradients(defined.pairs.clean, defined.between("resid_pre.0", p))
            for p in (1 / 6, 0.5, 5 / 6)
        ]
        wanted = torch.stack([edge_scores(defined.noising, run) for run in runs]).mean(0)
        published = attribute_edges(
            opened(name),
            defined.pairs,
            method="eap-ig",
            settings=EdgeSettings(steps=2, reference_compat=True),
        )
        left = [defined.gradients(defined.pairs.clean, defined.between("resid_pre.0", p)) for p in (0.0, 0.5)]
        of_left = -torch.stack([edge_scores(defined.noising, run) for run in left]).mean(0).mean(0)
    torch.testing.assert_close(found.pairs, wanted, rtol=0, atol=CLOSE)
    torch.testing.assert_close(published.importance, of_left, rtol=0, atol=CLOSE)


def test_both_ends_are_averaged() -> None:
    with double("llama"):
        defined = Defined("llama")
        found = attribute_edges(opened("llama"), defined.pairs, method="eap-clean-corrupted").pairs
        runs = [defined.gradients(batch) for batch in (defined.pairs.clean, defined.pairs.corrupt)]
        wanted = torch.stack([edge_scores(defined.noising, run) for run in runs]).mean(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    "name", ["native_attention_only", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma2"))]
)
def test_steps_along_activations_go_to_the_edges_of_their_own_writer(name: str) -> None:
    with double(name):
        defined = Defined(name)
        found = attribute_edges(
            opened(name), defined.pairs, method="eap-ig-activations", settings=EdgeSettings(steps=2)
        ).pairs
        compat = attribute_edges(
            opened(name),
            defined.pairs,
            method="eap-ig-activations",
            settings=EdgeSettings(steps=2, reference_compat=True),
        ).importance
        own, every = _along_activations(defined)
    torch.testing.assert_close(found, own, rtol=0, atol=CLOSE)
    torch.testing.assert_close(compat, every, rtol=0, atol=CLOSE)


def _along_activations(defined: Defined) -> tuple[Tensor, Tensor]:
    """Midpoints for each edge's own writer; and the published sum over all nodes, steps 1/2 and 1, its sign."""
    n_heads, place = defined.arithmetic.n_heads, 1
    nodes = [("resid_pre.0", [0])]
    for layer in range(defined.arithmetic.n_layers):
        nodes.append((f"attn_out.{layer}", list(range(place, place + n_heads))))
        place += n_heads
        if f"mlp_out.{layer}" in defined.runs[0]:
            nodes.append((f"mlp_out.{layer}", [place]))
            place += 1
    own: Any = 0
    every: Any = 0
    for site, writers in nodes:
        chosen = torch.zeros(len(defined.noising), dtype=torch.bool)
        chosen[writers] = True
        changes = defined.noising * chosen[:, None, None, None]
        for step in (0.25, 0.75):
            run = defined.gradients(defined.pairs.clean, defined.between(site, step))
            own = own + edge_scores(changes, run) / 2
        for step in (0.5, 1.0):
            run = defined.gradients(defined.pairs.clean, defined.between(site, step))
            every = every - edge_scores(defined.noising, run).mean(0) / (2 * len(nodes))
    return own, every


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_a_family_whose_attention_is_out_of_reach_is_refused(name: str) -> None:
    with pytest.raises(PointUnavailable, match="can't be attributed"):
        attribute_edges(opened(name), pairs_for(name))


@pytest.mark.parametrize("name", NORMED_STREAMS)
def test_a_family_whose_stream_is_no_sum_is_refused(name: str) -> None:
    with pytest.raises(PointUnavailable, match="Edges need a residual stream that is a sum"):
        attribute_edges(opened(name), pairs_for(name))
