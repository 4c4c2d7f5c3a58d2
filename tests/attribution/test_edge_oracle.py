"""Edge attribution from an ordinary run equals gradients at split inputs, on every family."""

import pytest
import torch
from torch import Tensor

from arithmetic_forward import in_double
from attribution.split_inputs import SplitInputs, edge_scores
from family_cases import FAMILIES, opened
from mechscope.attribution.edges import attribute_edges
from mechscope.attribution.settings import EdgeSettings
from mechscope.vocabulary.errors import PointUnavailable
from patching.drawn_pairs import DrawnPairs, random_pairs

OUT_OF_REACH = ("bloom", "falcon_7b", "falcon_40b", "falcon_rw")


def pairs_for(name: str) -> DrawnPairs:
    return random_pairs(opened(name), lengths=(9, 6), differ_at=(1, 3))


def by_definition(name: str, pairs: DrawnPairs, *, is_noising: bool) -> Tensor:
    def metric(logits: Tensor) -> Tensor:
        answers, wrong = torch.tensor(pairs.metric.answers), torch.tensor(pairs.metric.wrong)  # type: ignore
        last = logits[:, -1]
        return (last.gather(1, answers) - last.gather(1, wrong))[:, 0]

    donor, recipient = (pairs.corrupt, pairs.clean) if is_noising else (pairs.clean, pairs.corrupt)
    return edge_scores(SplitInputs(opened(name).hf), donor, recipient, metric)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in OUT_OF_REACH])
def test_scores_equal_gradients_at_split_inputs(name: str) -> None:
    pairs = pairs_for(name)
    with in_double():
        found = attribute_edges(opened(name), pairs, method="eap", direction="noising")
        wanted = by_definition(name, pairs, is_noising=True)
    assert found.pairs is not None
    assert found.pairs.shape == wanted.shape
    assert float((found.pairs - wanted).abs().max()) < 1e-10 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "native_parallel"])
def test_denoising_takes_the_gradient_in_the_corrupt_run(name: str) -> None:
    pairs = pairs_for(name)
    with in_double():
        found = attribute_edges(opened(name), pairs, direction="denoising")
        wanted = by_definition(name, pairs, is_noising=False)
        other = by_definition(name, pairs, is_noising=True)
    assert found.pairs is not None
    torch.testing.assert_close(found.pairs, wanted, rtol=0, atol=1e-10)
    assert float((found.pairs - other).abs().max()) > 1e-3  # the twin: the other direction is something else


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_a_family_whose_attention_is_out_of_reach_is_refused(name: str) -> None:
    with pytest.raises(PointUnavailable, match="can't be attributed"):
        attribute_edges(opened(name), pairs_for(name), settings=EdgeSettings())
