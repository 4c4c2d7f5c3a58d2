"""One trainer for every architecture and kind: it learns, sparse equals dense, and resuming changes no bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechscope.dictionaries.architectures.base import ARCHITECTURES, architecture_from_json
from mechscope.dictionaries.architectures.batch_topk import BatchTopK
from mechscope.dictionaries.architectures.gated import Gated
from mechscope.dictionaries.architectures.groupmax import GroupMax
from mechscope.dictionaries.architectures.jumprelu import JumpReLU
from mechscope.dictionaries.architectures.matching_pursuit import MatchingPursuit
from mechscope.dictionaries.architectures.matryoshka import Matryoshka
from mechscope.dictionaries.architectures.relu import PAnneal, ReLU
from mechscope.dictionaries.architectures.topk import TopK
from mechscope.dictionaries.training.checkpoint import FILE
from mechscope.dictionaries.training.learner import Learner, Moment
from mechscope.dictionaries.training.objective import compute_outcome
from mechscope.dictionaries.training.resampling import resample
from mechscope.dictionaries.training.spec import Job, Revival, Schedule, Training
from mechscope.dictionaries.training.trainer import Trainer
from mechscope.engine.harvest.blocks import TensorBlocks
from mechscope.records.canonical import hash_json
from mechscope.vocabulary.errors import BadFile, DictionaryError, DiskFull, NonFiniteActivations
from mechscope.vocabulary.sites import Site

D, F = 16, 64
HERE, THERE = Site("resid_post", 0), Site("resid_post", 1)

CONFIGS = {
    "topk": TopK(width=F, k=4),
    "batch_topk": BatchTopK(width=F, k=4),
    "jumprelu": JumpReLU(width=F, l0=4),
    "jumprelu step": JumpReLU(width=F, l0=4, sparsity="step", coefficient=0.02),
    "jumprelu tanh": JumpReLU(width=F, l0=4, sparsity="tanh", coefficient=0.02),
    "relu": ReLU(width=F),
    "p_anneal": PAnneal(width=F),
    "gated": Gated(width=F),
    "matryoshka": Matryoshka(width=F, k=4),
    "groupmax": GroupMax(width=F, k=4),
    "matching_pursuit": MatchingPursuit(width=F, k=4),
}
KINDS = {
    "sae": {"reads": (HERE,)},
    "transcoder": {"reads": (HERE,), "writes": (THERE,)},
    "skip": {"reads": (HERE,), "writes": (THERE,), "has_skip": True},
    "crosscoder": {"reads": (HERE, THERE)},
    "cross-layer": {"reads": (HERE, THERE), "writes": (HERE, THERE), "is_cross_layer": True},
}
COMBINED = [
    pytest.param(c, k, marks=() if k == "sae" or c in ("topk", "gated") else pytest.mark.slow)
    for c in CONFIGS
    for k in KINDS
    if c != "matching_pursuit" or k in ("sae", "crosscoder")
]


def blocks(n: int = 1024, seed: int = 0) -> TensorBlocks:
    """Sparse sums of 32 directions; the other site is a linear map of the first."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(32, D, generator=generator), dim=1)
    on = torch.rand(n, 32, generator=generator) < 0.08
    values = (on * (0.5 + torch.rand(n, 32, generator=generator))) @ truth + 0.3
    other = values @ torch.randn(D, D, generator=generator) / 4
    return TensorBlocks({HERE: values, THERE: other}, tokens_per_block=400)


def training(**more) -> Training:
    return Training(**({"batch": 128, "n_tokens": 128 * 40, "rate": 5e-3} | more))


def trainer(config, kind: str = "sae", *, of: TensorBlocks | None = None, **more) -> Trainer:
    job = Job(config=config, **KINDS[kind])
    return Trainer(of or blocks(), [job], training=training(**more))


def test_every_architecture_is_tried_here() -> None:
    assert {config.name for config in CONFIGS.values()} == set(ARCHITECTURES)
    for config in CONFIGS.values():
        assert architecture_from_json(config.to_json()) == config


