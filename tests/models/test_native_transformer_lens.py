"""TransformerLens state dicts: the same numbers as an independent forward in NumPy, or a refusal by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mechscope.models.native import native_to_transformer_lens, open_transformer_lens
from mechscope.vocabulary.errors import BadFile, NonFiniteWeights, UnsafeFile, UnsupportedModel

BASE = {"n_layers": 2, "d_model": 12, "d_head": 6, "n_heads": 3, "d_vocab": 11, "n_ctx": 16}
BASE |= {"attn_only": True, "d_vocab_out": -1, "seed": 3, "device": "cpu", "model_name": "custom"}
WITH_MLP = {"attn_only": False, "d_mlp": 20, "act_fn": "relu"}
CASES = {
    "attention_only_ln": {},
    "ln_pre_gelu": WITH_MLP | {"normalization_type": "LNPre", "act_fn": "gelu_new"},
    "rms_gated_grouped_rotary": WITH_MLP
    | {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu", "n_key_value_heads": 1}
    | {"positional_embedding_type": "rotary", "rotary_base": 500},
    "no_norm": {"normalization_type": None},
    "rotary_adjacent_partial": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
    },
    "shortformer_solu_final_rms": WITH_MLP
    | {"positional_embedding_type": "shortformer", "act_fn": "solu_ln", "final_rms": True},
    "solu_ln_pre": WITH_MLP | {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "bidirectional": WITH_MLP | {"attention_dir": "bidirectional", "normalization_type": "RMSPre"},
    "grokking": WITH_MLP | {"normalization_type": None, "d_vocab_out": 10, "use_attn_scale": False},
    "parallel_gelu_fast": WITH_MLP | {"parallel_attn_mlp": True, "act_fn": "gelu_fast"},
    "capped_and_scaled": WITH_MLP | {"attn_scale": 3.0, "output_logits_soft_cap": 2.0, "act_fn": "gelu"},
    "no_positions": {"positional_embedding_type": "none"},
}


def draw_state(settings: dict, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict with the names and shapes that a HookedTransformer has, buffers included."""
    s = settings
    d, h, e = s["d_model"], s["n_heads"], s["d_head"]
    kv, mark = s.get("n_key_value_heads") or h, "_" if s.get("n_key_value_heads") else ""
    out = s["d_vocab"] if s["d_vocab_out"] == -1 else s["d_vocab_out"]
    norm, positions = s.get("normalization_type", "LN"), s.get("positional_embedding_type", "standard")
    shapes = {"embed.W_E": (s["d_vocab"], d), "unembed.W_U": (d, out), "unembed.b_U": (out,)}
    if positions in ("standard", "shortformer"):
        shapes["pos_embed.W_pos"] = (s["n_ctx"], d)
    norms = {"ln_final": "RMS" if s.get("final_rms") else norm}
    for layer in range(s["n_layers"]):
        b = f"blocks.{layer}"
        norms[f"{b}.ln1"] = norm
        shapes |= {f"{b}.attn.W_Q": (h, d, e), f"{b}.attn.b_Q": (h, e)}
        for x in "KV":
            shapes |= {f"{b}.attn.{mark}W_{x}": (kv, d, e), f"{b}.attn.{mark}b_{x}": (kv, e)}
        shapes |= {f"{b}.attn.W_O": (h, e, d), f"{b}.attn.b_O": (d,)}
        if not s["attn_only"]:
            m = s["d_mlp"]
            norms[f"{b}.ln2"] = norm
            shapes |= {f"{b}.mlp.W_in": (d, m), f"{b}.mlp.b_in": (m,)}
            shapes |= {f"{b}.mlp.W_out": (m, d), f"{b}.mlp.b_out": (d,)}
            if s.get("gated_mlp"):
                shapes[f"{b}.mlp.W_gate"] = (d, m)
            if s["act_fn"] == "solu_ln" and norm == "LN":
                shapes |= {f"{b}.mlp.ln.w": (m,), f"{b}.mlp.ln.b": (m,)}
    for name, kind in norms.items():
        shapes |= {f"{name}.w": (d,)} if kind in ("LN", "RMS") else {}
        shapes |= {f"{name}.b": (d,)} if kind == "LN" else {}
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
        for name, shape in shapes.items()
    }
    if s.get("gated_mlp"):
        state |= {name: torch.zeros_like(w) for name, w in state.items() if name.endswith("mlp.b_in")}
    state = {name: w.to(dtype) for name, w in state.items()}
    for layer in range(s["n_layers"]):
        state[f"blocks.{layer}.attn.mask"] = torch.ones(s["n_ctx"], s["n_ctx"]).tril().bool()
        state[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-torch.inf)
    return state


