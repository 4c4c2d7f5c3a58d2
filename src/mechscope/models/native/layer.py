"""One layer: norms, attention, MLP, and how they add to the residual stream.

Owns: `Norm`, `NativeMLP`, `NativeLayer`.
Invariant: an absent part is None (`mlp`, `ln2`) or the identity (a norm of kind "none"); what is
    added to the residual stream is exactly the output of `attn` and of `mlp`.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from mechscope.models.native.attention import NativeAttention
from mechscope.models.native.config import NativeConfig


class Norm(nn.Module):
    """Layer norm or RMS norm, with or without weights; `weight` and `bias` are None where absent."""

    def __init__(self, width: int, *, kind: str, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.centres = kind.startswith("layernorm")
        self.weight = None if kind.endswith("_pre") else nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layernorm" else None

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        dtype = x.dtype
        # Squares of half-precision activations overflow or vanish; double stays double.
        x = x if dtype in (torch.float32, torch.float64) else x.float()
        if self.centres:
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        if self.weight is not None:
            x = x * self.weight
        if self.bias is not None:
            x = x + self.bias
        return x.to(dtype)


def make_norm(config: NativeConfig, *, kind: str, width: int) -> nn.Module:
    """A norm of that kind; the identity for "none"."""
    return nn.Identity() if kind == "none" else Norm(width, kind=kind, eps=config.norm_eps)


class Solu(nn.Module):
    """x * softmax(x): the activation of the SoLU papers, which is followed by a norm of its own."""

    def forward(self, x: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        return x * x.softmax(dim=-1)


class NativeMLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)). `post_norm` is the identity but for "solu_ln"."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias=config.bias)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias=config.bias)
        self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias=False) if config.gated else None
        if config.activation == "solu_ln":
            kind = "layernorm" if config.norm == "layernorm" else "layernorm_pre"
            self.act, self.post_norm = Solu(), make_norm(config, kind=kind, width=config.d_mlp)
        else:
            self.act, self.post_norm = ACT2FN[config.activation], nn.Identity()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if self.gate_proj is not None:
            return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.post_norm(self.act(self.up_proj(x))))


class NativeLayer(nn.Module):
    """Attention, then (or beside it) the MLP."""

    def __init__(self, config: NativeConfig, layer_idx: int) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.ln1 = make_norm(config, kind=config.norm, width=config.d_model)
        self.attn = NativeAttention(config, layer_idx)
        self.ln2 = make_norm(config, kind=config.norm, width=config.d_model) if config.d_mlp else None
        self.mlp = NativeMLP(config) if config.d_mlp else None

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        position_embeddings: tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream after this layer."""
        attn_out, _ = self.attn(
            self.ln1(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        resid_mid = hidden_states + attn_out
        if self.mlp is None:
            return resid_mid
        return resid_mid + self.mlp(self.ln2(hidden_states if self.parallel else resid_mid))