@pytest.mark.parametrize(("config", "kind"), COMBINED)
def test_every_architecture_learns_in_every_kind(config: str, kind: str) -> None:
    run = trainer(CONFIGS[config], kind)
    before = trainer(CONFIGS[config], kind)
    before._calibrate()
    first = before.dictionaries()[0].settings.calibration
    dictionary = run.run()[0]
    after = dictionary.settings.calibration
    assert after.fvu < min(0.85 * first.fvu, 0.9), (first, after)
    assert 0 < after.l0 < F
    assert dictionary.kind == {"skip": "skip_transcoder", "cross-layer": "cross_layer_transcoder"}.get(
        kind, kind
    )
    assert dictionary.settings.source.trained_as == CONFIGS[config].name
    raw = {site: value[:50] for site, value in blocks().values.items()}
    sites = [raw[site] for site in dictionary.reads]
    values = sites[0] if len(sites) == 1 else torch.stack(sites, 1)
    if (config, kind) == ("matching_pursuit", "crosscoder"):
        return  # a scale for each site can't be folded into a pursuit
    folded = dictionary.folded()
    assert torch.allclose(folded(values), dictionary(values), atol=1e-4)


@pytest.mark.parametrize(("config", "kind"), COMBINED)
def test_a_sparse_step_has_the_gradients_of_a_dense_one(config: str, kind: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for is_sparse in (True, False):
        settings = training(is_sparse=is_sparse, precision="full", revival=Revival(aux_k=4, aux_share=0.5))
        learner = Learner(
            Job(config=CONFIGS[config], **KINDS[kind]), settings, shapes=blocks().shapes, dtype=torch.float64
        )
        values = {site: value[:128] for site, value in blocks().values.items()}
        learner.calibrate(values)
        learner.dead = torch.arange(0, F, 5)
        x, y = learner.normalized(values)
        outcome = compute_outcome(learner, x, y, Moment(5, 60))
        outcome.loss.backward()
        found.append({name: p.grad for name, p in learner.params.items() if p.grad is not None})
        found[-1]["loss"] = outcome.loss.detach()
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], atol=1e-10), name


def test_auxk_reaches_the_encoder_of_the_dead_and_of_nobody_else() -> None:
    learner = Learner(Job(reads=(HERE,), config=TopK(width=F, k=2)), training(), shapes=blocks().shapes)
    values = {HERE: blocks().values[HERE][:128]}
    learner.calibrate(values)
    x, y = learner.normalized(values)

    def gradient() -> torch.Tensor:
        learner.optimizer.zero_grad()
        compute_outcome(learner, x, y, Moment(0, 1)).loss.backward()
        return learner.params["enc.0"].grad.clone()

    without = gradient()
    learner.dead = torch.tensor([3, 9])
    changed = (gradient() - without).abs().amax(1) > 0
    assert changed[[3, 9]].any() and changed.sum() <= 2


