"""The hand-written induction specimen does what its truth says, for those reasons and no others."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechscope.models.native import NativeForCausalLM, register
from mechscope.records.files import open_json, sha256_of
from mechscope.specimens.induction import HEADS, WORDS, draw_pairs, draw_sequences, truth, weights
from mechscope.specimens.induction.build import main, measure
from mechscope.specimens.induction.language import divide_words
from mechscope.specimens.induction.tokenizer import make_tokenizer
from mechscope.specimens.induction.truth import Edge
from mechscope.specimens.induction.weights import make_model, position_codes, token_codes
from mechscope.vocabulary.errors import BadPairs, PromptTooLong
from specimens.induction_by_hand import D_HEAD, N_HEADS, all_edges, encode, run_by_hand

LENGTH = 12
CHANCE = 0.1


@pytest.fixture(scope="module")
def model() -> NativeForCausalLM:
    return make_model()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return draw_sequences(4, LENGTH, seed=1)


@pytest.fixture(scope="module")
def bundle(repository: Path) -> Path:
    return repository / "src" / "mechscope" / "models" / "bundled" / "induction"


def accuracy(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """How often the second half's next word is predicted."""
    length = tokens.shape[1] // 2
    return float((logits[:, length + 1 : -1].argmax(-1) == tokens[:, length + 2 :]).float().mean())


def without_head(model: NativeForCausalLM, layer: int, head: int) -> NativeForCausalLM:
    ablated = copy.deepcopy(model)
    with torch.no_grad():
        ablated.model.layers[layer].attn.o_proj.weight[:, head * D_HEAD : (head + 1) * D_HEAD] = 0
    return ablated


def test_repeated_sequences_are_continued_and_the_heads_look_where_they_should(
    model: NativeForCausalLM,
) -> None:
    measured = measure(model)
    assert measured["accuracy"] >= 0.99
    assert measured["prefix_matching"] >= 0.99
    assert measured["previous_token"] >= 0.99


@pytest.mark.parametrize("length", [1, 2, 10, 63])
def test_every_length_that_fits_is_continued(model: NativeForCausalLM, length: int) -> None:
    tokens = draw_sequences(16, length, seed=3)
    assert length == 1 or accuracy(model(tokens).logits, tokens) >= 0.99
    assert tokens.shape == (16, 1 + 2 * length)


def test_sequences_that_do_not_repeat_are_not_continued(model: NativeForCausalLM) -> None:
    tokens = draw_sequences(16, 24, seed=3)[:, :25]
    assert float((model(tokens).logits[:, 1:-1].argmax(-1) == tokens[:, 2:]).float().mean()) < CHANCE


def test_only_the_two_true_heads_are_needed(model: NativeForCausalLM) -> None:
    tokens = draw_sequences(8, 30, seed=2)
    for layer in range(2):
        for head in range(N_HEADS):
            after = accuracy(without_head(model, layer, head)(tokens).logits, tokens)
            assert (after < CHANCE) if (layer, head) in truth.HEADS else (after >= 0.99), (layer, head)


def test_every_distractor_attends_and_writes(model: NativeForCausalLM, tokens: torch.Tensor) -> None:
    _, nodes = run_by_hand(model, tokens)
    for layer, plans in enumerate(HEADS):
        assert len(plans) == N_HEADS
        for head in range(N_HEADS):
            written = nodes[f"{layer}.{head}"].norm(dim=-1).mean()
            assert 0.02 < written < 0.3 or (layer, head) in truth.HEADS, (layer, head, written)


def test_a_distractor_in_each_layer_looks_exactly_like_the_true_head(
    model: NativeForCausalLM, tokens: torch.Tensor
) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    patterns = eager(tokens, output_attentions=True).attentions
    for (layer, head), twin in zip(truth.HEADS, (6, 4), strict=True):
        torch.testing.assert_close(patterns[layer][:, twin], patterns[layer][:, head])


def test_the_edge_by_edge_forward_equals_the_model(model: NativeForCausalLM, tokens: torch.Tensor) -> None:
    logits, _ = run_by_hand(model, tokens)
    torch.testing.assert_close(logits, model(tokens).logits, rtol=0, atol=1e-4)


def near_the_truth(edges: list[Edge]) -> list[Edge]:
    """Edges that touch a true head, and every seventh of the others."""
    return [e for i, e in enumerate(edges) if {e.source, e.target} & {"0.5", "1.11"} or i % 15 == 0]


