"""Settings: everything about a dictionary that is not a tensor, frozen, and its one JSON form.

Owns: what is read and written, the gate rule, how inputs are normalised and whether that is folded into the
weights, and where the dictionary comes from. Refuses: unknown gate and normalisation rules, contradictions.
Invariant: `from_json(to_json(x)) == x`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mechscope.vocabulary.errors import BadFile, DictionaryError, UnknownGate
from mechscope.vocabulary.sites import Site

Compares = Literal["pre", "pre_times_decoder_norm"]
Negatives = Literal["zeroed", "kept", "ranked_by_size"]
Kind = Literal["sae", "transcoder", "skip_transcoder", "cross_layer_transcoder", "crosscoder"]

GATE_RULES: dict[str, str] = {
    "relu": "the positive part",
    "gated": "a magnitude path, open where a gate path is positive: b_gate, b_mag, r_mag",
    "topk": "the k largest of each token",
    "jumprelu": "the pre-activation where it exceeds `threshold`",
    "groupmax": "the largest of each of k groups of consecutive latents",
    "matching_pursuit": "k steps, each takes the latent that explains most of what is left",
}
"""Rules that a saved dictionary may have. BatchTopK and Matryoshka exist while training; they are kept as jumprelu."""

NORMALIZATION_RULES: dict[str, str] = {
    "none": "values as they are",
    "affine": "(x - in_mean) * in_scale; out_mean and out_scale undo it at the sites written",
    "layer_norm": "each token less its mean, over its unbiased standard deviation + eps",
    "token_norm": "each token scaled to norm sqrt(width)",
}
PER_TOKEN = ("layer_norm", "token_norm")


@dataclass(frozen=True, kw_only=True)
class Port:
    """A site that a dictionary reads or writes.

    Args:
        site: The site.
        shape: What the site carries at one position: (d_model,), or (head, d_head) for "z".
        model: Label of the model, where a crosscoder spans several.
    """

    site: Site
    shape: tuple[int, ...]
    model: str = ""

    @property
    def width(self) -> int:
        """Numbers at one position."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How pre-activations become codes.

    Args:
        rule: One of `GATE_RULES`.
        k: Latents per token (topk), groups (groupmax) or steps (matching_pursuit).
        compares: What is ranked or compared with the threshold; the code's value is the pre-activation itself.
        negatives: Of a top-k: a selected negative value becomes zero, is kept, or latents are ranked by size.
        stop_at: Matching pursuit ends for a token whose residual norm is at most this.
        stops_at_repeat: Matching pursuit ends for a token once a step takes no new latent.
    """

    rule: str
    k: int | None = None
    compares: Compares = "pre"
    negatives: Negatives = "zeroed"
    stop_at: float = 0.0
    stops_at_repeat: bool = False

    def __post_init__(self) -> None:
        if self.rule not in GATE_RULES:
            raise UnknownGate(
                f'"{self.rule}" is no gate rule.',
                got=self.rule,
                because="a dictionary read under another rule gives other codes, silently",
                instead=", ".join(GATE_RULES),
            )
        needs_k = self.rule in ("topk", "groupmax", "matching_pursuit")
        if needs_k != (self.k is not None) or (self.k is not None and (self.k < 1 or self.k != int(self.k))):
            raise UnknownGate(
                f'The gate "{self.rule}" {"needs a whole k, at least 1" if needs_k else "takes no k"}.',
                got=f"k={self.k}",
                because=GATE_RULES[self.rule],
                instead='Gate(rule="topk", k=32)' if needs_k else f'Gate(rule="{self.rule}")',
            )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What was done to inputs in training, kept apart from the weights until it is folded.

    Args:
        rule: One of `NORMALIZATION_RULES`.
        is_folded: The weights already take raw values; the statistics are kept for the record.
        eps: Of layer_norm.
    """

    rule: str = "none"
    is_folded: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.rule not in NORMALIZATION_RULES:
            raise DictionaryError(
                f'"{self.rule}" is no normalisation rule.',
                got=self.rule,
                because="codes of values that were scaled otherwise mean nothing",
                instead=", ".join(NORMALIZATION_RULES),
            )

    @property
    def is_pending(self) -> bool:
        """Values have to be normalised before they meet the weights."""
        return self.rule != "none" and not self.is_folded

    @property
    def is_per_token(self) -> bool:
        """The scale depends on the token, so that it can't be folded and `decode` needs the values read."""
        return self.is_pending and self.rule in PER_TOKEN


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a dictionary comes from; empty where a foreign file does not say.

    Args:
        model: Name of the model that it was trained on.
        revision: Commit of the checkpoint.
        weights_sha256: Hash of the model's weights.
        dtype: In which the model ran.
        tokenizer_sha256: Hash of the tokenizer.
        bos: Whether prompts began with a beginning-of-sequence token; None if unknown.
        skips_special: Special tokens were left out of training.
        data_sha256: Hash of the training tokens.
        n_tokens: Tokens trained on.
        trained_as: Architecture in training: "batch_topk".
        made_by: Software and format of origin: "mechscope 0.1", "SAELens 6.5".
        notes: Anything else worth keeping, JSON; under "bos" what `bos_handling` says.
    """

    model: str = ""
    revision: str = ""
    weights_sha256: str = ""
    dtype: str = ""
    tokenizer_sha256: str = ""
    bos: bool | None = None
    skips_special: bool = True
    data_sha256: str = ""
    n_tokens: int = 0
    trained_as: str = ""
    made_by: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bos_handling(self) -> str | None:
        """What was done about the beginning-of-sequence token of the text trained on, as `TokenBatch` says it:
        "tokenizer", "added", "removed" or "given"; None if nobody noted it."""
        found = self.notes.get("bos")
        return None if found is None else str(found)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Figures on record that a correctly loaded dictionary reproduces; None if unknown.

    Args:
        l0: Active latents per token.
        fvu: Fraction of variance unexplained, pooled: 0 is perfect, 1 is the mean.
        dead: Fraction of latents that never fired.
        n_tokens: Tokens that the figures were measured on.
        data_sha256: Hash of those tokens.
    """

    l0: float | None = None
    fvu: float | None = None
    dead: float | None = None
    n_tokens: int = 0
    data_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a dictionary is.

    Args:
        reads: Sites read. Several are pooled into one code (crosscoder), unless `is_cross_layer`.
        writes: Sites written.
        n_latents: Latents in all.
        gate: How pre-activations become codes.
        normalization: Of the values read (and, undone, of those written).
        applies_b_dec_to_input: `b_dec` is subtracted from the (normalised) values before the encoder.
        has_skip: A linear map of the values read is added to what is written (`W_skip`).
        is_cross_layer: Each site read has latents of its own, which write to the sites listed in `targets`.
        targets: For each site read, indices of the sites written.
        prefixes: Sizes of nested dictionaries (Matryoshka), increasing, the last is `n_latents`; empty if none.
        source: Where it comes from.
        calibration: Figures on record.
    """

    reads: tuple[Port, ...]
    writes: tuple[Port, ...]
    n_latents: int
    gate: Gate
    normalization: Normalization = field(default_factory=Normalization)
    applies_b_dec_to_input: bool = False
    has_skip: bool = False
    is_cross_layer: bool = False
    targets: tuple[tuple[int, ...], ...] = ()
    prefixes: tuple[int, ...] = ()
    source: Source = field(default_factory=Source)
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise DictionaryError(
                "The settings of a dictionary contradict each other.",
                got=f"reads {self.reads}, writes {self.writes}, {self.n_latents} latents",
                because="; ".join(problems),
            )

    @property
    def kind(self) -> Kind:
        """What the field calls it."""
        if self.is_cross_layer:
            return "cross_layer_transcoder"
        if len(self.reads) > 1:
            return "crosscoder"
        if self.reads == self.writes and not self.has_skip:
            return "sae"
        return "skip_transcoder" if self.has_skip else "transcoder"

    @property
    def n_blocks(self) -> int:
        """Groups of latents with an encoder of their own: one, or one for each site read."""
        return len(self.reads) if self.is_cross_layer else 1

    @property
    def d_in(self) -> int:
        """Numbers read at one position, all sites together."""
        return sum(port.width for port in self.reads)

    @property
    def d_out(self) -> int:
        """Numbers written at one position, all sites together."""
        return sum(port.width for port in self.writes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `settings_from_json` reads it."""
        saved = asdict(self)
        for side in ("reads", "writes"):
            saved[side] = [
                {"site": str(port.site), "shape": list(port.shape), "model": port.model}
                for port in getattr(self, side)
            ]
        return saved


