"""Conventions of path patching: what is held, which norms, what the sender carries, as one frozen value.

Published work disagrees on these, so each is named and stored with the result; presets are functions. Along a
single path from one sender to one receiver, `direct_edge` and `greater_than` are the same computation.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

from mechscope.engine.edge_runs.ablations import Constant
from mechscope.vocabulary.errors import InterventionMismatch

Frozen = Literal["heads", "mlps"]
PathNorm = Literal["recomputed", "clean", "corrupt"]
PathAblation = Literal["resample", "mean", "template-mean", "zero", "optimal"]
PathDirection = Literal["noising", "denoising"]

_CHOICES = {
    "norm": ("recomputed", "clean", "corrupt"),
    "ablation": ("resample", "mean", "template-mean", "zero", "optimal"),
    "direction": ("noising", "denoising"),
}


@dataclass(frozen=True, kw_only=True)
class PathConvention:
    """How a sender's change reaches a receiver.

    Args:
        frozen: Classes of nodes between sender and receiver that keep what they add in the patched run; all others
            are recomputed, so that paths through them count.
        norm: Norms that the change passes up to and with the receiver's: recomputed, or linear with the
            denominators of the clean or of the corrupt run.
        direction: "noising" starts from the clean run, "denoising" from the corrupt run.
        ablation: What the sender carries: what it adds in the other run of the pair ("resample"), its mean over all
            real tokens of the clean prompts ("mean") or at the same place of those of one template
            ("template-mean"), nothing ("zero"), or its constant among those given ("optimal").
        constants: For "optimal" only: those of `ms.circuits.learn_constants`, learned with the senders removed.
        name: For plots and records.
    """

    frozen: tuple[Frozen, ...] = ("heads", "mlps")
    norm: PathNorm = "recomputed"
    direction: PathDirection = "noising"
    ablation: PathAblation = "resample"
    constants: Constant | None = field(default=None, repr=False)
    name: str = "own"

    def __post_init__(self) -> None:
        problems = [
            f"{field}={getattr(self, field)!r} is none of {', '.join(allowed)}"
            for field, allowed in _CHOICES.items()
            if getattr(self, field) not in allowed
        ]
        problems += [f"frozen has {item!r}" for item in self.frozen if item not in ("heads", "mlps")]
        if (self.ablation == "optimal") != (self.constants is not None):
            problems.append(f"ablation={self.ablation!r}, constants={'given' if self.constants else None}")
        if problems:
            raise InterventionMismatch(
                "This is no convention of path patching.",
                got="; ".join(problems),
                because='frozen holds "heads" and "mlps"; the other settings have the words named; constants belong to '
                '"optimal", and are learned first: ms.circuits.learn_constants',
                instead='PathConvention(frozen=("heads",), norm="recomputed")',
            )

    def to_json(self) -> dict[str, Any]:
        """For records and plots."""
        return {
            "convention": self.name,
            "frozen": list(self.frozen),
            "norm": self.norm,
            "direction": self.direction,
            "ablation": self.ablation,
            **({} if self.constants is None else {"constants": self.constants.to_json()}),
        }


class Carried(TypedDict, total=False):
    """What a preset leaves open: which run is started from, and what the sender carries."""

    direction: PathDirection
    ablation: PathAblation
    constants: Constant | None


def direct_edge(**carried: Unpack[Carried]) -> PathConvention:
    """ACDC: the receiver reads the sender's other value, all else is held, its norm is recomputed."""
    return PathConvention(name="direct-edge", **carried)


def ioi(**carried: Unpack[Carried]) -> PathConvention:
    """Wang et al. 2022: other heads are held, MLPs and norms between are recomputed."""
    return PathConvention(name="ioi", frozen=("heads",), **carried)


def greater_than(**carried: Unpack[Carried]) -> PathConvention:
    """Hanna et al. 2023: MLPs are nodes too, so they are held like heads."""
    return PathConvention(name="greater-than", **carried)


def linearized(**carried: Unpack[Carried]) -> PathConvention:
    """TransformerLens 3.5: the direct edge to first order, with the corrupt run's norm denominators."""
    return PathConvention(name="linearized", norm="corrupt", **carried)


PRESETS = {"direct-edge": direct_edge, "ioi": ioi, "greater-than": greater_than, "linearized": linearized}


def convention_of(given: "PathConvention | str") -> PathConvention:
    """A convention, or the preset of a name.

    Raises:
        InterventionMismatch: no such preset.
    """
    if isinstance(given, PathConvention):
        return given
    if given not in PRESETS:
        raise InterventionMismatch(
            f'"{given}" is no convention of path patching.',
            got=str(given),
            instead=f"{', '.join(PRESETS)}, or a PathConvention",
        )
    return PRESETS[given]()
