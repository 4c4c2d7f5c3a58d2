"""What is trained, and how: frozen settings of a training run, all of them JSON."""

import math
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal, get_args

from mechscope.dictionaries.architectures.base import Architecture
from mechscope.vocabulary.errors import DictionaryError
from mechscope.vocabulary.sites import Site


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Factors over a run, as fractions of its steps.

    Args:
        warmup: The rate rises linearly from zero.
        decay: At the end it falls; 0 keeps it constant, 1 lets it fall from the first step.
        sparsity_warmup: The sparsity penalty rises linearly from zero.
        falls: How the rate falls: on a line, or on half a cosine.
        lowest: Factor of the rate to which it falls, 0 to 1.
        cycles: Times that it falls, from the highest rate each time (warm restarts).
        k_start: k, and the L0 that a JumpReLU aims at, begin at so many times their value; refused for architectures
            that have neither.
        k_decay: Over this fraction of the run they come down to it, linearly.

    Raises:
        DictionaryError: a fraction outside 0 to 1, a k that begins below its value, or no cycle.
    """

    warmup: float = 0.02
    decay: float = 0.2
    sparsity_warmup: float = 0.1
    falls: Literal["linear", "cosine"] = "linear"
    lowest: float = 0.0
    cycles: int = 1
    k_start: float = 1.0
    k_decay: float = 0.0

    def __post_init__(self) -> None:
        shares = ("warmup", "decay", "sparsity_warmup", "lowest", "k_decay")
        problems = [f"{name}={getattr(self, name)}" for name in shares if not 0 <= getattr(self, name) <= 1]
        problems += [f"cycles={self.cycles}"] if self.cycles < 1 else []
        problems += [f"falls={self.falls!r}"] if self.falls not in ("linear", "cosine") else []
        problems += [f"k_start={self.k_start}"] if self.k_start < 1 else []
        problems += [f"k_start={self.k_start}, k_decay=0"] if self.k_start > 1 and not self.k_decay else []
        if problems:
            raise DictionaryError(
                "This is no schedule.",
                got=", ".join(problems),
                because="its parts are fractions of the run, and k comes down to its value before the end",
                instead='Schedule(decay=1.0, falls="cosine"), Schedule(k_start=8, k_decay=0.5)',
            )

    def rate(self, step: int, n_steps: int) -> float:
        """Factor of the learning rate at a step."""
        rising = min(1.0, (step + 1) / max(1.0, self.warmup * n_steps))
        left = min(1.0, (n_steps - step) / max(1.0, self.decay * n_steps))
        if self.cycles > 1:
            left = 1 - (1 - left) * self.cycles % 1
        if self.falls == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return rising * (self.lowest + (1 - self.lowest) * left)

    def pressure(self, step: int, n_steps: int) -> float:
        """Factor of the sparsity penalty at a step."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * n_steps))

    def looseness(self, step: int, n_steps: int) -> float:
        """Factor of k at a step, 1 once it has come down."""
        left = 1 - step / max(1.0, self.k_decay * n_steps)
        return 1 + (self.k_start - 1) * max(0.0, left)


@dataclass(frozen=True, kw_only=True)
class Revival:
    """What is done about latents that stopped firing.

    Args:
        dead_after_tokens: A latent is dead when it has not fired for so many tokens.
        aux_k: Dead latents per token that learn to reconstruct the error (AuxK); 0 turns it off.
        aux_share: Fraction of each batch on which they do.
        aux_weight: Of that loss, beside the reconstruction's.
        resample_at: Fractions of training at which dead latents are re-initialised with badly reconstructed tokens.
        check_every: Steps between two looks at who is dead; each look waits for the device.
    """

    dead_after_tokens: int = 200_000
    aux_k: int = 64
    aux_share: float = 0.25
    aux_weight: float = 1 / 32
    resample_at: tuple[float, ...] = ()
    check_every: int = 25


