"""Dark matter: an error that is linear is said to be, one that is not is not, and its cost is the loss it causes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dictionaries.evaluation.known import SITE, identity, texts
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.evaluation.dark_matter import (
    DarkMatterSettings,
    Ridge,
    dark_matter,
    random_features,
)
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.dictionaries.evaluation.spec import EvaluationSettings
from mechscope.vocabulary.errors import NotEnoughEvidence
from small_models import model_of

QUICK = DarkMatterSettings(n_resamples=50, costs=False, n_random=64, batch_size=100)


def missing_directions(n: int = 8) -> Dictionary:
    """The identity without its first directions: the error is those, a linear map of the input."""
    one = identity(32)
    decoder = one.W_dec.clone()
    decoder[:, :n] = 0
    return Dictionary(one.settings, one.tensors | {"W_dec": decoder})


def test_an_error_of_missing_directions_is_linear() -> None:
    found = dark_matter(
        missing_directions(), model_of("llama"), replace(texts(48), bos="added"), settings=QUICK
    )
    assert found.linear.value == pytest.approx(1, abs=1e-4) and found.bos == "added"
    assert found.predictable.value > 0.99
    assert found.token_linear.max() < 1e-3 * found.token_error.mean()
    assert len(found.token_error) == found.n_tokens


def test_an_even_error_is_found_by_the_predictor_and_not_by_the_linear_map() -> None:
    """Errors |x|: no linear map finds them, and ReLUs do."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 3, generator=generator).double()
    shares = []
    for features in (lambda one: one, random_features(3, 128, scale=1.0, seed=0)):
        ridge = Ridge(features)
        ridge.add(values[:1500], values[:1500].abs(), is_check=False)
        ridge.add(values[1500:2000], values[1500:2000].abs(), is_check=True)
        ridge.solve()
        target = values[2000:].abs()
        left = (target - ridge(values[2000:])).square().sum()
        shares.append(float(1 - left / (target - target.mean(0)).square().sum()))
    assert shares[0] < 0.02
    assert shares[1] > 0.9


def test_noise_is_neither() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 6, generator=generator).double()
    noise = torch.randn(4000, 3, generator=generator).double()
    features = random_features(6, 32, scale=1.0, seed=0)
    for ridge in (Ridge(lambda one: one), Ridge(features)):
        ridge.add(values[:1500], noise[:1500], is_check=False)
        ridge.add(values[1500:2000], noise[1500:2000], is_check=True)
        ridge.solve()
        left = (noise[2000:] - ridge(values[2000:])).square().sum()
        assert float(1 - left / noise[2000:].square().sum()) < 0.02


def test_the_streamed_fit_equals_least_squares() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(300, 5, generator=generator).double() + 2
    targets = values @ torch.randn(5, 2, generator=generator).double() + 0.7
    ridge = Ridge(lambda one: one)
    for start in range(0, 300, 100):
        ridge.add(values[start : start + 100], targets[start : start + 100], is_check=start == 200)
    ridge.solve()
    assert torch.allclose(ridge(values), targets, atol=1e-4)


def test_what_the_error_costs_is_what_the_evaluation_says() -> None:
    model, text = model_of("llama"), texts(12)
    dictionary = missing_directions(16)
    found = dark_matter(dictionary, model, text, settings=replace(QUICK, costs=True))
    scored = text.select(range(1, 12, 2))
    whole = evaluate(dictionary, model, scored, settings=EvaluationSettings(n_resamples=50))
    assert found.costs["error"].value == pytest.approx(whole["ce_increase"].value, abs=1e-6)
    assert found.fvu.value == pytest.approx(whole["fvu"].value, rel=1e-6)
    assert found.costs["rest"].value == pytest.approx(0, abs=0.05)
    assert found.costs["linear"].value == pytest.approx(found.costs["error"].value, abs=0.05)


def test_each_cost_leaves_out_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a linear map that knows nothing and a predictor that knows the error, all costs are known."""
    model, text, dictionary = model_of("llama"), texts(12), missing_directions(16)

    def error(read: Tensor) -> Tensor:
        left = read - dictionary(read).double()
        return torch.cat([left, left.square().sum(1, keepdim=True)], dim=1)

    nothing, everything = Ridge(lambda read: 0 * error(read)), Ridge(error)
    nothing.weights = everything.weights = torch.eye(
        34, 33, dtype=torch.float64
    )  # the features are the answer

    def known(*_: object) -> tuple[Ridge, Ridge]:
        return nothing, everything

    monkeypatch.setattr("mechscope.dictionaries.evaluation.dark_matter._fitted_predictors", known)
    found = dark_matter(dictionary, model, text, settings=replace(QUICK, costs=True))
    assert abs(found.costs["error"].value) > 0.01
    assert found.costs["rest"].value == pytest.approx(found.costs["error"].value, abs=1e-6)
    assert found.costs["linear"].value == pytest.approx(0, abs=1e-6)
    assert found.costs["unpredictable"].value == pytest.approx(0, abs=1e-6)
    assert found.linear.value < 0.01 and found.predictable.value == pytest.approx(1, abs=1e-6)


def test_few_prompts_are_refused() -> None:
    with pytest.raises(NotEnoughEvidence, match="too few prompts"):
        dark_matter(identity(32, SITE), model_of("llama"), texts(4), settings=QUICK)
