"""Interchanges: IIA 1 where a variable is, chance where it is not and for causal models that are wrong."""

import numpy as np
import pytest
import torch

import mechscope as ms
from circuits.abstraction_cases import examples, program, tiny_examples
from circuits.cases import induction
from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.grid import InterchangeGrid, interchange_grid
from mechscope.circuits.abstraction.interchange import Interchanging, interchange
from mechscope.circuits.abstraction.interchanges import draw_interchanges
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.result import InterchangeResult
from mechscope.circuits.abstraction.swapping import answers_under
from mechscope.vocabulary.errors import (
    BadPairs,
    BadProgram,
    InterventionMismatch,
    NotEnoughEvidence,
    PairLengthMismatch,
    PositionOutOfRange,
    ShapeError,
)

SIZE = Place.of("z.0", heads=0, positions=-1)


def test_a_variable_is_interchanged_at_its_true_place_and_at_no_other():
    model, high = program()
    found = interchange(model, high, alignment={"size@5": SIZE}, examples=examples())
    assert found.iia().value == found.iia(decisive=True).value == 1.0
    assert found.iia().interval.method == "clopper-pearson"
    elsewhere = Place.of("z.0", heads=1, positions=-1)
    other = interchange(model, high, alignment={"size@5": elsewhere}, examples=examples())
    assert other.iia(decisive=True).value == 0.0
    assert other.iia().value == other.iia("untouched").value


def test_a_wrong_causal_model_is_at_chance_on_the_same_runs():
    model, high = program()
    rival = high.changed("counts one more", {"size@5": lambda *words: sum(w != "." for w in words) % 6 + 1})
    found = interchange(model, high, alignment={"size@5": SIZE}, examples=examples(), rivals=[rival])
    assert found.iia().value == 1.0
    assert found.iia(labels="counts one more").value < 0.6
    assert found.iia(labels="relabelled", decisive=True).interval.high < 0.7


def test_a_subspace_holds_the_variable_and_random_ones_do_not():
    model, high = program()
    axis = np.zeros((1, model.d_model))
    axis[0, 11] = 1.0  # on the card: "size" is written to dimension 11
    place = Place.of("resid_mid.0", positions=-1, subspace=axis)
    found = interchange(model, high, alignment={"size@5": place}, examples=examples())
    assert found.iia().value == found.iia("row space").value == 1.0
    assert found.random.shape == (10,) and found.random.max() < 0.7
    assert any("row space of W_in" in note for note in found.notes)


@pytest.mark.slow
def test_two_variables_at_two_places_take_values_from_two_sources():
    model, high = program("bracket_balance")
    places = {
        "sign@7": Place.of("mlp_out.0", positions=-1, units=[12, 13, 14]),
        "ever_broken@7": Place.of("z.1", heads=2, positions=-1),
    }
    found = interchange(model, high, alignment=places, examples=examples("bracket_balance", 400))
    assert found.iia().value == 1.0
    assert set(
        draw_interchanges(high, examples("bracket_balance", 400), variables=list(places)).sources
    ) == set(places)


def test_the_grid_shows_where_else_the_interchange_works(tmp_path):
    model, high = program()
    grid = interchange_grid(model, high, variable="size@5", examples=examples(), site="z")
    assert grid.decisive.values[0, 0] == 1.0
    assert grid.decisive.values[0, 1:].max() == 0.0
    assert grid.top(1)[0][0] == {"layer": 0, "head": 0}
    grid.save(tmp_path / "grid.json")
    assert InterchangeGrid.load(tmp_path / "grid.json").iia == grid.iia
    assert grid.plot().data


def test_the_previous_token_head_of_the_induction_specimen_holds_the_word_before():
    model, behavior = induction()

    def read(words: list[str]) -> dict[str, tuple[str, ...]]:
        return {"words": tuple(words)}

    def after(words: tuple[str, ...]) -> int:
        return words.index(words[-1]) + 1

    high = CausalModel.of(
        "what follows",
        inputs=("words",),
        functions={"follower": lambda words: words[after(words)], "answer": lambda follower: follower},
    )
    own = Examples.of_split(model, behavior.held_out, read=read)
    found = interchange(
        model, high, alignment={"follower": Place.of("z.1", heads=11, positions=-1)}, examples=own
    )
    other = interchange(
        model, high, alignment={"follower": Place.of("z.1", heads=4, positions=-1)}, examples=own
    )
    assert found.iia(decisive=True).value == 1.0
    assert other.iia(decisive=True).value < 0.1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_answers_equal_a_patch_written_by_hand_pair_by_pair(name):
    model, high, own = tiny_examples(name, (7, 5, 6, 7, 4, 8, 5, 6))
    basis = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = [
        Place.of("z.1", heads=2, positions=-1),
        Place.of("resid_post.0", positions=-2, subspace=basis),
        Place.of("mlp_post.1", positions=[-1, 1], units=range(20)),
        Place.of("v.1", positions=lambda setting: len(setting["ids"]) - 2),
    ]
    pairs = draw_interchanges(high, own, variables=["first"], n=6, decisive=0.5)
    found = answers_under(
        model, pairs, alignments=[{}, *({"first": place} for place in places)], choice="vocabulary"
    )
    for pair, (base, source) in enumerate(zip(pairs.base, pairs.sources["first"], strict=True)):
        to, row = (own.prompts.row(int(index)) for index in (base, source))
        wanted = [int(model.logits([to])[0, -1].argmax())]
        wanted += [by_hand(model, to, row, place) for place in places]
        assert found[:, pair].tolist() == wanted


