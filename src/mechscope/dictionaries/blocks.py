"""Blocks: the tensors of a dictionary as matrices, one block for each encoder.

An SAE, a transcoder and a crosscoder are one block: their sites lie end to end in one long vector. A cross-layer
transcoder has a block for each site read, and each block writes to its own targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mechscope.dictionaries.codes import SparseCodes
from mechscope.dictionaries.gates import Block as GateBlock
from mechscope.dictionaries.gates import apply_gate
from mechscope.dictionaries.pursuit import pursue
from mechscope.dictionaries.settings import Settings
from mechscope.vocabulary.errors import DictionaryError

_PER_LATENT = ("b_enc", "threshold", "b_gate", "b_mag", "r_mag")
_STATISTICS = {"in_mean": "d_in", "out_mean": "d_out", "in_scale": "d_in", "out_scale": "d_out"}


def shapes_of(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The tensors that a dictionary of these settings must have, with their shapes."""
    n, rule = settings.n_latents, settings.gate.rule
    reads, writes = settings.reads, settings.writes
    shapes: dict[str, tuple[int, ...]] = {}
    if settings.is_cross_layer:
        each, width = n // len(reads), writes[0].width
        shapes["W_enc"] = (len(reads), reads[0].width, each)
        for index, targets in enumerate(settings.targets):
            shapes[f"W_dec.{index}"] = (each, len(targets), width)
        shapes["b_dec"] = (len(writes), width)
    else:
        shapes["W_enc"] = _stacked(reads) if len(reads) > 1 else (settings.d_in,)
        shapes["W_enc"] += (n,)
        outs = _stacked(writes) if len(writes) > 1 else (settings.d_out,)
        shapes["W_dec"], shapes["b_dec"] = (n, *outs), outs
    if rule == "gated":
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (n,))
    elif rule != "matching_pursuit":
        shapes["b_enc"] = (n,)
    if rule == "matching_pursuit":
        del shapes["W_enc"]
    if rule == "jumprelu":
        shapes["threshold"] = (n,)
    if settings.has_skip:
        shapes["W_skip"] = (settings.d_out, settings.d_in)
    return shapes


