"""Protocols by which a lower floor uses a higher floor's objects, without importing them.

`Write` is what `Model.run` accepts as an intervention. Values reach a write in *token form*: one row per
selected token, `[n_tokens, *site]`, where `*site` is what the point carries for one position ("d_model";
"head d_head"; "head key" for attention maps; "d_vocab"). So one definition serves whole batches, packed
replays and single generated tokens. The tensors are torch tensors; this file does not import torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Tokens(Protocol):
    """Which tokens the rows of a value in token form are.

    Attributes:
        rows: Row of the batch, [n_tokens] long.
        positions: Position among the row's real tokens, [n_tokens] long.
        columns: Column of the left-padded batch, [n_tokens] long.
        site: The site being written.
        n_columns: Columns of the run so far; a shorter key axis holds the last of them.
    """

    @property
    def rows(self) -> "torch.Tensor": ...

    @property
    def positions(self) -> "torch.Tensor": ...

    @property
    def columns(self) -> "torch.Tensor": ...

    @property
    def site(self) -> Site: ...

    @property
    def n_columns(self) -> int: ...


@runtime_checkable
class Facts(Protocol):
    """What a write may ask of the model before a run starts."""

    def reference_norm(self, name: Any) -> float:
        """Median norm at a site over the model's calibration text: the unit of doses."""
        ...

    def token(self, word: str) -> int:
        """Id of a word that is one token."""
        ...

    def clean_run(self, sites: Sequence[Site]) -> Any:
        """A run of the same batch without interventions that captured `sites`."""
        ...

    def axis_size(self, axis: str) -> int | None:
        """Size of an axis that does not depend on the prompt; None for the others."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Rows of the batch; None where the prompts are not known yet."""
        ...

    @property
    def padded_columns(self) -> int | None:
        """Columns of a padded batch; None without padding, and where the prompts are not known yet."""
        ...

    @property
    def is_undone_by_post_norm(self) -> bool:
        """True if a norm after attention or MLP undoes a uniform scaling of what they return."""
        ...


@runtime_checkable
class Write(Protocol):
    """An intervention as the model sees it: at which sites, where, and the new value from the old."""

    @property
    def at(self) -> str:
        """A site or pattern."""
        ...

    @property
    def where(self) -> Where:
        """Selection inside the site; rows and heads outside it are left as they are."""
        ...

    def prepare(self, facts: Facts, sites: Sequence[Site]) -> "Write":
        """Itself, ready to apply: units converted, words turned into ids. Refuses what has no values yet.

        Called once, before the run, with the sites that `at` means in the model.
        """
        ...

    def apply(self, value: "torch.Tensor", tokens: Tokens) -> "torch.Tensor":
        """The new value of the selected tokens: same shape, dtype and device, not in place.

        `value` holds all heads and units of the selected tokens; the caller keeps what lies outside
        `where.heads` and `where.units`.
        """
        ...


@runtime_checkable
class Codec(Protocol):
    """A dictionary as other floors see it: sparse codes of what is read, in the place of what is written."""

    @property
    def reads(self) -> Sequence[Site]: ...

    @property
    def writes(self) -> Sequence[Site]: ...

    def encode(self, values: "torch.Tensor") -> "torch.Tensor": ...

    def decode(self, codes: "torch.Tensor", values: "torch.Tensor | None" = None) -> "torch.Tensor":
        """What codes mean at the sites written, linear in the codes but for a constant; some dictionaries need the
        values that were read as well."""
        ...


@runtime_checkable
class Mechanism(Protocol):
    """What a claim is about: a part of the model that can be removed, restored alone, or steered.

    A circuit, a set of heads, a direction, a probe and an edit all satisfy this.
    """

    @property
    def name(self) -> str:
        """Short text for reports: "heads 2.1 and 3.4"."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything that identifies the mechanism, canonical, with `kind`."""
        ...

    def ablation(self, how: str, reference: Any) -> Sequence[Write]:
        """Writes that remove the mechanism by the value `how`, measured on or taken from `reference`."""
        ...

    def isolation(self, donor: Any, size: Any) -> Sequence[Write]:
        """Writes that leave the mechanism alone intact: all else of its kind gets the donor's (corrupt) values."""
        ...
