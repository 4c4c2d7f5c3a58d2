"""Progress measures find the frequencies of a written-down mechanism, and none in a table learnt by heart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from mechscope.models.native import native_to_transformer_lens
from mechscope.specimens.grokking import (
    GrokkingSettings,
    make_table,
    new_model,
    open_published,
    train_grokking,
)
from mechscope.superposition.grokking import draw_progress, main, open_progress, run_grokking
from mechscope.superposition.modular_addition import (
    Progress,
    gini,
    measure_logits,
    measure_progress,
    split_frequencies,
    sum_basis,
)
from mechscope.vocabulary.errors import BadFile

P = 23
TABLE = make_table(P, train_share=0.4)
TINY = GrokkingSettings(modulus=7, d_model=8, n_heads=2, n_steps=8)


def mechanism(frequencies: tuple[int, ...], noise: float = 0.0) -> torch.Tensor:
    """Logits of the known mechanism: a cosine of a + b - c for each frequency."""
    total, answer = (TABLE.tokens[:, 0] + TABLE.tokens[:, 1])[:, None], torch.arange(P)[None]
    logits = sum((2 * torch.pi * k / P * (total - answer)).double().cos() for k in frequencies) * 5
    return logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))


def by_heart() -> torch.Tensor:
    """Logits that answer the training pairs and know nothing of the others."""
    guess = torch.randint(0, P, TABLE.answers.shape, generator=torch.Generator().manual_seed(0))
    answers = torch.where(TABLE.is_train, TABLE.answers, guess)
    return torch.nn.functional.one_hot(answers, P).double() * 12


def test_the_frequencies_of_the_mechanism_are_found() -> None:
    found = measure_logits(mechanism((3, 8), noise=0.5), TABLE.answers, TABLE.is_train)
    assert found["key_frequencies"] == (3, 8)
    assert found["sum_share"] > 0.9
    assert found["test_accuracy"] == 1.0
    chance = torch.tensor(float(P)).log()
    assert found["restricted_loss"] < 0.5 * chance
    assert found["excluded_loss"] > 0.9 * chance  # without them the training pairs are forgotten


def test_a_table_learnt_by_heart_has_no_frequencies() -> None:
    found = measure_logits(by_heart(), TABLE.answers, TABLE.is_train, key_share=0.05)
    assert found["train_accuracy"] == 1.0
    assert found["key_frequencies"] == ()
    assert found["excluded_loss"] == pytest.approx(found["train_loss"])
    assert found["restricted_loss"] > 3.0


def test_the_projection_equals_a_fourier_transform() -> None:
    logits = mechanism((2, 5), noise=1.0)
    waves = torch.fft.fft2((logits - logits.mean(0)).view(P, P, P), dim=(0, 1), norm="ortho")
    # the function of a + b lies on the diagonal of the two-dimensional transform
    diagonal = torch.stack([waves[k, k].abs().square().sum() * 2 for k in range(1, (P - 1) // 2 + 1)])
    power = diagonal / waves.abs().square().sum()
    torch.testing.assert_close(split_frequencies(logits).shares, power, rtol=1e-9, atol=1e-12)


def test_the_basis_is_orthonormal() -> None:
    basis = sum_basis(P).flatten(0, 1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(P - 1, dtype=torch.float64))


def test_gini_by_hand() -> None:
    assert gini(torch.ones(4).double()) == pytest.approx(0.0)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 1.0]).double()) == pytest.approx(0.75)


def test_the_table_is_all_pairs_once() -> None:
    assert len({tuple(row) for row in TABLE.tokens.tolist()}) == P * P
    assert int(TABLE.is_train.sum()) == round(0.4 * P * P)
    row = 5 * P + 20
    assert TABLE.tokens[row].tolist() == [5, 20, P]
    assert int(TABLE.answers[row]) == 2


def test_an_untrained_model_has_no_key_frequencies() -> None:
    settings = GrokkingSettings(modulus=P, d_model=32)
    progress = measure_progress(new_model(settings), TABLE)
    assert progress.key_frequencies == ()
    assert progress.embedding_gini < 0.2


def test_transformer_lens_weights_measure_as_our_own() -> None:
    model = new_model(GrokkingSettings(modulus=P, d_model=32))
    state, config = native_to_transformer_lens(model)
    assert measure_progress(open_published(state, config), TABLE).test_loss == pytest.approx(
        measure_progress(model, TABLE).test_loss, rel=1e-5
    )


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run_grokking(TINY, out=tmp_path / "whole", checkpoint_every=3)
    run_grokking(TINY, out=tmp_path / "parts", checkpoint_every=3, stop_after=5)  # two steps are lost
    parts = run_grokking(TINY, out=tmp_path / "parts", checkpoint_every=3)
    assert [item.step for item in whole] == [0, 3, 6, 8]
    assert parts == whole
    assert open_progress(tmp_path / "parts") == whole
    first, second = (train_grokking(TINY, out=tmp_path / name) for name in ("whole", "parts"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "Losses over training" in (tmp_path / "parts" / "grokking.html").read_text()


def test_training_lowers_the_training_loss(tmp_path: Path) -> None:
    found = run_grokking(
        GrokkingSettings(modulus=7, d_model=16, n_steps=60), out=tmp_path, checkpoint_every=60
    )
    assert found[-1].train_loss < found[0].train_loss
    assert json.loads((tmp_path / "progress.json").read_text())[0]["step"] == 0
    assert "Chance is" in draw_progress(found, TINY).to_html()


@pytest.mark.slow
def test_weight_decay_makes_it_grok_and_none_does_not(tmp_path: Path) -> None:
    settings = {"modulus": 31, "d_model": 64, "train_share": 0.5, "n_steps": 10_000}
    grokked = run_grokking(GrokkingSettings(**settings), out=tmp_path / "grokked", checkpoint_every=5000)[-1]
    twin = run_grokking(
        GrokkingSettings(**settings, weight_decay=0.0), out=tmp_path / "twin", checkpoint_every=5000
    )[-1]
    assert grokked.test_accuracy > 0.95
    assert grokked.key_frequencies
    assert grokked.sum_share > 0.5
    assert grokked.excluded_loss > 1.0
    assert twin.train_accuracy == 1.0
    assert twin.test_accuracy < grokked.test_accuracy - 0.2


def test_the_command_trains_draws_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m mechscope.superposition.grokking`, interrupted after its first checkpoint, as if it never had been."""
    app = typer.Typer()
    app.command()(main)
    tiny = ["--modulus", "7", "--steps", "300", "--seed", "3", "--train-share", "0.5"]

    def run(folder: str, *more: str) -> Result:
        return CliRunner().invoke(app, ["--out", str(tmp_path / folder), *tiny, *more])

    whole = run("whole")
    assert whole.exit_code == 0, whole.output
    assert [line.split(":")[0] for line in whole.output.splitlines()] == ["step 0", "step 250", "step 300"]

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("mechscope.superposition.grokking.describe", interrupting_at(250))
        assert isinstance(run("parts").exception, KeyboardInterrupt | SystemExit)
    assert not (tmp_path / "parts" / "grokking.html").exists()
    resumed = run("parts")
    assert resumed.exit_code == 0, resumed.output
    assert "step 300" in resumed.output and "step 0:" not in resumed.output.replace("step 300:", "")
    assert open_progress(tmp_path / "parts") == open_progress(tmp_path / "whole")
    assert "Losses over training" in (tmp_path / "parts" / "grokking.html").read_text()

    other = run("parts", "--weight-decay", "0")
    assert isinstance(other.exception, BadFile), "another run is not mixed into the folder"


def interrupting_at(step: int) -> Callable[[Progress], str]:
    """Says nothing until a step, and is interrupted there, before the checkpoint of that step is written."""

    def said(progress: Progress) -> str:
        if progress.step == step:
            raise KeyboardInterrupt
        return f"step {progress.step}:"

    return said
