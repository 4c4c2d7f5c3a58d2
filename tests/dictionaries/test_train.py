"""The public verb: train at any site, from a model or a store, into a folder that resumes; convert and fine-tune."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechscope as ms
from mechscope.dictionaries.settings import Calibration
from mechscope.dictionaries.training import trainer as trainer_module
from mechscope.dictionaries.training.checkpoint import save_checkpoint
from mechscope.dictionaries.training.end_to_end import _objective
from mechscope.dictionaries.training.logs import flat_figures
from mechscope.dictionaries.training.progress import describe
from mechscope.dictionaries.training.spec import Job
from mechscope.engine.harvest.blocks import ModelBlocks
from mechscope.engine.harvest.corpus import corpus_of
from mechscope.engine.harvest.store import save_activations
from mechscope.vocabulary.errors import (
    DictionaryError,
    DictionaryMismatch,
    DiskFull,
    EmptyPrompt,
    OptionalPackageMissing,
    SiteError,
)
from mechscope.vocabulary.sites import Site
from small_models import model_of
from tiny_models import VOCABULARY

dictionaries = ms.dictionaries
TRAINING = dictionaries.Training(batch=64, n_tokens=64 * 30, rate=5e-3)
CONFIG = dictionaries.TopK(width=64, k=6)


def text(n: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, VOCABULARY, (n, 9), generator=generator).tolist()


def test_one_line_trains_an_sae_that_reconstructs_the_site() -> None:
    model = model_of()
    sae = dictionaries.train(model, site="resid_post.1", text=text(), config=CONFIG, training=TRAINING)
    values = model.run(torch.tensor(text()[:20]), capture=["resid_post.1"])["resid_post.1"]
    left = (sae(values) - values).pow(2).sum() / (values - values.mean((0, 1))).pow(2).sum()
    assert left < 0.8 and sae.kind == "sae" and sae.reads == (Site("resid_post", 1),)
    assert (sae.encode(values) != 0).sum(-1).max() <= 6
    source = sae.settings.source
    assert (
        source.model == model.fingerprint.name and source.weights_sha256 == model.fingerprint.weights_sha256
    )
    assert source.trained_as == "topk" and source.n_tokens == 64 * 30 and source.notes["config"]["k"] == 6
    assert sae.settings.calibration.l0 <= 6 and 0 < sae.settings.calibration.fvu < 0.9
    sae.refuse_unless_fits(model)


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        ("mlp_in.1 -> mlp_out.1", "transcoder"),
        (["resid_post.0", "resid_post.-1"], "crosscoder"),
        ("z.1", "sae"),
        ("blocks.1.hook_mlp_out", "sae"),
    ],
)
def test_any_site_or_sites_can_be_trained_at(site, kind: str) -> None:
    model = model_of()
    found = dictionaries.train(model, site=site, text=text(), config=CONFIG, training=TRAINING)
    assert found.kind == kind
    values = model.run(torch.tensor(text()[:3]), capture=[*found.reads, *found.writes])
    shape = values[found.writes[0]].shape
    read = [values[one] for one in found.reads]
    written = found(read[0] if len(read) == 1 else torch.stack(read, 2))
    assert written.shape == (shape if len(read) == 1 else (*shape[:2], 2, *shape[2:]))


def test_kept_activations_spare_forward_passes_and_change_no_bit() -> None:
    model, jobs = model_of(), [dictionaries.job_at("resid_post.1", CONFIG)]
    run, passes = model.run, []
    model.run = lambda *args, **more: passes.append(1) or run(*args, **more)  # type: ignore[method-assign]
    try:
        again, kept = (
            dictionaries.train_many(model, jobs, text=text(), training=TRAINING, keeps_activations=keeps)[0]
            for keeps in (False, True)
        )
        n_again = len(passes)
        dictionaries.train_many(model, jobs, text=text(), training=TRAINING, keeps_activations=True)
    finally:
        del model.run
    for name, tensor in again.tensors.items():
        assert torch.equal(kept.tensors[name], tensor), name
    assert 2 * (len(passes) - n_again) < n_again


def test_training_from_a_store_gives_the_bits_of_training_from_the_model(tmp_path: Path) -> None:
    model, job = model_of(), dictionaries.job_at("resid_post.1", CONFIG)
    corpus = corpus_of(model, text()).shuffled(TRAINING.seed)
    blocks = ModelBlocks(model=model, corpus=corpus, sites=job.sites, rows_per_block=17)
    store = save_activations(blocks, tmp_path)
    from_store = dictionaries.train_from(store, [job], training=TRAINING)[0]
    from_model = dictionaries.train_from(blocks, [job], training=TRAINING)[0]
    for name, tensor in from_model.tensors.items():
        assert torch.equal(from_store.tensors[name], tensor), name
    assert from_store.settings.source.weights_sha256 == model.fingerprint.weights_sha256


def test_a_folder_holds_the_dictionaries_the_log_and_what_a_resumed_run_needs(tmp_path: Path) -> None:
    model = model_of()
    jobs = [
        dictionaries.job_at("resid_post.1", CONFIG, name="late"),
        dictionaries.job_at("resid_post.0", dictionaries.JumpReLU(width=64, l0=6)),
    ]
    first = dictionaries.train_to_folder(model, jobs, text=text(), folder=tmp_path, training=TRAINING)
    assert {file.name for file in tmp_path.iterdir()} == {
        "late",
        "dictionary-1",
        "log.jsonl",
        "checkpoint.safetensors",
    }
    opened = dictionaries.open(tmp_path / "late")
    assert opened.settings == first[0].settings and torch.equal(opened.W_dec, first[0].W_dec)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30 and len(lines[-1]["figures"]) == 2
    again = dictionaries.train_to_folder(
        model, jobs, text=text(), folder=tmp_path, training=TRAINING, shows_progress=False
    )
    assert torch.equal(again[1].W_enc, first[1].W_enc)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is a device of Linux")
def test_a_full_disk_under_the_log_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    job = dictionaries.job_at("resid_post.1", CONFIG)
    with pytest.raises(DiskFull, match=r"log\.jsonl"):
        dictionaries.train_to_folder(
            model_of(), [job], text=text(), folder=tmp_path, training=TRAINING, shows_progress=False
        )


def test_a_resumed_run_s_log_holds_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, job = model_of(), dictionaries.job_at("resid_post.1", CONFIG)
    often = replace(TRAINING, revival=dictionaries.Revival(check_every=2))
    monkeypatch.setattr(trainer_module, "SAVE_EVERY_SECONDS", 0.0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = {"text": text(), "training": often, "shows_progress": False}
    dictionaries.train_to_folder(model, [job], folder=whole, **more)

    class Stop(Exception):
        pass

    def saved(folder, *args, step, **kwargs) -> None:
        if step > 10:  # it dies before the step at which it would save, its log is ahead of the checkpoint
            raise Stop
        save_checkpoint(folder, *args, step=step, **kwargs)

    monkeypatch.setattr(trainer_module, "save_checkpoint", saved)
    with pytest.raises(Stop):
        dictionaries.train_to_folder(model, [job], folder=broken, **more)
    assert logged(broken)[-1]["step"] == 12
    with (broken / "log.jsonl").open("a") as file:
        file.write('{"step": 13, "n_st')  # and its last line is torn
    monkeypatch.setattr(trainer_module, "save_checkpoint", save_checkpoint)
    dictionaries.train_to_folder(model, [job], folder=broken, **more)
    figures = [[(line["step"], line["figures"]) for line in logged(one)] for one in (whole, broken)]
    assert figures[0] == figures[1]


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_figures_read_well() -> None:
    from mechscope.dictionaries.training.trainer import Figures, Report

    figures = Figures(name="topk at resid_post.2", loss=0.1, fvu=0.081, l0=32.0, dead=0.012)
    now = Report(step=5, n_steps=10, n_tokens=640, tokens_per_second=12300.0, figures=(figures,))
    assert describe(now) == "12,300 tok/s · topk at resid_post.2: FVU 0.081, L0 32.0, dead 1.2%"
    assert flat_figures(now)["topk at resid_post.2/l0"] == 32.0


def test_a_tracker_is_told_what_the_log_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard is asked for through a stand-in with its signatures; Weights & Biases through a function."""
    seen: dict[str, list] = {"scalars": [], "opened": [], "log": []}

    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int) -> None:
            seen["opened"].append((log_dir, purge_step))

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            seen["scalars"].append((tag, scalar_value, global_step))

        def flush(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    to_tensorboard = dictionaries.to_tensorboard(tmp_path / "events")

    def report(now) -> None:
        to_tensorboard(now)
        seen["log"].append((dictionaries.flat_figures(now), now.step))

    job = dictionaries.job_at("resid_post.1", CONFIG, name="late")
    more = {"folder": tmp_path, "training": TRAINING, "shows_progress": False, "report": report}
    dictionaries.train_to_folder(model_of(), [job], text=text(), **more)
    lines = logged(tmp_path)
    assert [step for _figures, step in seen["log"]] == [line["step"] for line in lines]
    for (flat, step), line in zip(seen["log"], lines, strict=True):
        assert flat["late/fvu"] == line["figures"][0]["fvu"] and flat["tokens"] == line["n_tokens"]
        assert {(tag, value) for tag, value, at in seen["scalars"] if at == step} == set(flat.items())
    assert seen["opened"] == [(str(tmp_path / "events"), lines[0]["step"])]


def test_tensorboard_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionalPackageMissing, match="TensorBoard"):
        dictionaries.to_tensorboard(tmp_path)


