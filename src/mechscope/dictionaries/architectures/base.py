"""Architecture: what one way of training a dictionary adds to the one trainer, and the registry of them.

An architecture says which latents fire and with which values (`fire`), what sparsity costs, and what is kept when
training ends. Batching, reconstruction, revival, schedules and the optimiser are the trainer's.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mechscope.dictionaries.kernels.active import Active, Encoder
from mechscope.dictionaries.settings import Gate
from mechscope.vocabulary.errors import DictionaryError, RegistrationError


@dataclass
class View:
    """What an architecture sees of one encoder in one step.

    Args:
        encoder: Inputs and encoder weights.
        decoder: [latent, d_out]; of a cross-layer transcoder the sites that the block writes, end to end.
        tensors: The architecture's own trained numbers, [latent] each.
        buffers: Its own running numbers; it may replace entries.
        pressure: Factor of the sparsity penalty, 0 to 1 while it warms up.
        looseness: Factor of k (or of the L0 aimed at), above 1 while it comes down.
        done: Fraction of training done, 0 to 1.
        widths: Numbers of each site that a crosscoder writes; empty where a row is one vector.
    """

    encoder: Encoder
    decoder: Tensor
    tensors: Mapping[str, Tensor]
    buffers: dict[str, Tensor]
    pressure: float
    done: float
    looseness: float = 1.0
    widths: tuple[int, ...] = ()

    def loosened(self, k: float) -> int:
        """k at this moment of training, at most the number of latents."""
        return min(max(1, round(k * self.looseness)), self.encoder.n_latents)


@dataclass
class Fired:
    """Which latents fired.

    Args:
        active: Pre-activations of those that might.
        values: Their codes.
        penalty: What sparsity costs, weighted.
        extra: More reconstructions [row, d_out] of the target, each with the weight of its squared error; `b_dec` is
            added, without a gradient.
    """

    active: Active
    values: Tensor
    penalty: Tensor | None = None
    extra: list[tuple[float, Tensor]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Base of all architectures.

    Args:
        width: Latents; of a cross-layer transcoder, latents for each site read.
    """

    name: ClassVar[str] = ""
    decoder_norm: ClassVar[str] = "free"
    has_encoder_bias: ClassVar[bool] = True
    ties_encoder: ClassVar[bool] = False
    has_aim: ClassVar[bool] = False
    """Whether it has a k, or an L0 that it aims at, which a schedule can begin above its value."""
    prices_sites: ClassVar[bool] = True
    """Whether a crosscoder's weights depend on how its latents are priced (`decoder_norms`): by loss or by rank."""

    width: int

    def gate(self) -> Gate:
        """The rule of the dictionary that is kept."""
        raise RegistrationError(
            f"{type(self).__name__} has no `gate`.", because="every architecture keeps one"
        )

    def fire(self, view: View) -> Fired:
        """Which latents fire, with which values, at what cost."""
        raise RegistrationError(f"{type(self).__name__} has no `fire`.", because="every architecture has one")

    def own_tensors(self, encoder: Tensor) -> dict[str, Tensor]:
        """Initial values of trained numbers beyond weights and biases, [latent] each."""
        return {}

    def own_buffers(self, encoder: Tensor) -> dict[str, Tensor]:
        """Initial values of running numbers."""
        return {}

    def prepare(self, view: View) -> None:
        """Set running numbers and thresholds from the first batch; nothing by default."""

    def parts(self, view: View, fired: Fired) -> list[Tensor]:
        """What is written, in nested parts: the reconstruction after each part is held to the target."""
        return [fired.active.decode(fired.values, view.decoder)]

    def finished(
        self, tensors: dict[str, Tensor], buffers: Mapping[str, Tensor], sizes: Tensor | None
    ) -> dict[str, Tensor]:
        """The per-latent tensors that are kept, from the trained ones; `sizes` as `sizes_by_site` gives them."""
        return tensors

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring trained numbers back to where they are allowed, in place."""

    def revive(self, tensors: Mapping[str, Tensor], is_dead: Tensor) -> None:
        """Bring own numbers of latents that stopped firing to where they can fire again, in place.

        Called whenever the trainer looks for them, with those of a block, [latent]; nothing by default.
        """

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of nested dictionaries."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"architecture": self.name, **asdict(self)}


ARCHITECTURES: dict[str, type[Architecture]] = {}
"""Every architecture by name."""


Kind = TypeVar("Kind", bound=type[Architecture])


def register_architecture(name: str) -> Callable[[Kind], Kind]:
    """Name an architecture.

    Raises:
        RegistrationError: the name is taken, or the class is half an architecture.
    """

    def register(cls: Kind) -> Kind:
        known = ARCHITECTURES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RegistrationError(
                f'Two architectures are called "{name}".',
                got=f"{cls.__qualname__}, {known.__qualname__}",
                because="a record names one of them",
            )
        missing = [item for item in ("gate", "fire") if getattr(cls, item) is getattr(Architecture, item)]
        if missing:
            raise RegistrationError(
                f'The architecture "{name}" is incomplete.',
                got=cls.__qualname__,
                because=f"it has no {', '.join(missing)}",
            )
        cls.name = name
        ARCHITECTURES[name] = cls
        return cls

    return register


def architecture_from_json(saved: Mapping[str, Any]) -> Architecture:
    """Inverse of `Architecture.to_json`.

    Raises:
        DictionaryError: an architecture that nobody registered.
    """
    name = saved.get("architecture")
    if name not in ARCHITECTURES:
        raise DictionaryError(
            f'"{name}" is no architecture.',
            got=name,
            because="nothing of that name is registered",
            instead=", ".join(ARCHITECTURES),
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in saved.items()
        if key != "architecture"
    }
    return ARCHITECTURES[name](**values)


def decoder_norms(view: View) -> Tensor:
    """What a unit of each latent's code is priced at, [latent]: the norm of its decoder row.

    Of a crosscoder, the sum of the norms at each site (Lindsey et al. 2024): it is dearer to write a little at every
    site than all at one, which lets latents be of one layer or model alone. The row of a cross-layer transcoder
    counts as one vector (Ameisen et al. 2025).
    """
    sizes = sizes_by_site(view.decoder, view.widths)
    return torch.linalg.vector_norm(view.decoder, dim=1) if sizes is None else sizes


def sizes_by_site(decoder: Tensor, widths: tuple[int, ...]) -> Tensor | None:
    """Norms of each row's parts, one a site, summed, [latent]; None where a row is one vector."""
    if not widths:
        return None
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in decoder.split(widths, dim=1)]).sum(
        0
    )


def per_row(view: View, fired: Active, values: Tensor) -> Tensor:
    """Mean over rows of the sum of `values`."""
    return fired.total_by_row(values).mean()