def settings_from_json(saved: Mapping[str, Any]) -> Settings:
    """Inverse of `Settings.to_json`.

    Raises:
        BadFile: an unknown or missing field.
        UnknownGate: a gate rule that we do not know.
    """
    try:
        values = dict(saved)
        for side in ("reads", "writes"):
            values[side] = tuple(
                Port(site=Site.parse(port["site"]), shape=tuple(port["shape"]), model=port["model"])
                for port in values[side]
            )
        values["targets"] = tuple(tuple(one) for one in values["targets"])
        values["prefixes"] = tuple(values["prefixes"])
        for name, part in (
            ("gate", Gate),
            ("normalization", Normalization),
            ("source", Source),
            ("calibration", Calibration),
        ):
            values[name] = part(**values[name])
        return Settings(**values)
    except (KeyError, TypeError) as error:
        raise BadFile(
            "These are not a dictionary's settings.",
            got=sorted(saved),
            because=str(error),
            instead=f"the fields {', '.join(one.name for one in fields(Settings))}",
        ) from error


def sae_settings(site: Site | str, *, width: int, n_latents: int, gate: Gate, **more: Any) -> Settings:
    """Settings of an SAE on one site that carries a vector of `width`."""
    port = Port(site=Site.parse(site), shape=(width,))
    return Settings(reads=(port,), writes=(port,), n_latents=n_latents, gate=gate, **more)


