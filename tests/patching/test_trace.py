"""Causal tracing: noise on the subject, one place restored; by its definition and on a known mechanism."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mechscope.engine import execute
from mechscope.interventions.replace import patch
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.patching.trace import causal_trace
from mechscope.patching.trace_result import CausalTrace
from mechscope.patching.trace_settings import TraceSettings, window_around
from mechscope.records.seeds import generator_for
from mechscope.specimens.induction import truth
from mechscope.vocabulary.errors import (
    BadPairs,
    InterventionMismatch,
    PointUnavailable,
    PositionOutOfRange,
)
from patching.drawn_pairs import induction_pairs, random_pairs, specimen
from tiny_models import tiny

TOLERANCE = 1e-10
SUBJECT = [2, 3]
ANSWERS = [5, 6, 7]
SETTINGS = TraceSettings(n_draws=2, seed=3)
_OPEN: dict[str, Model] = {}


def opened(family: str) -> Model:
    """One tiny model a family, in double precision."""
    if family not in _OPEN:
        _OPEN[family] = wrap(tiny(family, torch.float64), check=False)
    return _OPEN[family]


def noise_of(model: Model, tokens: torch.Tensor, at: str, draw: int) -> torch.Tensor:
    """The embeddings of prompts of one length under one draw, from the definition."""
    value = model.run(tokens, capture=[at]).cache[at].clone()
    spread = 3 * value[:, SUBJECT].std(correction=0)
    for row in range(len(tokens)):
        drawn = generator_for(SETTINGS.seed, "causal trace", draw, row).standard_normal((2, value.shape[-1]))
        value[row, SUBJECT] += spread * torch.from_numpy(drawn)
    return value


def probability(model: Model, tokens: torch.Tensor, writes: list) -> np.ndarray:
    """Probability of each row's answer after its last token."""
    chances = model.logits(tokens, interventions=writes)[:, -1].softmax(-1)
    return np.array([float(chances[row, answer]) for row, answer in enumerate(ANSWERS)])


@pytest.mark.parametrize(
    ("family", "site", "window"),
    [("gpt2", "resid_post", 1), ("llama", "attn_out", 2), ("llama", "mlp_out", 3)],
)
def test_a_trace_equals_one_forward_a_cell_and_draw(family: str, site: str, window: int) -> None:
    model = opened(family)
    tokens = random_pairs(model, lengths=(5, 5, 5)).clean.ids
    settings = TraceSettings(n_draws=2, seed=3, window=window)
    trace = causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, site=site, settings=settings)
    clean = model.run(tokens, capture=f"{site}.*")
    noise = [patch("resid_pre.0", noise_of(model, tokens, "resid_pre.0", draw)) for draw in range(2)]
    corrupted = np.mean([probability(model, tokens, [write]) for write in noise], axis=0)
    assert np.abs(trace.corrupted.values - corrupted).max() < TOLERANCE
    assert np.abs(trace.clean.values - probability(model, tokens, [])).max() < TOLERANCE
    for layer in range(model.n_layers):
        for position in range(1, 5):
            cells = [
                patch(f"{site}.{near}", clean, positions=position)
                for near in window_around(layer, window, model.n_layers)
            ]
            found = np.mean([probability(model, tokens, [write, *cells]) for write in noise], axis=0)
            effect = trace.per_prompt.sel(layer=layer, pos=position).values
            assert np.abs(effect - (found - corrupted)).max() < TOLERANCE


def test_cells_of_a_draw_share_one_base_run_under_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plans = opened("gpt2"), []
    make = execute.lay_out
    monkeypatch.setattr(execute, "lay_out", lambda *a, **k: plans.append(make(*a, **k)) or plans[-1])
    tokens = random_pairs(model, lengths=(6, 6, 6)).clean.ids
    causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, settings=SETTINGS)
    (plan,) = plans
    assert len(plan.groups) == SETTINGS.n_draws
    n_cells = model.n_layers * 4  # from the subject's first token on
    for group in plan.groups:
        assert [str(site) for _, sites in group.entry for site in sites] == ["resid_pre.0"]
        assert len(group.experiments) == 1 + n_cells


def test_noise_at_the_first_layers_input_is_noise_on_the_embeddings() -> None:
    model = opened("gpt2")
    tokens = random_pairs(model, lengths=(6, 6, 6)).clean.ids
    drawn = (
        noise_of(model, tokens, "resid_pre.0", 0) - model.run(tokens, capture="resid_pre.0")["resid_pre.0"]
    )
    embedded = model.run(tokens, capture="embed")["embed"]
    at_embeddings = probability(model, tokens, [patch("embed", embedded + drawn)])
    settings = TraceSettings(n_draws=1, seed=3)
    trace = causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, settings=settings)
    assert np.abs(trace.corrupted.values - at_embeddings).max() < TOLERANCE


