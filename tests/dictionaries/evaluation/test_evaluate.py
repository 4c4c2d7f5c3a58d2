"""Evaluation on models: what is known comes out, for every kind, at the site written; masks and batches are right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mechscope as ms
from dictionaries.evaluation.known import (
    SITE,
    exact_cross_layer,
    exact_transcoder,
    identity,
    noisy,
    nothing_but,
    relu_model,
    texts,
    wrongly_placed,
)
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.estimates import Estimator
from mechscope.dictionaries.evaluation.result import Evaluation
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.dictionaries.settings import Port
from mechscope.vocabulary.errors import (
    DictionaryError,
    DictionaryMismatch,
    NonFiniteActivations,
)
from mechscope.vocabulary.sites import Site
from small_models import model_of

QUICK = EvaluationSettings(n_resamples=100)


def mean_at(site: str = SITE) -> torch.Tensor:
    model, text = model_of("llama"), texts()
    values = model.run(text, capture=[site]).cache[site]
    return values[text.mask.bool()].mean(0)


def test_the_identity_loses_nothing() -> None:
    model = model_of("llama")
    found = evaluate(identity(model.d_model), model, texts(), settings=QUICK)
    assert found["fvu"].value == pytest.approx(0, abs=1e-20)
    assert found["ce_recovered"].value == pytest.approx(1)
    assert found["kl_recovered"].value == pytest.approx(1)
    assert found["l0"].value == pytest.approx(model.d_model)
    assert found["ce_replaced"].value == pytest.approx(float(model.loss(texts())), rel=1e-6)


def test_the_mean_explains_nothing_and_recovers_nothing_of_a_mean_ablation() -> None:
    found = evaluate(nothing_but(mean_at()), model_of("llama"), texts(), settings=QUICK)
    assert found["fvu"].value == pytest.approx(1)
    assert found["ce_recovered"].value == pytest.approx(0, abs=1e-9)
    assert found["dead"].value == 1
    assert found["l0"].value == 0


def test_recovery_depends_on_the_ablation_that_is_declared() -> None:
    of_zero = evaluate(
        nothing_but(mean_at()), model_of("llama"), texts(), settings=replace(QUICK, ablation="zero")
    )
    zeros = evaluate(
        nothing_but(torch.zeros(32)), model_of("llama"), texts(), settings=replace(QUICK, ablation="zero")
    )
    assert zeros["ce_recovered"].value == pytest.approx(0, abs=1e-9)
    assert abs(of_zero["ce_recovered"].value) > 0.01
    assert of_zero.settings["ablation"] == "zero"


def test_kl_is_from_the_models_own_prediction_to_the_changed_one() -> None:
    """By hand, prompt by prompt without padding; the other way round it is another number."""
    model, text, dictionary = model_of("llama"), texts(5), noisy(identity(32), 0.1)
    mean = model.run(text, capture=[SITE]).cache[SITE][text.mask.bool()].mean(0)
    sums, others, n = {"kl_replaced": 0.0, "kl_ablated": 0.0}, 0.0, 0
    for row, n_pad in zip(text.ids, text.n_pad, strict=True):
        ids = row[None, int(n_pad) :]
        clean = model.logits(ids)[0, :-1].double().log_softmax(-1)
        changes = {
            "kl_replaced": ms.edit(SITE, dictionary),
            "kl_ablated": ms.edit(SITE, lambda value: mean.expand_as(value)),
        }
        for name, change in changes.items():
            changed = model.logits(ids, interventions=[change])[0, :-1].double().log_softmax(-1)
            sums[name] += float((clean.exp() * (clean - changed)).sum())
            others += float((changed.exp() * (changed - clean)).sum()) * (name == "kl_replaced")
        n += ids.shape[1] - 1
    found = evaluate(dictionary, model, text, settings=QUICK)
    for name, total in sums.items():
        assert found[name].value == pytest.approx(total / n, rel=1e-5)
    assert found["kl_recovered"].value == pytest.approx(
        1 - sums["kl_replaced"] / sums["kl_ablated"], rel=1e-5
    )
    assert abs(others - sums["kl_replaced"]) > 1e-3 * sums["kl_replaced"]


@pytest.mark.parametrize("make", [exact_transcoder, exact_cross_layer])
def test_an_exact_transcoder_is_replaced_at_the_site_written_and_loses_nothing(make) -> None:
    found = evaluate(make(), relu_model(), texts(), settings=QUICK)
    assert found["fvu"].value == pytest.approx(0, abs=1e-20)
    assert found["kl_replaced"].value == pytest.approx(0, abs=1e-9)
    assert found["ce_recovered"].value == pytest.approx(1)
    assert found.settings["values_read_in"] == "changed run"


def test_its_twin_written_at_the_site_read_is_seen() -> None:
    found = evaluate(wrongly_placed(exact_transcoder()), relu_model(), texts(), settings=QUICK)
    assert found["fvu"].value > 0.5
    assert found["kl_replaced"].value > 0.01


def test_a_cross_layer_transcoder_reads_on_in_the_changed_run() -> None:
    """Against three replacements in a row, each from a run with the earlier ones in place."""
    from mechscope.interventions.replace import patch

    model, text = relu_model(), texts(4)
    dictionary = noisy(exact_cross_layer(), 0.05)
    found = evaluate(dictionary, model, text, settings=replace(QUICK, batch_size=4))
    writes: list = []
    for layer in range(3):
        reads = [
            model.run(text, capture=[f"mlp_in.{i}"], interventions=writes).cache[f"mlp_in.{i}"]
            for i in range(3)
        ]
        values = torch.stack(reads, 2)
        written = dictionary(values)[:, :, layer]
        writes.append(patch(f"mlp_out.{layer}", written))
    loss = float(model.loss(text, interventions=writes))
    assert found["ce_replaced"].value == pytest.approx(loss, rel=1e-5)


def test_a_site_that_can_only_be_read_is_read_in_the_clean_run() -> None:
    transcoder = exact_transcoder()
    port = Port(site=Site("ln2_normalized", 1), shape=(32,))
    moved = Dictionary(replace(transcoder.settings, reads=(port,)), transcoder.tensors)
    found = evaluate(moved, relu_model(), texts(4), settings=QUICK)
    assert found.settings["values_read_in"] == "clean run"
    assert found["kl_replaced"].value > 0


def test_the_batch_size_changes_no_figure() -> None:
    model, dictionary = model_of("llama"), noisy(identity(32), 0.1)
    small, large = (
        evaluate(dictionary, model, texts(), settings=replace(QUICK, batch_size=n)) for n in (1, 12)
    )
    for name, one in small.figures.items():
        assert one.value == pytest.approx(large[name].value, rel=1e-6, abs=1e-9), name


def test_padding_does_not_count() -> None:
    model, dictionary, text = model_of("llama"), noisy(identity(32), 0.1), texts()
    found = evaluate(dictionary, model, text, settings=replace(QUICK, losses=False))
    assert found.n_tokens == int(text.n_real.sum())
    rows = [model.run([text.row(i)], capture=[SITE]).cache[SITE][0] for i in range(len(text))]
    target = torch.cat(rows)
    error = (target - dictionary(target)).square().sum()
    assert found["fvu"].value == pytest.approx(
        float(error / (target - target.mean(0)).square().sum()), rel=1e-6
    )


def test_special_tokens_are_left_out_and_left_alone() -> None:
    class Tokenizer:
        all_special_ids = (7,)
        pad_token_id = None

    model, text = model_of("gpt2"), texts()
    dictionary = nothing_but(torch.zeros(32), "resid_post.1")
    without = evaluate(dictionary, model, text, settings=replace(QUICK, ablation="mean"))
    keeper, model.tokenizer = model.tokenizer, Tokenizer()
    try:
        found = evaluate(dictionary, model, text, settings=replace(QUICK, ablation="mean"))
        kept = evaluate(dictionary, model, text, settings=replace(QUICK, skips_special=False))
    finally:
        model.tokenizer = keeper
    n_special = int(((text.ids == 7) & text.mask.bool()).sum())
    assert n_special
    assert found.n_tokens == without.n_tokens - n_special
    assert found["ce_replaced"].value != pytest.approx(without["ce_replaced"].value, rel=1e-6)
    assert kept["ce_replaced"].value == pytest.approx(without["ce_replaced"].value, rel=1e-9)


def test_heads_are_shaped_as_the_model_has_them() -> None:
    model = model_of("llama")
    found = evaluate(identity(40, "z.1"), model, texts(4), settings=QUICK)
    assert found["kl_replaced"].value == pytest.approx(0, abs=1e-9)


def test_a_crosscoder_is_replaced_at_all_its_sites() -> None:
    model = model_of("llama")
    one, eye = identity(32), torch.eye(64, dtype=torch.float64)
    ports = tuple(Port(site=Site("resid_post", i), shape=(32,)) for i in (0, 1))
    settings = replace(one.settings, reads=ports, writes=ports, n_latents=128)
    tensors = {
        "W_enc": torch.cat([eye, -eye], 1).reshape(2, 32, 128),
        "b_enc": torch.zeros(128).double(),
        "W_dec": torch.cat([eye, -eye], 0).reshape(128, 2, 32),
        "b_dec": torch.zeros(2, 32).double(),
    }
    found = evaluate(Dictionary(settings, tensors), model, texts(4), settings=QUICK)
    assert found["fvu"].value == pytest.approx(0, abs=1e-20)
    assert found["kl_replaced"].value == pytest.approx(0, abs=1e-9)
    assert found.settings["values_read_in"] == "clean run"


def test_each_tokens_error_averages_to_the_whole() -> None:
    settings = replace(QUICK, losses=False, keeps_tokens=True)
    found = evaluate(noisy(identity(32), 0.1), model_of("llama"), texts(), settings=settings)
    assert len(found.token_error) == found.n_tokens
    assert found.token_error.mean() == pytest.approx(found["fvu"].value, rel=1e-9)


def test_densities_and_shares_of_latents_have_intervals_over_prompts() -> None:
    model = model_of("llama")
    found = evaluate(noisy(identity(32), 0.1), model, texts(), settings=QUICK)
    for name in ("dead", "dense_1_percent", "dense_10_percent"):
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].method in ("jackknife", "clopper-pearson")
        assert name in found.to_saebench()["eval_result_unstructured"]["intervals_95"]
    low, high = found.latents["density_low"], found.latents["density_high"]
    assert (low <= found.density).all() and (found.density <= high).all()
    text = texts()
    values = model.run(text, capture=[SITE]).cache[SITE]
    fires = (noisy(identity(32), 0.1).encode(values) != 0) & text.mask.bool()[..., None]
    columns = np.stack([text.n_real.numpy(), fires.sum(1)[:, 3].numpy()], axis=1).astype(float)
    wanted = Estimator(len(text), n_resamples=100).ratio(columns[:, 1], columns[:, 0])
    assert (low[3], high[3]) == pytest.approx((wanted.low, wanted.high))


def test_it_is_saved_and_opened_as_it_was(tmp_path: Path) -> None:
    found = evaluate(noisy(identity(32), 0.1), model_of("llama"), texts(4), settings=QUICK)
    found.save(tmp_path / "evaluation.json")
    back = Evaluation.load(tmp_path / "evaluation.json")
    assert back.figures == found.figures
    assert np.array_equal(back.density, found.density)
    assert back.settings == found.settings
    assert "l0" in repr(back)
    assert back.histogram().values.sum() == 64


def test_the_json_of_saebench_holds_the_same_numbers() -> None:
    found = evaluate(noisy(identity(32), 0.1), model_of("llama"), texts(4), settings=QUICK)
    saved = found.to_saebench()
    metrics = saved["eval_result_metrics"]
    assert saved["eval_type_id"] == "core"
    assert metrics["sparsity"]["l0"] == found["l0"].value
    assert metrics["reconstruction_quality"]["explained_variance"] == found["r2"].value
    assert metrics["model_performance_preservation"]["ce_loss_score"] == found["ce_recovered"].value
    assert saved["sae_cfg_dict"]["d_in"] == 32
    assert len(saved["eval_result_details"]) == 64


def test_numbers_of_each_latent_are_those_of_a_loop_over_prompts(tmp_path: Path) -> None:
    model, text, dictionary = model_of("llama"), texts(6), noisy(identity(32), 0.1)
    found = evaluate(dictionary, model, text, settings=EvaluationSettings(losses=False, batch_size=4))
    active = []
    for row in range(6):
        one = text.select([row])
        values = model.run(one, capture=[SITE]).cache[SITE][one.mask.bool()].double()
        active.append((dictionary.encode(values) != 0).sum(0))
    per_prompt = torch.stack(active)
    wanted = per_prompt.sum(0) / (per_prompt > 0).sum(0).clamp_min(1)
    np.testing.assert_allclose(found.latents["tokens_per_prompt"], wanted.numpy())
    columns = dictionary.W_enc.T
    np.testing.assert_allclose(found.latents["encoder_norm"], columns.norm(dim=1).numpy())
    cosines = torch.nn.functional.normalize(columns, dim=1) * torch.nn.functional.normalize(
        dictionary.W_dec, dim=1
    )
    np.testing.assert_allclose(found.latents["encoder_decoder_cosine"], cosines.sum(1).numpy())
    found.save(tmp_path / "evaluation.json")
    back = Evaluation.load(tmp_path / "evaluation.json")
    assert (
        all(np.array_equal(back.latents[name], one) for name, one in found.latents.items()) and back.latents
    )
    detail = back.to_saebench()["eval_result_details"][3]
    assert set(detail) == FIELDS_OF_A_LATENT and detail["encoder_norm"] == found.latents["encoder_norm"][3]
    across = evaluate(exact_transcoder(), relu_model(), texts(4), settings=EvaluationSettings(losses=False))
    assert "encoder_decoder_cosine" not in across.latents and len(across.latents["encoder_norm"]) > 0


FIELDS_OF_A_LATENT = {  # of SAEBench's CoreFeatureMetric, all of them required
    "index",
    "feature_density",
    "consistent_activation_heuristic",
    "encoder_bias",
    "encoder_norm",
    "encoder_decoder_cosine_sim",
}


def test_a_dictionary_that_writes_nothing_is_wholly_shrunk_and_no_figure_is_undefined() -> None:
    silent = nothing_but(torch.zeros(32))
    found = evaluate(silent, model_of("llama"), texts(4), settings=QUICK)
    assert found["shrinkage"].value == 0 and found["l0"].value == 0 and found["norm_ratio"].value == 0
    saved = json.loads(json.dumps(found.to_saebench(), allow_nan=False))
    assert saved["eval_result_metrics"]["shrinkage"]["relative_reconstruction_bias"] == 0


def test_a_dictionary_of_another_width_is_refused_with_both_widths() -> None:
    with pytest.raises(DictionaryMismatch, match="does not belong") as refusal:
        evaluate(identity(16), model_of("llama"), texts(4))
    assert "16" in refusal.value.because
    assert "32" in refusal.value.because


def test_a_site_that_the_model_does_not_form_is_refused() -> None:
    with pytest.raises(DictionaryMismatch, match="does not belong"):
        evaluate(identity(32, "resid_post.9"), model_of("llama"), texts(4))


def test_activations_that_are_no_numbers_are_refused() -> None:
    from mechscope.models.opening import wrap
    from tiny_models import tiny

    model = wrap(tiny("gpt2", torch.float64, seed=5), check=False)
    with torch.no_grad():
        model.hf.transformer.wte.weight[int(texts(4).ids[0, -1])] = float("nan")
    with pytest.raises(NonFiniteActivations, match="not a number"):
        evaluate(identity(32), model, texts(4))


def test_an_ablation_without_a_name_is_refused() -> None:
    with pytest.raises(DictionaryError, match="ablation"):
        EvaluationSettings(ablation="noise")
