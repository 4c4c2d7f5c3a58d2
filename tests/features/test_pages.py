"""Pages, neighbours, queries and exports equal what dense arithmetic gives; hostile text stays text."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from family_cases import opened
from features.cases import N_LATENTS, built, corpus, dense_codes, dictionary_of, model_of
from mechscope.data.firing import Firing, is_dead, is_denser_than
from mechscope.features.exports import export_circuit_tracer, export_neuronpedia
from mechscope.features.index import FeatureIndex, open_index
from mechscope.features.manifest import IndexSettings
from mechscope.features.relations import logit_directions
from mechscope.vocabulary.errors import BadFile, PositionOutOfRange


def test_examples_are_the_strongest_tokens_of_different_rows(index: FeatureIndex) -> None:
    text, dense = corpus(), dense_codes(corpus())
    rows = np.repeat(np.arange(text.n_rows), text.lengths.numpy())
    for latent in (0, 6, 11):
        by_row = np.array([dense[rows == row, latent].max() for row in range(text.n_rows)])
        page = index[latent]
        wanted = np.sort(by_row[by_row > 0])[::-1][: len(page.top)]
        assert len(page.top) == min(12, (by_row > 0).sum())
        np.testing.assert_allclose([one.value for one in page.top], wanted, rtol=1e-6)
        for one in (example for group in page.groups for example in group.examples):
            low = one.token - one.peak
            strings = [index.strings[i] for i in text.ids[low : low + len(one.tokens)]]
            assert list(one.tokens) == strings and one.row == rows[one.token]
            np.testing.assert_allclose(one.values, dense[low : low + len(strings), latent], rtol=1e-6)
        for group in page.groups[1:]:
            assert all(group.low <= one.value <= group.high for one in group.examples)
            assert len({one.row for one in group.examples}) == len(group.examples)
        assert page.activity.fires == (dense[:, latent] != 0).sum() == page.activity.histogram.values.sum()


def test_logit_effects_are_what_a_push_along_the_decoder_does_at_a_fixed_norm(index: FeatureIndex) -> None:
    model, dictionary = model_of(), dictionary_of()
    scale = index.manifest.origin.norm_scale
    weight = dict(model.binding.final_norm.named_parameters())["weight"]
    logits = (dictionary.W_dec[3] * weight / scale) @ model.weights["W_U"]
    page = index[3]
    top = logits.topk(10)
    assert page.promoted is not None and page.suppressed is not None
    assert list(page.promoted.coords["token"]) == top.indices.tolist()
    np.testing.assert_allclose(page.promoted.values, top.values.detach().numpy(), rtol=1e-4)
    assert page.suppressed.values[0] == pytest.approx(float(logits.detach().min()), rel=1e-4)
    run = model.run(corpus().batch(range(16))[0], capture=["ln_final_scale"])
    scales = run["ln_final_scale"][..., 0][corpus().batch(range(16))[1]]
    assert scale == pytest.approx(float(scales.median()), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "granite"])
def test_a_push_is_followed_through_each_kind_of_head(family: str) -> None:
    """A LayerNorm centres, Gemma's norm multiplies by one more than its weight, Granite divides its logits."""
    model = opened(family)
    hf, push = model.hf, torch.randn(3, model.d_model, dtype=torch.float64, generator=torch.manual_seed(0))
    norm = hf.transformer.ln_f if family == "gpt2" else hf.model.norm
    centered = push - push.mean(1, keepdim=True) if family == "gpt2" else push
    weight = 1 + norm.weight if family == "gemma2" else norm.weight
    divided = hf.config.logits_scaling if family == "granite" else 1.0
    wanted = (centered * weight / 1.7) @ hf.lm_head.weight.T / divided
    assert divided != 1 or family != "granite"
    found = push.float() @ logit_directions(model, 1.7)
    torch.testing.assert_close(found, wanted.detach().float(), rtol=1e-4, atol=1e-5)


