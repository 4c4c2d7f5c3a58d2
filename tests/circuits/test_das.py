"""DAS finds a planted subspace, finds nothing where labels are shuffled, and its illusion is shown by the row space."""

import numpy as np
import pytest
import torch

from circuits.abstraction_cases import draw, program, rotated, tiny_examples
from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.das import PRINCIPAL, DasResult, das
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.interchange import Interchanging, interchange
from mechscope.circuits.abstraction.interchanges import draw_interchanges
from mechscope.circuits.abstraction.learning import Basis, Das, Rows
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.row_space import row_space_of
from mechscope.interventions.replace import patch
from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadPairs, InterventionMismatch, PointUnavailable, ShapeError

END = Place.of("resid_post.0", positions=-1)
QUICK = Das(dim=6, n_steps=60, n_train=256, n_random=3)


@pytest.fixture(scope="module")
def parts():
    model, high, _ = rotated()
    return draw(model, high, "reverse", 500).divided()


def test_a_rotated_variable_is_found_and_random_subspaces_are_not_it(parts, tmp_path):
    model, high, turn = rotated()
    found = das(model, high, variable="mirror@5", place=END, examples=parts, settings=QUICK)
    assert found.held_out.iia(decisive=True).value >= 0.95
    assert found.held_out.iia("row space", decisive=True).value >= 0.95 and abs(found.row_space_gap) < 0.05
    assert found.held_out.random.max() <= found.held_out.iia("untouched").value + 0.1
    assert PRINCIPAL in found.held_out.answers
    # Where the compiler wrote the variable: dimensions 12 to 23 of the basis before it was turned.
    planted = torch.linalg.svdvals(torch.as_tensor(found.basis) @ turn[12:24].T)
    assert planted[:3].min() > 0.9
    assert np.allclose(found.basis @ found.basis.T, np.eye(6), atol=1e-6)
    found.save(tmp_path / "das.json")
    again = DasResult.load(tmp_path / "das.json")
    assert repr(again) == repr(found) and np.array_equal(again.basis, found.basis)
    assert again.settings == found.settings and found.curve.values[-1] >= 0.9


@pytest.mark.slow
def test_nothing_is_found_with_shuffled_labels(parts):
    model, high, _ = rotated()
    shuffled = Das(dim=6, n_steps=60, n_train=256, n_random=0, relabelled=True)
    found = das(model, high, variable="mirror@5", place=END, examples=parts, settings=shuffled)
    assert found.held_out.iia(decisive=True).value < 0.5
    assert found.checks[:, 2].max() < 0.75


