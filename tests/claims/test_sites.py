"""Sites as a mechanism: what is written where, by hooks written by hand; what alone means; and their controls."""

import numpy as np
import pytest
import torch

import mechscope as ms
from mechscope.claims import rule
from mechscope.claims.bench import EngineBench
from mechscope.claims.claim_file import ClaimRecord
from mechscope.claims.control_families import families_for
from mechscope.claims.controls import ANY_SITE, POSITIONS
from mechscope.claims.predictions import lowers, needs, raises, recovers, spares
from mechscope.claims.saved_mechanisms import mechanism_from_json
from mechscope.claims.sites import Sites, indices_of
from mechscope.claims.testing import test_claim as judged_by_bench
from mechscope.claims.testing import verify_claim
from mechscope.models.model import Model
from mechscope.models.opening import wrap
from mechscope.vocabulary.errors import BadClaim, MechscopeError
from mechscope.vocabulary.where import Matching, PerRow, Span
from tiny_models import tiny

N_ROWS, LENGTH = 30, 6


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("gpt2", torch.float64), check=False)


def pairs_of(n: int, length: int, *, seed: int = 0) -> ms.behaviors.Behavior:
    """Prompts of random words; the corrupt twin differs at position 2."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(1, 30, size=(n, length))
    corrupt = clean.copy()
    corrupt[:, 2] = (corrupt[:, 2] + 7) % 29 + 1
    return ms.behaviors.from_tokens(
        clean.tolist(),
        corrupt.tolist(),
        answers=rng.integers(1, 15, n).tolist(),
        wrong=rng.integers(15, 29, n).tolist(),
    )


@pytest.fixture(scope="module")
def behavior():
    return pairs_of(N_ROWS, LENGTH)


def by_hand(model: Model, split, inputs, edits) -> np.ndarray:
    """The metric with `edits[(module, layer)](value)` applied to what modules of the stock model return."""
    blocks = model.hf.transformer.h  # type: ignore[union-attr]
    modules = {"resid_post": lambda b: b, "attn_out": lambda b: b.attn.c_proj, "mlp_out": lambda b: b.mlp}
    handles = []
    for (point, layer), change in edits.items():

        def after(_module, _args, out, change=change):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        handles.append(modules[point](blocks[layer]).register_forward_hook(after))
    try:
        with torch.no_grad():
            logits = model.hf(inputs.ids).logits[:, -1]  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    rows = range(len(split.clean))
    return np.array([float(logits[i, split.answers[i][0]] - logits[i, split.wrong[i][0]]) for i in rows])


def placed(value: torch.Tensor, rows: torch.Tensor):
    """A function that puts `value` where `rows` [batch, pos] is true."""
    return lambda own: torch.where(rows[..., None], value.to(own), own)


def selection(split, positions) -> torch.Tensor:
    chosen = torch.zeros(split.clean.ids.shape, dtype=torch.bool)
    chosen[:, positions] = True
    return chosen


TWO = Sites((("attn_out.0", (2, 3)), ("mlp_out.1", (-1,))))


def test_sites_are_ablated_and_restored_as_hooks_by_hand_do_it(model: Model, behavior) -> None:
    bench = EngineBench(model)
    held = bench.open_split(behavior, fresh_seed=None)
    split, train = behavior.held_out, behavior.train.clean
    names = ["attn_out.0", "mlp_out.1"]
    clean, corrupt, usual = (
        model.run(side, capture=names).cache for side in (split.clean, split.corrupt, train)
    )
    where = {"attn_out.0": selection(split, [2, 3]), "mlp_out.1": selection(split, [-1])}

    def edits(value_of):
        return {(name.split(".")[0], int(name[-1])): placed(value_of(name), where[name]) for name in names}

    cases = (
        (lowers(1.0, how="zero"), split.clean, lambda name: torch.zeros_like(clean[name])),
        (lowers(1.0, how="corrupt"), split.clean, lambda name: corrupt[name]),
        (lowers(1.0, how="mean"), split.clean, lambda name: usual[name].flatten(0, 1).mean(0).expand_as(clean[name])),
        (recovers(0.5), split.corrupt, lambda name: clean[name]),
    )  # fmt: skip
    for prediction, inputs, value_of in cases:
        found = bench.measure([TWO], prediction, behavior, held)[0]
        oracle = by_hand(model, split, inputs, edits(value_of))
        assert np.abs(found - oracle).max() < 1e-10, prediction
        assert np.abs(found - held.clean).max() > 1e-4
    resampled = bench.measure([TWO], lowers(1.0, how="resample"), behavior, held)[0]
    assert np.isfinite(resampled).all() and np.abs(resampled - held.clean).max() > 1e-4
    needed = bench.measure([TWO], needs(0.1), behavior, held)[0]
    parts = [bench.measure([part], recovers(0.5), behavior, held)[0] for part in TWO.without_each()]
    whole = bench.measure([TWO], recovers(0.5), behavior, held)[0]
    assert np.array_equal(needed, min((whole - part for part in parts), key=np.mean))


def test_alone_a_residual_site_is_all_its_other_positions_corrupted_and_what_the_grid_calls_recovered(
    model: Model, behavior
) -> None:
    bench = EngineBench(model)
    held = bench.open_split(behavior, fresh_seed=None)
    split = behavior.held_out
    found = bench.measure([Sites.of("resid_post.1", positions=2)], recovers(0.5), behavior, held)[0]
    corrupt = model.run(split.corrupt, capture=["resid_post.1"])["resid_post.1"]
    others = [position for position in range(LENGTH) if position != 2]
    oracle = by_hand(
        model, split, split.clean, {("resid_post", 1): placed(corrupt, selection(split, others))}
    )
    assert np.abs(found - oracle).max() < 1e-10
    grid = ms.patch_grid(model, split, site="resid_post")
    assert np.abs(found.mean() - grid.values.values[1, 2]) < 1e-10
    elsewhere = bench.measure([Sites.of("resid_post.1", positions=0)], recovers(0.5), behavior, held)[0]
    assert np.abs(elsewhere - held.corrupt).max() < 1e-10, (
        "before the prompts differ there is nothing to restore"
    )


def test_positions_are_selected_as_interventions_do(model: Model, behavior) -> None:
    bench = EngineBench(model)
    held = bench.open_split(behavior, fresh_seed=None)
    n = len(behavior.held_out)
    same = [
        Sites.of("mlp_out.1", positions=where)
        for where in ([1, 2], slice(1, 3), [[1, 2]] * n, [-5, -4], [[2, -5]] * n)
    ]
    for prediction in (lowers(1.0, how="zero"), recovers(0.5)):
        table = bench.measure(same, prediction, behavior, held)
        assert np.abs(table - table[0]).max() < 1e-12
    everywhere = bench.measure([Sites.of("mlp_out.1")], lowers(1.0, how="zero"), behavior, held)[0]
    heads = bench.measure([ms.Components(mlps=(1,))], lowers(1.0, how="zero"), behavior, held)[0]
    assert np.abs(everywhere - heads).max() < 1e-12


def test_words_mean_the_same_tokens_in_the_corrupt_run(model: Model, behavior) -> None:
    """The corrupt prompt has another word there: what is restored is where the clean prompt has it."""
    bench = EngineBench(model)
    held = bench.open_split(behavior, fresh_seed=None)
    split = behavior.held_out
    word = int(split.clean.ids[0, 2])
    found = bench.measure([Sites((("resid_post.1", Matching((word,))),))], recovers(0.5), behavior, held)[0]
    clean = model.run(split.clean, capture=["resid_post.1"])["resid_post.1"]
    oracle = by_hand(model, split, split.corrupt, {("resid_post", 1): placed(clean, split.clean.ids == word)})
    assert np.abs(found - oracle).max() < 1e-10 and np.abs(found - held.corrupt).max() > 1e-6
    with pytest.raises(MechscopeError, match="No prompt"):
        bench.measure([Sites((("resid_post.1", Matching((36,))),))], recovers(0.5), behavior, held)


def test_sites_come_back_from_their_json_with_every_kind_of_position() -> None:
    for positions in (None, -1, [4, 2], slice(1, 4), slice(-2, None), "Mary", ["a", "b"], [[1], [2, -1]]):
        sites = Sites.of("resid_post.2", "attn_out.0", positions=positions)
        assert mechanism_from_json(sites.to_json()) == sites
        assert sites.sites == ("attn_out.0", "resid_post.2")
    assert Sites.of("resid_post.2", positions=[4, 2, 4]) == Sites.of("resid_post.2", positions=(2, 4))
    assert Sites.of("blocks.2.hook_resid_post", positions=-1).name == "resid_post.2 at position -1"
    assert [part.places for part in Sites.of("mlp_out.1", positions=[2, 4]).without_each()] == [
        (("mlp_out.1", (4,)),),
        (("mlp_out.1", (2,)),),
    ]
    assert Sites.of("mlp_out.1", positions=2).without_each() == ()


def test_indices_are_those_that_count_from_one_end() -> None:
    assert indices_of((2, 4)) == (2, 4) and indices_of((-1,)) == (-1,)
    assert indices_of(Span(1, 4)) == (1, 2, 3) and indices_of(Span(-2, None)) == (-2, -1)
    assert indices_of(Span(None, 2)) == (0, 1) and indices_of(Span(-3, -1)) == (-3, -2)
    for where in (None, (0, -1), Span(1, None), Span(1, -1), Span(-2, 3), Span(None, None)):
        assert indices_of(where) is None


@pytest.mark.parametrize(
    ("positions", "n_same", "n_any"),
    [
        (2, 4, 3 * 5 - 1),  # the first token is no control
        (-1, 4, 3 * 5 - 1),
        ([1, 2], 3, 78),  # of 15 places less two, two
        ([[2]] * 15, 4, 3 * 5 - 1),  # moved by -1, 1, 2, 3
        (None, 0, 2),
    ],
)
def test_controls_select_as_the_mechanism_does_and_share_nothing_with_it(
    model: Model, behavior, positions, n_same: int, n_any: int
) -> None:
    mine = Sites.of("resid_post.1", positions=positions)
    bench = EngineBench(model)
    assert families_for(mine) == (POSITIONS, ANY_SITE)
    for family, n_members in ((POSITIONS, n_same), (ANY_SITE, n_any)):
        drawn = bench.draw_controls(mine, behavior, family=family, n_draws=199, seed=0)
        assert drawn.n_members == n_members == len(set(drawn.mechanisms)), family
        for rival in drawn.mechanisms:
            assert not taken(rival) & taken(mine)
            assert len(taken(rival)) == len(taken(mine))
            if family == POSITIONS:
                assert rival.sites == mine.sites
    again = EngineBench(model).draw_controls(mine, behavior, family=ANY_SITE, n_draws=199, seed=0)
    assert again.mechanisms == drawn.mechanisms


def taken(sites: Sites) -> set[object]:
    """(site, position) pairs, of own positions those of each prompt."""
    found: set[object] = set()
    for site, where in sites.places:
        if isinstance(where, PerRow):
            found |= {(site, row, index) for row, own in enumerate(where.positions) for index in own}
        else:
            found |= {(site, index) for index in (where or (None,))}  # type: ignore[union-attr]
    return found


def test_words_are_held_against_words_that_are_in_as_many_prompts(model: Model) -> None:
    rng = np.random.default_rng(3)
    n = 60
    clean = rng.integers(20, 36, size=(n, 6))
    clean[:, 1], clean[:, 3], clean[: n // 2, 4] = 5, 6, 7  # two words in every prompt, one in half of them
    clean[:, 4] = np.where(np.arange(n) % 2, 7, clean[:, 4])
    corrupt = clean.copy()
    corrupt[:, 2] = (corrupt[:, 2] - 19) % 16 + 20
    behavior = ms.behaviors.from_tokens(
        clean.tolist(), corrupt.tolist(), answers=[1] * n, wrong=[2] * n, splits=["train"] * 30 + ["held_out"] * 30
    )  # fmt: skip
    mine = Sites((("resid_post.1", Matching((5,))),))
    drawn = EngineBench(model).draw_controls(mine, behavior, family=POSITIONS, n_draws=9, seed=0)
    assert [one.places for one in drawn.mechanisms] == [(("resid_post.1", Matching((6,))),)]
    rarer = Sites((("resid_post.1", Matching((7,))),))
    drawn = EngineBench(model).draw_controls(rarer, behavior, family=POSITIONS, n_draws=9, seed=0)
    words = {one.places[0][1].tokens for one in drawn.mechanisms}
    assert {(5,), (6,)} <= words and (7,) not in words


@pytest.mark.parametrize(
    ("mechanism", "predictions", "match"),
    [
        (Sites.of("z.0", positions=2), [lowers(0.1)], "no vector"),
        (Sites.of("pattern.0"), [lowers(0.1)], "no vector"),
        (Sites.of("logits"), [lowers(0.1)], "no vector"),
        (Sites.of("resid_post.9"), [lowers(0.1)], "resid_post"),
        (Sites.of("resid_post.1", positions=2), [raises(0.1)], "steered"),
        (Sites.of("resid_post.1", positions=2), [needs(0.1)], "no parts"),
        (Sites.of("resid_post.1", positions=[[2]] * 4), [lowers(0.1)], "another number of prompts"),
    ],
)
def test_what_sites_cannot_be_claimed_is_refused_before_the_split_is_opened(
    model: Model, behavior, tmp_path, mechanism, predictions, match: str
) -> None:
    claim = ms.Claim("x", behavior=behavior, mechanism=mechanism, predictions=predictions)
    with pytest.raises(MechscopeError, match=match):
        claim.test(model, ledger=tmp_path)
    assert not list(tmp_path.iterdir())


def test_own_positions_are_refused_elsewhere_than_in_their_prompts(model: Model, behavior, tmp_path) -> None:
    own = Sites.of("resid_post.1", positions=[[2]] * len(behavior.held_out))
    other = pairs_of(60, LENGTH, seed=1).metric_as("log_probability")
    claim = ms.Claim("x", behavior=behavior, mechanism=own, predictions=[lowers(0.1), spares(other, 0.1)])
    with pytest.raises(BadClaim, match="another behaviour"):
        claim.test(model, ledger=tmp_path, behaviors=[other])
    claim = ms.Claim("x", behavior=behavior, mechanism=own, predictions=[lowers(0.1)])
    with pytest.raises(BadClaim, match="fresh"):
        claim.test(model, ledger=tmp_path, fresh=True)
    assert not list(tmp_path.iterdir())
    for places in ((), (("resid_post.1", (2,)), ("resid_post.1", (3,))), (("resid_post.-1", None),)):
        with pytest.raises(BadClaim, match="no sites"):
            Sites(places)


ONE, OTHER, SPARE, LONG = 11, 22, 33, 46


@pytest.fixture(scope="module")
def induction() -> ms.Model:
    return ms.load("induction")


@pytest.fixture(scope="module")
def one_or_other(induction: ms.Model):
    """Long prompts in which a word follows the last one's earlier appearance, at position 5 and nowhere else."""
    rng = np.random.default_rng(0)
    usual = [token for token in range(4, induction.d_vocab) if token not in (ONE, OTHER, SPARE)]
    clean = rng.choice(usual, (240, LONG))
    again = clean[:, 4].copy()
    clean[clean == again[:, None]] = SPARE
    clean[:, 0], clean[:, 4], clean[:, 5] = induction.tokenizer.bos_token_id, again, ONE
    clean[:, -1] = again
    corrupt = clean.copy()
    corrupt[:, 5] = OTHER
    n = len(clean)
    return ms.behaviors.from_tokens(
        clean.tolist(), corrupt.tolist(), answers=[ONE] * n, wrong=[OTHER] * n, name="one or other"
    )