def test_bad_requests_are_refused() -> None:
    model = model_of()
    with pytest.raises(SiteError):
        dictionaries.train(model, site="resid_post.9", text=text(), config=CONFIG)
    with pytest.raises(DictionaryMismatch, match="width"):
        dictionaries.train(model, site="pattern.1", text=text(), config=CONFIG)
    with pytest.raises(EmptyPrompt, match="shorter"):
        dictionaries.train(model, site="resid_post.1", text=text(3), config=CONFIG)


def test_a_topk_dictionary_becomes_a_jumprelu_of_the_same_l0() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 32, generator=generator)
    sae = dictionaries.train(model_of(), site="resid_post.1", text=text(), config=CONFIG, training=TRAINING)
    for threshold in ("one", "each"):
        found = dictionaries.to_jumprelu(sae, values, threshold=threshold)
        counts = [float((one.encode(values) != 0).sum(-1).float().mean()) for one in (sae, found)]
        assert abs(counts[0] - counts[1]) < 0.1 and found.settings.gate.rule == "jumprelu"
    fired = [(one.encode(values) != 0).sum(0) for one in (sae, found)]
    assert (fired[0] - fired[1]).abs().max() <= 1
    fewer = dictionaries.to_jumprelu(sae, values, l0=2.0)
    assert abs(float((fewer.encode(values) != 0).sum(-1).float().mean()) - 2) < 0.1
    on_record = fewer.settings.calibration
    assert on_record.l0 == pytest.approx(float((fewer.encode(values) != 0).sum(-1).float().mean()), rel=1e-6)
    left = (fewer(values) - values).pow(2).sum() / (values - values.mean(0)).pow(2).sum()
    assert on_record.fvu == pytest.approx(float(left), rel=1e-5) and on_record.n_tokens == 400
    note = {"from": "topk", "k": 6, "l0": 2.0, "threshold": "one"}
    assert fewer.settings.source.notes["converted_to_jumprelu"] == note
    with pytest.raises(DictionaryError, match="JumpReLU"):
        dictionaries.to_jumprelu(found, values)


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_fine_tuning_brings_predictions_nearer_to_the_models_own(objective: str) -> None:
    model = model_of()
    sae = dictionaries.train(model, site="resid_post.1", text=text(), config=CONFIG, training=TRAINING)
    seen: list[float] = []
    before = {name: value.clone() for name, value in sae.tensors.items()}
    weights = model.fingerprint.weights_sha256
    how = dictionaries.FineTuning(objective=objective, n_steps=12, n_rows=30, rate=3e-3)
    tuned = dictionaries.fine_tune(model, sae, text=text(), how=how, report=lambda _s, v: seen.append(v))
    assert sum(seen[-3:]) < 0.95 * sum(seen[:3])
    assert all(torch.equal(sae.tensors[name], value) for name, value in before.items())
    assert not torch.equal(tuned.W_dec, sae.W_dec)
    assert tuned.settings.calibration == Calibration() and sae.settings.calibration.l0 is not None
    again = dictionaries.fine_tune(model, tuned, text=text(), how=replace(how, n_steps=1))
    notes = again.settings.source.notes["fine_tuned"]
    assert [one["n_steps"] for one in notes] == [12, 1] and notes[0]["objective"] == objective
    assert ms.wrap(model.hf, None).fingerprint.weights_sha256 == weights