def test_neighbors_are_by_cosine_and_by_correlation_of_firing(index: FeatureIndex) -> None:
    dictionary = dictionary_of()
    for by, table in (("decoder", dictionary.W_dec), ("encoder", dictionary.W_enc.T)):
        unit = torch.nn.functional.normalize(table, dim=1)
        cosines = unit @ unit[4]
        cosines[4] = -2
        found = index.neighbors(4, by=by)
        assert [one.latent for one in found] == cosines.topk(10).indices.tolist()
        np.testing.assert_allclose([one.value for one in found], cosines.topk(10).values, atol=1e-3)
    fires = dense_codes(corpus())[corpus().counts.numpy()] != 0
    with np.errstate(invalid="ignore", divide="ignore"):
        phi = np.nan_to_num(np.corrcoef(fires.T.astype(float))[4])
    page = index[4]
    for one in page.neighbors["behavior"]:
        assert one.value == pytest.approx(phi[one.latent], abs=1e-9)
    phi[4] = -1
    assert page.neighbors["behavior"][0].latent == phi.argmax()
    share = (fires[fires[:, 4]]).mean(0)
    assert all(one.value == pytest.approx(share[one.latent]) for one in page.together)
    assert page.together[0].latent == 6 and page.together[0].value == 1


def test_dead_and_dense_latents_are_listed_and_shown(index: FeatureIndex) -> None:
    assert 5 in index.dead() and index.dense()[0] == 6
    assert index[5].activity.flag == "dead" and index[5].groups == () and index[6].activity.flag == "dense"
    assert "fires nowhere" in index[5].to_html()
    assert "dead" in repr(index) and "Latent 6" in repr(index[6])


def test_density_and_shares_have_intervals_over_rows(index: FeatureIndex) -> None:
    """As the same counts give that are made from dense codes."""
    text, dense = corpus(), dense_codes(corpus())
    rows = np.repeat(np.arange(text.n_rows), text.lengths.numpy())[text.counts.numpy()]
    tokens, latents = np.nonzero(dense[text.counts.numpy()])
    wanted = Firing.empty(n_units=text.n_rows, n_latents=N_LATENTS)
    wanted.add(rows, tokens=tokens, latents=latents)
    low, high = wanted.density_intervals(seed=0, n_resamples=1000)
    for latent in (0, 5, 6, 11):
        activity = index[latent].activity
        assert (activity.density_low, activity.density_high) == (low[latent], high[latent])
        assert activity.density_low <= activity.density <= activity.density_high
    assert index[5].activity.density_high > 0, "that it never fired here does not say that it never fires"
    shares = index.shares(dense=0.1)
    assert shares["dead"] == wanted.share(is_dead)
    assert shares["dense"] == wanted.share(is_denser_than(0.1))
    assert shares["dense"][0] == len(index.dense()) / N_LATENTS


