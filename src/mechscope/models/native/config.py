"""The settings of the native transformer, saved as `config.json`.

Owns: every architectural choice of `models/native/`, under our own names; transformers' names
    (`hidden_size`, `num_attention_heads`, ...) are aliases of the same values.
Refuses: unknown choices, and widths that contradict each other, all collected in one error.
Invariant: a config that was accepted builds a model, and survives JSON unchanged.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

from typing import ClassVar, no_type_check

from transformers import PreTrainedConfig

from mechscope.vocabulary.errors import UnsupportedModel

NORMS = ("none", "layernorm", "layernorm_pre", "rmsnorm", "rmsnorm_pre")
POSITIONS = ("learned", "shortformer", "rotary", "none")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_fast", "silu", "solu_ln")
HEADS = ("language", "classifier")
POOLS = ("last", "first", "mean")


@no_type_check  # the checker's wrapper hides the **kwargs that the library adds to __init__
class NativeConfig(PreTrainedConfig):
    """What a native model is made of.

    Args:
        d_head: Width of a head; free, `n_heads * d_head` need not be `d_model`.
        n_kv_heads: Key/value heads; None means `n_heads`.
        d_mlp: Hidden units of each MLP; 0 makes the model attention-only.
        d_vocab_out: Columns of the logits: a vocabulary, or classes. None means `d_vocab`.
        norm: Before attention and MLP. The `_pre` kinds have neither weight nor bias.
        final_norm: Before the unembedding; None means the same kind as `norm`.
        positions: "learned" adds to the residual stream; "shortformer" adds the same learned table to
            the inputs of queries and keys only; "rotary" turns the first `rotary_dim` of each head.
        rotary_adjacent_pairs: Turn (0,1), (2,3), ... as GPT-J does, instead of the two halves.
        attn_scale: Factor on q.k; None means 1/sqrt(d_head).
        activation: "solu_ln" is x * softmax(x), then a norm of its own.
        parallel: The MLP reads the layer's input, not attention's sum with it.
        bias: On q, k, v, o, up and down projections. A gate has none.
        logit_softcap: Logits become cap * tanh(logits / cap).
        is_causal: False lets every position attend to all; such a model has no key/value cache.
        head: "classifier" declares the logits to be classes, read at `pool`.
        foreign_notes: What another program's checkpoint presumes, e.g. folded norm weights.
    """

    model_type = "mechscope_native"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "d_vocab",
        "hidden_size": "d_model",
        "intermediate_size": "d_mlp",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "d_head",
        "max_position_embeddings": "n_ctx",
    }

    n_layers: int = 2
    d_model: int = 64
    n_heads: int = 4
    d_head: int = 16
    n_kv_heads: int | None = None
    d_mlp: int = 0
    d_vocab: int = 64
    d_vocab_out: int | None = None
    n_ctx: int = 128

    norm: str = "layernorm"
    norm_eps: float = 1e-5
    final_norm: str | None = None

    positions: str = "learned"
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False

    is_causal: bool = True
    attn_scale: float | None = None
    activation: str = "gelu"
    gated: bool = False
    parallel: bool = False
    bias: bool = True

    head: str = "language"
    pool: str = "last"
    unembed_bias: bool = False
    logit_softcap: float | None = None
    tie_word_embeddings: bool = False

    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    foreign_notes: list[str] | None = None

    def __post_init__(self, **kwargs: object) -> None:
        self.n_kv_heads = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        self.d_vocab_out = self.d_vocab if self.d_vocab_out is None else self.d_vocab_out
        self.rotary_dim = self.d_head if self.rotary_dim is None else self.rotary_dim
        self.final_norm = self.norm if self.final_norm is None else self.final_norm
        if self.head == "classifier" and self.id2label is None:
            kwargs.setdefault("num_labels", self.d_vocab_out)
        _refuse_contradictions(self)
        super().__post_init__(**kwargs)

    @property
    def score_scale(self) -> float:
        """The factor on q.k, before the softmax."""
        return self.d_head**-0.5 if self.attn_scale is None else self.attn_scale


def _refuse_contradictions(config: NativeConfig) -> None:
    problems = _unknown_choices(config) + _impossible_widths(config)
    if problems:
        raise UnsupportedModel(
            "these settings describe no native transformer",
            got="; ".join(problems),
            because="the model could not be built, or would not be what its settings say",
            instead="correct each setting named above",
        )


def _unknown_choices(config: NativeConfig) -> list[str]:
    choices = {
        "norm": NORMS,
        "final_norm": NORMS,
        "positions": POSITIONS,
        "activation": ACTIVATIONS,
        "head": HEADS,
        "pool": POOLS,
    }
    return [
        f"{name}={getattr(config, name)!r} is none of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(config, name) not in allowed
    ]


def _impossible_widths(config: NativeConfig) -> list[str]:
    sizes = ("n_layers", "d_model", "n_heads", "d_head", "n_kv_heads", "d_vocab", "d_vocab_out", "n_ctx")
    problems = [f"{name}={getattr(config, name)} is below 1" for name in sizes if getattr(config, name) < 1]
    if not problems and config.n_heads % config.n_kv_heads:
        problems.append(f"n_heads={config.n_heads} is no multiple of n_kv_heads={config.n_kv_heads}")
    if config.d_mlp < 0:
        problems.append(f"d_mlp={config.d_mlp} is below 0")
    if config.positions == "rotary" and not (
        config.rotary_dim % 2 == 0 and 0 < config.rotary_dim <= config.d_head
    ):
        problems.append(f"rotary_dim={config.rotary_dim} is no even number from 2 to d_head={config.d_head}")
    if config.gated and config.activation == "solu_ln":
        problems.append("gated=True with activation='solu_ln'")
    if config.tie_word_embeddings and config.d_vocab_out != config.d_vocab:
        problems.append(f"tied embeddings with d_vocab={config.d_vocab}, d_vocab_out={config.d_vocab_out}")
    return problems
