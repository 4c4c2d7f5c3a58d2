"""The table of points: every kind of tensor that can be named, with shape, meaning and place in the forward pass.

The resolver, the documentation and the tests all read this table; a point is added by adding a row.
A point is *formed* (the model computes that tensor) or *derived* (computed from formed ones when read).
Only formed points can be written. `stage` orders points inside a layer.
"""

from dataclasses import dataclass
from typing import Literal

Basis = Literal["layer", "start", "end"]

DIMENSIONS: dict[str, str] = {
    "batch": "rows of the run, one prompt each",
    "pos": "positions; columns of the left-padded token tensor",
    "layer": "decoder layers, counted from 0",
    "head": "query heads",
    "kv_head": "key/value heads (fewer than query heads under grouped-query attention)",
    "query": "the position that attends",
    "key": "the position attended to",
    "d_model": "width of the residual stream",
    "d_head": "width of one head",
    "d_mlp": "hidden width of the MLP",
    "d_vocab": "output vocabulary",
    "expert": "experts of a mixture",
    "choice": "experts chosen per token, best first",
    "one": "a single number",
    "n_latents": "latents of a dictionary",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row of the table.

    Args:
        name: Canonical name, as in "resid_post".
        axes: Dimensions in the order a cache returns them; the legend is `DIMENSIONS`.
        meaning: What the tensor is, in one sentence.
        basis: "start" and "end" points exist once a model, "layer" points once a layer.
        stage: Order within its basis; equal stages never both lie on one path.
        is_formed: The model computes this tensor; otherwise it is derived when read.
        is_writable: A write has the effect that the name promises.
        nearest: Points to suggest where an architecture does not form this one.
    """

    name: str
    axes: tuple[str, ...]
    meaning: str
    basis: Basis = "layer"
    stage: int
    is_formed: bool = True
    is_writable: bool = True
    nearest: tuple[str, ...] = ()

    @property
    def is_attention_map(self) -> bool:
        """True for points with a query and a key axis."""
        return "key" in self.axes and "query" in self.axes


_RESIDUAL = ("batch", "pos", "d_model")
_Q = ("batch", "pos", "head", "d_head")
_KV = ("batch", "pos", "kv_head", "d_head")
_MAP = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")
_ONE = ("batch", "pos", "one")


def _row(
    name: str, axes: tuple[str, ...], stage: int, meaning: str, *nearest: str, basis: Basis = "layer"
) -> Point:
    return Point(name=name, axes=axes, stage=stage, meaning=meaning, nearest=nearest, basis=basis)


def _derived(
    name: str, axes: tuple[str, ...], stage: int, meaning: str, *nearest: str, basis: Basis = "layer"
) -> Point:
    return Point(
        name=name,
        axes=axes,
        stage=stage,
        meaning=meaning,
        nearest=nearest,
        basis=basis,
        is_formed=False,
        is_writable=False,
    )


_ROWS = (
    _row("embed", _RESIDUAL, 0, "token embeddings, with the model's own embedding scale", basis="start"),
    _row("pos_embed", _RESIDUAL, 1, "learned position embeddings, added to `embed`", "embed", basis="start"),
    _row("resid_pre", _RESIDUAL, 0, "residual stream at the layer's input"),
    _derived(
        "ln1_scale", _ONE, 1, "what the first norm divides by (root mean square or standard deviation)", "ln1"
    ),
    _derived("ln1_normalized", _RESIDUAL, 2, "first norm's output before its weight and bias", "ln1"),
    _row("ln1", _RESIDUAL, 3, "first norm's output, weight and bias applied", "attn_in", "resid_pre"),
    _row("attn_in", _RESIDUAL, 4, "what the attention reads", "ln1"),
    _row("q_proj", _Q, 5, "query projection, before a query norm and before rotary", "q"),
    _row("k_proj", _KV, 6, "key projection, before a key norm and before rotary", "k"),
    _row("q_pre", _Q, 7, "queries before rotary, after a query norm if there is one", "q_proj", "q"),
    _row("k_pre", _KV, 8, "keys before rotary, after a key norm if there is one", "k_proj", "k"),
    _row("q", _Q, 9, "queries as the scores see them", "attn_in"),
    _row("k", _KV, 10, "keys as the scores see them; one per key/value head", "attn_in"),
    _row("v", _KV, 11, "values; one per key/value head", "attn_in"),
    _row(
        "scores",
        _MAP,
        12,
        "attention scores, scaled and soft-capped, before the mask; masked entries are -inf",
        "q",
    ),
    _row(
        "sink",
        ("batch", "head", "query"),
        13,
        "attention sink: the logit of the entry that holds no value",
        "scores",
    ),
    _row("pattern", _MAP, 14, "attention weights; rows sum to 1 less what a sink takes", "z"),
    _row("z", _Q, 15, "pattern times values, per head", "attn_out"),
    _derived(
        "head_out", ("batch", "pos", "head", "d_model"), 16, "one head's contribution, through W_O", "z"
    ),
    _row("attn_raw", _RESIDUAL, 17, "what the attention's output projection returns", "attn_out"),
    _row(
        "attn_out",
        _RESIDUAL,
        18,
        "what attention adds to the residual stream (after a post-norm or multiplier)",
    ),
    _row("resid_mid", _RESIDUAL, 19, "residual stream between attention and MLP", "resid_pre", "attn_out"),
    _derived("ln2_scale", _ONE, 20, "what the second norm divides by", "ln2"),
    _derived("ln2_normalized", _RESIDUAL, 21, "second norm's output before its weight and bias", "ln2"),
    _row("ln2", _RESIDUAL, 22, "second norm's output, weight and bias applied", "mlp_in", "resid_mid"),
    _row("mlp_in", _RESIDUAL, 23, "what the MLP reads", "ln2"),
    _row(
        "router_logits",
        ("batch", "pos", "expert"),
        24,
        "scores of the experts; a write recomputes choice and weights",
        "mlp_in",
    ),
    _row(
        "expert_choice",
        ("batch", "pos", "choice"),
        25,
        "indices of the experts chosen, best first; a write freezes them and recomputes their weights",
        "router_logits",
    ),
    _row(
        "expert_weight",
        ("batch", "pos", "choice"),
        26,
        "weights of the experts chosen; a write leaves the choice",
        "router_logits",
    ),
    _row("mlp_gate", _MLP, 27, "gate projection, before the activation function", "mlp_pre", "mlp_post"),
    _row(
        "mlp_pre",
        _MLP,
        28,
        "up projection: before the activation, or the linear branch of a gated MLP",
        "mlp_post",
    ),
    _row("mlp_post", _MLP, 29, "what the down projection reads: the neurons", "mlp_out"),
    _row(
        "expert_out",
        ("batch", "pos", "choice", "d_model"),
        30,
        "chosen experts' outputs, weight applied",
        "mlp_out",
    ),
    _row("mlp_raw", _RESIDUAL, 31, "what the MLP returns", "mlp_out"),
    _row(
        "mlp_out", _RESIDUAL, 32, "what the MLP adds to the residual stream (after a post-norm or multiplier)"
    ),
    _row("resid_post", _RESIDUAL, 33, "residual stream at the layer's output"),
    _derived("ln_final_scale", _ONE, 0, "what the final norm divides by", "ln_final", basis="end"),
    _derived(
        "ln_final_normalized",
        _RESIDUAL,
        1,
        "final norm's output before its weight and bias",
        "ln_final",
        basis="end",
    ),
    _row(
        "ln_final", _RESIDUAL, 2, "final norm's output: what the unembedding reads", "resid_post", basis="end"
    ),
    _row(
        "logits",
        ("batch", "pos", "d_vocab"),
        3,
        "logits, with the model's own scale and soft-cap",
        basis="end",
    ),
)

POINTS: dict[str, Point] = {row.name: row for row in _ROWS}

RESIDUAL_POINTS = ("resid_pre", "resid_mid", "resid_post")
"""Points of the residual stream itself, as opposed to what a component reads or adds."""

ROUTING = {"router_logits": "recomputed", "expert_choice": "frozen", "expert_weight": "frozen"}
"""Points of a mixture's routing, and what a write there does to the experts' choice: it follows, or it stays."""