def check_edges_under_zero(model: NativeForCausalLM, tokens: torch.Tensor, edges: list[Edge]) -> None:
    for edge in edges:
        logits, _ = run_by_hand(model, tokens, cut=(edge,))
        after = accuracy(logits, tokens)
        assert (after < 0.5) if edge in truth.EDGES_UNDER_ZERO else (after >= 0.99), (edge, after)


def test_exactly_the_true_edges_are_needed_under_zero_ablation(
    model: NativeForCausalLM, tokens: torch.Tensor
) -> None:
    assert set(truth.EDGES_UNDER_ZERO) | set(truth.RESTING_EDGES) <= set(all_edges())
    check_edges_under_zero(model, tokens, near_the_truth(all_edges()))


@pytest.mark.slow
def test_no_edge_of_the_whole_graph_is_needed_but_the_true_ones(
    model: NativeForCausalLM, tokens: torch.Tensor
) -> None:
    check_edges_under_zero(model, tokens, all_edges())


def test_the_true_edges_alone_carry_the_behaviour(model: NativeForCausalLM, tokens: torch.Tensor) -> None:
    others = tuple(edge for edge in all_edges() if edge not in truth.EDGES_UNDER_ZERO)
    logits, _ = run_by_hand(model, tokens, cut=others)
    assert accuracy(logits, tokens) >= 0.99
    for missing in truth.EDGES_UNDER_ZERO:
        logits, _ = run_by_hand(model, tokens, cut=(*others, missing))
        assert accuracy(logits, tokens) < 0.5, missing


def test_the_resting_edges_hold_the_rest_and_nothing_else(model: NativeForCausalLM) -> None:
    tokens = draw_sequences(8, LENGTH, seed=5)

    def words_written(cut: tuple[Edge, ...]) -> float:
        """How much the induction head writes while nothing repeats; the first token's word is nothing."""
        _, nodes = run_by_hand(model, tokens, cut=cut)
        return float(nodes["1.11"][:, 2 : LENGTH + 1, 96:128].norm(dim=-1).mean())

    resting = words_written(())
    for edge in truth.RESTING_EDGES:
        assert words_written((edge,)) > 3 * resting
    logits, _ = run_by_hand(model, tokens, cut=truth.RESTING_EDGES)
    assert accuracy(logits, tokens) >= 0.99


@pytest.mark.parametrize("template", ["key", "query", "value"])
def test_exactly_the_true_edges_move_the_answer_under_resampling(
    model: NativeForCausalLM, template: str
) -> None:
    pairs = draw_pairs(split="validation", n=8, seed=0, templates=(template,))
    clean, corrupt = encode([p.clean for p in pairs]), encode([p.corrupt for p in pairs])
    answer, wrong = encode([p.answer for p in pairs])[:, 1:], encode([p.wrong for p in pairs])[:, 1:]

    def difference(logits: torch.Tensor) -> float:
        return float((logits[:, -1].gather(1, answer) - logits[:, -1].gather(1, wrong)).mean())

    best = difference(run_by_hand(model, clean)[0])
    corrupt_logits, instead = run_by_hand(model, corrupt)
    worst = difference(corrupt_logits)
    for edge in near_the_truth(all_edges()):
        logits, _ = run_by_hand(model, clean, cut=(edge,), instead=instead)
        moved = (best - difference(logits)) / (best - worst)
        if edge in truth.EDGES_UNDER_RESAMPLING[template]:
            assert moved > 0.9, (edge, moved)
        else:
            assert abs(moved) < 0.1, (edge, moved)
    heads = {
        tuple(map(int, e.source.split(".")))
        for e in truth.EDGES_UNDER_RESAMPLING[template]
        if "." in e.source
    }
    assert heads == set(truth.HEADS_UNDER_RESAMPLING[template])


@pytest.mark.parametrize("template", ["key", "query", "value"])
@pytest.mark.parametrize("split", ["train", "validation", "held_out"])
def test_clean_and_corrupt_prompts_are_answered_oppositely(
    model: NativeForCausalLM, split: str, template: str
) -> None:
    pairs = draw_pairs(split=split, n=200, seed=0, templates=(template,))
    clean = model(encode([p.clean for p in pairs])).logits[:, -1].argmax(-1)
    corrupt = model(encode([p.corrupt for p in pairs])).logits[:, -1].argmax(-1)
    answer, wrong = (encode([getattr(p, x) for p in pairs])[:, 1] for x in ("answer", "wrong"))
    assert float((clean == answer).float().mean()) >= 0.99
    assert float((corrupt == wrong).float().mean()) >= 0.99


