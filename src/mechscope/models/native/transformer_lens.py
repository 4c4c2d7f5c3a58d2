"""TransformerLens `HookedTransformer` state dicts, opened as native models and written back.

Owns: one table of (their name, our name, layout), read in both directions.
Refuses: pickles that need code; missing, unread and misshapen tensors, each by name, all at once;
    a mask buffer that is not the causal one; NaN weights.
Invariant: nothing is folded, centred or broadcast; `open(save(model))` is the same model.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechscope.models.native.config import NativeConfig
from mechscope.models.native.model import NativeForCausalLM
from mechscope.models.native.transformer_lens_settings import config_to_settings, settings_to_config
from mechscope.vocabulary.errors import BadFile, NonFiniteWeights, UnsafeFile, UnsupportedModel

DERIVED_BUFFERS = ("attn.IGNORE", "attn.mask", "attn.rotary_sin", "attn.rotary_cos")


def open_transformer_lens(
    source: str | Path | Mapping[str, Tensor], config: Mapping[str, object]
) -> NativeForCausalLM:
    """Build the native model that computes what the `HookedTransformer` computed.

    Args:
        source: A state dict, or the file of one: safetensors, or a `.pt`/`.pth` of plain tensors.
        config: The `HookedTransformerConfig` as a dictionary (`cfg.to_dict()`).

    Returns:
        The model in eval mode, in the checkpoint's dtype. `model.config.foreign_notes` says which
        foldings the checkpoint presumes.

    Raises:
        UnsafeFile: the file would run code when opened.
        BadFile: the file is missing or torn.
        UnsupportedModel: settings or tensors that are missing, unread or misshapen, by name.
        NonFiniteWeights: NaN or infinite weights.

    Cost: one copy of the weights.
    Caveat: a classifier or algorithmic model keeps its `d_vocab_out`; read its logits at the
        position that it was trained on.
    """
    state = dict(source) if isinstance(source, Mapping) else _read_state(Path(source))
    native_config = settings_to_config(config)
    rows = tensor_table(native_config)
    _refuse_unless_it_fits(state, rows, native_config)
    dtypes = {state[row.theirs].dtype for row in rows}
    # Mixed checkpoints (half-precision weights, full-precision norms) open in their widest dtype.
    native_config.dtype = max(dtypes, key=lambda dtype: (dtype.itemsize, dtype == torch.float16))
    model = NativeForCausalLM(native_config).to(native_config.dtype).eval()
    ours = {row.ours: row.to_ours(state[row.theirs]).contiguous() for row in rows}
    model.load_state_dict(ours)
    return model


def native_to_transformer_lens(model: NativeForCausalLM) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The state dict and settings that `open_transformer_lens` turns back into `model`.

    Biases that the native model does not have are written as zeros, since TransformerLens always
    has them; a tied unembedding is written out.

    Raises:
        UnsupportedModel: its final norm is of a kind that TransformerLens cannot combine with its norms.
    """
    config = model.config
    if config.final_norm not in (config.norm, config.norm.replace("layernorm", "rmsnorm")):
        raise UnsupportedModel(
            "TransformerLens has no such pair of norms",
            got=f"norm={config.norm!r}, final_norm={config.final_norm!r}",
            because="its final norm is the layers' kind, or the RMS norm of a layer norm (final_rms)",
            instead="the same kind twice",
        )
    ours = model.state_dict()
    state = {}
    for row in tensor_table(config):
        if row.ours in ours:
            state[row.theirs] = row.to_theirs(ours[row.ours]).contiguous()
        else:
            state[row.theirs] = torch.zeros(row.shape, dtype=model.dtype)
    return state, config_to_settings(config)


