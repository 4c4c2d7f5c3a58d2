"""Donors: runs, caches and tensors; other paddings, other lengths, other widths; subspaces."""

import pytest
import torch
from torch import Tensor

import mechscope as ms
from mechscope.interventions.intervention import Value, intervention_from_json
from mechscope.interventions.replace import Patch
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import InterventionMismatch, MechscopeError, ShapeError, UnknownSite
from small_models import biggest, direction, model_of, prompts, random_rows

SITES = ("resid_post.1", "z.1", "k.1", "pattern.1", "scores.0", "mlp_post.2")


def after(writes: list, at: str, batch: TokenBatch | None = None) -> Tensor:
    batch = prompts() if batch is None else batch
    return model_of().run(batch, interventions=writes, capture=[at])[at]


def row(value: Tensor, index: int, n: int) -> Tensor:
    """One row of a [batch, pos, *] tensor without padding; of a map, both axes."""
    if value.ndim == 4 and value.shape[-1] == value.shape[-2]:
        return value[index, :, -n:, -n:]
    return value[index, -n:]


@pytest.mark.parametrize("at", SITES)
def test_a_run_a_cache_and_a_tensor_of_the_same_values_are_the_same_donor(at: str) -> None:
    run = model_of().run(prompts(1), capture=[at])
    wanted = after([ms.patch(at, run)], at)
    assert torch.equal(after([ms.patch(at, run.cache)], at), wanted)
    from_tensor = after([ms.patch(at, run[at])], at)  # paddings are the same here
    for index, n in ((0, 8), (1, 5)):
        assert torch.equal(row(wanted, index, n), row(run[at], index, n))
        assert torch.equal(row(from_tensor, index, n), row(run[at], index, n))


@pytest.mark.parametrize("at", SITES)
def test_donor_and_recipient_may_be_padded_differently(at: str) -> None:
    model = model_of()
    wide = model.run(random_rows((8, 5, 11), 1), capture=[at])  # the same two prompts, and a longer one
    narrow = model.run(prompts(1), capture=[at])
    assert wide[at].shape[1:3] != narrow[at].shape[1:3]
    got, wanted = after([ms.patch(at, wide)], at), after([ms.patch(at, narrow)], at)
    # Rows of the wide batch are computed with other paddings, so they agree to rounding.
    for index, n in ((0, 8), (1, 5)):
        finite = torch.isfinite(row(wanted, index, n))
        assert torch.equal(finite, torch.isfinite(row(got, index, n)))
        assert torch.allclose(row(got, index, n)[finite], row(wanted, index, n)[finite], atol=1e-12)


def test_a_longer_donor_of_one_row_serves_every_row_by_position() -> None:
    model, at = model_of(), "resid_post.1"
    donor = model.run(random_rows((9,), 2), capture=[at])
    got = after([ms.patch(at, donor)], at)
    assert torch.equal(got[0], donor[at][0, :8])
    assert torch.equal(got[1, 3:], donor[at][0, :5])


def test_a_pattern_may_come_from_a_longer_run_whose_later_keys_nobody_sees() -> None:
    model, at = model_of(), "pattern.1"
    donor = model.run(random_rows((11,), 2), capture=[at])
    got = after([ms.patch(at, donor)], at)
    assert torch.equal(got[0], donor[at][0, :, :8, :8])
    assert torch.equal(got[1, :, 3:, 3:], donor[at][0, :, :5, :5])


@pytest.mark.parametrize("at", ["resid_post.1", "pattern.1"])
def test_a_donor_shorter_than_what_is_written_is_refused(at: str) -> None:
    model = model_of()
    donor = model.run(random_rows((6, 5), 1), capture=[at])
    with pytest.raises(InterventionMismatch, match="too short"):
        after([ms.patch(at, donor)], at)
    got = after([ms.patch(at, donor, positions=slice(0, 5))], at)
    assert torch.equal(row(got, 1, 5), row(after([ms.patch(at, donor, positions=slice(0, 5))], at), 1, 5))


def test_a_donor_run_of_one_token_is_not_spread_over_all_positions() -> None:
    donor = model_of().run([[3]], capture=["resid_post.1"])
    with pytest.raises(InterventionMismatch, match="too short"):
        after([ms.patch("resid_post.1", donor)], "resid_post.1")
    assert after([ms.patch("resid_post.1", donor, positions=0)], "resid_post.1").shape == (2, 8, 32)


@pytest.mark.parametrize("at", ["resid_post.1", "z.1", "k.0"])
def test_a_tensor_may_give_one_value_for_all_or_one_a_row(at: str) -> None:
    shape = after([], at).shape[2:]
    generator = torch.Generator().manual_seed(0)
    a_row = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    got = after([ms.patch(at, a_row)], at)
    assert torch.equal(got[0], a_row[0].expand(8, *shape))
    assert torch.equal(got[1, 3:], a_row[1].expand(5, *shape))
    got = after([ms.patch(at, a_row[0])], at)
    assert torch.equal(got[1, 3:], a_row[0].expand(5, *shape))
    assert torch.equal(after([ms.patch(at, a_row[:, None])], at), after([ms.patch(at, a_row)], at)), (
        "pos may be 1"
    )


def test_a_pattern_of_sites_takes_each_sites_own_values_and_forms_maps_on_demand() -> None:
    model = model_of()
    donor = model.run(prompts(1), capture="*")
    assert "pattern.1" in donor.cache
    got = model.run(prompts(), interventions=[ms.patch("pattern.*", donor)], capture=["pattern.*"])
    wanted = model.run(prompts(1), capture=["pattern.*"])
    for name in ("pattern.0", "pattern.2"):
        assert torch.allclose(row(got[name], 1, 5), row(wanted[name], 1, 5), atol=1e-12)
    with pytest.raises(UnknownSite):
        ms.patch("pattern.*", model.run(prompts(), capture=["mlp_out.0"]))