def test_splits_share_no_decisive_word_and_pairs_keep_to_their_split() -> None:
    parts = divide_words()
    assert sorted(word for words in parts.values() for word in words) == sorted(WORDS)
    assert len(set(WORDS)) == 64
    for split, words in parts.items():
        pairs = draw_pairs(split=split, n=300, seed=4, templates=("key", "query", "value"))
        assert {word for p in pairs for word in (p.answer, p.wrong, p.clean.split()[-1])} <= set(words)
        assert {p.entities for p in pairs} == {(word,) for word in words}
        for p in pairs:
            said, other = p.clean.split(), p.corrupt.split()
            assert len(said) == len(other) == 15 and said != other and (p.split == split)
            assert said[said.index(said[-1]) + 1] == p.answer
            assert other[other.index(other[-1]) + 1] == p.wrong
            assert len(set(said)) == 14


def test_equal_seeds_draw_equal_prompts_and_others_do_not() -> None:
    assert torch.equal(draw_sequences(5, 9, seed=1), draw_sequences(5, 9, seed=1))
    assert not torch.equal(draw_sequences(5, 9, seed=1), draw_sequences(5, 9, seed=2))
    assert draw_pairs(split="train", n=5, seed=1) == draw_pairs(split="train", n=5, seed=1)
    assert draw_pairs(split="train", n=5, seed=1) != draw_pairs(split="train", n=5, seed=2)


def test_codes_are_unit_vectors_that_overlap_little() -> None:
    for codes in (token_codes(), position_codes()):
        overlaps = codes @ codes.T
        torch.testing.assert_close(overlaps.diag(), torch.ones(len(codes)))
        assert (overlaps - torch.eye(len(codes))).max() < 0.18


def test_unknown_splits_templates_and_lengths_are_refused() -> None:
    with pytest.raises(BadPairs, match="no such pairs"):
        draw_pairs(split="test", n=1, seed=0)
    with pytest.raises(BadPairs, match="no such pairs"):
        draw_pairs(split="train", n=1, seed=0, templates=("keys",))
    for length in (0, 64):
        with pytest.raises(PromptTooLong, match="fits the specimen"):
            draw_sequences(1, length, seed=0)


def test_the_tokenizer_round_trips_and_knows_no_unknown_token() -> None:
    tokenizer = make_tokenizer()
    text = " ".join(WORDS)
    ids = tokenizer(text)["input_ids"]
    assert torch.equal(torch.tensor([ids]), encode([text]))
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(Exception, match="UNK"):
        tokenizer("acorn xylophone")


def test_a_rebuild_by_the_command_has_the_bytes_of_the_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = tmp_path / "induction"
    monkeypatch.setattr("sys.argv", ["build", "--out", str(built)])
    main()
    assert capsys.readouterr().out == f"{built}\n"
    assert sorted(p.name for p in built.iterdir()) == sorted(p.name for p in bundle.iterdir())
    card = open_json(bundle / "card.json")
    assert sha256_of(built / "model.safetensors") == sha256_of(bundle / "model.safetensors") == card["sha256"]
    assert open_json(built / "card.json") == card
    assert card["truth"] == truth.truth_as_json()
    for name in ("calibration.txt", "tokenizer.json"):
        assert (built / name).read_bytes() == (bundle / name).read_bytes()


def test_other_noise_would_have_another_hash(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "NOISE_WRITE", 2.0**-6)
    weights.make_model().save_pretrained(tmp_path)
    assert sha256_of(tmp_path / "model.safetensors") != sha256_of(bundle / "model.safetensors")


def test_the_bundle_opens_through_auto_classes_and_its_weights_are_exact_in_bfloat16(bundle: Path) -> None:
    register()
    opened = AutoModelForCausalLM.from_pretrained(bundle)
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    for parameter in opened.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())
    prompt = tokenizer(["lemon ocean drum bell lemon", "bell"], return_tensors="pt", padding=True)
    out = opened(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(out) == "ocean"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_behaviour_survives_every_dtype(dtype: torch.dtype) -> None:
    tokens = draw_sequences(8, 40, seed=0)
    assert accuracy(make_model().to(dtype)(tokens).logits, tokens) >= 0.99
