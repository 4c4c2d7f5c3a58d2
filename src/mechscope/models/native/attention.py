"""Multi-head attention through transformers' registered attention interface.

Owns: the projections, and the explicit ("eager") attention that is used when nothing else is asked for.
Invariant: queries, keys, values, scores and pattern exist nowhere but inside the attention function
    named by `config._attn_implementation`, so that mechscope can register its own.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mechscope.models.native.config import NativeConfig
from mechscope.models.native.positions import rotate


def attend_eagerly(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head query key"]]:
    """Attention written out; returns z and the pattern. The mask is additive, as the library makes it."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    # A softmax in half precision loses the small entries; double stays double.
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    pattern = scores.softmax(dim=-1, dtype=wide).to(query.dtype)
    pattern = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


eager_attention_forward = attend_eagerly
"""The name under which the library's families keep theirs; `models.attention` looks for it."""


class NativeAttention(nn.Module):
    """q, k, v, o projections around the attention function of the moment."""

    def __init__(self, config: NativeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_head
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.scaling = config.score_scale
        self.is_causal = config.is_causal
        q_width, kv_width = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, q_width, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(q_width, config.d_model, bias=config.bias)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        *,
        position_embeddings: tuple[Tensor, ...] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Tensor | None]:
        """Return attention's output and, where the attention function forms it, the pattern."""
        qk_input = hidden_states
        if self.config.positions == "shortformer":
            qk_input = hidden_states + position_embeddings[0]
        query = self._split_heads(self.q_proj(qk_input))
        key = self._split_heads(self.k_proj(qk_input))
        value = self._split_heads(self.v_proj(hidden_states))
        if self.config.positions == "rotary":
            adjacent = self.config.rotary_adjacent_pairs
            query = rotate(query, position_embeddings, adjacent_pairs=adjacent)
            key = rotate(key, position_embeddings, adjacent_pairs=adjacent)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, attend_eagerly
        )
        z, pattern = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(z.reshape(*hidden_states.shape[:-1], -1)), pattern

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