def test_rows_in_groups_are_neighbours(index: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechscope.features.rates.MOST_GROUPS", 8)
    text, dense = corpus(), dense_codes(corpus())
    rows = np.repeat(np.arange(text.n_rows), text.lengths.numpy())[text.counts.numpy()]
    tokens, latents = np.nonzero(dense[text.counts.numpy()])
    wanted = Firing.empty(n_units=text.n_rows, n_latents=N_LATENTS, most_groups=8)
    wanted.add(rows, tokens=tokens, latents=latents)
    assert wanted.counts.shape == (8, N_LATENTS)
    assert index.shares()["dead"] == wanted.share(is_dead)
    low, high = wanted.density_intervals(seed=0, n_resamples=1000)
    activity = index[11].activity
    assert (activity.density_low, activity.density_high) == (low[11], high[11])


def test_a_latent_that_is_not_there_is_refused(index: FeatureIndex) -> None:
    with pytest.raises(PositionOutOfRange, match="no latent 24"):
        _ = index[N_LATENTS]
    with pytest.raises(PositionOutOfRange):
        index.label(-1, "x")
    with pytest.raises(BadFile, match="no feature index"):
        open_index("village/nowhere.9")


def test_a_page_is_one_safe_file_with_exact_values_on_hover(index: FeatureIndex, tmp_path: Path) -> None:
    index.label(6, "fires <b>always</b>")
    hostile = "</script><script>alert(1)</script>"
    page = index[6]
    group = page.groups[0]
    one = replace(group.examples[0], tokens=(hostile, *group.examples[0].tokens[1:]))
    page = replace(page, groups=(replace(group, examples=(one, *group.examples[1:])), *page.groups[1:]))
    page.save_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert hostile not in html and "&lt;/script&gt;" in html and "<b>always</b>" not in html
    assert "default-src &#x27;none&#x27;" in html and not re.search(r'(src|href)="(https?:)?//', html)
    assert f"{one.value:.4g}"[:4] in html
    assert "alert(1)</script>" not in page._repr_html_()
    assert page.plot() is not None


def test_a_query_sees_every_activation_beside_its_token(index: FeatureIndex) -> None:
    dense = dense_codes(corpus())
    counted = dict(index.query("select latent, count(*) from activations group by latent").fetchall())
    assert counted == {i: n for i, n in enumerate((dense != 0).sum(0).tolist()) if n}
    sql = "select t.token, t.text, a.value from activations a join tokens t using (token) where latent = 11"
    for token, text, value in index.query(sql + " order by token").fetchall():
        assert text == index.strings[int(corpus().ids[token])] and value == pytest.approx(dense[token, 11])
    assert index.query("select fires from latents where latent = 5").fetchall() == [(0,)]


def test_a_query_reads_an_index_in_half_precision(tmp_path: Path) -> None:
    index = built(tmp_path / "half", settings=IndexSettings(value_dtype="float16", entries_per_part=400))
    dense, sql = dense_codes(corpus()), "select latent, max(value) from activations group by latent"
    for _ in range(2):
        largest = dict(index.query(sql).fetchall())
        assert largest == pytest.approx({i: dense[:, i].max() for i in largest}, rel=1e-3)
    assert largest.keys() == set(np.flatnonzero((dense != 0).any(0)).tolist())
    of_one = "select count(*) from activations join tokens using (token) where latent = 11"
    assert index.query(of_one).fetchall() == [(int((dense[:, 11] != 0).sum()),)]
    of_village = open_index("village").query("select count(value) from activations").fetchall()
    assert of_village[0][0] > 100_000


def test_more_neighbors_than_the_index_keeps_are_found(tmp_path: Path) -> None:
    index = built(tmp_path / "few", settings=IndexSettings(n_neighbors=2))
    dense, dictionary = dense_codes(corpus()), dictionary_of()
    for by, table in (("decoder", dictionary.W_dec), ("encoder", dictionary.W_enc.T)):
        unit = torch.nn.functional.normalize(table, dim=1)
        cosines = (unit @ unit[4]).index_fill(0, torch.tensor([4]), -2).sort(descending=True)
        found = index.neighbors(4, by=by, k=7)
        assert [one.latent for one in found] == cosines.indices[:7].tolist()
        np.testing.assert_allclose([one.value for one in found], cosines.values[:7], atol=1e-6)
        assert [one.latent for one in index.neighbors(4, by=by, k=2)] == cosines.indices[:2].tolist()
        assert len(index.neighbors(4, by=by, k=1000)) == N_LATENTS - 1
    fires = (dense[corpus().counts.numpy()] != 0).T.astype(float)
    near = {one.latent: one.value for one in index.neighbors(11, by="behavior", k=N_LATENTS)}
    varying = [i for i in range(N_LATENTS) if 0 < fires[i].mean() < 1 and i != 11]
    phi = {i: np.corrcoef(fires[11], fires[i])[0, 1] for i in varying}
    assert near == pytest.approx({i: value for i, value in phi.items() if value > 0}, abs=1e-9)


def test_an_index_is_walked_latent_by_latent(index: FeatureIndex) -> None:
    assert [page.latent for page in index] == list(range(N_LATENTS))


def test_other_front_ends_get_their_files(index: FeatureIndex, tmp_path: Path) -> None:
    index.label(6, "everything")
    folder = export_circuit_tracer(index, tmp_path / "ct")
    told = json.loads((folder / "6.json").read_text())
    assert {"index", "examples_quantiles", "top_logits", "bottom_logits", "act_min", "act_max"} <= set(told)
    assert told["index"] == 6 and told["act_max"] == pytest.approx(index.statistics.largest[6])
    example = told["examples_quantiles"][0]["examples"][0]
    assert len(example["tokens"]) == len(example["tokens_acts_list"])
    assert not (folder / "5.json").exists()
    here = export_neuronpedia(index, tmp_path / "np", source_set="res")
    assert here == tmp_path / "np" / "tiny" / "1-res"
    for name in ("release", "model", "sourceset", "source"):
        assert json.loads((here / f"{name}.jsonl").read_text())
    rows = {
        kind: [
            json.loads(row)
            for row in gzip.decompress((here / kind / "batch-0.jsonl.gz").read_bytes()).splitlines()
        ]
        for kind in ("features", "activations", "explanations")
    }
    assert [row["index"] for row in rows["features"]] == [str(i) for i in range(N_LATENTS)]
    assert rows["explanations"][0]["description"] == "everything" and len(rows["explanations"]) == 1
    for row in rows["activations"]:
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
        assert row["modelId"] == "tiny" and row["layer"] == "1-res"
