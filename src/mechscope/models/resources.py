"""What runs and caches need to know of a model, as functions: sizes, head, loss, and derived readings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mechscope.models.binding import Binding
from mechscope.models.cache import Cache, Resources
from mechscope.models.derived import Derivations, map_from_call, norm_scale, norm_weight
from mechscope.models.inputs import Bos, TokenBatch, refuse_unknown_ids
from mechscope.models.limits import refuse_own_predictions
from mechscope.records.files import open_tensor_metadata, open_tensors
from mechscope.vocabulary.errors import BadFile, EmptyPrompt
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    import mechscope.models.model

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_WITHOUT_LIMIT = 1_000_000


def context_length(config: Any) -> int:
    """Longest prompt that the configuration allows; families with no stated limit (ALiBi) get a million."""
    fields = config.to_dict()
    return next((int(fields[name]) for name in _CONTEXT_FIELDS if fields.get(name)), _WITHOUT_LIMIT)


def axis_sizes(model: "mechscope.models.model.Model") -> dict[str, int]:
    """Sizes of the axes that do not depend on the prompt."""
    sizes = {
        "d_model": model.d_model,
        "head": model.n_heads,
        "kv_head": model.n_kv_heads,
        "d_head": model.d_head,
        "d_vocab": int(model.binding.head.weight.shape[0]),  # pyright: ignore
    }
    if (experts := model.binding.anatomy.experts) is not None:
        sizes |= {"expert": experts.n_experts, "choice": experts.n_chosen}
    if model.weights.has("W_out"):
        sizes["d_mlp"] = int(model.weights["W_out", 0].shape[0])
    return sizes


def in_default(pattern: str, site: Site) -> bool:
    """Whether a pattern means a site: "*" leaves out maps and derived points, which are formed when read."""
    point = pattern.partition(".")[0]
    return "*" not in point or (site.row.is_formed and not site.row.is_attention_map and site.point != "sink")


def formed_sites(
    model: "mechscope.models.model.Model", wanted: list[Site], written: Sequence[Site] = ()
) -> tuple[list[Site], bool]:
    """Formed sites to capture for the sites wanted, and whether maps may be formed later from queries and keys.

    Maps of layers where a map is written are captured at once: queries and keys no longer tell them.
    """
    derivations = Derivations(model.binding, model.weights)
    formed: set[Site] = set()
    for site in wanted:
        formed.update((site,) if site.row.is_formed else derivations.sources(site))
    maps_later = any(site.point in ("q", "k") for site in formed)
    if maps_later:
        changed = {site.layer for site in written if site.point in ("scores", "sink", "pattern")}
        formed.update(Site(point, layer) for layer in changed for point in ("scores", "pattern"))
    return sorted(formed), maps_later


def last_formed(binding: Binding, stop: Site) -> Site:
    """Where a forward pass can end that is to compute `stop`: itself, or the last tensor formed before it."""
    return stop if stop.row.is_formed else max(site for site in binding.formed if site < stop)


def open_cache(model: "mechscope.models.model.Model", path: str | Path) -> Cache:
    """A saved cache, read with a model's names and weights.

    Raises:
        BadFile: not a saved cache, or of sites that the model does not form.
    """
    saved: dict[str, Any] = open_tensors(path, "torch")
    formed = {str(site): site for site in model.binding.formed}
    ids, n_pad = saved.pop("tokens", None), saved.pop("n_pad", None)
    foreign = [name for name in saved if name not in formed]
    if ids is None or n_pad is None or foreign:
        raise BadFile(
            "This file is not a cache of this model.",
            got=str(path),
            because=f"the model forms no {', '.join(foreign[:4])}" if foreign else "it holds no tokens",
            instead="a file that cache.save(path) wrote, opened with the model that ran",
        )
    tensors = {formed[name]: value for name, value in saved.items()}
    noted = open_tensor_metadata(path).get("bos")
    # Files of before it was noted hold ids and nothing else.
    bos: Bos = next((one for one in get_args(Bos) if one == noted), "given")
    return Cache(tensors, TokenBatch(ids, n_pad, bos), cache_resources(model))


def cache_resources(model: "mechscope.models.model.Model") -> Resources:
    """The functions that a cache needs, without the model."""
    binding = model.binding
    derivations = Derivations(binding, model.weights)
    attention = binding.anatomy.attention
    norm = binding.anatomy.norms.get("ln_final")
    return Resources(
        names=binding.names,
        derive=derivations.compute,
        map_of=lambda call, point: map_from_call(call, point, attention),
        direction=_direction(model),
        final_scale=lambda x: torch.ones_like(x[..., :1]) if norm is None else norm_scale(x, norm),
        is_centred=norm is not None and norm.kind == "layer",
        source_of=lambda site: derivations.sources(site)[0],
    )


def head_of(binding: Binding) -> Callable[..., Tensor]:
    """The way from residual stream to logits: final norm (or transform), unembedding (all columns or some), scale,
    soft-cap.

    Returns:
        A function of [..., d_model] and, optionally, columns [n]; gives [..., d_vocab or n].
    """
    spec, module = binding.anatomy.head, binding.head
    norm = binding.final_norm if spec.transform is None else binding.hf.get_submodule(spec.transform)

    def logits_of(residual: Tensor, columns: Tensor | None = None) -> Tensor:
        return columns_of(residual if norm is None else norm(residual), columns)

    def columns_of(normed: Tensor, columns: Tensor | None) -> Tensor:
        weight: Any = module.weight
        bias: Any = dict(module.named_parameters(recurse=False)).get("bias")
        if columns is not None:
            weight, bias = weight[columns], None if bias is None else bias[columns]
        logits = F.linear(normed.to(weight.device), weight, bias)
        logits = logits if spec.scale == 1.0 else logits * spec.scale
        return logits if spec.softcap is None else spec.softcap * torch.tanh(logits / spec.softcap)

    return logits_of


def _direction(model: "mechscope.models.model.Model") -> Callable[[Tensor, Tensor | None], Tensor]:
    unembedding = model.weights["W_U"].detach()
    binding = model.binding
    norm = binding.anatomy.norms.get("ln_final")
    weight = None
    if norm is not None and binding.final_norm is not None:
        weight = norm_weight(binding.final_norm, norm)["weight"]
        weight = None if weight is None else weight.detach()
    factor = binding.anatomy.head.scale

    def toward(answers: Tensor, wrong: Tensor | None) -> Tensor:
        for ids in (answers, wrong):
            if ids is not None:
                refuse_unknown_ids(ids, unembedding.shape[1])
        columns = unembedding[:, answers.to(unembedding.device)].T
        if wrong is not None:
            columns = columns - unembedding[:, wrong.to(unembedding.device)].T
        return (columns if weight is None else columns * weight.to(columns.device)) * factor

    return toward


def asked_column(model: "mechscope.models.model.Model", batch: TokenBatch) -> int:
    """The column of a single prompt whose logits say what it leaves open: the last, or the mask's.

    Raises:
        NoNextToken: a masked language model, and a prompt without one mask token.
    """
    head, tokenizer = model.binding.anatomy.head, model.tokenizer
    if head.predicts == "next":
        return batch.shape[1] - 1
    mask = None if tokenizer is None else tokenizer.mask_token_id
    found = [] if mask is None else (batch.ids[0] == mask).nonzero()[:, 0].tolist()
    if len(found) != 1:
        refuse_own_predictions(
            model.binding.anatomy,
            "`top`",
            instead="a prompt in which the tokenizer's mask token stands once"
            if mask is not None
            else "model.logits(ids)[0, position].softmax(-1).topk(k), where the mask token stands at that position",
        )
    return found[0]


def cross_entropy(logits: Tensor, batch: TokenBatch, *, per_token: bool) -> Tensor:
    """Cross entropy of next tokens in nats; padding is left out (NaN per token)."""
    if int(batch.n_real.max()) < 2:
        raise EmptyPrompt(
            "A prompt of one token predicts nothing.",
            got=f"lengths {batch.n_real.tolist()[:10]}",
            because="the loss is that of each next token",
            instead="prompts of at least two tokens",
        )
    targets = batch.ids[:, 1:].to(logits.device)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide[:, :-1].flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.unflatten(0, targets.shape)
    real = batch.mask[:, :-1].to(logits.device).bool()
    if per_token:
        return losses.masked_fill(~real, float("nan"))
    return losses[real].mean()
