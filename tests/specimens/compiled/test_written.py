"""The hand-written models have the numbers worked out by hand; the stock export computes the same."""

from itertools import product
from random import Random

import pytest
import torch

from mechscope import behaviors
from mechscope.models.native import NativeConfig, NativeForCausalLM
from mechscope.models.opening import load, wrap
from mechscope.specimens.compiled import PROGRAMS, Compiled, Streams, evaluate, to_gpt2, truth_of
from mechscope.specimens.compiled.micro import (
    CLEAN,
    CLEAN_LOGITS,
    CORRUPT,
    CORRUPT_LOGITS,
    EFFECTS,
    HEALING,
    make_micro,
)
from mechscope.specimens.compiled.streams import LOGITS
from mechscope.specimens.compiled.symbolic_ioi import (
    ADDING,
    CONTRASTING,
    NAMES,
    VOCABULARY,
    draw_ioi_pairs,
    find_ioi_truth,
    make_symbolic_ioi,
)
from mechscope.specimens.compiled.tokenizer import BOS
from mechscope.specimens.compiled.truth import case_of, full, keep_only
from mechscope.vocabulary.edges import Edge
from mechscope.vocabulary.errors import BadPairs, UnsupportedModel
from specimens.compiled.programs import compiled_program

ONE, OTHER = torch.tensor([[CLEAN]]), torch.tensor([[CORRUPT]])


def logits(
    streams: Streams, cut: list[Edge], *, on: torch.Tensor, instead: torch.Tensor
) -> tuple[float, float]:
    first, second = streams.run(on, cut=cut, instead=streams.outputs(instead))[LOGITS][0, 0].tolist()
    return first, second


def test_the_micro_model_has_its_published_numbers() -> None:
    streams, cut = Streams(make_micro()), []
    assert logits(streams, [], on=ONE, instead=OTHER) == CLEAN_LOGITS
    assert logits(streams, [], on=OTHER, instead=ONE) == CORRUPT_LOGITS
    for name, wanted in HEALING:
        cut.append(Edge.parse(name))
        assert logits(streams, cut, on=OTHER, instead=ONE) == wanted


def test_every_edge_of_the_micro_model_has_the_effect_worked_out_by_hand() -> None:
    streams = Streams(make_micro())
    assert streams.wiring.n_edges == 1 * 6 + 3 * 6 + 5 and len(EFFECTS) == 13
    for edge in streams.wiring.edges():
        first, second = logits(streams, [edge], on=ONE, instead=OTHER)
        assert (first - 25.0, second - 49.0) == EFFECTS.get(edge, (0.0, 0.0)), edge


def test_the_micro_model_opens_and_has_a_behaviour() -> None:
    model = wrap(make_micro())
    task = behaviors.from_tokens([[CLEAN]], [[CORRUPT]], answers=[1], wrong=[0])
    found = model.run(task.train.clean).logits
    assert found is not None and found[0, -1].tolist() == list(CLEAN_LOGITS)


def test_the_symbolic_model_answers_every_prompt() -> None:
    network = make_symbolic_ioi()
    rows = [(a, b, c, "gave") for a, b in product(NAMES, repeat=2) if a != b for c in (a, b)]
    ids = torch.tensor([[BOS, *(VOCABULARY.ids[word] for word in row)] for row in rows])
    with torch.no_grad():
        said = network(ids).logits[:, -1].argmax(-1).tolist()
    assert [VOCABULARY.words[index] for index in said] == [a if c == b else b for a, b, c, _ in rows]


def test_without_either_head_the_symbolic_model_fails() -> None:
    ids = torch.tensor([[BOS, *(VOCABULARY.ids[word] for word in ("mary", "john", "john", "gave"))]])
    for head in (ADDING, CONTRASTING):
        network = make_symbolic_ioi()
        width = network.config.d_head
        with torch.no_grad():
            network.model.layers[0].attn.o_proj.weight[:, head * width : (head + 1) * width] = 0  # type: ignore
            best = network(ids).logits[0, -1].topk(2)
        has_tie = bool((best.values[0] - best.values[1]).abs() < 1e-3)
        assert has_tie or int(best.indices[0]) != VOCABULARY.ids["mary"]


def test_the_symbolic_models_truth_is_on_its_card_and_is_enough() -> None:
    truth = truth_of("symbolic_ioi")
    assert [str(edge) for edge in truth.edges()] == [
        "embed->a0.1.v",
        "embed->a0.3.v",
        "a0.1->logits",
        "a0.3->logits",
    ]
    assert find_ioi_truth().to_json() == truth.to_json()
    case = case_of(draw_ioi_pairs(n=40, seed=3), VOCABULARY.ids, bos=BOS)
    network = make_symbolic_ioi()
    alone = keep_only(network, case, edges=truth.edges(), ablation="resample")
    torch.testing.assert_close(alone, full(network, case))
    less = keep_only(network, case, edges=truth.edges()[1:], ablation="resample")
    assert (less - alone).abs().max() > 1


def test_the_symbolic_model_has_a_behaviour_whose_splits_share_no_name() -> None:
    model = load("compiled/symbolic_ioi")
    task = behaviors.load("compiled/symbolic_ioi", model)
    assert task.sizes == {"train": 200, "validation": 100, "held_out": 300}
    names = {
        split: {w for pair in draw_ioi_pairs(split=split, n=200) for w in (*pair.clean, *pair.corrupt)}
        - {"gave"}
        for split in ("train", "validation", "held_out")
    }
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == len(NAMES)
    with pytest.raises(BadPairs, match="no split"):
        draw_ioi_pairs(split="test", n=1)


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.is_causal])
def test_causal_programs_run_as_a_stock_gpt2(name: str) -> None:
    compiled = compiled_program(name)
    model = wrap(to_gpt2(compiled.network), compiled.tokenizer)
    rows = Random(1).sample(list(product(compiled.program.alphabet, repeat=compiled.program.length)), 500)
    ids = torch.tensor([[BOS, *(compiled.vocabulary.ids[word] for word in row)] for row in rows])
    with torch.no_grad():
        ours, theirs = compiled.network(ids).logits[:, 1:], model.hf(ids).logits[:, 1:]
    if compiled.plan.domains[compiled.program.output].is_number:
        wanted = torch.tensor([[float(value) for value in evaluate(compiled.program, row)] for row in rows])
        assert (theirs[..., compiled.vocabulary.answers[0]] - wanted).abs().max() < 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1)) or name == "fraction_of_previous"
    assert (ours - theirs).abs().max() < 2e-3
    assert model.binding.anatomy.family == "gpt2"


def test_a_norm_that_is_not_made_to_do_nothing_is_caught() -> None:
    compiled = compiled_program("bracket_balance")
    stock = to_gpt2(compiled.network)
    with torch.no_grad():
        stock.transformer.h[0].ln_1.weight.mul_(0.5)
        ids = torch.tensor([[BOS, *(compiled.vocabulary.ids[word] for word in "( a ) ) ( a ) (".split())]])
        assert (stock(ids).logits - compiled.network(ids).logits).abs().max() > 1


def test_what_has_no_stock_form_is_refused(compiled: Compiled) -> None:
    if not compiled.program.is_causal:
        with pytest.raises(UnsupportedModel, match="bidirectional"):
            to_gpt2(compiled.network)


def test_a_model_with_norms_is_not_taken_apart() -> None:
    network = NativeForCausalLM(NativeConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, norm="rmsnorm"))
    with pytest.raises(UnsupportedModel, match="edge by edge"):
        Streams(network)
