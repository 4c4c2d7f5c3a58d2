"""The native transformer: a small `PreTrainedModel` for specimens and toy checkpoints.

Owns: `NativeModel` (embedding, layers, final norm), `NativeForCausalLM` (logits at every position),
    `NativeForSequenceClassification` (the same parameters, logits pooled to one per row).
Refuses: a key/value cache in a bidirectional model; more tokens than a learned position table has.
Invariant: built only from what transformers' own families use (mask creation, the attention interface,
    output capturing), so mechscope opens it as it opens them, and no remote code is ever needed.
"""

# Settings that follow another's are None only until NativeConfig.__post_init__; the library types `config` as its base.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalCall=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mechscope.models.native.attention import NativeAttention
from mechscope.models.native.config import NativeConfig
from mechscope.models.native.layer import NativeLayer, Norm, make_norm
from mechscope.models.native.positions import count_positions, rotary_tables
from mechscope.vocabulary.errors import PromptTooLong, UnsupportedModel


class NativePreTrainedModel(PreTrainedModel):
    """What the library needs to know about all native models."""

    config_class = NativeConfig
    base_model_prefix = "model"
    _no_split_modules = ["NativeLayer"]  # noqa: RUF012 (the base class declares it so)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NativeLayer, "attentions": NativeAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, Norm):
            super()._init_weights(module)
            return
        if module.weight is not None:
            init.ones_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)


class NativeModel(NativePreTrainedModel):
    """Tokens to the residual stream after the final norm. `pos_embed` is None without a learned table."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.d_vocab, config.d_model)
        has_table = config.positions in ("learned", "shortformer")
        self.pos_embed = nn.Embedding(config.n_ctx, config.d_model) if has_table else None
        self.layers = nn.ModuleList([NativeLayer(config, index) for index in range(config.n_layers)])
        self.ln_final = make_norm(config, kind=config.final_norm, width=config.d_model)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Run all layers. `position_ids` default to the count of real tokens to the left."""
        resid = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        past_key_values = self._cache_or_none(past_key_values, use_cache)
        if position_ids is None:
            position_ids = self._number_tokens(resid, attention_mask, past_key_values)
        # Made from the embeddings alone: the library reads only their shape, dtype and device.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=resid,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        resid, position_embeddings = self._tell_positions(resid, position_ids)
        for layer in self.layers:
            resid = layer(
                resid,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_final(resid), past_key_values=past_key_values
        )

    def _cache_or_none(self, past: Cache | None, use_cache: bool | None) -> Cache | None:
        if self.config.is_causal:
            return DynamicCache(config=self.config) if use_cache and past is None else past
        if past is not None:
            raise UnsupportedModel(
                "a bidirectional native model has no key/value cache",
                got="past_key_values",
                because="earlier positions attend to later ones, so cached values would be stale",
                instead="run the whole sequence, with past_key_values=None",
            )
        return None

    def _number_tokens(self, resid: Tensor, mask: Tensor | None, past: Cache | None) -> Tensor:
        n_rows, n_new = resid.shape[:2]
        n_past = 0 if past is None else past.get_seq_length()
        if mask is None and self.pos_embed is not None and n_past + n_new > self.config.n_ctx:
            raise PromptTooLong(
                f"the model's position table has {self.config.n_ctx} rows",
                got=f"{n_past + n_new} tokens",
                instead=f"at most {self.config.n_ctx} tokens",
            )
        return count_positions(mask, n_rows=n_rows, n_past=n_past, n_new=n_new, device=resid.device)

    def _tell_positions(
        self, resid: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The residual stream with positions in it, and what the layers get besides it."""
        match self.config.positions:
            case "learned":
                return resid + self.pos_embed(position_ids), None
            case "shortformer":
                return resid, (self.pos_embed(position_ids),)
            case "rotary":
                return resid, rotary_tables(self.config, position_ids, dtype=resid.dtype)
            case _:
                return resid, None


class NativeForCausalLM(NativePreTrainedModel, GenerationMixin):
    """Logits at every position: over the output vocabulary, or over classes."""

    _tied_weights_keys = {"unembed.weight": "model.embed.weight"}  # noqa: RUF012

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config)
        self.model = NativeModel(config)
        self.unembed = nn.Linear(config.d_model, config.d_vocab_out, bias=config.unembed_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.unembed

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.unembed = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        past_key_values: Cache | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Return logits `[batch, pos, d_vocab_out]`, after the soft-cap if there is one."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        kept = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = cap_logits(self.unembed(kept), self.config.logit_softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.d_vocab_out)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class NativeForSequenceClassification(NativePreTrainedModel):
    """One row of logits per sequence, read at `config.pool`: the last, the first, or the mean real token.

    Parameters have the names of `NativeForCausalLM`, so a checkpoint opens as either; the other
    class shows the logits at every position before pooling.
    """

    _tied_weights_keys = {"unembed.weight": "model.embed.weight"}  # noqa: RUF012

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config)
        self.model = NativeModel(config)
        self.unembed = nn.Linear(config.d_model, config.d_vocab_out, bias=config.unembed_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch pos"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        **kwargs: object,
    ) -> SequenceClassifierOutputWithPast:
        """Return logits `[batch, d_vocab_out]`."""
        kwargs["use_cache"] = False
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        pooled = pool_positions(outputs.last_hidden_state, attention_mask, pool=self.config.pool)
        logits = cap_logits(self.unembed(pooled), self.config.logit_softcap)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def cap_logits(logits: Float[Tensor, "*batch d_vocab"], cap: float | None) -> Float[Tensor, "*batch d_vocab"]:
    """cap * tanh(logits / cap); the logits themselves without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def pool_positions(
    resid: Float[Tensor, "batch pos d_model"], mask: Tensor | None, *, pool: str
) -> Float[Tensor, "batch d_model"]:
    """Read each row at its last or first real token, or average its real tokens; padding on either side."""
    is_real = resid.new_ones(resid.shape[:2]) if mask is None else mask.to(resid)
    if pool == "mean":
        return torch.einsum("bp,bpd->bd", is_real, resid) / is_real.sum(-1, keepdim=True)
    counts = torch.arange(1, resid.shape[1] + 1, device=resid.device)
    order = counts if pool == "last" else counts.flip(0)
    index = (is_real.bool() * order).argmax(-1)
    return resid[torch.arange(len(resid), device=resid.device), index]
