"""What attribution graphs refuse before any work starts."""

import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings, sae_settings
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.intervene import intervene
from mechscope.graphs.replacement import random_transcoders
from mechscope.models.model import Model
from mechscope.models.opening import load, wrap
from mechscope.vocabulary.errors import (
    DictionaryMismatch,
    InterventionMismatch,
    NotOneToken,
    PointUnavailable,
    PositionOutOfRange,
    ShapeError,
)
from mechscope.vocabulary.sites import Site
from tiny_models import tiny


@pytest.fixture(scope="module")
def model() -> Model:
    return exact_model("llama")


def test_a_dictionary_of_another_width_is_refused_with_both_widths(model: Model) -> None:
    other = wrap(tiny("gpt2", n_embd=16), check=False)
    with pytest.raises(DictionaryMismatch, match="Dictionary 0 can't stand") as refusal:
        attribution_graph(model, random_transcoders(other, 8, seed=0, k=2), prompt())
    assert "width 16, the residual stream has 32" in refusal.value.because


def test_a_dictionary_of_a_layer_that_is_not_there_is_refused(model: Model) -> None:
    deep = wrap(tiny("llama", num_hidden_layers=5), check=False)
    with pytest.raises(PositionOutOfRange, match="of a layer") as refusal:
        attribution_graph(model, random_transcoders(deep, 8, seed=0, k=2), prompt())
    assert "mlp_in.3" in refusal.value.got and "3 layers" in refusal.value.because


def test_no_dictionary_and_what_is_none_are_refused(model: Model) -> None:
    with pytest.raises(DictionaryMismatch, match="at least one dictionary"):
        attribution_graph(model, [], prompt())
    with pytest.raises(DictionaryMismatch, match="made of dictionaries"):
        attribution_graph(model, ["transcoder"], prompt())


def test_two_dictionaries_that_write_one_site_are_refused(model: Model) -> None:
    given = dictionaries("llama")
    with pytest.raises(DictionaryMismatch) as refusal:
        attribution_graph(model, [given[0], given[0]], prompt())
    assert "dictionary 0 writes to the same site" in refusal.value.because


def test_a_dictionary_without_a_linear_encoder_is_refused(model: Model) -> None:
    settings = sae_settings("resid_post.0", width=32, n_latents=8, gate=Gate(rule="matching_pursuit", k=2))
    tensors = dictionaries("llama", "sae")[0].tensors
    pursuit = Dictionary(settings, {"W_dec": tensors["W_dec"][:8], "b_dec": tensors["b_dec"]})
    with pytest.raises(DictionaryMismatch) as refusal:
        attribution_graph(model, [pursuit], prompt())
    assert "matching pursuit" in refusal.value.because


def test_sites_that_the_graph_can_not_be_cut_at_are_refused(model: Model) -> None:
    one = dictionaries("llama", "sae")[0]
    port = Port(site=Site("resid_pre", 0), shape=(32,))
    moved = Dictionary(
        Settings(reads=(port,), writes=(port,), n_latents=one.n_latents, gate=one.settings.gate), one.tensors
    )
    with pytest.raises(PointUnavailable, match=r"writes resid_pre\.0"):
        attribution_graph(model, [moved], prompt())
    with pytest.raises(PointUnavailable):
        parallel = exact_model("gpt_neox")
        port = Port(site=Site("resid_mid", 0), shape=(32,))
        settings = Settings(reads=(port,), writes=(port,), n_latents=one.n_latents, gate=one.settings.gate)
        attribution_graph(parallel, [Dictionary(settings, one.tensors)], prompt())


def test_a_model_that_forms_no_pattern_is_refused() -> None:
    bloom = wrap(tiny("bloom"), check=False)
    with pytest.raises(PointUnavailable, match="can't be frozen") as refusal:
        attribution_graph(bloom, random_transcoders(bloom, 8, seed=0, k=2), prompt())
    assert "gpt2, llama" in refusal.value.instead


def test_unknown_targets_and_several_prompts_are_refused(model: Model) -> None:
    given = dictionaries("llama")
    with pytest.raises(PositionOutOfRange, match="outside the vocabulary"):
        attribution_graph(model, given, prompt(), targets=[999])
    with pytest.raises(InterventionMismatch, match="something to explain"):
        attribution_graph(model, given, prompt(), targets=[])
    with pytest.raises(InterventionMismatch, match="of two tokens"):
        attribution_graph(model, given, prompt(), targets=[(1, 2, 3)])
    with pytest.raises(ShapeError, match="one prompt"):
        attribution_graph(model, given, [prompt(), prompt()])
    with pytest.raises(PositionOutOfRange, match="leave out"):
        attribution_graph(model, given, prompt(), left_out=[12])
    with pytest.raises(DictionaryMismatch, match="two rules"):
        attribution_graph(model, given, prompt(), mlps="linear")
    village = load("village")
    with pytest.raises(NotOneToken):
        attribution_graph(
            village, random_transcoders(village, 8, seed=0, k=2), "Now Susan is", targets=["zzzz"]
        )


def test_a_graph_of_another_model_or_of_other_dictionaries_is_refused(model: Model) -> None:
    given = dictionaries("llama")
    graph = attribution_graph(model, given, prompt(), targets=[3])
    with pytest.raises(InterventionMismatch, match="not of") as refusal:
        intervene(exact_model("qwen3"), graph, transcoders=given, scale={0: 0.0})
    assert "weights_sha256" in refusal.value.because
    with pytest.raises(InterventionMismatch, match="not the dictionaries"):
        intervene(model, graph, transcoders=random_transcoders(model, 32, seed=2, k=3), scale={0: 0.0})


def test_interventions_that_mean_nothing_are_refused(model: Model) -> None:
    given = dictionaries("llama")
    graph = attribution_graph(model, given, prompt(), targets=[3])
    with pytest.raises(InterventionMismatch, match="no such mode"):
        intervene(model, graph, transcoders=given, scale={0: 0.0}, mode="loose")  # type: ignore[arg-type]
    with pytest.raises(InterventionMismatch, match="needs the layers"):
        intervene(model, graph, transcoders=given, scale={0: 0.0}, mode="range")
    with pytest.raises(InterventionMismatch, match="needs the layers"):
        intervene(model, graph, transcoders=given, scale={0: 0.0}, mode="range", layers=(0, 9))
    with pytest.raises(InterventionMismatch, match="can't be scaled"):
        intervene(model, graph, transcoders=given, scale={len(graph) - 1: 0.0})
    with pytest.raises(InterventionMismatch, match="nothing to scale"):
        intervene(model, graph, transcoders=given, scale={})
    with pytest.raises(PositionOutOfRange):
        intervene(model, graph, transcoders=given, scale={"mlp_in.0/999@0": 0.0})
