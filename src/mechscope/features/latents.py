"""Latents: some latents of one dictionary as a mechanism for a claim: held at zero or a value, exchanged, or held on.

Satisfies the Mechanism protocol. What the dictionary does not explain is kept in every write, so that an effect is the
latents' own. Refuses a dictionary that reads one site and writes another: its latents are not where they act.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.interventions.clamp import clamp
from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Intervention
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import InterventionMismatch, NotSerializable, PositionOutOfRange
from mechscope.vocabulary.protocols import Tokens, Write
from mechscope.vocabulary.where import Where


@dataclass(frozen=True, eq=False)
class Latents:
    """A set of latents of an SAE, at all positions.

    Args:
        dictionary: It reads and writes one site.
        latents: Which, in order; each once.
        values: What each holds where it is on: what `steering` holds it at, times the dose. Empty: it can't be steered.
        label: What they are taken to mean, for reports.
        held: What each is held at, by position (-1: a row's last token), where a claim is about holding them there:
            e.g. their means over prompts with the thing. Empty: nothing was said.
    """

    dictionary: Dictionary
    latents: tuple[int, ...]
    values: tuple[float, ...] = ()
    label: str = ""
    held: tuple[tuple[int, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        reads, writes = list(self.dictionary.reads), list(self.dictionary.writes)
        if len(reads) != 1 or reads != writes:
            raise InterventionMismatch(
                "Latents that a claim is about are those of a dictionary that reads and writes one site.",
                got=f"reads {', '.join(map(str, reads))}, writes {', '.join(map(str, writes))}",
                because="elsewhere they can't be exchanged at the site that they are read from",
                instead="an SAE of the residual stream",
            )
        n = self.dictionary.n_latents
        if (
            not self.latents
            or len(set(self.latents)) < len(self.latents)
            or not all(0 <= one < n for one in self.latents)
        ):
            raise PositionOutOfRange(
                "These are no latents of the dictionary.",
                got=self.latents,
                instead=f"some of 0 to {n - 1}, each once",
            )
        if any(len(values) != len(self.latents) for _, values in self.held):
            raise InterventionMismatch(
                "Every latent is held at a value of its own at each position.",
                got=f"{[len(values) for _, values in self.held]} values for {len(self.latents)} latents",
                instead="held=((-1, (one value a latent)), ...)",
            )

    @property
    def name(self) -> str:
        """ "latents 17 and 40 of resid_post.2 (the trigger)"."""
        numbers = [str(one) for one in self.latents]
        listed = numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"
        label = f" ({self.label})" if self.label else ""
        held = f" held at {len(self.held)} positions" if self.held else ""
        return f"latent{'s' if len(numbers) > 1 else ''} {listed} of {self.site}{held}{label}"

    @property
    def site(self) -> str:
        """Where they are read and written."""
        return str(self.dictionary.reads[0])

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def to_json(self) -> dict[str, Any]:
        """Canonical; the dictionary by the hash of its tensors."""
        held = {"held": [[position, list(values)] for position, values in self.held]} if self.held else {}
        return {
            "kind": "latents",
            "site": self.site,
            "latents": list(self.latents),
            "values": list(self.values),
            "dictionary_sha256": hash_tensors(self.dictionary.tensors),
            **held,
        }

    def ablation(self, how: str, reference: Any) -> Sequence[Write]:
        """Zero holds all at 0, as `ms.clamp(..., to=0)` does one; corrupt gives each its value in the corrupt run.

        Mean holds each at `held`, position by position.

        Raises:
            InterventionMismatch: another `how`, or "mean" of latents that nobody said what to hold at, position by
                position: a latent's mean over tokens where it is mostly off says little.
        """
        if how == "zero":
            return [Exchange(at=self.site, dictionary=self.dictionary, latents=self.latents)]
        if how == "corrupt":
            return [self._exchange(reference, alone=False)]
        if how == "mean" and self.held:
            return self.holding()
        raise InterventionMismatch(
            f'Latents can\'t be ablated by "{how}".',
            got=how,
            because="they are off at most tokens",
            instead="zero, corrupt; mean, with held= by position",
        )

    def holding(self) -> "list[Hold]":
        """Each latent at its value in `held`, at the positions named there; what is not explained is kept."""
        return [
            Hold(
                at=self.site,
                where=Where.of(position),
                dictionary=self.dictionary,
                latents=self.latents,
                to=values,
            )
            for position, values in self.held
        ]

    def isolation(self, donor: Any, size: Any = None) -> Sequence[Write]:
        """The donor's value of the site, but for these latents, which keep what the run gives them."""
        del size
        return [self._exchange(donor, alone=True)]

    def without_each(self) -> tuple["Latents", ...]:
        """The set less each latent; nothing of a single one."""
        if len(self.latents) == 1:
            return ()
        keep = [[i for i in range(len(self.latents)) if i != left] for left in range(len(self.latents))]
        return tuple(
            Latents(
                self.dictionary,
                tuple(self.latents[i] for i in some),
                tuple(self.values[i] for i in some) if self.values else (),
                self.label,
            )
            for some in keep
        )

    def steering(self, dose: float, positions: Any = None) -> Sequence[Write]:
        """Each latent clamped to its own value times a dose.

        Raises:
            InterventionMismatch: nobody said what they hold where they are on.
        """
        if not self.values:
            raise InterventionMismatch(
                "These latents have no values to be held at.",
                got=self.name,
                instead="Latents(..., values=...)",
            )
        return [
            clamp(self.dictionary, feature=one, to=dose * value, positions=positions)
            for one, value in zip(self.latents, self.values, strict=True)
        ]

    def _exchange(self, donor: Any, *, alone: bool) -> "Exchange":
        return Exchange(
            at=self.site,
            dictionary=self.dictionary,
            latents=self.latents,
            donor=Donor.of(donor, self.site),
            is_alone=alone,
        )


@dataclass(frozen=True, kw_only=True)
class Exchange(Intervention):
    """Latents of one run in another run, or of none: all of them at 0.

    Args:
        dictionary: Whose.
        latents: Which.
        donor: The other run's values at the site; None holds the latents at 0.
        is_alone: True: the donor's value, with this run's latents. False: this run's value, with the donor's latents.
    """

    dictionary: Dictionary
    latents: tuple[int, ...]
    donor: Donor | None = None
    is_alone: bool = False

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        mine = codes_of(self.dictionary, self.latents, value)
        if self.donor is None:
            return value - written_by(self.dictionary, self.latents, mine).to(value)
        other = self.donor.gather(tokens, value)
        theirs = codes_of(self.dictionary, self.latents, other)
        stays, given = (other, mine - theirs) if self.is_alone else (value, theirs - mine)
        return stays + written_by(self.dictionary, self.latents, given).to(stays)

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable(
            "An exchange of latents holds a dictionary, which is saved by its own file.",
            got=f"latents {self.latents} at {self.at}",
            instead="save the dictionary, and name its file and hash beside the latents",
        )


@dataclass(frozen=True, kw_only=True)
class Hold(Intervention):
    """Latents held at values together: as clamps of each would be that did not see each other.

    Args:
        dictionary: Whose.
        latents: Which.
        to: What each is held at.
    """

    dictionary: Dictionary
    latents: tuple[int, ...]
    to: tuple[float, ...]

    def apply(self, value: Tensor, tokens: Tokens) -> Tensor:
        mine = codes_of(self.dictionary, self.latents, value)
        return value + written_by(self.dictionary, self.latents, mine.new_tensor(self.to) - mine).to(value)

    def to_json(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise NotSerializable(
            "A hold of latents has a dictionary, which is saved by its own file.",
            got=f"latents {self.latents} at {self.at}",
            instead="save the dictionary, and name its file and hash beside the latents",
        )


def codes_of(dictionary: Dictionary, latents: Sequence[int], value: Tensor) -> Tensor:
    """What some latents hold, [*token, latent]."""
    return dictionary.encode(value)[..., list(latents)]


def written_by(dictionary: Dictionary, latents: Sequence[int], difference: Tensor) -> Tensor:
    """What a difference of codes writes; decoding is linear but for a constant."""
    codes = difference.new_zeros(len(latents) + 1, dictionary.n_latents)
    codes[range(len(latents)), list(latents)] = 1
    written = dictionary.decode(codes)
    return difference @ (written[:-1] - written[-1])
