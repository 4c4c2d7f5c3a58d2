"""The native transformer: a Hugging Face family like any other, and what its options mean."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from mechscope.models.native import (
    NativeConfig,
    NativeForCausalLM,
    NativeForSequenceClassification,
    register,
)
from mechscope.models.native.positions import rotary_tables, rotate
from mechscope.vocabulary.errors import PromptTooLong, UnsupportedModel

TINY = {"n_layers": 2, "d_model": 24, "n_heads": 4, "d_head": 10, "d_vocab": 17, "n_ctx": 32}
VARIANTS = {
    "attention_only": {},
    "no_norm_no_bias": {"norm": "none", "bias": False},
    "rms_grouped_rotary": {"norm": "rmsnorm", "n_kv_heads": 2, "positions": "rotary", "d_mlp": 30},
    "gated": {"d_mlp": 30, "gated": True, "activation": "silu"},
    "partial_rotary_adjacent": {"positions": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "parallel_solu": {"d_mlp": 30, "parallel": True, "activation": "solu_ln", "norm": "layernorm_pre"},
    "shortformer": {"positions": "shortformer", "norm": "rmsnorm_pre"},
    "softcap_other_output": {"d_vocab_out": 5, "logit_softcap": 3.0, "unembed_bias": True},
    "no_positions_scaled": {"positions": "none", "attn_scale": 1.0, "final_norm": "none"},
    "tied": {"tie_word_embeddings": True},
}


def tiny(seed: int = 0, **options: object) -> NativeForCausalLM:
    """A random model with weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    model = NativeForCausalLM(NativeConfig(**(TINY | options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def draw_tokens(n_rows: int = 3, n_tokens: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(TINY["d_vocab"], (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def model(request: pytest.FixtureRequest) -> NativeForCausalLM:
    return tiny(**VARIANTS[request.param])


def test_a_saved_model_opens_through_auto_classes_without_remote_code(
    model: NativeForCausalLM, tmp_path: Path
) -> None:
    register()
    register()
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = draw_tokens()
    model.set_attn_implementation("eager")
    torch.testing.assert_close(opened(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    ours = {name: value for name, value in model.config.to_dict().items() if name != "architectures"}
    theirs = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {name: theirs[name] for name in ours if not name.startswith("_")} == {
        name: value for name, value in ours.items() if not name.startswith("_")
    } | {"dtype": theirs["dtype"]}


def test_eager_and_sdpa_agree(model: NativeForCausalLM) -> None:
    model = model.double()
    tokens = draw_tokens()
    model.set_attn_implementation("sdpa")
    sdpa = model(tokens).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(tokens).logits, sdpa, rtol=0, atol=1e-10)


def test_patterns_are_returned_and_their_rows_sum_to_one(model: NativeForCausalLM) -> None:
    model.set_attn_implementation("eager")
    out = model(draw_tokens(), output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3
    assert out.attentions[0].shape == (3, 4, 9, 9)
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(3, 4, 9))
    assert not out.attentions[0].triu(1).any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cached_steps_equal_the_uncached_run(model: NativeForCausalLM, implementation: str) -> None:
    model = model.double()
    model.set_attn_implementation(implementation)
    tokens = draw_tokens()
    whole = model(tokens, use_cache=False).logits
    first = model(tokens[:, :5], use_cache=True)
    second = model(tokens[:, 5:8], past_key_values=first.past_key_values, use_cache=True)
    third = model(tokens[:, 8:], past_key_values=second.past_key_values, use_cache=True)
    stepped = torch.cat([first.logits, second.logits, third.logits], dim=1)
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_left_padded_row_equals_the_row_alone(model: NativeForCausalLM, implementation: str) -> None:
    model = model.double()
    model.set_attn_implementation(implementation)
    tokens = draw_tokens(n_rows=1)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    alone = model(tokens).logits
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], alone, rtol=0, atol=1e-10)
    told = (mask.cumsum(-1) - 1).clamp(min=0)
    explicit = model(padded, attention_mask=mask, position_ids=told).logits[:, 4:]
    torch.testing.assert_close(explicit, alone, rtol=0, atol=1e-10)


def test_padding_without_a_mask_is_seen_so_the_padding_law_can_fail(model: NativeForCausalLM) -> None:
    tokens = draw_tokens(n_rows=1)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    assert (model(padded).logits[:, 4:] - model(tokens).logits).abs().max() > 1e-3


def test_generation_is_greedy_and_independent_of_left_padding() -> None:
    model = tiny()
    tokens = draw_tokens(n_rows=1)
    alone = model.generate(tokens, max_new_tokens=6, do_sample=False)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    beside = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert beside[0, 4:].tolist() == alone[0].tolist()
    step = tokens
    for _ in range(6):
        step = torch.cat([step, model(step).logits[:, -1:].argmax(-1)], dim=1)
    assert step.tolist() == alone.tolist()


def test_the_last_token_changes_only_the_last_logits(model: NativeForCausalLM) -> None:
    tokens = draw_tokens(n_rows=1)
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % 17
    difference = (model(tokens).logits - model(other).logits).abs().amax((0, 2))
    assert difference[:-1].max() == 0 and difference[-1] > 1e-3


def test_a_bidirectional_model_sees_the_future_and_has_no_cache() -> None:
    model = tiny(is_causal=False).double()
    tokens = draw_tokens(n_rows=1)
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % 17
    out = model(tokens, use_cache=True)
    assert out.past_key_values is None
    assert (out.logits - model(other).logits).abs().amax((0, 2))[0] > 1e-3
    causal = tiny()(tokens, use_cache=True)
    with pytest.raises(UnsupportedModel, match="no key/value cache"):
        model(tokens, past_key_values=causal.past_key_values)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_bidirectional_row_is_unmoved_by_padding_on_either_side(implementation: str) -> None:
    model = tiny(is_causal=False).double()
    model.set_attn_implementation(implementation)
    tokens = draw_tokens(n_rows=1)
    pad = torch.zeros(1, 4, dtype=torch.long)
    alone = model(tokens).logits
    left = model(torch.cat([pad, tokens], 1), attention_mask=torch.tensor([[0] * 4 + [1] * 9])).logits
    right = model(torch.cat([tokens, pad], 1), attention_mask=torch.tensor([[1] * 9 + [0] * 4])).logits
    torch.testing.assert_close(left[:, 4:], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(right[:, :9], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["last", "first", "mean"])
def test_a_classifier_pools_what_the_language_class_shows_at_every_position(
    pool: str, tmp_path: Path
) -> None:
    register()
    shown = tiny(head="classifier", d_vocab_out=3, pool=pool, is_causal=False).double()
    shown.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(classifier, NativeForSequenceClassification) and classifier.config.num_labels == 3
    tokens = draw_tokens(n_rows=2)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    mask[1, 7:] = 0
    logits = shown(tokens, attention_mask=mask).logits
    real = [logits[0, 3:], logits[1, :7]]
    read = {"last": lambda row: row[-1], "first": lambda row: row[0], "mean": lambda row: row.mean(0)}[pool]
    expected = torch.stack([read(row) for row in real])
    got = classifier(tokens, attention_mask=mask, labels=torch.tensor([0, 2]))
    torch.testing.assert_close(got.logits, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(got.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 2])))


def test_the_loss_is_the_mean_negative_log_probability_of_the_next_token() -> None:
    model = tiny().double()
    tokens = draw_tokens()
    out = model(tokens, labels=tokens)
    by_hand = -out.logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()
    # The library widens logits to float32 for its loss.
    torch.testing.assert_close(out.loss.double(), by_hand, rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter_and_the_embeddings(model: NativeForCausalLM) -> None:
    tokens = draw_tokens()
    inputs = model.model.embed(tokens).detach().requires_grad_()
    model(inputs_embeds=inputs).logits.pow(2).sum().backward()
    assert inputs.grad.abs().max() > 0
    unused = {"model.embed.weight"} - ({"model.embed.weight"} if model.config.tie_word_embeddings else set())
    assert {name for name, p in model.named_parameters() if p.grad is None} == unused


def test_the_gradient_at_the_embeddings_equals_a_finite_difference(model: NativeForCausalLM) -> None:
    model = model.double()
    inputs = model.model.embed(draw_tokens(n_rows=1)).detach().requires_grad_()
    direction = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(3)).double()

    def score(x: torch.Tensor) -> torch.Tensor:
        return model(inputs_embeds=x).logits[0, -1].pow(2).sum()

    (gradient,) = torch.autograd.grad(score(inputs), inputs)
    with torch.no_grad():
        difference = (score(inputs + 1e-6 * direction) - score(inputs - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02), (torch.float32, 1e-4)]
)
def test_lower_precision_stays_near_double(
    model: NativeForCausalLM, dtype: torch.dtype, tolerance: float
) -> None:
    tokens = draw_tokens()
    exact = model.double()(tokens).logits
    rounded = model.to(dtype)(tokens).logits
    assert rounded.dtype == dtype
    assert (rounded.double() - exact).abs().max() < tolerance * exact.abs().max()


def test_residual_in_plus_attention_plus_mlp_is_residual_out(model: NativeForCausalLM) -> None:
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.register_forward_pre_hook(lambda _, args: seen.update(resid_pre=args[0]))
    layer.register_forward_hook(lambda _, __, out: seen.update(resid_post=out))
    layer.attn.register_forward_hook(lambda _, __, out: seen.update(attn_out=out[0]))
    if layer.mlp is not None:
        layer.mlp.register_forward_hook(lambda _, __, out: seen.update(mlp_out=out))
    out = model(draw_tokens())
    total = seen["resid_pre"] + seen["attn_out"] + seen.get("mlp_out", torch.zeros(()))
    torch.testing.assert_close(total, seen["resid_post"], rtol=0, atol=1e-6)
    logits = model.unembed(model.model.ln_final(seen["resid_post"]))
    cap = model.config.logit_softcap
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, out.logits, rtol=0, atol=1e-5)


def test_logits_to_keep_unembeds_only_the_last_positions(model: NativeForCausalLM) -> None:
    tokens = draw_tokens()
    kept = model(tokens, logits_to_keep=2).logits
    torch.testing.assert_close(kept, model(tokens).logits[:, -2:], rtol=0, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone() -> None:
    config = NativeConfig(**(TINY | {"positions": "rotary", "rotary_dim": 6}))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 10, generator=generator, dtype=torch.float64)

    def score(query_at: int, key_at: int, adjacent: bool) -> torch.Tensor:
        config.rotary_adjacent_pairs = adjacent
        turned = [
            rotate(
                x, rotary_tables(config, torch.tensor([[at]]), dtype=torch.float64), adjacent_pairs=adjacent
            )
            for x, at in ((q, query_at), (k, key_at))
        ]
        return (turned[0] * turned[1]).sum()

    for adjacent in (False, True):
        torch.testing.assert_close(score(7, 3, adjacent), score(24, 20, adjacent))
        assert (score(7, 3, adjacent) - score(7, 4, adjacent)).abs() > 1e-3


def test_impossible_settings_are_refused_together() -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        NativeConfig(norm="batchnorm", positions="alibi", n_heads=4, n_kv_heads=3, d_mlp=-1)
    for part in ("batchnorm", "alibi", "n_kv_heads=3", "d_mlp=-1"):
        assert part in refusal.value.got


def test_more_tokens_than_the_position_table_are_refused_with_both_numbers() -> None:
    with pytest.raises(PromptTooLong, match="32 rows") as refusal:
        tiny()(draw_tokens(n_tokens=33))
    assert "33 tokens" in refusal.value.got
    assert tiny(positions="rotary")(draw_tokens(n_tokens=33)).logits.shape[1] == 33