@pytest.mark.slow
def test_revival_brings_dead_latents_back_and_without_it_they_stay_dead() -> None:
    def alive_after(**revival) -> float:
        settings = {"dead_after_tokens": 1024, "check_every": 5, **revival}
        run = trainer(TopK(width=F, k=2), n_tokens=128 * 150, revival=Revival(**settings))
        run._calibrate()
        with torch.no_grad():
            run.learners[0].params["b_enc.0"][: F // 2] = -2.0
        run.run()
        return float((run.learners[0].state["since_fired"][: F // 2] < 1024).float().mean())

    assert alive_after(aux_k=0) < 0.1
    assert alive_after(aux_k=8, aux_weight=1.0, aux_share=1.0) > 0.3
    assert alive_after(aux_k=0, resample_at=(0.5, 0.8)) > 0.3


def test_dead_thresholds_come_down_to_the_living_ones_and_no_other_moves() -> None:
    learner = trainer(JumpReLU(width=F, l0=4)).learners[0]
    threshold = learner.params["threshold.0"]
    with torch.no_grad():
        threshold.copy_(torch.linspace(1.0, 2.0, F))
        threshold[[0, F - 1]] = torch.tensor([0.5, 9.0])
    before = threshold.detach().clone()
    learner.look_for_dead()
    assert torch.equal(threshold, before)  # nobody is dead
    learner.state["since_fired"][[0, F - 1]] = 1e9
    learner.look_for_dead()
    assert threshold[F - 1] == before[1 : F - 1].median()
    assert torch.equal(threshold[: F - 1], before[: F - 1])  # a lower one stays


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip", "crosscoder"])
def test_resampling_points_the_dead_at_a_tokens_error_and_at_its_input(kind: str) -> None:
    run = trainer(TopK(width=F, k=4), kind, n_tokens=128 * 3)
    run.run()
    learner = run.learners[0]
    values = {site: value[:128] for site, value in blocks().values.items()}
    outcome = learner.step(values, Moment(2, 3))
    learner.state["since_fired"][:] = 0
    learner.state["since_fired"][[3, 9]] = 1e9
    before = {name: value.detach().clone() for name, value in learner.params.items()}
    assert resample(learner, outcome, 3) == 2 and len(learner.dead) == 0
    errors = torch.nn.functional.normalize(outcome.target - outcome.written, dim=1)
    inputs = torch.nn.functional.normalize(outcome.inputs - outcome.inputs.mean(0), dim=1)
    alive = torch.ones(F, dtype=torch.bool)
    for latent in (3, 9):
        alive[latent] = False
        cosines = errors @ learner.params["dec.0"][latent].detach()
        token = int(cosines.argmax())
        assert cosines[token] == pytest.approx(1, abs=1e-5)
        wanted = errors[token] if kind in ("sae", "crosscoder") else inputs[token]
        row = learner.params["enc.0"][latent].detach()
        assert torch.allclose(row / row.norm(), wanted, atol=1e-5)
        moments = learner.optimizer.state[learner.params["enc.0"]]
        assert moments["exp_avg"][latent].abs().max() == 0
    assert all(torch.equal(learner.params[k][alive], before[k][alive]) for k in ("dec.0", "enc.0", "b_enc.0"))


def test_resampling_a_cross_layer_transcoder_is_refused_and_not_left_undone() -> None:
    with pytest.raises(DictionaryError, match="not resampled"):
        trainer(TopK(width=F, k=4), "cross-layer", revival=Revival(resample_at=(0.5,)))


def bits(run: Trainer) -> dict[str, torch.Tensor]:
    learner = run.learners[0]
    adam = {
        f"adam {k}": m["exp_avg_sq"]
        for k, p in learner.params.items()
        if (m := learner.optimizer.state.get(p))
    }
    return {**learner.params, **learner.state, **adam}


@pytest.mark.parametrize(
    "config", [pytest.param(c, marks=() if c in ("topk", "jumprelu") else pytest.mark.slow) for c in CONFIGS]
)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(config: str, tmp_path: Path) -> None:
    more = {
        "revival": Revival(dead_after_tokens=500, check_every=7, resample_at=(0.6,)),
        "n_tokens": 128 * 25,
    }
    whole = trainer(CONFIGS[config], **more)
    whole.run()
    trainer(CONFIGS[config], **more).run(folder=tmp_path, stop_at=10)
    resumed = trainer(CONFIGS[config], **more)
    resumed.run(folder=tmp_path)
    assert resumed.step == whole.step == 25
    ours, wanted = bits(resumed), bits(whole)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    other = trainer(CONFIGS[config], **more | {"seed": 1})
    other.run()
    assert not torch.equal(bits(other)["dec.0"], wanted["dec.0"]), "another seed gives other bits"


def test_who_was_dead_between_two_looks_is_known_after_an_interruption(tmp_path: Path) -> None:
    more = {"revival": Revival(dead_after_tokens=100, check_every=7), "n_tokens": 128 * 20}
    whole = trainer(TopK(width=400, k=1), **more)
    whole.run()
    stopped = trainer(TopK(width=400, k=1), **more)
    stopped.run(folder=tmp_path, stop_at=10)
    assert len(stopped.learners[0].dead), "the dead learn from the error before anybody looks again"
    resumed = trainer(TopK(width=400, k=1), **more)
    resumed.run(folder=tmp_path)
    ours, wanted = bits(resumed), bits(whole)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("config", ["relu", "batch_topk"])
def test_a_crosscoder_begun_under_another_price_does_not_go_on(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: where the price changes no weight (TopK), and under the same price, it goes on."""
    with monkeypatch.context() as before:
        before.setattr("mechscope.dictionaries.training.checkpoint.hash_json", hash_without_price)
        for name in (config, "topk"):
            trainer(CONFIGS[name], "crosscoder").run(folder=tmp_path / name, stop_at=3)
    with pytest.raises(BadFile, match="another price"):
        trainer(CONFIGS[config], "crosscoder").run(folder=tmp_path / config)
    trainer(CONFIGS["topk"], "crosscoder").run(folder=tmp_path / "topk", stop_at=4)
    trainer(CONFIGS[config], "crosscoder").run(folder=tmp_path / "now", stop_at=3)
    trainer(CONFIGS[config], "crosscoder").run(folder=tmp_path / "now", stop_at=4)
    with pytest.raises(BadFile, match="another training run"):
        trainer(CONFIGS[config], "crosscoder", seed=5).run(folder=tmp_path / "now")


def hash_without_price(recipe: dict[str, Any]) -> str:
    """As recipes were hashed before they named a price."""
    jobs = [{key: value for key, value in job.items() if key != "price"} for job in recipe["jobs"]]
    return hash_json({**recipe, "jobs": jobs})


def test_jobs_whose_weights_no_price_changes_say_none() -> None:
    assert "price" in Job(config=CONFIGS["relu"], **KINDS["crosscoder"]).to_json()
    for config, kind in (("topk", "crosscoder"), ("relu", "sae"), ("relu", "cross-layer")):
        assert "price" not in Job(config=CONFIGS[config], **KINDS[kind]).to_json()


@pytest.mark.parametrize("config", ["topk", "batch_topk"])
def test_schedules_of_rate_and_k_survive_an_interruption(config: str, tmp_path: Path) -> None:
    more = {"schedule": Schedule(k_start=4, k_decay=0.8, falls="cosine", cycles=2), "n_tokens": 128 * 20}
    whole = trainer(CONFIGS[config], **more)
    seen: list[float] = []
    whole.training = replace(whole.training, revival=Revival(check_every=1))
    whole.run(report=lambda now: seen.append(now.figures[0].l0))
    assert (seen[0] > 10 and seen == sorted(seen, reverse=True)) or config == "batch_topk"
    assert seen[0] > 2 * seen[-1] and abs(seen[-1] - 4) < 0.1
    trainer(CONFIGS[config], **more).run(folder=tmp_path, stop_at=9)
    resumed = trainer(CONFIGS[config], **more)
    resumed.run(folder=tmp_path)
    ours, wanted = bits(resumed), bits(whole)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_a_schedule_is_the_arithmetic_that_it_says() -> None:
    line = Schedule(warmup=0.1, decay=0.5)
    assert [line.rate(step, 100) for step in (0, 9, 49, 75, 99)] == pytest.approx([0.1, 1, 1, 0.5, 0.02])
    curve = Schedule(warmup=0, decay=1, falls="cosine", lowest=0.1)
    assert [curve.rate(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    again = Schedule(warmup=0, decay=1, cycles=2)
    assert [again.rate(step, 100) for step in (0, 25, 49, 50, 75)] == pytest.approx([1, 0.5, 0.02, 1, 0.5])
    assert Schedule(decay=0).rate(99, 100) == 1
    loose = Schedule(k_start=5, k_decay=0.5)
    assert [loose.looseness(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([5, 3, 1, 1])
    assert Schedule().looseness(0, 100) == 1
    for bad in ({"decay": 1.5}, {"cycles": 0}, {"k_start": 0.5}, {"k_start": 4}):
        with pytest.raises(DictionaryError, match="no schedule") as refusal:
            Schedule(**bad)
        assert next(iter(bad)) in refusal.value.got
    plain = Training().to_json()["schedule"]
    assert plain == {"warmup": 0.02, "decay": 0.2, "sparsity_warmup": 0.1}, "runs begun before go on"
    assert Training(schedule=loose).to_json()["schedule"]["k_start"] == 5


@pytest.mark.parametrize("config", CONFIGS)
def test_a_k_that_comes_down_is_refused_where_there_is_none(config: str) -> None:
    loose = {"schedule": Schedule(k_start=3, k_decay=0.8)}
    if CONFIGS[config].name in ("relu", "p_anneal", "gated", "groupmax"):
        with pytest.raises(DictionaryError, match="nothing to begin above") as refusal:
            trainer(CONFIGS[config], **loose)
        assert CONFIGS[config].name in refusal.value.got and "batch_topk" in refusal.value.instead
        return
    found = [
        Trainer(blocks(), [Job(config=CONFIGS[config], reads=(HERE,))], training=training(**more))
        for more in ({}, loose)
    ]
    for one in found:
        one._calibrate()
    batch = next(iter(found[0].stream.batches(0, 1)))
    losses = [float(one._step(batch)[0].loss.detach()) for one in found]
    assert losses[0] != losses[1] or CONFIGS[config].name == "jumprelu"


def test_several_dictionaries_from_one_stream_are_those_trained_alone() -> None:
    jobs = [
        Job(config=TopK(width=F, k=4), **KINDS["sae"]),
        Job(config=BatchTopK(width=F, k=3), reads=(THERE,)),
    ]
    together = Trainer(blocks(), jobs, training=training())
    alone = [Trainer(blocks(), [job], training=training()) for job in jobs]
    found = together.run()
    for one, run in zip(found, alone, strict=True):
        lone = run.run()[0]
        assert all(torch.equal(one.tensors[name], lone.tensors[name]) for name in lone.tensors)


def test_batch_topk_is_kept_with_a_threshold_that_gives_its_l0() -> None:
    dictionary = trainer(BatchTopK(width=F, k=4), n_tokens=128 * 200).run()[0]
    assert dictionary.settings.gate.rule == "jumprelu"
    assert abs(dictionary.settings.calibration.l0 - 4) < 1.0


def test_a_unit_decoder_stays_one_and_a_free_one_does_not() -> None:
    for policy, is_unit in (("unit", True), ("free", False)):
        norms = trainer(TopK(width=F, k=4), decoder_norm=policy).run()[0].decoder_norms()
        assert bool(torch.allclose(norms, torch.ones(F), atol=1e-5)) == is_unit


def test_reports_come_with_figures() -> None:
    seen = []
    trainer(TopK(width=F, k=4)).run(report=seen.append)
    assert seen[-1].step == seen[-1].n_steps == 40 and seen[-1].n_tokens == 40 * 128
    assert seen[-1].tokens_per_second > 0 and 0 < seen[-1].figures[0].fvu < seen[0].figures[0].fvu
    assert seen[-1].figures[0].l0 <= 4


def test_what_can_not_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="nothing to train"):
        Trainer(blocks(), [], training=training())
    with pytest.raises(DictionaryError, match="nothing to train on") as refusal:
        Trainer(blocks(), [Job(reads=(Site("mlp_out", 0),), config=TopK(width=F, k=4))], training=training())
    assert refusal.value.got == "mlp_out.0"
    bad = blocks()
    bad.values[HERE][500, 3] = torch.nan
    with pytest.raises(NonFiniteActivations, match="resid_post"):
        trainer(TopK(width=F, k=4), of=bad).run()
    trainer(TopK(width=F, k=4)).run(folder=tmp_path, stop_at=3)
    with pytest.raises(BadFile, match="another training run"):
        trainer(TopK(width=F, k=5)).run(folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(TopK(width=F, k=4))
    run.run(folder=tmp_path, stop_at=10)
    before = (tmp_path / FILE).read_bytes()
    run.learners[0].params["dec.0"].data[0] = torch.inf
    run.learners[0].params["b_enc.0"].data[0] = 100.0
    with pytest.raises(NonFiniteActivations, match="not finite"):
        run.run(folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import safetensors.torch

    run = trainer(TopK(width=F, k=4))
    run.run(folder=tmp_path, stop_at=10)
    before = (tmp_path / FILE).read_bytes()

    def full(*_args, **_more) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(DiskFull, match="checkpoint"):
        run.run(folder=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / FILE).read_bytes() == before
    resumed = trainer(TopK(width=F, k=4))
    resumed.run(folder=tmp_path)
    assert resumed.step == 40