def test_restoring_the_end_of_the_stream_restores_everything_and_before_the_subject_nothing() -> None:
    model = opened("llama")
    tokens = random_pairs(model, lengths=(6, 6, 6)).clean.ids
    trace = causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, settings=SETTINGS)
    total = trace.clean.values - trace.corrupted.values
    assert np.abs(trace.per_prompt.sel(layer=2, pos=5).values - total).max() < TOLERANCE
    assert abs(trace.values.sel(layer=2, pos=5).values - trace.total_effect) < TOLERANCE
    assert (trace.per_prompt.sel(pos=[0, 1]).values == 0).all()
    assert (trace.per_prompt.sel(layer=0, pos=[2, 3]).values != 0).all()


def test_a_prompts_noise_does_not_depend_on_its_padding() -> None:
    model = opened("llama")
    long, short = [9, 3, 4, 5, 6, 7, 8, 2], [1, 3, 4, 5, 6]
    settings = TraceSettings(n_draws=2)
    level = causal_trace(model, [short], subject=[1, 2], answers=[5], settings=settings)
    padded = causal_trace(model, [short, long], subject=[[1, 2], [1, 2]], answers=[5, 6], settings=settings)
    assert padded.values.coords["pos"] == (-5, -4, -3, -2, -1)
    # the noise level is over all subjects given, so the tokens of both subjects are the same here
    assert np.abs(padded.per_prompt.values[..., 0] - level.per_prompt.values[..., 0]).max() < TOLERANCE


def test_windows_are_clipped_at_both_ends() -> None:
    assert [list(window_around(layer, 10, 12)) for layer in (0, 5, 11)] == [
        [0, 1, 2, 3, 4],
        list(range(10)),
        [6, 7, 8, 9, 10, 11],
    ]
    assert list(window_around(3, 1, 12)) == [3]


def test_a_window_of_some_layers_still_restores_their_neighbours() -> None:
    model = opened("gpt2")
    tokens = random_pairs(model, lengths=(6, 6, 6)).clean.ids
    settings = TraceSettings(n_draws=1, window=3)
    some = causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, site="mlp_out.1", settings=settings)
    every = causal_trace(model, tokens, subject=SUBJECT, answers=ANSWERS, site="mlp_out", settings=settings)
    assert np.abs(some.values.values[0] - every.values.values[1]).max() < TOLERANCE


def test_tracing_finds_where_the_specimen_keeps_what_the_noise_destroyed() -> None:
    model = specimen()
    pairs = induction_pairs(model, "key", n=1)
    row = pairs.clean.row(0)
    first = row.index(row[-1])  # the query word's first occurrence, which the previous-token head copies
    trace = causal_trace(
        model,
        [row],
        subject=[first],
        answers=[pairs.metric.answers[0][0]],  # type: ignore[attr-defined]
        site="attn_out",
        settings=TraceSettings(window=1, n_draws=8),
    )
    assert trace.total_effect > 0.5
    (read, at_end), (copied, at_key), (_, third) = trace.top(3, by="largest")
    assert (read["layer"], read["pos"]) == (truth.INDUCTION[0], len(row) - 1)
    assert (copied["layer"], copied["pos"]) == (truth.PREVIOUS_TOKEN[0], first + 1)
    assert at_end > 0.95 * trace.total_effect
    # restoring the copied key is not enough against every draw: the noisy word itself can attract the query
    assert at_key > 0.5 * trace.total_effect > 2 * third


def test_a_trace_is_saved_and_read_back_equal(tmp_path: Path) -> None:
    model = opened("gpt2")
    trace = causal_trace(model, [[1, 2, 3, 4]], subject=[1], answers=5, settings=SETTINGS)
    trace.save(tmp_path / "trace.json")
    assert CausalTrace.load(tmp_path / "trace.json") == trace
    assert "indirect effect" in repr(trace) and "3 sd" in trace.plot().layout.title.text


def test_bad_subjects_answers_sites_and_settings_are_refused() -> None:
    model = opened("gpt2")
    prompt = [[1, 2, 3, 4]]
    with pytest.raises(PositionOutOfRange, match="no such subject"):
        causal_trace(model, prompt, subject=[4], answers=5)
    with pytest.raises(BadPairs, match="one answer"):
        causal_trace(model, prompt, subject=[1], answers=[5, 6])
    with pytest.raises(BadPairs, match="its subject"):
        causal_trace(model, prompt, subject=[[1], [2]], answers=5)
    with pytest.raises(InterventionMismatch, match="whole vectors"):
        causal_trace(model, prompt, subject=[1], answers=5, site="z")
    with pytest.raises(PointUnavailable, match="cannot be patched"):
        causal_trace(model, prompt, subject=[1], answers=5, site="head_out")
    with pytest.raises(InterventionMismatch, match="needs noise"):
        TraceSettings(n_draws=0)