@dataclass(frozen=True, kw_only=True)
class Training:
    """How dictionaries are trained; the same for all of one run.

    Args:
        n_tokens: Tokens to train on; None means one pass through the corpus. More than it has: it is read again.
        batch: Tokens of a step.
        rate: Of Adam, at its highest; None: 1e-3 at 4,096 latents, falling with the root of the width.
        betas: Of Adam.
        schedule: Of rate and sparsity.
        revival: Of dead latents.
        decoder_norm: "unit" keeps rows at norm one, with their gradients projected; "free" does not; None leaves it to
            the architecture.
        normalization: "rms" scales each site to a mean squared norm of its width; "standardize" also subtracts the
            mean; "none".
        precision: Of the full encoder product: "auto", "bfloat16" or "full". All else is in the weights' precision.
        is_sparse: False computes everything with full products: the slow oracle.
        seed: Of initial weights and the order of tokens.

    Raises:
        DictionaryError: numbers or words that mean nothing, all at once.
    """

    n_tokens: int | None = None
    batch: int = 4096
    rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = field(default_factory=Schedule)
    revival: Revival = field(default_factory=Revival)
    decoder_norm: Literal["unit", "free"] | None = None
    normalization: Literal["rms", "standardize", "none"] = "rms"
    precision: Literal["auto", "bfloat16", "full"] = "auto"
    is_sparse: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        revival = self.revival
        is_wrong = {
            "n_tokens": self.n_tokens is not None and self.n_tokens < 1,
            "batch": self.batch < 1,
            "rate": self.rate is not None and not self.rate > 0,
            "betas": not all(0 <= beta < 1 for beta in self.betas),
            "revival.check_every": revival.check_every < 1,
            "revival.dead_after_tokens": revival.dead_after_tokens < 1,
            "revival.aux_k": revival.aux_k < 0,
            "revival.aux_share": not 0 < revival.aux_share <= 1,
            "revival.resample_at": not all(0 < at <= 1 for at in revival.resample_at),
        }
        problems = [name for name, wrong in is_wrong.items() if wrong] + unknown_words(self)
        if problems:
            told = {name: attrgetter(name)(self) for name in problems}
            raise DictionaryError(
                "This is no training.",
                got=", ".join(f"{name}={value!r}" for name, value in told.items()),
                because="tokens, batch, rate and checks are positive, shares lie in 0 to 1, and words are those listed",
                instead="Training(n_tokens=1_000_000, batch=4096), and None where a default is wanted",
            )

    def rate_for(self, width: int) -> float:
        """Highest rate for a dictionary of a width."""
        return 1e-3 * (4096 / width) ** 0.5 if self.rate is None else self.rate

    def to_json(self) -> dict[str, Any]:
        """All of it; what schedules learnt later only where it is used, so that runs begun before go on."""
        saved = asdict(self)
        for name in ("falls", "lowest", "cycles", "k_start", "k_decay"):
            if getattr(self.schedule, name) == getattr(Schedule, name):
                del saved["schedule"][name]
        return saved


def unknown_words(settings: Training | Architecture) -> list[str]:
    """Fields that hold another word than their annotation lists."""
    found: list[str] = []
    for item in fields(settings):
        words = {word for one in (item.type, *get_args(item.type)) for word in get_args(one)}
        listed = {word for word in words if isinstance(word, str)}
        value = getattr(settings, item.name)
        if listed and isinstance(value, str) and value not in listed:
            found.append(item.name)
    return found


PRICE = "norms summed over sites"
"""How a crosscoder's latents are priced. It stands in a run's recipe, so that a run begun under another price is
refused: the first one, the norm of all sites as one vector, left no word there."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One dictionary to train.

    Args:
        reads: Sites read.
        writes: Sites written; None means those read.
        config: Architecture and width.
        has_skip: Add a linear map of the values read (a skip transcoder).
        is_cross_layer: Each site read gets latents of its own, which write to its own layer's site and later ones.
        name: Names its folder and its line in the log.
    """

    reads: tuple[Site, ...]
    writes: tuple[Site, ...] | None = None
    config: Architecture
    has_skip: bool = False
    is_cross_layer: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.is_cross_layer and (self.writes is None or len(self.writes) != len(self.reads)):
            raise DictionaryError(
                "A cross-layer transcoder writes one site for each that it reads.",
                got=f"reads {len(self.reads)}, writes {len(self.writes or ())}",
                because="latents of layer i write from layer i on",
                instead='reads=("mlp_in.0", ...), writes=("mlp_out.0", ...)',
            )

    @property
    def targets(self) -> tuple[Site, ...]:
        """Sites written."""
        return self.reads if self.writes is None else self.writes

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site whose values it needs."""
        return tuple(dict.fromkeys((*self.reads, *self.targets)))

    def to_json(self) -> dict[str, Any]:
        """All that its weights depend on; the price only where they depend on it, so that other runs go on."""
        prices_sites = self.config.prices_sites and len(self.targets) > 1 and not self.is_cross_layer
        return {
            "reads": [str(site) for site in self.reads],
            "writes": [str(site) for site in self.targets],
            "config": self.config.to_json(),
            "has_skip": self.has_skip,
            "is_cross_layer": self.is_cross_layer,
            **({"price": PRICE} if prices_sites else {}),
        }