def by_hand(model, base: list[int], source: list[int], place: Place) -> int:
    positions = [len(base) - 2] if callable(place.positions) else place.positions
    given = model.run([source], capture=[place.site]).cache[place.site]
    site = ms.Site.parse(place.site)
    old = model.run([base], capture=[place.site]).cache[place.site]
    new = old.clone()
    for at in [positions] if isinstance(positions, int) else positions:
        from_ = len(source) - 2 if callable(place.positions) else at
        value = given[0, from_]
        if place.heads is not None:
            new[0, at, list(place.heads)] = value[list(place.heads)]
        elif place.units is not None:
            new[0, at, list(place.units)] = value[list(place.units)]
        elif place.subspace is not None:
            rows = place.subspace.tensor
            new[0, at] = old[0, at] + rows.T @ (rows @ (value - old[0, at]))
        else:
            new[0, at] = value
    assert not torch.equal(new, old)
    return int(model.logits([base], interventions=[ms.patch(site, new)])[0, -1].argmax())


def test_a_random_model_holds_no_variable():
    model, high, own = tiny_examples("gpt2", (6,) * 60)
    found = interchange(
        model,
        high,
        alignment={"first": Place.of("resid_post.1", positions=0)},
        examples=own,
        settings=Interchanging(choice="answers"),
    )
    assert found.base_accuracy.value < 0.8
    assert found.iia(decisive=True).interval.low < 0.5


def test_half_of_the_pairs_are_decisive_and_none_is_used_twice():
    _, high = program()
    pairs = draw_interchanges(high, examples(), variables=["size@5"])
    assert abs(pairs.decisive.mean() - 0.5) < 0.05
    used = [*pairs.base.tolist(), *pairs.sources["size@5"].tolist()]
    assert len(used) == len(set(used))
    assert pairs.units.basis == "pairs"
    many = draw_interchanges(high, examples(), variables=["size@5"], n=300)
    assert len(many) == 300 and many.units.basis == "examples"


def test_pairs_that_share_examples_get_intervals_over_examples():
    model, high = program()
    place = Place.of("resid_mid.0", positions=-1)
    found = interchange(
        model, high, alignment={"size@5": place}, examples=examples(), settings=Interchanging(n_pairs=150)
    )
    assert found.iia().interval.method != "clopper-pearson"
    assert any("share examples" in note for note in found.notes)


def test_a_result_is_saved_whole(tmp_path):
    model, high = program()
    found = interchange(model, high, alignment={"size@5": SIZE}, examples=examples())
    found.save(tmp_path / "found.json")
    again = InterchangeResult.load(tmp_path / "found.json")
    assert repr(again) == repr(found) and again.settings == found.settings
    assert found.plot().data and "aligned" in found._repr_html_()


def test_what_cannot_be_tested_is_refused_before_anything_runs():
    model, high = program()
    own = examples()

    def test(place: Place, variable: str = "size@5", **more):
        return interchange(model, high, alignment={variable: place}, examples=own, **more)

    with pytest.raises(BadProgram, match="no such variable"):
        test(SIZE, variable="length@5")
    with pytest.raises(NotEnoughEvidence, match="changes what"):
        test(SIZE, variable="index@5")
    with pytest.raises(PositionOutOfRange, match="position 9"):
        test(Place.of("z.0", positions=9))
    with pytest.raises(PositionOutOfRange, match="there are 4"):
        test(Place.of("z.0", heads=4))
    with pytest.raises(InterventionMismatch, match="other tokens in each prompt"):
        test(Place.of("pattern.0"))
    with pytest.raises(ShapeError, match="width 3"):
        test(Place.of("resid_mid.0", positions=-1, subspace=np.eye(3)))
    with pytest.raises(BadPairs, match="for some variable"):
        interchange(model, high, alignment={}, examples=own)
    with pytest.raises(BadPairs, match="one name"):
        test(SIZE, rivals=[high.changed("relabelled", {})])


def test_places_that_have_no_counterpart_in_the_source_are_refused():
    model, high, own = tiny_examples("gpt2", (7, 5, 6, 7, 4, 8, 5, 6))
    with pytest.raises(PairLengthMismatch, match="unequal numbers"):
        interchange(model, high, alignment={"first": Place.of("resid_post.0")}, examples=own)
