"""The true edges: measured, sufficient, minimal, and what a plain ACDC finds."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import mechscope
from mechscope import behaviors
from mechscope.models.native import NativeForCausalLM
from mechscope.models.opening import bundled_names, load, name_to_open
from mechscope.records.files import open_json, sha256_of
from mechscope.specimens.compiled import (
    PROGRAMS,
    Compiled,
    Streams,
    draw_pairs,
    evaluate,
    find_truth,
    truth_of,
)
from mechscope.specimens.compiled.build import build
from mechscope.specimens.compiled.checking import word_of
from mechscope.specimens.compiled.pairs import split_of
from mechscope.specimens.compiled.record import truth_from_json
from mechscope.specimens.compiled.streams import LOGITS
from mechscope.specimens.compiled.tokenizer import BOS
from mechscope.specimens.compiled.truth import (
    THRESHOLD,
    Ablation,
    Case,
    case_of,
    find_effects,
    full,
    keep_only,
)
from mechscope.vocabulary.edges import Edge
from mechscope.vocabulary.errors import BadPairs, BadProgram
from specimens.compiled.programs import compiled_program

BUNDLED = Path(mechscope.__file__).parent / "models" / "bundled" / "compiled"
SMALL = ["reverse", "histogram", "fraction_of_previous", "token_shift", "length"]
ALL = [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS]


def case(compiled: Compiled, n: int, split: str = "train", seed: int = 0) -> Case:
    pairs = draw_pairs(compiled.program, split=split, n=n, seed=seed)
    return case_of(pairs, compiled.vocabulary.ids, bos=BOS)


def gap(compiled: Compiled, on: Case) -> float:
    return float(
        (full(compiled.network, on) - on.measure(Streams(compiled.network).outputs(on.corrupt))).mean()
    )


def test_the_slow_forward_pass_is_the_models(compiled: Compiled) -> None:
    on = case(compiled, 8)
    network = in_double(compiled)
    with torch.no_grad():
        wanted = network(on.clean).logits
    torch.testing.assert_close(
        Streams(compiled.network).outputs(on.clean)[LOGITS], wanted, rtol=0, atol=1e-10
    )


def in_double(compiled: Compiled) -> NativeForCausalLM:
    network = NativeForCausalLM(compiled.network.config)
    network.load_state_dict(compiled.network.state_dict())
    return network.double().eval()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_recorded_edges_are_those_that_cutting_shows(name: str, ablation: Ablation) -> None:
    compiled, truth = compiled_program(name), truth_of(name)
    effects = find_effects(compiled.network, case(compiled, 64), ablation=ablation)
    assert list(effects) == list(truth.wiring.edges())
    needed = set(truth.edges(ablation))
    assert min(effects[edge] for edge in needed) >= 50 * THRESHOLD
    assert max(effect for edge, effect in effects.items() if edge not in needed) <= THRESHOLD / 100
    assert needed <= set(truth.wired)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_needed_edges_are_enough_and_each_is_needed_among_them(
    compiled: Compiled, ablation: Ablation
) -> None:
    edges, on = truth_of(compiled.program.name).edges(ablation), case(compiled, 48)
    whole, size = full(compiled.network, on), gap(compiled, on)
    alone = keep_only(compiled.network, on, edges=edges, ablation=ablation)
    assert (alone - whole).abs().max() <= THRESHOLD / 100 * size
    for edge in edges:
        without = keep_only(compiled.network, on, edges=set(edges) - {edge}, ablation=ablation)
        assert (without - whole).abs().mean() >= THRESHOLD * size, edge


def test_the_two_truths_differ_where_prompts_share_what_an_edge_carries(compiled: Compiled) -> None:
    truth = truth_of(compiled.program.name)
    assert set(truth.edges("resample")) <= set(truth.edges("zero"))
    assert set(truth.edges("zero")) <= set(truth.wired)
    ends = {node for edge in truth.wired for node in (edge.source, edge.target)}
    assert not ends & set(truth.distractors)
    assert set(truth.nodes("zero")) <= ends == set(truth.roles)


def test_the_truth_of_reverse_is_as_one_would_write_it() -> None:
    truth = truth_of("compiled/reverse")
    assert [str(edge) for edge in truth.edges()] == [
        "embed->a0.0.k",
        "a0.0->m0",
        "m0->a1.0.q",
        "embed->a1.0.v",
        "a1.0->logits",
    ]
    assert {str(node): names for node, names in truth.roles.items()} == {
        "embed": ("tokens", "indices"),
        "a0.0": ("size",),
        "m0": ("mirror",),
        "a1.0": ("reversed",),
        "logits": ("output",),
    }


def prune(compiled: Compiled, on: Case, *, threshold: float, ablation: Ablation) -> set[Edge]:
    """ACDC written out: from the last reader back, cut what changes the mean metric by less than a threshold."""
    streams = Streams(compiled.network)
    instead = streams.outputs(on.corrupt) if ablation == "resample" else {}
    cut: list[Edge] = []
    now = float(full(compiled.network, on).mean())
    for edge in reversed(list(streams.wiring.edges())):
        then = float(on.measure(streams.run(on.clean, cut=[*cut, edge], instead=instead)).mean())
        if abs(now - then) < threshold:
            cut, now = [*cut, edge], then
    return set(streams.wiring.edges()) - set(cut)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_acdc_finds_exactly_the_matching_truth(name: str, ablation: Ablation) -> None:
    compiled = compiled_program(name)
    on = case(compiled, 48, seed=1)
    found = prune(compiled, on, threshold=THRESHOLD * gap(compiled, on), ablation=ablation)
    assert found == set(truth_of(name).edges(ablation))
    if ablation == "resample":  # any threshold in a wide range does
        assert prune(compiled, on, threshold=0.03 * gap(compiled, on), ablation=ablation) == found


def test_acdc_with_a_coarse_threshold_or_the_other_ablation_misses_edges() -> None:
    compiled, truth = compiled_program("reverse"), truth_of("reverse")
    on = case(compiled, 32)
    assert prune(compiled, on, threshold=2 * gap(compiled, on), ablation="resample") < set(truth.edges())
    assert set(truth.edges("resample")) != set(truth.edges("zero"))


def test_distractors_are_alive_and_differ_between_the_prompts(compiled: Compiled) -> None:
    on, streams = case(compiled, 16), Streams(compiled.network)
    clean, corrupt = streams.outputs(on.clean), streams.outputs(on.corrupt)
    assert len(compiled.blueprint.distractors) >= 3
    for node in compiled.blueprint.distractors:
        assert clean[node].norm(dim=-1).mean() > 0.05, node
        assert (clean[node] - corrupt[node]).norm(dim=-1).mean() > 0.02, node


def test_clean_and_corrupt_prompts_are_answered_as_the_program_says(compiled: Compiled) -> None:
    program = compiled.program
    pairs = draw_pairs(program, split="held_out", n=60)
    on = case_of(pairs, compiled.vocabulary.ids, bos=BOS)
    with torch.no_grad():
        logits = compiled.network(on.clean).logits[:, -1]
    assert bool((logits.gather(1, on.answers[:, None]) > logits.gather(1, on.wrong[:, None])).all())
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupt) == program.length
        assert pair.outputs == tuple(evaluate(program, pair.clean))
        assert pair.outputs[-1] != pair.corrupt_outputs[-1]
        if not pair.is_number:
            assert (pair.answer, pair.wrong) == (word_of(pair.outputs[-1]), word_of(pair.corrupt_outputs[-1]))
        assert split_of(pair.clean) == split_of(pair.corrupt) == "held_out"
    assert draw_pairs(program, split="held_out", n=30) == pairs[:30]
    assert draw_pairs(program, split="held_out", n=30, seed=1) != pairs[:30]


def test_unknown_splits_and_programs_are_refused() -> None:
    with pytest.raises(BadPairs, match="no split"):
        draw_pairs(PROGRAMS["reverse"], split="test", n=1)
    with pytest.raises(BadProgram, match="no bundled program"):
        truth_of("compiled/rverse")


def test_every_program_is_bundled_as_it_compiles_and_its_card_tells_the_truth(compiled: Compiled) -> None:
    name = compiled.program.name
    model = load(f"compiled/{name}")
    assert f"compiled/{name}" in bundled_names()
    assert name_to_open(model.fingerprint.name) == name_to_open(name) == model.fingerprint.name
    for key, value in model.hf.state_dict().items():
        assert torch.equal(value, compiled.network.state_dict()[key]), key
    card = open_json(BUNDLED / name / "card.json")
    assert card["sha256"] == sha256_of(BUNDLED / name / "model.safetensors")
    assert truth_from_json(card["truth"]).to_json() == card["truth"]
    assert truth_of(name).wired == compiled.blueprint.wired
    assert model.tokenizer.get_vocab() == compiled.tokenizer.get_vocab()


def test_a_rebuild_has_the_bytes_of_the_bundle(tmp_path: Path) -> None:
    build(tmp_path, ["token_shift"])
    for path in sorted((BUNDLED / "token_shift").iterdir()):
        assert (tmp_path / "token_shift" / path.name).read_bytes() == path.read_bytes(), path.name


def test_other_pairs_show_the_same_truth() -> None:
    compiled = compiled_program("histogram")
    truth = find_truth(compiled, n=24, seed=5)
    assert (truth.edges("resample"), truth.edges("zero")) == edges_of("histogram")


def edges_of(name: str) -> tuple[Iterable[Edge], Iterable[Edge]]:
    return truth_of(name).edges("resample"), truth_of(name).edges("zero")


def test_a_program_has_a_behaviour_of_its_name_for_its_own_model_only() -> None:
    model = load("compiled/sort")
    task = behaviors.load("compiled/sort", model, n=120)
    assert task.sizes == {"train": 40, "validation": 20, "held_out": 60}
    logits = model.run(task.train.clean).logits
    assert logits is not None
    assert logits[:, -1].argmax(-1).tolist() == [answers[0] for answers in task.train.answers]
    assert [name for name in behaviors.names(model) if name.startswith("compiled")] == ["compiled/sort"]
    with pytest.raises(BadPairs, match="can't be written"):
        behaviors.load("compiled/reverse", model)