def numpy_forward(state: dict[str, torch.Tensor], s: dict, tokens: np.ndarray) -> np.ndarray:
    """HookedTransformer's forward pass, from its definition, sharing nothing with ours."""
    w = {k: v.double().numpy() for k, v in state.items() if v.is_floating_point()}
    kind, n = s.get("normalization_type", "LN"), tokens.shape[1]
    place = s.get("positional_embedding_type", "standard")

    def norm(x, name, kind=kind):
        if kind is None:
            return x
        x = x - x.mean(-1, keepdims=True) if kind.startswith("LN") else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + s.get("eps", 1e-5))
        return x * w.get(f"{name}.w", 1.0) + w.get(f"{name}.b", 0.0)

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    def tanh_gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def erf_gelu(x):
        return x * torch.special.ndtr(torch.from_numpy(x)).numpy()

    act = {"relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x)), "gelu": erf_gelu}
    act |= {"gelu_new": tanh_gelu, "gelu_fast": tanh_gelu, "solu_ln": lambda x: x * softmax(x)}

    def turn(x):
        dim = s.get("rotary_dim") or s["d_head"]
        out = x.copy()
        for pair in range(dim // 2):
            i, j = (2 * pair, 2 * pair + 1) if s.get("rotary_adjacent_pairs") else (pair, pair + dim // 2)
            angle = np.arange(n)[None, :, None] / s.get("rotary_base", 10000) ** (pair / (dim / 2))
            out[..., i] = x[..., i] * np.cos(angle) - x[..., j] * np.sin(angle)
            out[..., j] = x[..., j] * np.cos(angle) + x[..., i] * np.sin(angle)
        return out

    def attention(x, b):
        shift = w["pos_embed.W_pos"][:n] if place == "shortformer" else 0.0
        weights = {}
        for letter in "QKV":
            grouped = f"{b}._W_{letter}" in w
            for part in "Wb":
                tensor = w[f"{b}.{'_' if grouped else ''}{part}_{letter}"]
                weights[part + letter] = np.repeat(tensor, s["n_heads"] // len(tensor), axis=0)
        q, k, v = (
            np.einsum("bpd,hde->bphe", x + (shift if c in "QK" else 0), weights["W" + c]) + weights["b" + c]
            for c in "QKV"
        )
        q, k = (turn(q), turn(k)) if place == "rotary" else (q, k)
        divisor = s.get("attn_scale", np.sqrt(s["d_head"])) if s.get("use_attn_scale", True) else 1.0
        scores = np.einsum("bqhe,bkhe->bhqk", q, k) / divisor
        if s.get("attention_dir", "causal") == "causal":
            scores = np.where(np.tril(np.ones((n, n))) > 0, scores, -np.inf)
        z = np.einsum("bhqk,bkhe->bqhe", softmax(scores), v)
        return np.einsum("bqhe,hed->bqd", z, w[f"{b}.W_O"]) + w[f"{b}.b_O"]

    def mlp(x, b):
        f = act[s["act_fn"]]
        pre = x @ w[f"{b}.W_in"]
        if s.get("gated_mlp"):
            hidden = f(x @ w[f"{b}.W_gate"]) * pre + w[f"{b}.b_in"]
        else:
            hidden = f(pre + w[f"{b}.b_in"])
        if s["act_fn"] == "solu_ln":
            hidden = norm(hidden, f"{b}.ln", "LN" if kind == "LN" else "LNPre")
        return hidden @ w[f"{b}.W_out"] + w[f"{b}.b_out"]

    x = w["embed.W_E"][tokens] + (w["pos_embed.W_pos"][:n] if place == "standard" else 0.0)
    for layer in range(s["n_layers"]):
        b = f"blocks.{layer}"
        mid = x + attention(norm(x, f"{b}.ln1"), f"{b}.attn")
        reads = x if s.get("parallel_attn_mlp") else mid
        x = mid if s["attn_only"] else mid + mlp(norm(reads, f"{b}.ln2"), f"{b}.mlp")
    x = norm(x, "ln_final", kind and (kind.replace("LN", "RMS") if s.get("final_rms") else kind))
    logits = x @ w["unembed.W_U"] + w["unembed.b_U"]
    cap = s.get("output_logits_soft_cap", -1)
    return cap * np.tanh(logits / cap) if cap > 0 else logits


def draw_tokens() -> torch.Tensor:
    return torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_an_independent_forward(case: str, dtype: torch.dtype, tolerance: float) -> None:
    settings = BASE | CASES[case]
    state = draw_state(settings, dtype)
    model = open_transformer_lens(state, settings)
    assert model.dtype == dtype and not model.training
    expected = numpy_forward(state, settings, draw_tokens().numpy())
    got = model(draw_tokens()).logits.detach().double().numpy()
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_fails_when_any_tensor_is_wrong(case: str) -> None:
    settings = BASE | CASES[case]
    state = draw_state(settings)
    expected = numpy_forward(state, settings, draw_tokens().numpy())
    # Biases that the softmax or the centring provably removes, or that must be zero, cannot be seen.
    unseen = ("b_K", "mlp.b_in") if settings.get("gated_mlp") else ("b_K",)
    generator = torch.Generator().manual_seed(7)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or name.endswith(("IGNORE", *unseen)):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        model = open_transformer_lens(state | {name: tensor + noise}, settings)
        got = model(draw_tokens()).logits.detach().numpy()
        assert np.abs(got - expected).max() > 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_writing_a_state_dict_and_reading_it_gives_the_same_model(case: str) -> None:
    settings = BASE | CASES[case]
    state = draw_state(settings)
    model = open_transformer_lens(state, settings)
    written, written_settings = native_to_transformer_lens(model)
    assert set(written) == {name for name in state if not name.endswith(("mask", "IGNORE"))}
    assert all(torch.equal(written[name], state[name]) for name in written)
    again = open_transformer_lens(written, written_settings)
    assert torch.equal(again(draw_tokens()).logits, model(draw_tokens()).logits)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_files_of_plain_tensors_open(suffix: str, tmp_path: Path) -> None:
    state = draw_state(BASE)
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    expected = open_transformer_lens(state, BASE)(draw_tokens()).logits
    assert torch.equal(open_transformer_lens(path, BASE)(draw_tokens()).logits, expected)


class RunsCode:
    ran = False

    def __reduce__(self):
        return setattr, (RunsCode, "ran", True)


def test_a_pickle_that_needs_code_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"embed.W_E": RunsCode()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UnsafeFile, match="without running code"):
            open_transformer_lens(tmp_path / name, BASE)
    assert not RunsCode.ran


def test_missing_torn_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    for name in ("absent.pt", "torn.safetensors", "list.pt"):
        with pytest.raises(BadFile):
            open_transformer_lens(tmp_path / name, BASE)


def test_missing_unread_and_misshapen_tensors_are_refused_together_by_name() -> None:
    state = draw_state(BASE)
    del state["blocks.1.attn.b_Q"], state["ln_final.w"]
    state["blocks.0.attn.W_O"] = state["blocks.0.attn.W_O"].transpose(1, 2)
    state["blocks.0.mlp.W_in"] = torch.ones(12, 20)
    state["blocks.1.attn.mask"] = state["blocks.1.attn.mask"].triu(-2)
    with pytest.raises(UnsupportedModel) as refusal:
        open_transformer_lens(state, BASE)
    for part in (
        "blocks.1.attn.b_Q is missing",
        "ln_final.w is missing",
        "blocks.0.attn.W_O is [3, 12, 6], not [3, 6, 12]",
        "blocks.0.mlp.W_in is not read",
        "blocks.1.attn.mask is not causal",
    ):
        assert part in refusal.value.got


def test_a_gated_bias_that_is_added_after_the_gate_is_refused() -> None:
    settings = BASE | CASES["rms_gated_grouped_rotary"]
    state = draw_state(settings)
    state["blocks.0.mlp.b_in"] += 1
    with pytest.raises(UnsupportedModel, match="state dict") as refusal:
        open_transformer_lens(state, settings)
    assert "blocks.0.mlp.b_in is not 0" in refusal.value.got


def test_settings_that_would_change_the_result_are_refused_together_by_name() -> None:
    settings = BASE | {"use_local_attn": True, "num_experts": 8, "wormhole": 1, "act_fn": "tanh"}
    settings |= {"attn_only": False, "positional_embedding_type": "alibi"}
    del settings["n_ctx"]
    with pytest.raises(UnsupportedModel) as refusal:
        open_transformer_lens({}, settings)
    for part in (
        "use_local_attn=True",
        "num_experts=8",
        "wormhole=1",
        "'tanh'",
        "'alibi'",
        "n_ctx is missing",
    ):
        assert part in refusal.value.got
    off = BASE | {"use_local_attn": False, "num_experts": None, "attn_scores_soft_cap": -1.0}
    open_transformer_lens(draw_state(BASE), off)


def test_nan_weights_are_refused_by_name() -> None:
    state = draw_state(BASE)
    state["blocks.1.attn.W_V"][0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteWeights) as refusal:
        open_transformer_lens(state, BASE)
    assert refusal.value.got == "blocks.1.attn.W_V"


def test_presumed_foldings_are_said_and_survive_saving(tmp_path: Path) -> None:
    folded = open_transformer_lens(
        draw_state(BASE | {"normalization_type": "LNPre"}), BASE | {"normalization_type": "LNPre"}
    )
    assert any("fold_ln" in note for note in folded.config.foreign_notes)
    folded.save_pretrained(tmp_path)
    assert type(folded).from_pretrained(tmp_path).config.foreign_notes == folded.config.foreign_notes
    assert open_transformer_lens(draw_state(BASE), BASE).config.foreign_notes == []
