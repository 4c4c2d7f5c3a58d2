"""Laws of every intervention, each with a twin that shows the check can fail."""

import pytest
import torch

import mechscope as ms
from mechscope.interventions.steering import rotate_towards
from mechscope.vocabulary.sites import Site
from small_models import LinearCodec, biggest, direction, effect, model_of, prompts

EXACT = 1e-11
SITES = (
    "resid_post.1",
    "resid_mid.1",
    "mlp_out.0",
    "z.1",
    "v.1",
    "k.0",
    "q.2",
    "attn_in.1",
    "embed",
    "ln_final",
)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_patching_a_run_with_itself_changes_nothing(family: str) -> None:
    model, batch = model_of(family), prompts()
    run = model.run(batch, capture=model.binding.formed)
    writable = [str(site) for site in model.binding.formed if site.row.is_writable]
    assert (
        biggest(model.logits(batch, interventions=[ms.patch(at, run) for at in writable]), run.logits, batch)
        < EXACT
    )
    other = model.run(prompts(1), capture=["resid_post.1"])
    assert effect(model, [ms.patch("resid_post.1", other)]) > 0.1, "another run's values change something"


@pytest.mark.parametrize("at", SITES)
def test_the_neutral_amount_changes_nothing_and_another_does(at: str) -> None:
    model = model_of("llama")
    d = model.run(prompts(), capture=[at])[at].shape[-1]
    v = direction(d)
    neutral = [
        ms.scale(at, 1.0),
        ms.add(at, v, dose=0.0),
        ms.add(at, v, absolute=0.0),
        ms.add(at, v, dose=0.0, mode="rotate"),
        ms.add(at, v, dose=0.0, mode="norm_preserving"),
        ms.project_out(at, v, fraction=0.0),
        ms.cap(at, v, at_most=1e9, at_least=-1e9),
        ms.edit(at, lambda value: value),
        ms.freeze(at),
    ]
    for write in neutral:
        assert effect(model, [write]) < EXACT, write
    # At one position: what is added to all keys of a head shifts a query's scores alike, which softmax undoes.
    for write in (
        ms.scale(at, 0.5, positions=1),
        ms.add(at, v, dose=0.5, positions=1),
        ms.add(at, v, dose=0.5, mode="rotate", positions=1),
        ms.project_out(at, v, positions=1),
        ms.cap(at, v, at_most=-9.0, positions=1),
    ):
        assert effect(model, [write]) > 1e-4, write


def written(model: ms.Model, writes: list, at: str) -> torch.Tensor:
    """A site's values after interventions, real tokens of the first row."""
    return model.run(prompts(), interventions=writes, capture=[at])[at][0]


def test_projecting_out_twice_is_projecting_out_once() -> None:
    model, v = model_of(), direction(32)
    once = ms.project_out("resid_post.1", v)
    assert torch.allclose(
        written(model, [once], "resid_post.1"), written(model, [once, once], "resid_post.1"), atol=EXACT
    )
    half = ms.project_out("resid_post.1", v, fraction=0.5)
    assert not torch.allclose(
        written(model, [half], "resid_post.1"), written(model, [half, half], "resid_post.1")
    )


def test_a_fraction_of_two_reflects() -> None:
    model, v = model_of(), direction(32)
    unit = v / v.norm()
    before = model.run(prompts(), capture=["resid_post.1"])["resid_post.1"][0]
    after = written(model, [ms.project_out("resid_post.1", v, fraction=2.0)], "resid_post.1")
    assert torch.allclose(after @ unit, -before @ unit)
    assert torch.allclose(after.norm(dim=-1), before.norm(dim=-1))
    once = written(model, [ms.project_out("resid_post.1", v)], "resid_post.1")
    assert torch.allclose(once @ unit, torch.zeros(8, dtype=torch.float64), atol=EXACT)


def test_a_subspace_is_removed_whole_whatever_spans_it() -> None:
    model, rows = model_of(), direction(32, n=3)
    mixed = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.5]], dtype=torch.float64) @ rows
    a = written(model, [ms.project_out("resid_post.1", rows)], "resid_post.1")
    b = written(model, [ms.project_out("resid_post.1", mixed)], "resid_post.1")
    assert torch.allclose(a, b, atol=1e-9)
    assert float((a @ rows.T).abs().max()) < 1e-9


def test_rotation_keeps_norms_and_turns_by_its_angle() -> None:
    model, v = model_of(), direction(32)
    before = model.run(prompts(), capture=["resid_post.1"])["resid_post.1"][0]
    after = written(model, [ms.add("resid_post.1", v, dose=0.3, mode="rotate")], "resid_post.1")
    assert torch.allclose(after.norm(dim=-1), before.norm(dim=-1))
    angle = torch.nn.functional.cosine_similarity(after, before, dim=-1).arccos()
    assert torch.allclose(angle, torch.full((8,), 0.3, dtype=torch.float64))
    assert bool((after @ v > before @ v).all()), "towards the direction, not away from it"


def test_a_vector_along_the_direction_spans_no_plane_and_stays() -> None:
    v = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    unit = torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(rotate_towards(v, unit, torch.tensor(0.4)), v)
    assert torch.allclose(
        rotate_towards(v + 0.1, unit, torch.tensor(0.4)).norm(dim=-1), (v + 0.1).norm(dim=-1)
    )


def test_norm_preserving_addition_keeps_norms_and_plain_addition_does_not() -> None:
    model, v = model_of(), direction(32)
    before = model.run(prompts(), capture=["resid_post.1"])["resid_post.1"][0].norm(dim=-1)
    kept = written(model, [ms.add("resid_post.1", v, dose=0.7, mode="norm_preserving")], "resid_post.1").norm(
        dim=-1
    )
    plain = written(model, [ms.add("resid_post.1", v, dose=0.7)], "resid_post.1").norm(dim=-1)
    assert torch.allclose(kept, before)
    assert not torch.allclose(plain, before)


