"""The one definition of FVU, and every other figure of a stream of tokens, against arithmetic on the whole."""

import math

import numpy as np
import pytest
import torch

from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.evaluation.estimates import Estimator, over_seeds, spread_of
from mechscope.dictionaries.evaluation.sums import Sums, fvu_of
from mechscope.vocabulary.errors import NotEnoughEvidence

N_UNITS, PER_UNIT, D, F = 10, 6, 5, 9


def data(seed: int = 0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = N_UNITS * PER_UNIT
    units = torch.arange(N_UNITS).repeat_interleave(PER_UNIT)
    target = torch.randn(n, D, generator=generator, dtype=torch.float64) + shift
    output = target + 0.4 * torch.randn(n, D, generator=generator, dtype=torch.float64)
    codes = torch.randn(n, F, generator=generator, dtype=torch.float64).sub(0.5).relu()
    codes[:, 0] = 0
    return units, target, output, codes


def summed(units, target, output, codes, batch: int = PER_UNIT * N_UNITS) -> Sums:
    sums = Sums.empty(n_units=N_UNITS, d_out=D, n_latents=F)
    for start in range(0, len(units), batch):
        part = slice(start, start + batch)
        sums.add(units[part], target=target[part], output=output[part], codes=SparseCodes.of(codes[part]))
    return sums


def fvu(target: torch.Tensor, output: torch.Tensor) -> float:
    units, _, _, codes = data()
    return summed(units, target, output, codes).fvu(Estimator(N_UNITS)).value


def test_the_identity_explains_all_and_the_mean_nothing() -> None:
    _, target, _, _ = data()
    assert fvu(target, target) == 0
    assert fvu(target, target.mean(0).expand_as(target)) == pytest.approx(1)


def test_zero_is_worse_than_the_mean_where_the_mean_is_not_zero() -> None:
    _, target, _, _ = data(shift=2.0)
    assert fvu(target, torch.zeros_like(target)) > 4


@pytest.mark.parametrize("shift", [0.0, 3.0, 1e6])
def test_it_equals_the_definition_for_shifted_data(shift: float) -> None:
    _, target, output, _ = data(shift=shift)
    wanted = ((target - output) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert fvu(target, output) == pytest.approx(float(wanted), rel=1e-9)
    assert fvu_of(target, output) == pytest.approx(float(wanted), rel=1e-9)


def test_a_constant_offset_on_every_output_is_seen() -> None:
    """Twin: the variance of the residual, which a tool in use reports, does not see it."""
    _, target, _, _ = data()
    output = target + 3
    blind = float((target - output).var(0).sum() / target.var(0).sum())
    assert blind == pytest.approx(0, abs=1e-12)
    assert fvu(target, output) > 5


def test_every_figure_equals_arithmetic_on_the_whole() -> None:
    units, target, output, codes = data(shift=1.0)
    sums = summed(units, target, output, codes)
    found = {name: one.value for name, one in sums.figures(Estimator(N_UNITS)).items()}
    wanted = {
        "mse": ((target - output) ** 2).sum(1).mean(),
        "cosine": torch.nn.functional.cosine_similarity(target, output).mean(),
        "l0": (codes != 0).double().sum(1).mean(),
        "l1": codes.sum(1).mean(),
        "norm_in": target.norm(dim=1).mean(),
        "norm_out": output.norm(dim=1).mean(),
        "norm_ratio": (output.norm(dim=1) / target.norm(dim=1)).mean(),
        "shrinkage": (output**2).sum() / (target * output).sum(),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-12), name
    assert found["r2"] == pytest.approx(1 - found["fvu"])
    assert np.allclose(sums.density(), (codes != 0).double().mean(0).numpy())
    assert torch.allclose(sums.mean, target.mean(0))
    assert sums.variance == pytest.approx(float((target - target.mean(0)).square().sum(1).mean()))


def test_shrinkage_is_one_without_and_the_factor_with() -> None:
    units, target, _, codes = data()
    shrunk = summed(units, target, 0.8 * target, codes).figures(Estimator(N_UNITS))
    assert shrunk["shrinkage"].value == pytest.approx(0.8)
    assert shrunk["norm_ratio"].value == pytest.approx(0.8)


@pytest.mark.parametrize("batch", [PER_UNIT, 2 * PER_UNIT, 5 * PER_UNIT])
def test_the_batch_size_changes_nothing(batch: int) -> None:
    whole, parts = summed(*data(shift=5.0)), summed(*data(shift=5.0), batch=batch)
    one, other = (sums.figures(Estimator(N_UNITS)) for sums in (whole, parts))
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-12)
        assert one[name].low == pytest.approx(other[name].low, rel=1e-12)


def test_narrow_floats_are_summed_in_double() -> None:
    units, target, output, codes = data(shift=4.0)
    narrow = [one.to(torch.bfloat16) for one in (target, output)]
    wide = [one.double() for one in narrow]
    found = summed(units, *narrow, codes).fvu(Estimator(N_UNITS)).value
    assert found == pytest.approx(fvu_of(*wide), rel=1e-12)


def test_intervals_over_prompts_cover_the_truth() -> None:
    hits = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(40 * 5, 4, generator=generator, dtype=torch.float64)
        unit_noise = torch.rand(40, generator=generator, dtype=torch.float64).repeat_interleave(5)[:, None]
        noise = torch.randn(40 * 5, 4, generator=generator, dtype=torch.float64) * unit_noise
        sums = Sums.empty(n_units=40, d_out=4, n_latents=1)
        codes = SparseCodes.of(torch.ones(200, 1))
        sums.add(torch.arange(40).repeat_interleave(5), target=target, output=target + noise, codes=codes)
        found = sums.fvu(Estimator(40, seed=seed, n_resamples=400))
        hits += found.low <= 1 / 3 <= found.high
    assert hits >= 52


def test_one_prompt_has_no_interval() -> None:
    units, target, output, codes = data()
    sums = Sums.empty(n_units=1, d_out=D, n_latents=F)
    sums.add(torch.zeros_like(units), target=target, output=output, codes=SparseCodes.of(codes))
    assert math.isinf(sums.fvu(Estimator(1)).high)


def test_a_spread_needs_two_seeds() -> None:
    with pytest.raises(NotEnoughEvidence, match="One seed"):
        spread_of([1.0])
    estimators = [summed(*data(seed)).figures(Estimator(N_UNITS, n_resamples=50)) for seed in range(3)]
    spread = over_seeds(estimators)["fvu"]
    assert spread.mean.low < spread.mean.value < spread.mean.high
    assert spread.deviation == pytest.approx(np.std(spread.values, ddof=1))