def test_where_the_answer_is_carried_is_supported_and_where_it_is_not_is_refuted(
    induction: ms.Model, one_or_other, tmp_path
) -> None:
    behavior = one_or_other
    bench = EngineBench(induction)
    outcomes = {}
    for position in (5, 9):
        mine = Sites.of("resid_post.0", positions=position)
        claim = ms.Claim("x", behavior=behavior, mechanism=mine, predictions=[recovers(0.8)])
        record = judged_by_bench(claim, bench)
        outcomes[position] = record.verdict.outcome
        assert bench.best_family(mine, behavior) == POSITIONS
        result = record.verdict.predictions[0]
        assert result.controls is not None and result.controls.family == POSITIONS
        assert result.controls.n_drawn == LONG - 2, "all but the first and the mechanism's own"
        assert [shown.family for shown in result.others] == [ANY_SITE]
        if position == 5:
            assert result.controls.rank == f"1st of {LONG - 1}", str(record.verdict)
            record.save(tmp_path / "a.json")
            again = ClaimRecord.load(tmp_path / "a.json")
            rebuilt = mechanism_from_json(again.claim.mechanism.to_json())
            assert rebuilt == mine
            assert (
                verify_claim(again, EngineBench(induction, [behavior]), mechanism=rebuilt, exact=True) == []
            )
    assert outcomes == {5: "supported", 9: "refuted"}


def test_short_prompts_leave_too_few_positions_and_the_verdict_names_it(model: Model) -> None:
    behavior = pairs_of(12, LENGTH)
    mine = Sites.of("resid_post.1", positions=2)
    claim = ms.Claim("x", behavior=behavior, mechanism=mine, predictions=[recovers(0.5)])
    (result,) = claim.test(model).predictions
    assert EngineBench(model).best_family(mine, behavior) == ANY_SITE
    assert result.controls is None or rule.NO_RESOLUTION in result.controls.shortfall