def test_a_cap_moves_only_what_exceeds_it_and_only_along_the_direction() -> None:
    model, v = model_of(), direction(32)
    unit = v / v.norm()
    before = model.run(prompts(), capture=["resid_post.1"])["resid_post.1"][0]
    limit = float((before @ unit).median())
    after = written(model, [ms.cap("resid_post.1", v, at_most=limit)], "resid_post.1")
    assert torch.allclose(after @ unit, (before @ unit).clamp(max=limit))
    across = torch.eye(32, dtype=torch.float64) - torch.outer(unit, unit)
    assert torch.allclose(after @ across, before @ across)


def test_a_dose_of_one_adds_a_vector_of_the_reference_norm() -> None:
    model = model_of()
    for at in ("resid_post.1", "z.0"):
        d = model.run(prompts(), capture=[at])[at].shape[-1]
        v = direction(d)
        before = model.run(prompts(), capture=[at])[at][0]
        added = written(model, [ms.add(at, v, dose=1.0)], at) - before
        norms = added.norm(dim=-1)
        assert torch.allclose(norms, torch.full_like(norms, model.reference_norm(at)))
        typical = before.norm(dim=-1).median()
        assert 0.3 < float(norms.flatten()[0] / typical) < 3.0, (
            "as long as a typical activation (of one head)"
        )


def test_doses_may_differ_by_row_and_an_absolute_amount_is_times_the_direction_as_given() -> None:
    model, v, at = model_of(), direction(32), "resid_post.1"
    both = model.run(prompts(), interventions=[ms.add(at, v, absolute=[0.0, 2.0])], capture=[at])[at]
    plain = model.run(prompts(), capture=[at])[at]
    assert torch.equal(both[0], plain[0])
    assert torch.allclose(both[1, 3:] - plain[1, 3:], (2.0 * v).expand(5, -1))


def test_interventions_at_a_site_apply_in_declared_order() -> None:
    model, v, at = model_of(), direction(32), "resid_post.1"
    add, double = ms.add(at, v, absolute=1.0), ms.scale(at, 2.0)
    before = model.run(prompts(), capture=[at])[at][0]
    assert torch.allclose(written(model, [add, double], at), 2 * (before + v))
    assert torch.allclose(written(model, [double, add], at), 2 * before + v)


def test_a_later_site_sees_an_earlier_change_unless_it_is_frozen() -> None:
    model, v = model_of(), direction(32)
    plain = model.run(prompts(), capture=["mlp_out.*", "pattern.*"])
    shift = ms.add("resid_pre.0", v, dose=1.0)
    moved = model.run(prompts(), interventions=[shift], capture=["mlp_out.*"])
    assert biggest(moved["mlp_out.1"], plain["mlp_out.1"], prompts()) > 0.1
    held = model.run(
        prompts(),
        interventions=[shift, ms.freeze("mlp_out.*"), ms.freeze("pattern.*")],
        capture=["mlp_out.*", "pattern.*"],
    )
    for name in ("mlp_out.0", "mlp_out.2"):
        assert biggest(held[name], plain[name], prompts()) == 0.0
    assert torch.equal(held["pattern.2"][0], plain["pattern.2"][0])
    assert biggest(held.logits, plain.logits, prompts()) > 0.01, "the frozen parts are not all"


def test_freezing_to_a_run_is_patching_from_it() -> None:
    model, other = model_of(), model_of().run(prompts(1), capture=["z.*"])
    frozen = model.logits(prompts(), interventions=[ms.freeze("z.*", to=other)])
    patched = model.logits(prompts(), interventions=[ms.patch("z.*", other)])
    assert biggest(frozen, patched, prompts()) == 0.0


def test_scaling_before_a_post_norm_warns_and_has_no_effect() -> None:
    model = model_of("gemma2")
    with pytest.warns(UserWarning, match="has no effect here"):
        assert effect(model, [ms.scale("z.1", 3.0)]) < 0.05
    with pytest.warns(UserWarning, match=r"attn_out or mlp_out"):
        model.logits(prompts(), interventions=[ms.scale("mlp_post.*", 2.0)])
    assert effect(model, [ms.scale("attn_out.1", 3.0)]) > 0.1


def test_scaling_one_head_or_one_position_of_v_or_in_another_family_does_not_warn() -> None:
    assert effect(model_of("gemma2"), [ms.scale("z.1", 3.0, heads=[1])]) > 0.05
    assert effect(model_of("gemma2"), [ms.scale("v.1", 3.0, positions=0)]) > 0.05
    assert effect(model_of("llama"), [ms.scale("z.1", 3.0)]) > 0.05


def test_a_clamp_sets_one_latent_and_keeps_the_reconstruction_error() -> None:
    model, codec = model_of(), LinearCodec(Site("resid_post", 1))
    before = model.run(prompts(), capture=["resid_post.1"])["resid_post.1"][0]
    after = written(model, [ms.clamp(codec, feature=1, to=10.0)], "resid_post.1")
    codes = codec.encode(before)
    assert torch.allclose(codec.encode(after)[:, 1], torch.full((8,), 10.0, dtype=torch.float64))
    assert torch.allclose(codec.encode(after)[:, [0, 2]], codes[:, [0, 2]])
    error = before - codec.decode(codes)
    assert float(error.norm()) > 1.0
    assert torch.allclose(after - codec.decode(codec.encode(after)), error)
