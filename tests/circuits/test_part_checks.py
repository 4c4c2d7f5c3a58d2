"""Checks of circuits of latents and experts: planted ones pass, others do not, and every check can fail."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from attribution.precision import double
from circuits.test_experts import planted as planted_experts
from circuits.test_latents import PLANTED
from circuits.test_latents import planted as planted_latents
from mechscope.behaviors.own import from_tokens
from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.parts.experts import ExpertCircuit, choose_experts
from mechscope.circuits.parts.latents import Errors, LatentCircuit, choose_latents, latent_runs
from mechscope.circuits.statistics import part_checks, part_worlds
from mechscope.circuits.statistics.checks import CheckSettings
from mechscope.circuits.statistics.checks_result import CircuitChecks
from mechscope.circuits.statistics.part_checks import check_parts
from mechscope.circuits.statistics.significance import TestSettings
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.vocabulary.errors import DictionaryMismatch, NoGradient
from tiny_models import VOCABULARY

FAST = CheckSettings(
    tests=TestSettings(n_rivals=60, n_inflated=80, n_permutations=60), n_parts=60, n_controls=0, n_tested=32
)
SHOWN = ("sufficiency", "minimality", "random parts removed", "worst part removed")


@cache
def asked(n: int = 32, seed: int = 5, of: str = "latents") -> Split:
    """Pairs with answers of their own, each such that the planted model prefers it more in the clean prompt."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, VOCABULARY, (n, 6), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [1, 3]] = (corrupt[:, [1, 3]] + 7) % VOCABULARY
    answers = torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()
    both = [(answer, (answer + 1) % VOCABULARY) for answer in answers]
    model = planted_latents()[0] if of == "latents" else planted_experts()
    change = (model.logits(clean) - model.logits(corrupt))[:, -1]
    both = [(a, b) if row[a] > row[b] else (b, a) for (a, b), row in zip(both, change, strict=True)]
    return from_tokens(
        clean, corrupt, answers=[a for a, _ in both], wrong=[b for _, b in both], splits=["train"] * n
    ).train


def of_latents(latents: dict[str, tuple[int, ...]], settings: CheckSettings = FAST) -> CircuitChecks:
    model, dictionaries = planted_latents()
    circuit = LatentCircuit.of(dictionaries, latents=latents, errors="removed")
    with double("opt"):
        return check_parts(
            model, circuit, search=asked(8, 6), test=asked(), dictionaries=dictionaries, settings=settings
        )


@pytest.fixture(scope="module")
def of_the_truth() -> CircuitChecks:
    return of_latents(PLANTED)


def test_planted_latents_are_shown_to_be_the_circuit(of_the_truth: CircuitChecks) -> None:
    found = of_the_truth
    assert [found[name].outcome for name in SHOWN] == ["holds"] * 4, found.lines()
    assert found["equivalence"].outcome == "not contradicted"
    assert set(found.edge_p) == {"mlp_out.0:5", "mlp_out.1:2", "mlp_out.1:9"}
    assert max(found.edge_p.values()) < 0.05 and "latent" in found["minimality"].null
    assert found["worst part removed"].estimate == pytest.approx(1, abs=1e-6)


def test_other_latents_are_not_and_what_was_planted_is_found_outside_them() -> None:
    found = of_latents({"mlp_out.0": (1,), "mlp_out.1": (3, 4)})
    assert not {found[name].outcome for name in SHOWN} & {"holds"}, found.lines()
    assert found["worst part removed"].estimate is not None and found["worst part removed"].estimate < 0.5


@pytest.mark.slow
def test_a_padded_circuit_is_sufficient_and_not_minimal() -> None:
    found = of_latents({"mlp_out.0": (5, 1), "mlp_out.1": (2, 9, 3)})
    assert found["sufficiency"].outcome == "holds" and found["minimality"].outcome == "not shown"
    assert found.edge_p.get("mlp_out.0:5", 1) < 0.05


def test_random_parts_are_measured_as_circuits_are(of_the_truth: CircuitChecks) -> None:
    """Each random rival by hand: as many latents at each site, drawn from those that fire."""
    from mechscope.circuits.parts.evaluation import random_parts

    model, dictionaries = planted_latents()
    circuit = LatentCircuit.of(dictionaries, latents=PLANTED, errors="removed")
    with double("opt"):
        runs = latent_runs(model, asked(), dictionaries=dictionaries, conventions=Conventions())
        none = {site: ~which for site, which in runs.whole.items()}
        rivals = [random_parts(circuit, runs.active, seed=0, index=i) for i in range(60)]
        values = runs.measure([circuit.kept, runs.whole, none, *rivals]).mean(1)
    further = np.abs(values[3:] - values[1]) > abs(values[0] - values[1])
    assert of_the_truth["sufficiency"].estimate == pytest.approx(further.mean())


