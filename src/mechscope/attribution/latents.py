"""attribute_latents: a first-order effect for every latent of dictionaries, and for the error of each.

Effects of a site's latents and its error add up to the effect of the whole site, since their values add up to its.
The gradient is the model's own: whatever stands behind a site, explained or not, follows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechscope.attribution.blocks import Block, blocks_of
from mechscope.attribution.latents_of_several import Across, effects_across, exchanged_across, record_both
from mechscope.attribution.part_scores import PartScores
from mechscope.attribution.parts import Asked, add_effects, gradients_at, real_tokens
from mechscope.attribution.passes import run_plain
from mechscope.attribution.settings import Direction, NodeSettings
from mechscope.engine.kept_parts.homes import Home, homes_at
from mechscope.engine.kept_parts.removed_latents import (
    CountedCodec,
    RemovedLatents,
    average_removed,
    depends_on_values,
    numbers_per_token,
    record_removed,
)
from mechscope.engine.kept_parts.run import Ablation
from mechscope.engine.kept_parts.several_sites import RemovedAcross, average_across
from mechscope.engine.pairs import Pairs, hash_of_prompts
from mechscope.engine.places import places_of
from mechscope.interventions.metrics import Metric
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.writing import from_token_form, to_token_form
from mechscope.vocabulary.sites import Site

_CODES = 2**26
"""Numbers held at once: both runs' codes and values, and the gradients of one site's codes."""


@dataclass(frozen=True)
class _Some:
    """Some of the pairs."""

    clean: TokenBatch
    corrupt: TokenBatch
    metric: Metric


def attribute_latents(
    model: Model,
    behavior: Pairs,
    *,
    dictionaries: Any,
    method: str = "attribution",
    direction: Direction = "noising",
    removed: Ablation = "resample",
    settings: NodeSettings | None = None,
) -> PartScores:
    """Predict, for every latent at once, how the metric changes if it is exchanged at all tokens.

    Args:
        model: An open model.
        behavior: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`.
        dictionaries: SAEs, transcoders and crosscoders; at most one writes each site.
        method: "attribution": the difference of the two runs' codes times the gradient. "ig": the gradient averaged
            while the site goes from one run's value to the other's, all its latents and its error together. "relp":
            the linearization `relp()`.
        direction: "noising" puts corrupt codes into the clean run, "denoising" clean ones into the corrupt run.
        removed: What is put there: the twin's codes and error, their means over clean prompts, or zero.
        settings: Steps and what gradients see; `NodeSettings()` by default.

    Returns:
        Effects by site, [n_latents + 1] with the error's last, in the metric's unit. A latent that writes several sites
        stands at the first of them, with the effect of all that it writes.

    Raises:
        BadPairs, PairLengthMismatch: prompts that do not line up, or of another model's vocabulary.
        InterventionMismatch, DictionaryMismatch: dictionaries that do not fit the model or each other.
        NoGradient: the metric's gradient is zero.

    Cost: three forward passes and one backward pass, and products with each encoder and decoder; "ig": a forward and
        a backward pass a step and site.
    Caveat: a first-order prediction; a latent that switches another one on gets its part of that by the gradient only.
    """
    asked = Asked(method=method, direction=direction, removed=removed, settings=settings or NodeSettings())
    asked.refuse_unless_sound(model, behavior)
    homes = homes_at(model, dictionaries)
    codecs = {name: home.codec for name, home in homes.items() if home.is_alone}
    several = list({id(h.codec): h.codec for h in homes.values() if not h.is_alone}.values())
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        blocks = [
            block
            for some in _cut(model, behavior, codecs, several)
            for block in blocks_of(model, some, places_of("all", model, some.clean, some.corrupt))
        ]
        batches, is_mean = [b.clean for b in blocks], removed == "mean"
        means = average_removed(model, codecs, batches) if is_mean and codecs else {}
        constants = [average_across(model, one, batches) if is_mean else RemovedAcross() for one in several]
        for block in blocks:
            found = _Block(
                model,
                block,
                asked=asked,
                homes=homes,
                removed=(means, list(zip(several, constants, strict=True))),
            )
            for name, effects in found.effects().items():
                add_effects(sums, name, effects)
    return PartScores(
        part="latent",
        effects={name: (sums[name] / len(behavior.clean)).numpy() for name in homes},
        unit=behavior.metric.unit,
        settings=asked.to_json(behavior),
        model=model.fingerprint,
        data_sha256=hash_of_prompts(behavior.clean, behavior.corrupt),
    )


def _cut(
    model: Model, pairs: Pairs, codecs: dict[str, CountedCodec], several: list[CountedCodec]
) -> list[_Some]:
    """Pairs in order, as many at once as leave room for both runs' codes."""
    held = sum(one.n_latents + 2 * model.d_model * len(one.writes) for one in several)
    per_row = 2 * pairs.clean.shape[1] * (numbers_per_token(model, codecs) + held)
    rows = torch.arange(len(pairs.clean)).split(max(1, _CODES // per_row))
    return [
        _Some(pairs.clean.select(at), pairs.corrupt.select(at), pairs.metric.select(at.tolist()))
        for at in rows
    ]


class _Block:
    """Scores of one block of pairs."""

    def __init__(
        self,
        model: Model,
        block: Block,
        *,
        asked: Asked,
        homes: dict[str, Home],
        removed: tuple[dict[str, RemovedLatents], list[tuple[CountedCodec, RemovedAcross]]],
    ) -> None:
        self.model, self.block, self.asked, self.homes = model, block, asked, homes
        self.codecs = {name: home.codec for name, home in homes.items() if home.is_alone}
        means, constants = removed
        is_noising = asked.direction == "noising"
        self.recipient, donor = (block.clean, block.corrupt) if is_noising else (block.corrupt, block.clean)
        is_twin = asked.removed == "resample"
        self.own = record_removed(model, self.codecs, self.recipient) if self.codecs else {}
        if is_twin and self.codecs:
            self.other = record_removed(model, self.codecs, donor)
        else:
            self.other = means or {name: RemovedLatents() for name in self.codecs}
        self.across: list[Across] = [
            record_both(model, codec, self.recipient, donor if is_twin else constant)
            for codec, constant in constants
        ]

    def effects(self) -> dict[str, Tensor]:
        """By site, [n_latents + 1]: sums over tokens of the block."""
        gradients = gradients_at(self.model, self.block, self.asked, self._ends())
        mask, found = self.block.masks[0], dict[str, Tensor]()
        for name, codec in self.codecs.items():
            site = codec.writes[0]
            flat = to_token_form(gradients[site], site.row).flatten(2)
            parts = [
                _effects(
                    codec, self._rows(self.own[name], mask, at), self._rows(self.other[name], mask, at), g
                )
                for at, g in _pieces(real_tokens(flat, mask), max(1, _CODES // codec.n_latents))
            ]
            found[name] = torch.stack(parts).sum(0)
        for across in self.across:
            at = {name: home for name, home in self.homes.items() if home.codec is across.codec}
            flat = {
                home.site: real_tokens(to_token_form(gradients[home.site], home.site.row).flatten(2), mask)
                for home in at.values()
            }
            found |= effects_across(across, at, gradients=flat, mask=mask, most=_CODES)
        return found

    def _ends(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Each site's value in the run, and with everything exchanged; both in the table's axes."""
        sites = [home.site for home in self.homes.values()]
        if self.asked.method != "ig":
            return {site: (torch.zeros(()), torch.zeros(())) for site in sites}  # only the names matter
        values = run_plain(self.model, self.recipient, sites)
        ends: dict[Site, tuple[Tensor, Tensor]] = {}
        for name, codec in self.codecs.items():
            site = codec.writes[0]
            form = to_token_form(values[site], site.row)
            exchanged = _written(codec, self.own[name], self.other[name]).to(form)
            exchanged = exchanged.expand(*form.shape[:2], exchanged.shape[-1]).reshape(form.shape)
            ends[site] = (values[site], from_token_form(exchanged, site.row))
        for across in self.across:
            for site in across.codec.writes:
                form = to_token_form(values[site], site.row)
                exchanged = exchanged_across(across, site).to(form).expand(*form.shape[:2], -1)
                ends[site] = (values[site], from_token_form(exchanged.reshape(form.shape), site.row))
        return {home.site: ends[home.site] for home in self.homes.values()}

    def _rows(self, one: RemovedLatents, mask: Tensor, at: slice) -> RemovedLatents:
        def cut(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.ndim == 1 else real_tokens(tensor, mask)[at]

        return RemovedLatents(cut(one.codes), cut(one.written), cut(one.read))


def _pieces(gradient: Tensor, n_tokens: int) -> list[tuple[slice, Tensor]]:
    starts = range(0, len(gradient), n_tokens)
    return [(slice(start, start + n_tokens), gradient[start : start + n_tokens]) for start in starts]


def _effects(codec: CountedCodec, own: RemovedLatents, other: RemovedLatents, gradient: Tensor) -> Tensor:
    """Effects of latents and of the error, from values of tokens and the gradient at the site written."""
    assert own.codes is not None and own.written is not None
    along = _along(codec, own.codes, own.read, gradient)
    theirs = torch.zeros_like(own.codes) if other.codes is None else other.codes
    if other.read is None or not depends_on_values(codec):
        latents = (theirs - own.codes) * along
    else:
        latents = theirs * _along(codec, own.codes, other.read, gradient) - own.codes * along
    change = _written(codec, own, other).to(gradient) - own.written
    latents = latents.sum(0, dtype=torch.float64)
    error = (change * gradient).sum(dtype=torch.float64).to(latents.device) - latents.sum()
    return torch.cat([latents, error[None]])


def _along(codec: CountedCodec, codes: Tensor, read: Tensor | None, gradient: Tensor) -> Tensor:
    """The gradient along what each latent writes, [n_tokens, n_latents]; decoding is linear in the codes."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros_like(codes).requires_grad_()
        written = codec.decode(leaf, read).flatten(1)
        return torch.autograd.grad(written, leaf, gradient.to(written))[0]


def _written(codec: CountedCodec, own: RemovedLatents, other: RemovedLatents) -> Tensor:
    """The site's value with everything exchanged; where nothing else is known, what codes of zero decode to."""
    if other.written is not None:
        return other.written
    assert own.codes is not None
    shape = own.codes.shape[:-1]
    codes = torch.zeros_like(own.codes).flatten(0, -2)
    read = None if own.read is None else own.read.flatten(0, -2)
    return codec.decode(codes, read).flatten(1).unflatten(0, shape)