@dataclass(frozen=True)
class TensorRow:
    """One tensor under both names, and how its layout changes."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


def tensor_table(config: NativeConfig) -> list[TensorRow]:
    """Every parameter of a model with this config."""
    d_model, d_out = config.d_model, config.d_vocab_out
    rows = [_same("embed.W_E", "model.embed.weight", (config.d_vocab, d_model))]
    if config.positions in ("learned", "shortformer"):
        rows.append(_same("pos_embed.W_pos", "model.pos_embed.weight", (config.n_ctx, d_model)))
    for layer in range(config.n_layers):
        theirs, ours = f"blocks.{layer}", f"model.layers.{layer}"
        rows += _norm_rows(f"{theirs}.ln1", f"{ours}.ln1", kind=config.norm, width=d_model)
        rows += _attention_rows(f"{theirs}.attn", f"{ours}.attn", config)
        if config.d_mlp:
            rows += _norm_rows(f"{theirs}.ln2", f"{ours}.ln2", kind=config.norm, width=d_model)
            rows += _mlp_rows(f"{theirs}.mlp", f"{ours}.mlp", config)
    rows += _norm_rows("ln_final", "model.ln_final", kind=config.final_norm, width=d_model)
    rows.append(_transposed("unembed.W_U", "unembed.weight", (d_model, d_out)))
    rows.append(_same("unembed.b_U", "unembed.bias", (d_out,)))
    return rows


def _attention_rows(theirs: str, ours: str, config: NativeConfig) -> list[TensorRow]:
    d_model, d_head = config.d_model, config.d_head
    is_grouped = config.n_kv_heads != config.n_heads
    rows = []
    for letter in "QKV":
        n_heads = config.n_heads if letter == "Q" else config.n_kv_heads
        mark = "_" if is_grouped and letter != "Q" else ""
        name = f"{ours}.{letter.lower()}_proj"
        rows.append(
            TensorRow(
                theirs=f"{theirs}.{mark}W_{letter}",
                ours=f"{name}.weight",
                shape=(n_heads, d_model, d_head),
                to_ours=lambda w: w.transpose(1, 2).flatten(0, 1),
                to_theirs=lambda w: w.unflatten(0, (-1, d_head)).transpose(1, 2),
            )
        )
        rows.append(
            TensorRow(
                theirs=f"{theirs}.{mark}b_{letter}",
                ours=f"{name}.bias",
                shape=(n_heads, d_head),
                to_ours=lambda b: b.flatten(),
                to_theirs=lambda b: b.unflatten(0, (-1, d_head)),
            )
        )
    rows.append(
        TensorRow(
            theirs=f"{theirs}.W_O",
            ours=f"{ours}.o_proj.weight",
            shape=(config.n_heads, d_head, d_model),
            to_ours=lambda w: w.flatten(0, 1).T,
            to_theirs=lambda w: w.T.unflatten(0, (-1, d_head)),
        )
    )
    rows.append(_same(f"{theirs}.b_O", f"{ours}.o_proj.bias", (d_model,)))
    return rows


def _mlp_rows(theirs: str, ours: str, config: NativeConfig) -> list[TensorRow]:
    d_model, d_mlp = config.d_model, config.d_mlp
    rows = [
        _transposed(f"{theirs}.W_in", f"{ours}.up_proj.weight", (d_model, d_mlp)),
        _same(f"{theirs}.b_in", f"{ours}.up_proj.bias", (d_mlp,)),
        _transposed(f"{theirs}.W_out", f"{ours}.down_proj.weight", (d_mlp, d_model)),
        _same(f"{theirs}.b_out", f"{ours}.down_proj.bias", (d_model,)),
    ]
    if config.gated:
        rows.append(_transposed(f"{theirs}.W_gate", f"{ours}.gate_proj.weight", (d_model, d_mlp)))
    if config.activation == "solu_ln":
        kind = "layernorm" if config.norm == "layernorm" else "layernorm_pre"
        rows += _norm_rows(f"{theirs}.ln", f"{ours}.post_norm", kind=kind, width=d_mlp)
    return rows


def _norm_rows(theirs: str, ours: str, *, kind: str, width: int) -> list[TensorRow]:
    rows = []
    if kind in ("layernorm", "rmsnorm"):
        rows.append(_same(f"{theirs}.w", f"{ours}.weight", (width,)))
    if kind == "layernorm":
        rows.append(_same(f"{theirs}.b", f"{ours}.bias", (width,)))
    return rows


def _same(theirs: str, ours: str, shape: tuple[int, ...]) -> TensorRow:
    return TensorRow(theirs, ours, shape, lambda w: w, lambda w: w)


def _transposed(theirs: str, ours: str, shape: tuple[int, ...]) -> TensorRow:
    return TensorRow(theirs, ours, shape, lambda w: w.T, lambda w: w.T)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadFile("there is no such state dict", got=path, instead="a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise BadFile(
            "this file holds something else than a state dict",
            got=path,
            because="a state dict maps names to tensors, and nothing else",
            instead="the result of HookedTransformer.state_dict()",
        )
    return dict(state)


def _unreadable(path: Path, error: Exception) -> BadFile | UnsafeFile:
    """Which refusal a reader's error means. The unpickler's error is told by name: none is imported here."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if type(error).__name__ == "UnpicklingError":
        return UnsafeFile(
            "this state dict can't be opened without running code",
            got=path,
            because=reason,
            instead="save it again as safetensors, on a machine where you trust it",
        )
    return BadFile("this state dict can't be read", got=path, because=reason)


def _refuse_unless_it_fits(state: Mapping[str, Tensor], rows: list[TensorRow], config: NativeConfig) -> None:
    expected = {row.theirs: row.shape for row in rows}
    derived = {f"blocks.{layer}.{name}" for layer in range(config.n_layers) for name in DERIVED_BUFFERS}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is not read" for name in state if name not in expected and name not in derived]
    problems += [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems += [
        f"{name} is not causal" for name in sorted(derived & set(state)) if _is_odd_mask(name, state)
    ]
    problems += [
        f"{name} is not 0"
        for name in expected
        if config.gated and name.endswith("mlp.b_in") and name in state and state[name].any()
    ]
    if problems:
        raise UnsupportedModel(
            "this state dict is not the HookedTransformer that its settings describe",
            got="; ".join(problems),
            because="each tensor is read exactly once, or the model would compute something else",
            instead="the settings it was built with; a gated b_in, added after the gate, is not offered",
        )
    bad = [row.theirs for row in rows if not state[row.theirs].isfinite().all()]
    if bad:
        raise NonFiniteWeights(
            "the state dict holds NaN or infinite weights",
            got=", ".join(bad),
            because="every number computed from them would be meaningless",
        )


def _is_odd_mask(name: str, state: Mapping[str, Tensor]) -> bool:
    """A mask that is not the full causal triangle is local attention, which a native model has not."""
    if not name.endswith("attn.mask"):
        return False
    return not torch.equal(state[name].bool(), torch.ones_like(state[name], dtype=torch.bool).tril())