def _problems(settings: Settings) -> "list[str]":
    found: list[str] = []
    if not settings.reads or not settings.writes:
        found.append("a dictionary reads at least one site and writes at least one")
    widths = {port.width for port in settings.reads}
    if settings.is_cross_layer and len(widths) > 1:
        found.append(f"the sites read by a cross-layer transcoder have one width, not {sorted(widths)}")
    if settings.is_cross_layer != bool(settings.targets):
        found.append("`targets` belongs to a cross-layer transcoder, and to nothing else")
    if settings.is_cross_layer and len(settings.targets) != len(settings.reads):
        found.append("`targets` has one entry for each site read")
    if any(not 0 <= index < len(settings.writes) for one in settings.targets for index in one):
        found.append("`targets` names a site that is not written")
    if settings.is_cross_layer and len({port.width for port in settings.writes}) > 1:
        found.append("the sites written by a cross-layer transcoder have one width")
    if settings.n_latents < 1 or (settings.reads and settings.n_latents % settings.n_blocks):
        found.append("the number of latents is positive and divides evenly over the sites read")
    if settings.applies_b_dec_to_input and settings.d_in != settings.d_out:
        found.append("b_dec can be subtracted from the input only where input and output have one width")
    prefixes = settings.prefixes
    if prefixes and (list(prefixes) != sorted(set(prefixes)) or prefixes[-1] != settings.n_latents):
        found.append("`prefixes` increase and end at the number of latents")
    k = settings.gate.k
    if k is not None and settings.gate.rule != "matching_pursuit" and k > settings.n_latents:
        found.append(f"k={k} exceeds the number of latents")
    if settings.gate.rule == "groupmax" and k is not None and settings.n_latents % k:
        found.append("groupmax divides the latents evenly into k groups")
    return found
