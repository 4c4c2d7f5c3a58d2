"""Dictionary: one object for SAEs, transcoders, skip and cross-layer transcoders, and crosscoders.

encode(values read) gives codes, decode(codes) gives values written. Settings are frozen, tensors are shared, not
copied; methods that change something return a new dictionary. Satisfies `vocabulary.protocols.Codec`.

Values are `[..., *shape]` of the site, or `[..., width]`; where several sites are read or written, they are stacked
in an axis before that: `[..., n_sites, *shape]`. Sites of different widths are given flat and end to end.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechscope.dictionaries import folding, ports
from mechscope.dictionaries.blocks import Weights, encode_block, refuse_unless_whole
from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.fitting import refuse_unless_fits
from mechscope.dictionaries.normalizing import denormalized, normalized
from mechscope.dictionaries.settings import Port, Settings
from mechscope.dictionaries.sparse_encoding import encode_sparsely
from mechscope.models.inputs import Inputs
from mechscope.models.model import Model
from mechscope.models.splicing import ErrorTerm, Spliced
from mechscope.vocabulary.errors import DictionaryMismatch
from mechscope.vocabulary.sites import Site

if TYPE_CHECKING:
    from mechscope.dictionaries.evaluation.card import Card

DENSE_AT_ONCE = 2**21
"""Pre-activations that exist at a time: they stay in a processor's cache."""