def test_the_search_under_other_answers_is_run_and_other_weights_are_left_out_of_latents() -> None:
    model, dictionaries = planted_latents()
    settings = replace(FAST, n_controls=3, n_parts=8, tests=TestSettings(n_rivals=8, n_inflated=8))
    with double("opt"):
        circuit = choose_latents(model, asked(8, 6), dictionaries=dictionaries, n_latents=3, errors="removed")
        found = check_parts(
            model, circuit, search=asked(8, 6), test=asked(), dictionaries=dictionaries, settings=settings
        )
        sizes = [circuit.resized(n).kept for n in (1, 2, 3, 6, 12)]
        runs = latent_runs(model, asked(), dictionaries=dictionaries, conventions=Conventions())
        none = {site: ~which for site, which in runs.whole.items()}
        means = runs.measure([runs.whole, none, *sizes]).mean(1)
    assert [one.world for one in found.worlds] == ["permuted answers"] and found.worlds[0].n_draws == 3
    assert any("other weights" in reason for reason in found.left_out)
    assert found.controls is not None and found.controls.real.circuit == circuit
    carried = (means[2:] - means[1]) / (means[0] - means[1])
    assert found.controls.real.curve == pytest.approx(carried) and abs(carried[0] - carried[2]) > 1e-3
    assert CircuitChecks.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_experts_are_checked_in_all_worlds() -> None:
    model = planted_experts()
    settings = replace(FAST, n_controls=2)
    circuit = choose_experts(model, asked(8, 6, "experts"), n_experts=4, routing="recomputed")
    assert [str(node) for node in circuit.nodes] == ["m1:2"]
    found = check_parts(
        model, circuit, search=asked(8, 6, "experts"), test=asked(32, 5, "experts"), settings=settings
    )
    assert len(found.worlds) == 3
    assert found["random parts removed"].outcome == found["worst part removed"].outcome == "holds"
    wrong = ExpertCircuit.of(model, experts={0: (), 1: (0,), 2: ()}, routing="recomputed")
    other = check_parts(
        model, wrong, search=asked(8, 6, "experts"), test=asked(32, 5, "experts"), settings=FAST
    )
    assert other["worst part removed"].outcome == other["sufficiency"].outcome == "not shown"
    assert other.controls is None


def test_the_worst_part_is_looked_for_on_train_prompts_and_errors_are_no_random_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[str] = []
    added: list[np.ndarray] = []
    worst_part, measure = part_checks._worst_part, part_checks._Ready.measure

    def seen(asked_for: Any, split: Split) -> Any:
        searched.append(split.data_hash)
        return worst_part(asked_for, split)

    def measured(ready: Any, circuits: Any, what: str) -> np.ndarray:
        if what.endswith("random ones added"):
            added.extend(np.array([one[site][-1] for site in sorted(one)]) for one in circuits)
        return measure(ready, circuits, what)

    monkeypatch.setattr(part_checks, "_worst_part", seen)
    monkeypatch.setattr(part_checks._Ready, "measure", measured)
    of_latents(PLANTED)
    assert searched == [asked(8, 6).data_hash] != [asked().data_hash]
    assert added and not np.any(added), (
        "errors are removed in this circuit, and so in all that it is held against"
    )


def test_few_units_and_other_dictionaries_are_said() -> None:
    model, dictionaries = planted_latents()
    circuit = LatentCircuit.of(dictionaries, latents=PLANTED, errors="removed")
    with double("opt"):
        few = check_parts(
            model, circuit, search=asked(8, 6), test=asked(8, 7), dictionaries=dictionaries, settings=FAST
        )
        assert any("more units" in reason for reason in few.left_out)
        with pytest.raises(DictionaryMismatch):
            check_parts(
                model, circuit, search=asked(8, 6), test=asked(), dictionaries=dictionaries[:1], settings=FAST
            )


@pytest.mark.parametrize(
    ("errors", "conventions"), [("removed", Conventions(ablation="zero")), ("chosen", Conventions())]
)
def test_where_there_is_nothing_to_find_the_search_is_that_of_the_circuit(
    errors: Errors, conventions: Conventions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dictionaries = planted_latents()
    dictionaries = [with_less(one) for one in dictionaries]
    asked_for = []

    def recorded(*args: Any, **settings: Any) -> LatentCircuit:
        asked_for.append(settings)
        return choose_latents(*args, **settings)

    monkeypatch.setattr(part_worlds, "choose_latents", recorded)
    settings = replace(FAST, n_controls=1, n_parts=4, tests=TestSettings(n_rivals=4, n_inflated=0))
    with double("opt"):
        circuit = choose_latents(
            model,
            asked(8, 6),
            dictionaries=dictionaries,
            n_latents=3,
            errors=errors,
            conventions=conventions,
        )
        assert (len(circuit) < 3) == (errors == "chosen")
        check_parts(
            model, circuit, search=asked(8, 6), test=asked(), dictionaries=dictionaries, settings=settings
        )
    assert [one["n_latents"] for one in asked_for] == [3]
    assert asked_for[0]["conventions"] == conventions and asked_for[0]["errors"] == errors


def with_less(dictionary: Dictionary) -> Dictionary:
    """A dictionary that explains half of what it did, so that errors carry as much."""
    tensors = dict(dictionary.tensors)
    return Dictionary(dictionary.settings, tensors | {"W_dec": tensors["W_dec"] / 2})


def test_where_parts_are_too_many_to_remove_one_by_one_attribution_says_which_is_the_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, dictionaries = planted_latents()
    monkeypatch.setattr(part_checks, "MOST_REMOVED_ONE_BY_ONE", 0)
    settings = replace(FAST, n_parts=4, tests=TestSettings(n_rivals=4, n_inflated=0))
    wrong = LatentCircuit.of(dictionaries, latents={"mlp_out.0": (1,), "mlp_out.1": (3,)}, errors="removed")

    def check() -> CircuitChecks:
        with double("opt"):
            return check_parts(
                model, wrong, search=asked(8, 6), test=asked(), dictionaries=dictionaries, settings=settings
            )

    assert check()["worst part removed"].estimate == pytest.approx(0, abs=0.2)

    def without_gradient(*_: Any, **__: Any) -> None:
        raise NoGradient("No gradient.", got="a step")

    monkeypatch.setattr(part_checks, "attribute_latents", without_gradient)
    assert any("can't be looked for" in reason for reason in check().left_out)
