"""What an intervention on routing says of the experts' choice is what happens to it."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.interventions.intervention import intervention_from_json
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.points import POINTS, ROUTING
from mechscope.vocabulary.sites import routing_at
from tiny_models import tiny

LAYER = 1


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("mixtral", torch.float64), check=False)


@pytest.fixture(scope="module")
def behavior():
    rng = np.random.default_rng(0)
    clean = rng.integers(1, 30, size=(8, 6))
    corrupt = clean.copy()
    corrupt[:, 1] = (corrupt[:, 1] + 7) % 29 + 1
    return ms.behaviors.from_tokens(clean.tolist(), corrupt.tolist(), answers=[31] * 8, wrong=[32] * 8)


@pytest.mark.parametrize("point", sorted(ROUTING))
def test_the_choice_follows_a_write_or_stays_as_the_intervention_says(
    model: Model, behavior, point: str
) -> None:
    site, choice = f"{point}.{LAYER}", f"expert_choice.{LAYER}"
    names = [f"{one}.{LAYER}" for one in ROUTING]
    own = model.run(behavior.clean, capture=names)
    donor = model.run(behavior.corrupt, capture=names)
    assert not torch.equal(own[choice], donor[choice]), (
        "the pairs are routed differently, or nothing could be seen"
    )
    write = ms.patch(site, donor)
    after = model.run(behavior.clean, interventions=[write], capture=[choice])[choice]
    follows = torch.equal(after, donor[choice])
    assert write.routing == ROUTING[point]
    if point == "router_logits":
        assert follows and write.routing == "recomputed"
    elif point == "expert_choice":
        # Frozen to what is written, whatever the logits are.
        logits = ms.patch(f"router_logits.{LAYER}", own)
        held = model.run(behavior.clean, interventions=[logits, write], capture=[choice])[choice]
        assert follows and torch.equal(held, donor[choice])
    else:
        assert torch.equal(after, own[choice]) and not follows


def test_elsewhere_routers_are_free_unless_the_choice_is_frozen(model: Model, behavior) -> None:
    own = model.run(behavior.clean, capture=["expert_choice.*"])
    upstream = ms.patch("resid_pre.0", model.run(behavior.corrupt, capture=["resid_pre.0"]))
    freed = model.run(behavior.clean, interventions=[upstream], capture=["expert_choice.*"])
    held = ms.freeze("expert_choice.*", to=own)
    assert (upstream.routing, held.routing) == ("", "frozen")
    kept = model.run(behavior.clean, interventions=[upstream, held], capture=["expert_choice.*"])
    for layer in range(model.n_layers):
        name = f"expert_choice.{layer}"
        assert torch.equal(kept[name], own[name]) and not torch.equal(freed[name], own[name])


def test_the_word_is_saved_with_the_intervention_and_with_a_grid(model: Model, behavior) -> None:
    for point, routing in ROUTING.items():
        run = model.run(behavior.corrupt, capture=[f"{point}.*"])
        write = ms.patch(f"{point}.*", run)
        tensors: dict[str, torch.Tensor] = {}
        saved = write.to_json(tensors)
        assert saved["routing"] == routing == write.routing
        assert intervention_from_json(saved, tensors) == write
    assert "routing" not in ms.ablate("resid_post.1", "zero").to_json()
    grid = ms.patch_grid(model, behavior.train, site="router_logits")
    assert grid.settings["routing"] == "recomputed"
    assert "routing" not in ms.patch_grid(model, behavior.train, site="mlp_out").settings
    assert ms.Sites.of("router_logits.1", positions=-1).name.endswith("(experts' choice recomputed)")


def test_patterns_say_everything_that_they_write() -> None:
    assert routing_at("expert_*.1") == "frozen" and routing_at("router_logits.0-2") == "recomputed"
    assert routing_at("router_logits.1,expert_choice.1") == "frozen, recomputed"
    assert routing_at("*") == "frozen, recomputed" and routing_at("mlp_out.*") == ""
    assert set(ROUTING) <= set(POINTS)
