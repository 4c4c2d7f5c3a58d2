"""Latents as a mechanism: what is written equals the arithmetic done by hand, and bad sets are refused."""

import pytest
import torch

import mechscope as ms
from features.cases import N_LATENTS, dictionary_of, model_of
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings
from mechscope.features.latents import Latents
from mechscope.vocabulary.errors import InterventionMismatch, NotSerializable, PositionOutOfRange
from mechscope.vocabulary.protocols import Mechanism
from mechscope.vocabulary.sites import Site

SITE = "resid_post.1"
CLEAN, CORRUPT = "w1 w2 w3 w4", "w5 w2 w6 w7"


def values_of(text: str) -> torch.Tensor:
    return model_of().run(model_of().tokens(text), capture=[SITE])[SITE]


def written(latents: tuple[int, ...], difference: torch.Tensor) -> torch.Tensor:
    """The oracle: what a difference of codes adds to the site."""
    return difference @ dictionary_of().tensors["W_dec"][list(latents)]


def under(writes, text: str = CLEAN) -> torch.Tensor:
    return model_of().run(model_of().tokens(text), interventions=list(writes), capture=[SITE])[SITE]


@pytest.mark.parametrize("latents", [(6,), (6, 2, 11)])
def test_held_at_zero_latents_take_away_what_they_wrote_and_nothing_else(latents: tuple[int, ...]) -> None:
    value = values_of(CLEAN)
    codes = dictionary_of().encode(value)[..., list(latents)]
    held = under(Latents(dictionary_of(), latents).ablation("zero", ()))
    assert torch.allclose(held, value - written(latents, codes), atol=1e-10)
    assert not torch.allclose(held, value, atol=1e-3)  # the check can fail


def test_one_latent_held_at_zero_is_clamped_to_zero() -> None:
    held = under(Latents(dictionary_of(), (6,)).ablation("zero", ()))
    assert torch.allclose(held, under([ms.clamp(dictionary_of(), feature=6, to=0.0)]), atol=1e-12)


@pytest.mark.parametrize("latents", [(6,), (6, 2, 11)])
def test_an_exchange_moves_these_latents_between_two_runs_and_leaves_the_rest(
    latents: tuple[int, ...],
) -> None:
    mechanism = Latents(dictionary_of(), latents)
    clean, corrupt = values_of(CLEAN), values_of(CORRUPT)
    codes = [dictionary_of().encode(one)[..., list(latents)] for one in (clean, corrupt)]
    donor = model_of().run(model_of().tokens(CORRUPT), capture=[SITE]).cache
    without = clean + written(latents, codes[1] - codes[0])
    alone = corrupt + written(latents, codes[0] - codes[1])
    assert torch.allclose(under(mechanism.ablation("corrupt", donor)), without, atol=1e-10)
    assert torch.allclose(under(mechanism.isolation(donor)), alone, atol=1e-10)
    assert not torch.allclose(without, clean, atol=1e-3)  # the check can fail


def test_an_exchange_of_a_run_with_itself_changes_nothing() -> None:
    mechanism = Latents(dictionary_of(), (6, 2))
    donor = model_of().run(model_of().tokens(CLEAN), capture=[SITE]).cache
    for writes in (mechanism.ablation("corrupt", donor), mechanism.isolation(donor)):
        assert torch.allclose(under(writes), values_of(CLEAN), atol=1e-12)


def test_steering_clamps_each_latent_to_its_own_value() -> None:
    mechanism = Latents(dictionary_of(), (6, 2), values=(1.5, 0.5))
    assert mechanism.steering(2.0) == [
        ms.clamp(dictionary_of(), feature=6, to=3.0),
        ms.clamp(dictionary_of(), feature=2, to=1.0),
    ]
    with pytest.raises(InterventionMismatch, match="no values"):
        Latents(dictionary_of(), (6,)).steering(1.0)


def test_latents_are_held_by_position_and_the_rest_is_kept() -> None:
    """The oracle: what each lacks to its value, written at that position alone. Twin: another position's values."""
    held = ((-1, (1.5, 0.5)), (-3, (0.0, 2.0)))
    mechanism = Latents(dictionary_of(), (6, 2), held=held)
    value = values_of(CLEAN)
    wanted = value.clone()
    for position, values in held:
        lacks = torch.tensor(values).double() - dictionary_of().encode(value)[:, position, [6, 2]]
        wanted[:, position] += written((6, 2), lacks)
    assert torch.allclose(under(mechanism.ablation("mean", ())), wanted, atol=1e-10)
    turned = Latents(dictionary_of(), (6, 2), held=((-3, (1.5, 0.5)), (-1, (0.0, 2.0))))
    assert not torch.allclose(under(turned.holding()), wanted, atol=1e-3)
    both = under([*Latents(dictionary_of(), (6,), held=((-2, (4.0,)),)).holding()])
    assert torch.allclose(
        both, under([ms.clamp(dictionary_of(), feature=6, to=4.0, positions=-2)]), atol=1e-10
    )
    assert mechanism.to_json()["held"] == [[-1, [1.5, 0.5]], [-3, [0.0, 2.0]]]
    assert "held" not in Latents(dictionary_of(), (6, 2)).to_json()


def test_latents_that_nobody_said_what_to_hold_at_have_no_mean() -> None:
    with pytest.raises(InterventionMismatch, match="held= by position"):
        Latents(dictionary_of(), (6,)).ablation("mean", ())
    with pytest.raises(InterventionMismatch, match="2 latents"):
        Latents(dictionary_of(), (6, 2), held=((-1, (1.0,)),))


def test_it_is_a_mechanism_with_a_name_an_identity_and_parts() -> None:
    mechanism = Latents(dictionary_of(), (6, 2), values=(1.0, 2.0), label="a trigger")
    assert isinstance(mechanism, Mechanism)
    assert mechanism.name == "latents 6 and 2 of resid_post.1 (a trigger)"
    assert mechanism.to_json()["latents"] == [6, 2] and len(mechanism.to_json()["dictionary_sha256"]) == 64
    assert [(one.latents, one.values) for one in mechanism.without_each()] == [((2,), (2.0,)), ((6,), (1.0,))]
    assert mechanism.without_each()[0].without_each() == ()
    donor = model_of().run(model_of().tokens(CORRUPT), capture=[SITE]).cache
    with pytest.raises(NotSerializable, match="holds a dictionary"):
        mechanism.isolation(donor)[0].to_json()


def test_sets_that_mean_nothing_are_refused() -> None:
    for latents in ((), (3, 3), (N_LATENTS,), (-1,)):
        with pytest.raises(PositionOutOfRange, match="no latents of the dictionary"):
            Latents(dictionary_of(), latents)
    with pytest.raises(InterventionMismatch, match='by "mean"'):
        Latents(dictionary_of(), (6,)).ablation("mean", ())
    read, write = (Port(site=Site(point, 1), shape=(32,)) for point in ("mlp_in", "mlp_out"))
    settings = Settings(reads=(read,), writes=(write,), n_latents=N_LATENTS, gate=Gate(rule="relu"))
    with pytest.raises(InterventionMismatch, match="reads and writes one site"):
        Latents(Dictionary(settings, dictionary_of().tensors), (6,))