@pytest.mark.slow
def test_equal_seeds_give_equal_subspaces(parts):
    model, high, _ = rotated()
    short = Das(dim=2, n_steps=4, n_train=32, n_random=0, check_every=2)
    first, second = (
        das(model, high, variable="mirror@5", place=END, examples=parts, settings=short) for _ in range(2)
    )
    assert np.array_equal(first.basis, second.basis)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_learning_pass_is_the_patch_and_its_gradient_is_right(name):
    model, high, own = tiny_examples(name, (7, 5, 6, 7, 4, 8, 5, 6))
    place = Place.of("z.1", heads=[0, 2], positions=-1)
    pairs = draw_interchanges(high, own, variables=["first"], n=4)
    ids = tuple(range(37))
    rows = Rows(
        model=model, pairs=pairs, place=place, labels=pairs.labels, choice="vocabulary", answer_ids=ids
    )
    width = len(place.coordinates(model))
    noise = torch.randn(width, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = torch.linalg.qr(noise)[0].T
    found = interchange(
        model,
        high,
        alignment={"first": place.within(start)},
        examples=own,
        settings=Interchanging(n_pairs=4, n_random=0),
    )
    with torch.no_grad():
        _, right = rows.measure(np.arange(4), start)
    assert right.tolist() == (found.answers["aligned"] == found.labels["predicted"]).tolist()
    basis = start.clone().requires_grad_()
    with torch.enable_grad():
        loss = rows.measure(np.arange(4), basis)[0].sum()
    (gradient,) = torch.autograd.grad(loss, basis)
    step = torch.zeros_like(start)
    step[1, 7] = 1e-3
    with torch.no_grad():
        up, down = (float(rows.measure(np.arange(4), start + sign * step)[0].sum()) for sign in (1, -1))
    assert abs((up - down) / 2e-3 - float(gradient[1, 7])) < 1e-2 * max(1.0, abs(float(gradient[1, 7])))


def test_the_parametrisation_keeps_rows_orthonormal_and_starts_where_the_seed_says():
    first, second, other = (Basis(3, 11, seed=seed, dtype=torch.float64)() for seed in (0, 0, 1))
    assert torch.allclose(first @ first.T, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.equal(first, second) and not torch.allclose(first, other)


def illusion() -> tuple[object, CausalModel, Examples]:
    """The word's sign goes to the logits past the MLP. Neuron 0 knows the sign and writes nothing; neuron 1 writes the
    answer and is always on."""
    config = NativeConfig(
        n_layers=1, d_model=4, n_heads=1, d_head=2, d_mlp=2, d_vocab=6, n_ctx=3,
        norm="none", positions="learned", bias=True, activation="relu", pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    network = NativeForCausalLM(config)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        state = network.state_dict()
        state["model.embed.weight"][2:, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
        state["model.pos_embed.weight"][:, 1] = 1.0
        state["model.pos_embed.weight"][:, 2] = -30.0
        state["model.layers.0.mlp.up_proj.weight"][0, 0] = 1.0
        state["model.layers.0.mlp.up_proj.weight"][1, 1] = 1.0
        state["model.layers.0.mlp.down_proj.weight"][2, 1] = 30.0
        state["unembed.weight"][2] = torch.tensor([5.0, 0.0, 1.0, 0.0])
        state["unembed.weight"][3] = torch.tensor([-5.0, 0.0, -1.0, 0.0])
    model = wrap(network.eval(), None, check=False)
    high = CausalModel.of(
        "sign", inputs=("word",), functions={"sign": lambda word: word % 2, "answer": lambda sign: 2 + sign}
    )
    settings = [{"word": word, "first": first} for word in (2, 3, 4, 5) for first in (1, 2, 3, 4, 5)]
    own = Examples.of(model, high, settings=settings, prompt=lambda s: [s["first"], s["word"]], answer=int)
    return model, high, own


def test_a_patch_through_an_unread_and_a_dormant_neuron_is_unmasked_by_the_row_space():
    model, high, own = illusion()
    place = Place.of("mlp_post.0", positions=-1, subspace=[[1.0, 1.0]])
    found = interchange(
        model, high, alignment={"sign": place}, examples=own, settings=Interchanging(choice="answers")
    )
    assert found.iia("whole place", decisive=True).value == 0.0
    assert found.iia(decisive=True).value == 1.0
    assert found.iia("row space", decisive=True).value == 0.0
    assert any("rank 1 of 2" in note and "0.707" in note for note in found.notes)
    honest = Place.of("resid_mid.0", positions=-1, subspace=[[1.0, 0.0, 0.0, 0.0]])
    true = interchange(model, high, alignment={"sign": honest}, examples=own)
    assert true.iia("row space", decisive=True).value == true.iia(decisive=True).value == 1.0


def test_das_falls_for_the_illusion_and_the_gap_says_so():
    model, high, own = illusion()
    parts = {"train": own.select(range(0, 20, 2)), "validation": own.select([1, 7, 11, 17])}
    parts["held_out"] = own.select([3, 5, 9, 13, 15, 19])
    found = das(
        model,
        high,
        variable="sign",
        place=Place.of("mlp_post.0", positions=-1),
        examples=parts,
        settings=Das(dim=1, n_steps=60, n_train=32, learning_rate=0.05, choice="answers", n_random=0),
    )
    assert found.held_out.iia(decisive=True).value == 1.0
    assert found.row_space_gap == 1.0


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "native_parallel", "gpt_neox"])
@pytest.mark.parametrize("point", ["mlp_post", "z", "attn_out", "resid_post"])
def test_a_change_outside_the_row_space_is_not_seen(name, point):
    model, _, own = tiny_examples(name, (6, 6))
    layer = model.n_layers - 1
    place = Place.of(f"{point}.{layer}", positions=-1)
    space = row_space_of(model, place)
    assert torch.allclose(space.basis @ space.basis.T, torch.eye(space.rank, dtype=torch.float64), atol=1e-8)
    if space.is_everything:
        assert point != "mlp_post"
        return
    unread = torch.linalg.svd(space.basis)[2][space.rank :]
    assert space.shares(unread)[0] < 1e-5
    assert len(space.inside(unread)) == 0
    value = model.run(own.prompts, capture=[place.site]).cache[place.site]
    if point in ("attn_out", "resid_post"):
        return  # a norm's denominator reads every direction
    flat = value.flatten(2)
    moved = (flat + unread[0]).reshape(value.shape)
    difference = model.logits(own.prompts, interventions=[patch(place.site, moved)]) - model.logits(
        own.prompts
    )
    assert difference.abs().max() < 1e-8


def test_the_row_space_names_its_matrices_and_refuses_points_that_none_reads():
    model, _ = program()
    assert row_space_of(model, Place.of("mlp_post.0")).matrix == "W_out of layer 0"
    assert row_space_of(model, Place.of("resid_post.1")).matrix == "W_U"
    assert row_space_of(model, Place.of("resid_mid.0")).matrix.startswith(
        "W_in of layers 0 to 1, W_Q of layer 1"
    )
    assert row_space_of(model, Place.of("z.1", heads=0)).matrix == "W_O of layer 1"
    with pytest.raises(PointUnavailable, match="No matrix reads"):
        row_space_of(model, Place.of("q.0"))


def test_splits_dimensions_and_sites_that_do_not_fit_are_refused(parts):
    model, high, _ = rotated()

    def learn(examples=parts, place=END, **settings):
        return das(model, high, variable="mirror@5", place=place, examples=examples, settings=Das(**settings))

    with pytest.raises(BadPairs, match="three splits"):
        learn({"train": parts["train"]})
    with pytest.raises(BadPairs, match="share a prompt"):
        learn(parts | {"validation": parts["train"]})
    with pytest.raises(ShapeError, match="38 coordinates"):
        learn(dim=39)
    with pytest.raises(InterventionMismatch, match="can't be learnt"):
        learn(place=Place.of("logits", positions=-1))