class Dictionary:
    """Latents with an encoder and a decoder.

    Args:
        settings: Everything that is not a tensor.
        tensors: By name, see `blocks.shapes_of`: `W_enc` [d_in, n_latents], `b_enc`, `W_dec` [n_latents, d_out],
            `b_dec`, `threshold`, ... Several sites: `W_enc` [n_reads, d, n_latents], `W_dec` [n_latents, n_writes, d];
            cross-layer: `W_enc` [n_reads, d, n_latents / n_reads] and one `W_dec.i` [latents, targets, d] for each
            site read.

    Raises:
        DictionaryError: a tensor is missing, too many, or of another shape.
    """

    def __init__(self, settings: Settings, tensors: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.tensors = dict(tensors)
        refuse_unless_whole(settings, self.tensors)

    @property
    def kind(self) -> str:
        """sae, transcoder, skip_transcoder, cross_layer_transcoder or crosscoder."""
        return self.settings.kind

    @property
    def reads(self) -> tuple[Site, ...]:
        """Sites read."""
        return tuple(port.site for port in self.settings.reads)

    @property
    def writes(self) -> tuple[Site, ...]:
        """Sites written."""
        return tuple(port.site for port in self.settings.writes)

    @property
    def n_latents(self) -> int:
        return self.settings.n_latents

    @property
    def W_enc(self) -> Tensor:
        return self.tensors["W_enc"]

    @property
    def b_enc(self) -> Tensor:
        return self.tensors["b_enc"]

    @property
    def W_dec(self) -> Tensor:
        return self.tensors["W_dec"]

    @property
    def b_dec(self) -> Tensor:
        return self.tensors["b_dec"]

    @property
    def threshold(self) -> Tensor:
        return self.tensors["threshold"]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["b_dec"].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors["b_dec"].device

    @property
    def needs_values(self) -> bool:
        """`decode` needs the values read: for a skip connection, or a scale that is the token's own."""
        return self.settings.has_skip or self.settings.normalization.is_per_token

    def __repr__(self) -> str:
        settings = self.settings
        where = ports.told(settings.reads)
        where += "" if settings.reads == settings.writes else f" -> {ports.told(settings.writes)}"
        rule = settings.gate.rule + (f" k={settings.gate.k}" if settings.gate.k else "")
        return f"<Dictionary {self.kind} at {where}: {self.n_latents} latents, {rule}, {self.dtype}>"

    def encode(self, values: Float[Tensor, "..."]) -> Float[Tensor, "... n_latents"]:
        """Codes of the values read, dense.

        Raises:
            DictionaryMismatch: the values have another shape than the sites read.

        Cost: one product of [tokens, d_in] and [d_in, n_latents]; matching pursuit k of them.
        """
        flat, leading = self._flat(values, self.settings.reads, "read")
        codes = self._encode_flat(flat)
        return codes.reshape(*leading, self.n_latents)

    def encode_sparse(self, values: Float[Tensor, "..."], *, batch_tokens: int | None = None) -> SparseCodes:
        """Codes of the values read, without the zeros; a token's latents stand in no order.

        Args:
            values: As in `encode`.
            batch_tokens: Tokens encoded at a time: dense codes exist for so many only. None: `DENSE_AT_ONCE` numbers.
        """
        flat, leading = self._flat(values, self.settings.reads, "read")
        at_once = batch_tokens or max(64, DENSE_AT_ONCE // self.n_latents)
        parts = [self._encode_sparse(part) for part in flat.split(at_once)]
        offsets = [flat.new_zeros(1, dtype=torch.long)]
        for part in parts:
            offsets.append(part.offsets[1:] + offsets[-1][-1])
        return SparseCodes(
            torch.cat([part.values for part in parts]) if parts else flat.new_zeros(0),
            torch.cat([part.latents for part in parts]) if parts else offsets[0][:0],
            torch.cat(offsets),
            self.n_latents,
            leading,
        )

    def decode(
        self, codes: Float[Tensor, "... n_latents"] | SparseCodes, values: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """What codes mean at the sites written.

        Args:
            codes: Dense or sparse.
            values: The values that were read; needed where `needs_values`, else left aside.

        Returns:
            [..., *shape] of the site written; several sites are stacked before that.

        Raises:
            DictionaryMismatch: the codes have another width, or `values` are needed and missing.
        """
        given = self._given(values)
        if isinstance(codes, SparseCodes):
            leading, written = codes.shape, self._weights().decode_sparse(codes)
        else:
            self._refuse_other_codes(codes)
            leading = tuple(codes.shape[:-1])
            written = self._weights().decode(codes.reshape(-1, self.n_latents).to(self.dtype))
        if self.settings.has_skip:
            assert given is not None
            taken = normalized(given, self.settings, self.tensors)
            written = written + taken @ self.tensors["W_skip"].T
        written = denormalized(written, self.settings, self.tensors, given)
        return self._shaped(written, leading)

    def __call__(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The reconstruction: what the codes of `values` mean at the sites written."""
        return self.decode(self.encode(values), values)

    def folded(self) -> "Dictionary":
        """The same function with the input normalisation inside the weights.

        Raises:
            FoldingError: it is folded already, there is none, or weights can't express it.
        """
        settings, tensors = folding.fold_normalization(self.settings, self.tensors)
        return Dictionary(settings, tensors)

    def with_unit_decoder(self) -> "Dictionary":
        """The same function with decoder rows of norm one; codes are multiplied by the old norms.

        Raises:
            FoldingError: the gate ranks pre-activations in a way that the change would alter.
        """
        settings, tensors = folding.fold_decoder_norm(self.settings, self.tensors)
        return Dictionary(settings, tensors)

    def prefix(self, n_latents: int) -> "Dictionary":
        """The nested dictionary of the first latents, as Matryoshka training made it usable alone.

        Raises:
            DictionaryMismatch: not one of `settings.prefixes`.
        """
        if n_latents not in self.settings.prefixes:
            raise DictionaryMismatch(
                f"There is no nested dictionary of {n_latents} latents.",
                got=n_latents,
                because="only the sizes that it was trained at stand alone",
                instead=", ".join(map(str, self.settings.prefixes)) or "a Matryoshka dictionary",
            )
        prefixes = tuple(size for size in self.settings.prefixes if size <= n_latents)
        settings = replace(self.settings, n_latents=n_latents, prefixes=prefixes)
        return Dictionary(settings, self._weights().first(n_latents))

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """The same dictionary elsewhere, or in another precision."""
        moved = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors.items()}
        return Dictionary(self.settings, moved)

    def with_settings(self, **changes: Any) -> "Dictionary":
        """The same tensors under changed settings: `with_settings(calibration=...)`."""
        return Dictionary(replace(self.settings, **changes), self.tensors)

    def decoder_rows(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent writes, all sites end to end; zeros where a cross-layer latent does not write."""
        return self._weights().decoder_rows()

    def decoder_norms(self) -> Float[Tensor, " n_latents"]:
        """Norm of what each latent writes."""
        return self._weights().decoder_norms()

    def spliced(self, error: ErrorTerm = "keep") -> Spliced:
        """The dictionary as `model.run(splice=[...])` takes it, with what happens to its error."""
        return Spliced(self, error)

    def sources_of(self, written: Site) -> tuple[Site, ...]:
        """Sites read that what is written at a site depends on."""
        settings = self.settings
        if not settings.is_cross_layer:
            return self.reads
        index = self.writes.index(written)
        return tuple(site for i, site in enumerate(self.reads) if index in settings.targets[i])

    def sites_of(self, latent: int) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
        """Sites that a latent reads, and sites that it writes: of a cross-layer transcoder not all.

        Raises:
            DictionaryMismatch: there is no such latent.
        """
        return ports.sites_of(latent, self.settings)

    def gathered(self, heard: Mapping[Site, Tensor]) -> Float[Tensor, "token d_in"]:
        """What `encode` takes, from values by site in token form; sites that are missing count as zero."""
        return ports.gathered(heard, self.settings)

    def part_at(self, written: Float[Tensor, "..."], site: Site) -> Float[Tensor, "..."]:
        """The part of what `decode` gave that belongs to one of the sites written."""
        return ports.part_at(written, site, self.settings)

    def refuse_unless_fits(self, model: Model) -> None:
        """Refuse a model that this dictionary was not made for; all problems at once.

        Raises:
            DictionaryMismatch: another tokenizer, a site that the model does not form, or one of another width.
        """
        refuse_unless_fits(self.settings, model)

    def card(self, model: Model, text: Inputs | None = None) -> "Card":
        """L0 and FVU on a pinned text, and what speaks for a misread dictionary; see `ms.dictionaries.card`."""
        from mechscope.dictionaries.evaluation.card import card

        return card(self, model, text)

    def save(self, path: str | Path) -> None:
        """Write the dictionary as a folder: `dictionary.json` and `dictionary.safetensors`, whole or absent."""
        from mechscope.dictionaries.saving import save_dictionary

        save_dictionary(self, path)

    @classmethod
    def open(cls, path: str | Path) -> "Dictionary":
        """Read what `save` wrote. Foreign formats: `ms.dictionaries.open`.

        Raises:
            BadFile: not a dictionary of ours.
            ChecksumMismatch: the tensors are not the ones that were saved.
        """
        from mechscope.dictionaries.saving import open_saved

        return open_saved(path)

    def _weights(self) -> Weights:
        return Weights(self.settings, self.tensors)

    def _taken(self, flat: Tensor) -> Tensor:
        """What the encoder's product takes."""
        taken = normalized(flat, self.settings, self.tensors)
        return taken - self.b_dec.reshape(-1) if self.settings.applies_b_dec_to_input else taken

    def _encode_sparse(self, flat: Tensor) -> SparseCodes:
        needs_graph = torch.is_grad_enabled() and any(t.requires_grad for t in (flat, *self.tensors.values()))
        found = None if needs_graph else encode_sparsely(self._taken(flat), self._weights())
        return SparseCodes.of(self._encode_flat(flat)) if found is None else found

    def _encode_flat(self, flat: Tensor) -> Tensor:
        taken = self._taken(flat)
        weights = self._weights()
        return torch.cat([encode_block(taken, weights, block) for block in weights.blocks], dim=-1)

    def _flat(self, values: Tensor, sides: tuple[Port, ...], verb: str) -> tuple[Tensor, tuple[int, ...]]:
        """Values as [token, all widths], and their leading shape."""
        leading = ports.leading_shape(values, sides, verb)
        return values.reshape(-1, sum(port.width for port in sides)).to(self.tensors["b_dec"]), leading

    def _given(self, values: Tensor | None) -> Tensor | None:
        if not self.needs_values:
            return None
        if values is None:
            raise DictionaryMismatch(
                f"Decoding this {self.kind} needs the values that were read.",
                got="codes alone",
                because="it has a skip connection"
                if self.settings.has_skip
                else "each token has its own scale",
                instead="dictionary.decode(codes, values)",
            )
        return self._flat(values, self.settings.reads, "read")[0]

    def _refuse_other_codes(self, codes: Tensor) -> None:
        if codes.shape[-1] != self.n_latents:
            raise DictionaryMismatch(
                "These are not codes of this dictionary.",
                got=f"shape {list(codes.shape)}",
                because=f"it has {self.n_latents} latents",
                instead="dictionary.encode(values)",
            )

    def _shaped(self, written: Tensor, leading: tuple[int, ...]) -> Tensor:
        sides = self.settings.writes
        if len(sides) == 1:
            return written.reshape(*leading, *sides[0].shape)
        if len({port.shape for port in sides}) == 1:
            return written.reshape(*leading, len(sides), *sides[0].shape)
        return written.reshape(*leading, -1)