MLPS = {"reads": (Site("mlp_in", 0), Site("mlp_in", 1)), "writes": (Site("mlp_out", 0), Site("mlp_out", 1))}
TUNED = {
    "sae": dictionaries.job_at("resid_post.1", CONFIG),
    "transcoder": dictionaries.job_at("mlp_in.1 -> mlp_out.1", CONFIG),
    "skip_transcoder": dictionaries.job_at("mlp_in.1 -> mlp_out.1", CONFIG, has_skip=True),
    "cross_layer_transcoder": Job(**MLPS, config=CONFIG, is_cross_layer=True),
}


@pytest.mark.parametrize("kind", TUNED)
def test_the_first_objective_is_what_an_evaluation_finds(kind: str) -> None:
    """The oracle: nats and squared error of the untouched dictionary, measured by other code on the same rows."""
    model, rows = model_of(), text(12)
    (found,) = dictionaries.train_many(model, [TUNED[kind]], text=text(), training=TRAINING)
    assert found.kind == kind
    settings = dictionaries.EvaluationSettings(skips_special=False)
    figures = dictionaries.evaluate(found, model, rows, settings=settings).figures
    # An evaluation leaves out what follows the last token, so that here each row has one more.
    longer = dictionaries.evaluate(found, model, [[*row, 1] for row in rows], settings=settings).figures

    def told(**more) -> float:
        seen: list[float] = []
        how = dictionaries.FineTuning(n_steps=1, n_rows=12, **more)
        dictionaries.fine_tune(
            model, found, text=rows, how=how, report=lambda _step, value: seen.append(value)
        )
        return seen[0]

    assert told(objective="ce") == pytest.approx(figures["ce_replaced"].value, rel=1e-4)
    assert told(objective="kl") == pytest.approx(longer["kl_replaced"].value, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", TUNED)
def test_the_squared_error_joins_the_objective_with_its_weight(kind: str) -> None:
    model, rows = model_of(), text(12)
    (found,) = dictionaries.train_many(model, [TUNED[kind]], text=text(), training=TRAINING)
    assert found.kind == kind
    batch = corpus_of(model, rows).batch(range(12), 0)[0]
    with torch.no_grad():
        bare, weighted = (
            _objective(model, found, batch, dictionaries.FineTuning(mse_weight=weight)) for weight in (0, 0.7)
        )
    run = model.run(batch, capture=[*found.reads, *found.writes])
    values = [
        torch.stack([run[site] for site in side], 2).flatten(0, 1) for side in (found.reads, found.writes)
    ]
    read, written = (one[:, 0] if one.shape[1] == 1 else one for one in values)
    error = (found(read) - written).double().pow(2).sum() / (written - written.mean(0)).double().pow(2).sum()
    assert torch.equal(weighted[1], bare[1]), "what is shown stays in nats"
    assert (weighted[0] - bare[0]).item() == pytest.approx(0.7 * float(error), rel=1e-3)