def refuse_unless_whole(settings: Settings, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are missing, superfluous, or of another shape; all problems at once.

    Raises:
        DictionaryError
    """
    expected = shapes_of(settings)
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(expected[name])}")
        if name not in expected:
            problems += _statistic_problems(name, tensor, settings)
    if problems:
        raise DictionaryError(
            "The tensors do not belong to the settings.",
            got=", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())),
            because="; ".join(problems),
            instead="ms.dictionaries.open, which knows who writes which tensors in which orientation",
        )


def _stacked(ports: "tuple[object, ...]") -> tuple[int, ...]:
    widths = [port.width for port in ports]  # pyright: ignore[reportAttributeAccessIssue]
    return (len(ports), widths[0]) if len(set(widths)) == 1 else (sum(widths),)


def _statistic_problems(name: str, tensor: Tensor, settings: Settings) -> list[str]:
    if name not in _STATISTICS or settings.normalization.rule != "affine":
        return [f"{name} has no place here"]
    width = getattr(settings, _STATISTICS[name])
    allowed = [(width,)] + ([(), (width, width)] if name.endswith("scale") else [])
    return [] if tuple(tensor.shape) in allowed else [f"{name} is {list(tensor.shape)}, not one of {allowed}"]


@dataclass(frozen=True)
class Block:
    """One encoder: which part of the long vectors it reads and writes, and which latents are its own.

    Args:
        index: Its number.
        read: Columns of the values read.
        latents: Its latents.
        sites: Indices of the sites written; None means all of them, end to end.
    """

    index: int
    read: slice
    latents: slice
    sites: tuple[int, ...] | None


class Weights:
    """A dictionary's tensors as matrices.

    Args:
        settings: Of the dictionary.
        tensors: By name; views of them are made, no copies.
    """

    def __init__(self, settings: Settings, tensors: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.tensors = tensors

    @cached_property
    def blocks(self) -> list[Block]:
        settings = self.settings
        if not settings.is_cross_layer:
            return [Block(0, slice(0, settings.d_in), slice(0, settings.n_latents), None)]
        width, each = settings.reads[0].width, settings.n_latents // len(settings.reads)
        return [
            Block(i, slice(i * width, (i + 1) * width), slice(i * each, (i + 1) * each), settings.targets[i])
            for i in range(len(settings.reads))
        ]

    def encoder(self, block: Block) -> Tensor:
        """[d_in of the block, latents of the block]."""
        w = self.tensors["W_enc"]
        return w[block.index] if block.sites is not None else w.reshape(-1, w.shape[-1])

    def decoder(self, block: Block) -> Tensor:
        """[latents of the block, widths of the sites that it writes, end to end]."""
        name = "W_dec" if block.sites is None else f"W_dec.{block.index}"
        return self.tensors[name].flatten(1)

    def per_latent(self, block: Block) -> dict[str, Tensor]:
        """Thresholds and biases of a block's latents."""
        return {name: self.tensors[name][block.latents] for name in _PER_LATENT if name in self.tensors}

    def decode(self, codes: Tensor) -> Tensor:
        """[token, n_latents] to [token, d_out], before normalisation is undone; bias added."""
        written = self.tensors["b_dec"].reshape(-1).expand(len(codes), -1)
        for block in self.blocks:
            written = self._add(written, codes[:, block.latents] @ self.decoder(block), block)
        return written

    def decode_sparse(self, codes: SparseCodes) -> Tensor:
        """The same from sparse codes."""
        written = self.tensors["b_dec"].reshape(-1).expand(codes.n_tokens, -1)
        for block in self.blocks:
            part = codes if len(self.blocks) == 1 else _part(codes, block)
            rows = torch.nn.functional.embedding_bag(
                part.latents,
                self.decoder(block),
                part.offsets[:-1],
                mode="sum",
                per_sample_weights=part.values.to(written.dtype),
            )
            written = self._add(written, rows, block)
        return written

    def decoder_norms(self) -> Tensor:
        return torch.cat([self.decoder(block).norm(dim=-1) for block in self.blocks])

    def decoder_rows(self) -> Tensor:
        rows = []
        for block in self.blocks:
            own = self.decoder(block)
            rows.append(self._add(own.new_zeros(len(own), self.settings.d_out), own, block))
        return torch.cat(rows)

    def first(self, n: int) -> dict[str, Tensor]:
        """The tensors of the first `n` latents; of one block only."""
        cut = {
            name: tensor[..., :n] if name in ("W_enc", *_PER_LATENT) else tensor
            for name, tensor in self.tensors.items()
        }
        return cut | {"W_dec": self.tensors["W_dec"][:n]}

    def _add(self, written: Tensor, more: Tensor, block: Block) -> Tensor:
        if block.sites is None:
            return written + more
        width = self.settings.writes[0].width
        columns = torch.cat([torch.arange(site * width, (site + 1) * width) for site in block.sites])
        return written.index_add(1, columns.to(written.device), more)


def encode_block(taken: Tensor, weights: Weights, block: Block) -> Tensor:
    """Codes [token, latents of the block] of normalised values [token, d_in]."""
    gate = weights.settings.gate
    if gate.rule == "matching_pursuit":
        assert gate.k is not None
        atoms = weights.decoder(block)
        values, latents = pursue(
            taken[:, block.read], atoms, k=gate.k, stop_at=gate.stop_at, stops_at_repeat=gate.stops_at_repeat
        )
        return taken.new_zeros(len(taken), len(atoms)).scatter_add(1, latents, values)
    pre = taken[:, block.read] @ weights.encoder(block)
    own = weights.per_latent(block)
    if "b_enc" in own:
        pre = pre + own["b_enc"]
    norm = weights.decoder(block).norm(dim=-1) if gate.compares == "pre_times_decoder_norm" else None
    return apply_gate(pre, gate, GateBlock(own, norm))


def _part(codes: SparseCodes, block: Block) -> SparseCodes:
    mine = (codes.latents >= block.latents.start) & (codes.latents < block.latents.stop)
    counts = torch.bincount(codes.tokens[mine], minlength=codes.n_tokens)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n = block.latents.stop - block.latents.start
    return SparseCodes(codes.values[mine], codes.latents[mine] - block.latents.start, offsets, n, codes.shape)
