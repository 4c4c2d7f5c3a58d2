"""Probing and absorption on planted concepts: what is there is found, what is not is not, and the twin shows it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from family_cases import opened
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.absorption import (
    AbsorptionSettings,
    absorption,
    first_letter_absorption,
    first_letters,
    fractions,
)
from mechscope.dictionaries.evaluation.probing import auroc, sparse_probing
from mechscope.dictionaries.evaluation.saebench import absorption_to_saebench, probing_to_saebench
from mechscope.dictionaries.settings import Gate, Port, Settings, sae_settings
from mechscope.vocabulary.errors import DictionaryMismatch, MissingTokenizer, NotEnoughEvidence
from mechscope.vocabulary.sites import Site

N, D = 3000, 12
EYE = torch.eye(D, dtype=torch.float64)
PARENT, CHILD = EYE[0], EYE[1]


def world(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with a parent concept, a child that implies it, and other features; parent and child labels."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(N, generator=generator)
    parent, child = chance < 0.5, chance < 0.015  # three in a hundred of the parent
    others = torch.rand(N, D - 2, generator=generator, dtype=torch.float64)
    others = others * (torch.rand(N, D - 2, generator=generator) < 0.2)
    values = parent[:, None] * PARENT + child[:, None] * CHILD
    values[:, 2:] = values[:, 2:] + others
    noise = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return values + 0.01 * noise, parent, child


def sae(encoder: Tensor, decoder: Tensor, bias: float = -0.2) -> Dictionary:
    """Encoder and decoder by rows."""
    n = len(encoder)
    settings = sae_settings("resid_post.1", width=D, n_latents=n, gate=Gate(rule="relu"))
    tensors = {"W_enc": encoder.T.clone(), "b_enc": torch.full((n,), bias).double(), "W_dec": decoder}
    return Dictionary(settings, tensors | {"b_dec": torch.zeros(D).double()})


def absorbing() -> Dictionary:
    """The child's latent writes parent and child; the parent's latent is silent where the child is."""
    encoder, decoder = EYE.clone(), EYE.clone()
    encoder[0] = PARENT - 2 * CHILD
    decoder[1] = PARENT + CHILD
    return sae(encoder, decoder)


def faithful() -> Dictionary:
    return sae(EYE, EYE)


def test_a_concept_with_a_latent_is_found_by_one_and_not_in_shuffled_labels() -> None:
    values, parent, _ = world()
    found = sparse_probing(faithful().encode(values), parent, values=values)
    assert found.auroc[1].value > 0.98
    assert found.latents[1] == (0,)
    assert found.auroc[1].low <= found.auroc[1].value <= found.auroc[1].high
    assert found.dense is not None
    assert found.dense.value > 0.98
    assert abs(found.shuffled.value - 0.5) < 0.15


def test_a_concept_that_is_not_there_is_not_found() -> None:
    values, parent, _ = world()
    absent = parent[torch.randperm(N, generator=torch.Generator().manual_seed(3))]
    found = sparse_probing(SparseCodes.of(faithful().encode(values)), absent)
    assert all(abs(one.value - 0.5) < 0.15 for one in found.auroc.values())


def test_two_latents_say_what_one_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(N, 2, generator=generator) < 0.3
    found = sparse_probing(parts.double(), parts.any(1), k=(1, 2))
    assert found.auroc[2].value == pytest.approx(1)
    assert found.auroc[1].value < 0.9


def test_probes_divide_by_prompt_and_refuse_few_examples() -> None:
    values, parent, _ = world()
    units = torch.arange(N) // 6
    assert sparse_probing(values, parent, units=units, k=(1,)).auroc[1].value > 0.95
    rare = torch.zeros(N, dtype=torch.bool)
    rare[:8] = True
    with pytest.raises(NotEnoughEvidence, match="too few examples"):
        sparse_probing(values, rare)


def test_the_area_counts_ties_half() -> None:
    score, truth = np.array([1.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])
    pairs = [(score[i] > score[j]) + 0.5 * (score[i] == score[j]) for i in (0, 2) for j in (1, 3)]
    assert auroc(score, truth) == pytest.approx(np.mean(pairs))


def test_results_say_what_was_done_about_the_first_token() -> None:
    values, parent, _ = world()
    codes = faithful().encode(values)
    for bos in ("removed", None):
        assert sparse_probing(codes, parent, k=(1,), bos=bos).bos == bos
        assert absorption(faithful(), values, labels=parent, bos=bos).bos == bos


def test_absorption_is_found_where_a_child_has_taken_the_parent_in() -> None:
    values, parent, child = world()
    found = absorption(absorbing(), values, labels=parent)
    share = float(child[parent].double().mean())
    assert found.main == (0,)
    assert found.absorbed.value == pytest.approx(share, abs=0.02)
    assert set(found.absorbers) == {1}
    assert found.absorbed.low <= found.absorbed.value <= found.absorbed.high


def test_what_points_too_little_along_the_probe_does_not_absorb() -> None:
    values, parent, child = world()
    found = absorption(
        absorbing(), values, labels=parent, settings=AbsorptionSettings(least_cosine=0.9)
    )  # the child's latent writes parent + child: a cosine of 0.71
    assert found.missed.value == pytest.approx(float(child[parent].double().mean()), abs=0.02)
    assert found.absorbed.value == 0 and not found.absorbers


def test_its_twin_without_absorption_shows_none() -> None:
    values, parent, _ = world()
    found = absorption(faithful(), values, labels=parent)
    assert found.main == (0,)
    assert found.absorbed.value == 0
    assert found.missed.value < 0.05


def test_a_latent_that_is_silent_without_an_absorber_is_missed_not_absorbed() -> None:
    values, parent, child = world()
    encoder, decoder = EYE.clone(), EYE.clone()
    encoder[0], encoder[1] = PARENT - 2 * CHILD, 0
    found = absorption(sae(encoder, decoder), values, labels=parent)
    assert found.missed.value == pytest.approx(float(child[parent].double().mean()), abs=0.02)
    assert found.absorbed.value == 0


def test_a_concept_split_over_two_latents_has_two_main_ones() -> None:
    values, parent, _ = world()
    kind = torch.arange(N) % 2 == 0
    values = values.clone()
    values[parent & kind, 1] = (
        1  # half of the concept's tokens carry a second feature, and its latent takes them
    )
    encoder, decoder = EYE.clone(), EYE.clone()
    encoder[0] = PARENT - 2 * CHILD
    found = absorption(sae(encoder, decoder), values, labels=parent)
    assert set(found.main) == {0, 1}
    assert found.absorbed.value == 0


def test_a_concept_that_activations_do_not_show_is_refused() -> None:
    values, parent, _ = world()
    absent = parent[torch.randperm(N, generator=torch.Generator().manual_seed(3))]
    with pytest.raises(NotEnoughEvidence, match="do not show"):
        absorption(faithful(), values, labels=absent)


def test_a_transcoder_is_refused() -> None:
    one = faithful()
    ports = [Port(site=Site(point, 1), shape=(D,)) for point in ("mlp_in", "mlp_out")]
    settings = Settings(reads=(ports[0],), writes=(ports[1],), n_latents=D, gate=Gate(rule="relu"))
    values, parent, _ = world()
    with pytest.raises(DictionaryMismatch, match="SAEs"):
        absorption(Dictionary(settings, one.tensors), values, labels=parent)


class Letters:
    """A tokenizer whose token n is a word that begins with letter n mod 4, some after a space; 36 is a comma."""

    all_special_ids = ()
    pad_token_id = None

    def decode(self, ids: list[int]) -> str:
        return "," if ids[0] == 36 else " "[: ids[0] % 2] + "AbCd"[ids[0] % 4] + "xyz"


def test_first_letters_of_any_tokenizer() -> None:
    model = opened("llama")
    with pytest.raises(MissingTokenizer):
        first_letters(model, torch.tensor([1]))
    keeper, model.tokenizer = model.tokenizer, Letters()
    try:
        assert first_letters(model, torch.tensor([0, 1, 2, 3, 36])) == ["a", "b", "c", "d", ""]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 37, (40, 10), generator=generator)
        width = model.d_model
        eye = torch.eye(width, dtype=torch.float64)
        tensors = {
            "W_enc": eye,
            "b_enc": torch.zeros(width).double(),
            "W_dec": eye,
            "b_dec": torch.zeros(width).double(),
        }
        settings = sae_settings("embed", width=width, n_latents=width, gate=Gate(rule="relu"))
        found = first_letter_absorption(Dictionary(settings, tensors), model, ids)
        again = first_letter_absorption(
            Dictionary(settings, tensors), model, replace(model.tokens(ids), bos="removed")
        )
    finally:
        model.tokenizer = keeper
    assert set(found) <= set("abcd")
    assert all(0 <= one.absorbed.value <= 1 and one.probe_auroc >= 0.8 for one in found.values())
    assert {one.bos for one in found.values()} == {"given"} and {one.bos for one in again.values()} == {
        "removed"
    }


def test_the_fraction_is_the_share_that_others_have_in_what_is_written() -> None:
    values, parent, _ = world()
    full = absorption(absorbing(), values, labels=parent)
    assert full.fraction.value == pytest.approx(full.absorbed.value, abs=0.02), (
        "all of it, where it is absorbed"
    )
    assert absorption(faithful(), values, labels=parent).fraction.value == 0
    rows = np.array([[1.0, 0.0], [0.8, 0.0], [0.05, 1.0]])  # the last one hardly points along the probe
    codes = np.array([[0.5, 0.625, 0], [0.5, 0.25, 9], [1.2, 1, 0], [0, 2, 0], [0.2, 2, 0]])
    needed, along = np.ones(5), np.array([1.0, 0.0])
    taken = fractions(codes, rows, direction=along, main=[0], settings=AbsorptionSettings(), needed=needed)
    # half of it; under 0.4 of what is needed; the main one writes enough; all; 0.8 of it, not 1.6 of 1.8
    assert taken == pytest.approx([0.5, 0, 0, 1, 0.8])


def test_probes_say_what_share_of_tokens_they_get_right() -> None:
    values, parent, _ = world()
    codes = faithful().encode(values)
    found = sparse_probing(codes, parent, k=(1, 5), values=values)
    assert found.accuracy[1].value > 0.97 and found.dense_accuracy.value > 0.97
    assert found.accuracy[1].low <= found.accuracy[1].value <= found.accuracy[1].high
    assert found.share_with == pytest.approx(float(parent.double().mean()), abs=0.03)
    absent = parent[torch.randperm(N, generator=torch.Generator().manual_seed(3))]
    assert sparse_probing(codes, absent, k=(5,)).accuracy[5].value == pytest.approx(0.5, abs=0.06)
    assert sparse_probing(codes, parent, k=(1,)).dense_accuracy is None


def test_absorption_and_probes_are_written_with_every_field_that_saebench_requires() -> None:
    values, parent, _ = world()
    letters = {
        "a": absorption(absorbing(), values, labels=parent),
        "b": absorption(faithful(), values, labels=parent),
    }
    saved = json.loads(json.dumps(absorption_to_saebench(letters, absorbing()), allow_nan=False))
    assert saved["eval_type_id"] == "absorption_first_letter"
    scores = ("absorption_fraction_score", "full_absorption_score", "num_split_features")
    mean = saved["eval_result_metrics"]["mean"]
    assert set(mean) == {f"{how}_{name}" for how in ("mean", "std_dev") for name in scores}
    assert mean["mean_full_absorption_score"] == pytest.approx(letters["a"].absorbed.value / 2)
    assert set(saved["eval_result_details"][0]) == {
        "first_letter",
        "mean_absorption_fraction",
        "full_absorption_rate",
        "num_full_absorption",
        "num_probe_true_positives",
        "num_split_features",
    }
    detail = saved["eval_result_details"][0]
    rate = detail["num_full_absorption"] / detail["num_probe_true_positives"]
    assert rate == pytest.approx(detail["full_absorption_rate"])
    with pytest.raises(NotEnoughEvidence, match="first letters"):
        absorption_to_saebench({"a": letters["a"]}, absorbing())
    with pytest.raises(NotEnoughEvidence, match="first letters"):
        absorption_to_saebench(letters | {"mood": letters["a"]}, absorbing())

    probes = {"parent": sparse_probing(faithful().encode(values), parent, k=(1, 3), values=values)}
    saved = json.loads(json.dumps(probing_to_saebench(probes, faithful()), allow_nan=False))
    assert saved["eval_type_id"] == "sparse_probing"
    assert saved["eval_result_metrics"] == {
        "llm": {"llm_test_accuracy": probes["parent"].dense_accuracy.value},
        "sae": {"sae_top_1_test_accuracy": probes["parent"].accuracy[1].value},
    }
    assert saved["eval_result_details"][0]["dataset_name"] == "parent"
    assert saved["eval_result_unstructured"]["intervals_95"]["parent: k = 3"]
    again = probing_to_saebench(probes, faithful())
    assert again["eval_id"] == saved["eval_id"], "equal numbers, equal ids"
    with pytest.raises(NotEnoughEvidence, match="activations"):
        probing_to_saebench({"x": sparse_probing(faithful().encode(values), parent)}, faithful())
