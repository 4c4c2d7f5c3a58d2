"""Replacement: dictionaries as a local replacement model sees them, one block of latents for each site read.

A block reads one station, and its latents write to one or several: per-layer transcoders, skip transcoders,
cross-layer transcoders and plain SAEs are all this. Refuses what has no linear encoder at a single site.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.dictionaries.blocks import Block, Weights, encode_block
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import Gate, Port, Settings
from mechscope.graphs.stations import station_of
from mechscope.models.model import Model
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import DictionaryMismatch, PositionOutOfRange
from mechscope.vocabulary.sites import Site

SAMPLED_ROWS = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Replacement:
    """One block of latents.

    Args:
        reads: Station read.
        writes: Stations written.
        dictionary: Where the tensors lie.
        block: Which of its encoders.
        source: Place of the dictionary in the list that was given.
        biases: `b_dec` by station, for the first block of a dictionary.
        skip: Linear map from what is read to the one station written, [d_in, d_out].
    """

    reads: int
    writes: tuple[int, ...]
    dictionary: Dictionary
    block: Block
    source: int
    biases: dict[int, Tensor] = field(default_factory=dict)
    skip: Tensor | None = None

    @property
    def first_latent(self) -> int:
        """Latents of a cross-layer transcoder are numbered through; this block's begin here."""
        return self.block.latents.start

    @property
    def n_latents(self) -> int:
        return self.block.latents.stop - self.block.latents.start

    def encode(self, values: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos n_latents"]:
        """Codes of what is read, dense."""
        taken = values.to(self.dictionary.tensors["b_dec"])
        if self.dictionary.settings.applies_b_dec_to_input:
            taken = taken - self._input_bias
        whole = Block(self.block.index, slice(0, taken.shape[-1]), self.block.latents, self.block.sites)
        return encode_block(taken, self._weights, whole)

    def encoder_rows(self, latents: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Rows w [n, d_model] and biases [n] with pre-activation = x . w + bias, for an active latent its code."""
        w = self._weights.encoder(self.block)[:, latents].T
        own = self._weights.per_latent(self.block)
        bias = own["b_enc"][latents] if "b_enc" in own else w.new_zeros(len(w))
        if self.dictionary.settings.applies_b_dec_to_input:
            bias = bias - w @ self._input_bias
        if "r_mag" in own:  # a gated dictionary's magnitude path, which is what an open latent's code is
            scale = own["r_mag"][latents].exp()
            w, bias = w * scale[:, None], bias * scale + own["b_mag"][latents]
        return w, bias

    def decoder_rows(self, latents: Int[Tensor, " n"]) -> list[Tensor]:
        """What latents write to each station written, [n, d_model] each."""
        rows = self._weights.decoder(self.block)[latents]
        return list(rows.chunk(len(self.writes), dim=-1))

    @property
    def _input_bias(self) -> Tensor:
        return self.dictionary.b_dec.reshape(-1)[self.block.read]

    @property
    def _weights(self) -> Weights:
        return Weights(self.dictionary.settings, self.dictionary.tensors)


def replacements_of(model: Model, transcoders: Any) -> list[Replacement]:
    """Dictionaries as blocks, in forward order of what they read.

    Args:
        model: The model that they are to replace parts of.
        transcoders: A dictionary, a list of them, or a mapping whose values they are.

    Raises:
        DictionaryMismatch: not a dictionary; of another width; read from several sites at once; no linear
            encoder; or two of them write to one site without being one cross-layer transcoder.
        PositionOutOfRange: a layer that the model has not.
        PointUnavailable: a site that no graph can be cut at.
    """
    given = [one.to(device=model.device) for one in _listed(transcoders)]
    found = [part for index, one in enumerate(given) for part in _parts(model, one, index)]
    if not found:
        raise DictionaryMismatch(
            "An attribution graph needs at least one dictionary.",
            got="none",
            instead="transcoders of some layers, or graphs.random_transcoders(model, 512, seed=0) to try it out",
        )
    _refuse_rivals(model, found, given)
    return sorted(found, key=lambda part: (part.reads, part.source))


def described(parts: Sequence[Replacement]) -> list[dict[str, Any]]:
    """What a record says of the dictionaries, with a hash of some rows of each tensor: to tell them apart, quickly."""
    seen = {part.source: part.dictionary for part in parts}
    return [
        {
            "kind": one.kind,
            "reads": [str(site) for site in one.reads],
            "writes": [str(site) for site in one.writes],
            "n_latents": one.n_latents,
            "sample_sha256": hash_tensors({name: _sample(one.tensors[name]) for name in one.tensors}),
        }
        for _, one in sorted(seen.items())
    ]


def _sample(tensor: Tensor) -> Tensor:
    """At most `SAMPLED_ROWS` rows, evenly spread; whole dictionaries of some gigabytes would take seconds to hash."""
    return tensor[:: max(1, len(tensor) // SAMPLED_ROWS)] if tensor.ndim else tensor


def random_transcoders(
    model: Model, n_latents: int, *, seed: int = 0, k: int = 16, kind: str = "transcoder"
) -> list[Dictionary]:
    """Random dictionaries that fit a model, for trying out, tests and benchmarks: they explain nothing.

    Args:
        model: Whose layers.
        n_latents: Latents a layer.
        seed: Root of the draw.
        k: Active latents a token.
        kind: "transcoder", "skip_transcoder", "cross_layer_transcoder" or "sae" (on the layers' outputs).
    """
    generator = torch.Generator().manual_seed(seed)
    d, dtype = model.d_model, model.dtype

    def drawn(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * size).to(dtype)

    def port(point: str, layer: int) -> Port:
        return Port(site=Site(point, layer), shape=(d,))

    layers = range(model.n_layers)
    gate = Gate(rule="topk", k=k)
    if kind == "cross_layer_transcoder":
        reads, writes = tuple(port("mlp_in", i) for i in layers), tuple(port("mlp_out", i) for i in layers)
        settings = Settings(
            reads=reads,
            writes=writes,
            n_latents=n_latents * len(reads),
            gate=gate,
            is_cross_layer=True,
            targets=tuple(tuple(range(i, len(writes))) for i in layers),
        )
        tensors = {
            "W_enc": drawn(len(reads), d, n_latents, size=d**-0.5),
            "b_enc": drawn(n_latents * len(reads), size=0.1),
            "b_dec": drawn(len(writes), d, size=0.1),
        } | {f"W_dec.{i}": drawn(n_latents, len(writes) - i, d, size=d**-0.5) for i in layers}
        return [Dictionary(settings, tensors)]
    made = []
    for layer in layers:
        read, write = ("resid_post", "resid_post") if kind == "sae" else ("mlp_in", "mlp_out")
        has_skip = kind == "skip_transcoder"
        settings = Settings(
            reads=(port(read, layer),),
            writes=(port(write, layer),),
            n_latents=n_latents,
            gate=gate,
            has_skip=has_skip,
        )
        tensors = {
            "W_enc": drawn(d, n_latents, size=d**-0.5),
            "b_enc": drawn(n_latents, size=0.1),
            "W_dec": drawn(n_latents, d, size=d**-0.5),
            "b_dec": drawn(d, size=0.1),
        } | ({"W_skip": drawn(d, d, size=0.3 * d**-0.5)} if has_skip else {})
        made.append(Dictionary(settings, tensors))
    return made


def _listed(transcoders: Any) -> list[Dictionary]:
    values = getattr(transcoders, "values", None)
    items = (
        [transcoders] if isinstance(transcoders, Dictionary) else list(values() if values else transcoders)
    )
    strangers = [type(item).__name__ for item in items if not isinstance(item, Dictionary)]
    if strangers:
        raise DictionaryMismatch(
            "A local replacement model is made of dictionaries.",
            got=", ".join(strangers),
            because="their latents are the graph's nodes",
            instead="ms.dictionaries.open(path), one for each layer or one cross-layer transcoder",
        )
    return items


def _parts(model: Model, given: Dictionary, index: int) -> Iterable[Replacement]:
    settings = given.settings
    problems = list(_problems(model, given))
    if problems:
        raise DictionaryMismatch(
            f"Dictionary {index} can't stand in an attribution graph of {model.identity.name}.",
            got=repr(given),
            because="; ".join(problems),
            instead=f"transcoders of this model: one site read, width {model.d_model}, no matching pursuit",
        )
    outside = [
        str(site) for site in (*given.reads, *given.writes) if not 0 <= (site.layer or 0) < model.n_layers
    ]
    if outside:
        raise PositionOutOfRange(
            f"Dictionary {index} is of a layer that {model.identity.name} has not.",
            got=", ".join(outside),
            because=f"the model has {model.n_layers} layers, counted from 0",
            instead="dictionaries trained on this model",
        )
    for site in (*given.reads, *given.writes):
        model.binding.site(site)  # refuses what the family does not form
    one = given.folded() if settings.normalization.is_pending else given
    writes = [station_of(site, written=True) for site in one.writes]
    biases = one.b_dec.reshape(len(writes), -1)
    skip = one.tensors["W_skip"].T if settings.has_skip else None
    for block in Weights(one.settings, one.tensors).blocks:
        targets = range(len(writes)) if block.sites is None else block.sites
        yield Replacement(
            reads=station_of(one.reads[block.index]),
            writes=tuple(writes[i] for i in targets),
            dictionary=one,
            block=block,
            source=index,
            biases=dict(zip(writes, biases, strict=True)) if block.index == 0 else {},
            skip=skip,
        )


def _problems(model: Model, given: Dictionary) -> Iterable[str]:
    settings = given.settings
    widths = sorted({port.width for port in (*settings.reads, *settings.writes)})
    if widths != [model.d_model]:
        yield f"it reads or writes width {' and '.join(map(str, widths))}, the residual stream has {model.d_model}"
    if len(settings.reads) > 1 and not settings.is_cross_layer:
        yield "its latents read several sites at once"
    if settings.gate.rule == "matching_pursuit":
        yield "matching pursuit has no linear pre-activation"
    if settings.normalization.is_per_token:
        yield "its inputs are scaled token by token"
    if settings.has_skip and len(settings.writes) > 1:
        yield "a skip connection to several sites is ambiguous"
    if settings.has_skip and given.reads == given.writes:
        yield "a skip connection from a site to itself is no path"


def _refuse_rivals(model: Model, found: Sequence[Replacement], given: Sequence[Dictionary]) -> None:
    owners: dict[int, int] = {}
    for part in found:
        too_early = [station for station in part.writes if station < part.reads]
        rivals = [s for s in part.writes if owners.setdefault(s, part.source) != part.source]
        if too_early or rivals:
            raise DictionaryMismatch(
                f"Dictionary {part.source} can't stand in this graph.",
                got=repr(given[part.source]),
                because="it writes before it reads"
                if too_early
                else f"dictionary {owners[rivals[0]]} writes to the same site",
                instead="one dictionary for each site written",
            )