@pytest.mark.parametrize(
    ("at", "shape", "mentions"),
    [
        ("resid_post.1", (2, 8, 31), ("31", "32")),
        ("resid_post.1", (31,), ("31", "32")),
        ("resid_post.1", (2, 31), ("31", "32")),
        ("z.1", (2, 8, 4, 9), ("9", "10")),
        ("z.1", (2, 8, 3, 10), ("[2, 8, 3, 10]", "head = 4")),
        ("k.1", (2, 8, 4, 10), ("[2, 8, 4, 10]", "kv_head = 2")),
        ("resid_post.1", (2, 8, 32, 1, 1), ("[2, 8, 32, 1, 1]", "batch pos d_model")),
    ],
)
def test_a_donor_of_the_wrong_width_is_refused_with_both_widths(
    at: str, shape: tuple[int, ...], mentions: tuple[str, ...]
) -> None:
    with pytest.raises(ShapeError) as refused:
        after([ms.patch(at, torch.zeros(shape, dtype=torch.float64))], at)
    assert all(text in str(refused.value) for text in mentions), str(refused.value)


def test_a_donor_with_fewer_rows_than_the_batch_is_refused() -> None:
    donor = model_of().run(random_rows((8, 8), 1), capture=["z.1"])
    with pytest.raises(ShapeError, match="fewer rows"):
        after([ms.patch("z.1", donor)], "z.1", random_rows((8, 8, 8)))
    assert after([ms.patch("z.1", donor).only(rows=[0, 1])], "z.1", random_rows((8, 8, 8))).shape[0] == 3


def test_what_is_no_donor_is_refused() -> None:
    with pytest.raises(MechscopeError, match="was not captured"):
        ms.patch("z.1", model_of().run(prompts(), capture=["mlp_out.0"]))
    with pytest.raises(InterventionMismatch, match="freeze needs"):
        ms.freeze("z.1", to="mine")


@pytest.mark.parametrize("at", ["resid_post.1", "z.1"])
def test_patching_inside_the_whole_space_is_patching_and_inside_none_is_nothing(at: str) -> None:
    model, plain = model_of(), after([], at)
    donor = model.run(prompts(1), capture=[at])
    full = after([ms.patch(at, donor)], at)
    width, everything = plain.shape[-1], plain[0, 0].numel()
    for d in {width, everything}:
        whole = after([ms.patch(at, donor, subspace=torch.eye(d, dtype=torch.float64))], at)
        assert biggest(whole, full, prompts()) < 1e-12
        inside = direction(d, n=3)
        patched = after([ms.patch(at, donor, subspace=inside)], at)
        assert biggest(patched, plain, prompts()) > 0.01
        assert biggest(patched, full, prompts()) > 0.01
    none = Patch(
        at=at, donor=ms.patch(at, donor).donor, subspace=Value(torch.zeros(0, width, dtype=torch.float64))
    )
    assert biggest(after([none], at), plain, prompts()) == 0.0


def test_a_subspace_patch_takes_the_donors_part_inside_and_keeps_its_own_outside() -> None:
    model, at, rows = model_of(), "resid_post.1", direction(32, n=3)
    plain, donor = after([], at)[0], model.run(prompts(1), capture=[at])
    got = after([ms.patch(at, donor, subspace=rows)], at)[0]
    assert torch.allclose(got @ rows.T, donor[at][0] @ rows.T)
    inside = torch.linalg.pinv(rows) @ rows
    outside = torch.eye(32, dtype=torch.float64) - inside
    assert torch.allclose(got @ outside, plain @ outside)


def test_a_subspace_of_another_width_is_refused_with_the_widths() -> None:
    donor = model_of().run(prompts(1), capture=["z.1"])
    with pytest.raises(ShapeError, match=r"10 or 40") as refused:
        after([ms.patch("z.1", donor, subspace=direction(12, n=2))], "z.1")
    assert "width 12" in str(refused.value)


@pytest.mark.parametrize("at", ["resid_post.1", "z.1"])
def test_outside_a_subspace_the_donor_comes_in_and_inside_the_own_value_stays(at: str) -> None:
    """The same as patching the complement, row for row; heads and their width count together."""
    model = model_of()
    donor = model.run(prompts(1), capture=[at])
    own = model.run(prompts(), capture=[at])[at].flatten(2)
    full = torch.linalg.qr(
        torch.randn(own.shape[-1], own.shape[-1], dtype=own.dtype, generator=torch.Generator().manual_seed(0))
    )[0].T
    inside, rest = full[:3], full[3:]
    got = after([ms.patch(at, donor, subspace=inside).outside_subspace()], at).flatten(2)
    assert torch.allclose(got, after([ms.patch(at, donor, subspace=rest)], at).flatten(2), atol=1e-12)
    assert torch.allclose(got @ inside.T, own @ inside.T, atol=1e-12)
    assert not torch.allclose(got @ rest.T, own @ rest.T, atol=1e-3)
    plain = ms.patch(at, donor, subspace=inside)
    kept_out = plain.outside_subspace()
    assert "outside" not in plain.to_json() and kept_out.to_json()["outside"] is True
    assert plain.likeness() != kept_out.likeness()
    tensors: dict[str, Tensor] = {}
    assert intervention_from_json(kept_out.to_json(tensors), tensors) == kept_out
    with pytest.raises(InterventionMismatch, match="subspace"):
        ms.patch(at, donor).outside_subspace()
