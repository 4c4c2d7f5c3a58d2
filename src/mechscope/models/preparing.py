"""Preparing: interventions checked against the model and made ready, all before a run starts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mechscope.models.frame import Frame, refuse_unless_inside
from mechscope.models.inputs import TokenBatch
from mechscope.vocabulary.errors import InterventionMismatch, PointUnavailable, ShapeError
from mechscope.vocabulary.protocols import Write
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Matching, Where

if TYPE_CHECKING:
    import mechscope.models.model


def prepare_writes(
    model: "mechscope.models.model.Model",
    interventions: Sequence[Write],
    frame: Frame | None,
    *,
    facts: "Facts | None" = None,
) -> list[tuple[Write, list[Site]]]:
    """Each intervention, ready, with the sites that it writes; declared order is kept.

    Without a frame (prompts are not known yet) selections are not checked; `refuse_unless_it_fits` does that later.
    Calls for the same prompts may share their `facts`, and with them the runs that writes ask for.

    Raises:
        InterventionMismatch: an item is not an intervention.
        PointUnavailable: a site can't be written.
        PositionOutOfRange: a selection names what does not exist.
        UnresolvedIntervention: an ablation still needs values.
    """
    prepared: list[tuple[Write, list[Site]]] = []
    facts = facts or _facts_of(model, frame)
    for write in listed(interventions):
        if not isinstance(write, Write):
            raise InterventionMismatch(
                "An item of `interventions` is not an intervention.",
                got=repr(write)[:80],
                because="it has no `at`, `where`, `prepare` and `apply`",
                instead="ms.patch, ms.ablate, ms.add, ms.project_out, ms.scale, ms.freeze or ms.edit",
            )
        sites = writable_sites(model, write.at)
        ready = with_token_ids(write.prepare(facts, sites), model)
        prepared.append((ready, sites))
    if frame is not None:
        refuse_unless_it_fits(model, prepared, frame)
    return prepared


def refuse_unless_it_fits(
    model: "mechscope.models.model.Model", writes: Sequence[tuple[Write, list[Site]]], frame: Frame
) -> None:
    """Refuse selections that name positions, rows, heads or units that these prompts or this model lack.

    Raises:
        PositionOutOfRange
    """
    for write, sites in writes:
        for site in sites:
            refuse_unless_inside(write.where, frame, site, model.sizes)


def listed(interventions: Sequence[Write]) -> list[Write]:
    """Interventions as a list.

    Raises:
        InterventionMismatch: a single one was given, or what is no list.
    """
    if isinstance(interventions, Write) or not isinstance(interventions, Iterable):
        raise InterventionMismatch(
            "Interventions come as a list, also a single one.",
            got=repr(interventions)[:80],
            because="they are applied in the order of the list",
            instead="interventions=[...]",
        )
    return list(interventions)


def _facts_of(model: "mechscope.models.model.Model", frame: Frame | None) -> "Facts":
    if frame is None:
        return Facts(model, None)
    return Facts(model, None if frame.n_room else frame.as_batch(), n_rows=frame.n_rows)


class Facts:
    """A model's answers to what a write may ask; satisfies `vocabulary.protocols.Facts`."""

    def __init__(
        self, model: "mechscope.models.model.Model", batch: TokenBatch | None, *, n_rows: int | None = None
    ) -> None:
        self._model = model
        self._batch = batch
        self.n_rows = n_rows if batch is None else len(batch)
        self.padded_columns = batch.shape[1] if batch is not None and batch.is_padded else None
        self._clean_runs: dict[tuple[Site, ...], mechscope.models.model.Run] = {}

    def clean_run(self, sites: Sequence[Site]) -> "mechscope.models.model.Run":
        if self._batch is None:
            raise InterventionMismatch(
                "A freeze to the batch's own values needs a batch that is known beforehand.",
                got="freeze(to='own') while generating",
                because="tokens that are not generated yet have no values",
                instead="freeze(at, to=run)",
            )
        key = tuple(sites)
        if key not in self._clean_runs:
            self._clean_runs[key] = self._model.run(self._batch, capture=list(sites), stop_after=max(sites))
        return self._clean_runs[key]

    def axis_size(self, axis: str) -> int | None:
        return self._model.sizes.get(axis)

    def reference_norm(self, name: object) -> float:
        return self._model.reference_norm(name)  # pyright: ignore[reportArgumentType]

    def token(self, word: str) -> int:
        return self._model.token(word)

    @property
    def is_undone_by_post_norm(self) -> bool:
        parts = self._model.binding.anatomy.parts
        added, returned = parts.get("attn_out"), parts.get("attn_raw")
        return added is not None and returned is not None and added.module != returned.module


def writable_sites(model: "mechscope.models.model.Model", at: str) -> list[Site]:
    """The sites that an intervention writes; derived points are refused with what to write instead."""
    sites = model.binding.select(at)
    derived = [site for site in sites if not site.row.is_writable]
    if derived and len(derived) == len(sites):
        row = derived[0].row
        raise PointUnavailable(
            f'"{row.name}" can be read but not written.',
            got=str(derived[0]),
            because="it is computed from other tensors when it is read; the model forms no such tensor",
            instead=_nearest(derived[0]),
        )
    return [site for site in sites if site.row.is_writable]


def differentiable_sites(
    model: "mechscope.models.model.Model", at: str | Site | Sequence[str | Site]
) -> list[Site]:
    """The sites that gradients are asked for; of a pattern those that have one.

    Raises:
        PointUnavailable: a derived site: it is computed when it is read, so that nothing depends on it and its
            gradient would read as zero.
        ShapeError: no site.
    """
    sites = model.binding.select(at, readable=False)
    if not sites:
        raise ShapeError(
            "Gradients are taken at sites.", got=f"at={at!r}", instead='at="resid_post.2", at="z.*"'
        )
    derived = [site for site in sites if not site.row.is_formed]
    if derived:
        raise PointUnavailable(
            f'There is no gradient at "{derived[0].point}".',
            got=str(derived[0]),
            because="it is computed from other tensors when it is read; no logit is computed from it",
            instead=_nearest(derived[0]),
        )
    return [site for site in sites if site.point != "expert_choice"]  # choices have no gradient


def _nearest(site: Site) -> str:
    return ", ".join(f"{name}.{site.layer}" if site.layer is not None else name for name in site.row.nearest)


class _Relocated:
    """A write with another selection; everything else is the original's."""

    def __init__(self, write: Write, where: Where) -> None:
        self._write = write
        self.at = write.at
        self.where = where
        self.prepare = write.prepare
        self.apply = write.apply


def with_token_ids(write: Write, model: "mechscope.models.model.Model") -> Write:
    """The write with words in its selection replaced by token ids."""
    positions = write.where.positions
    if not isinstance(positions, Matching) or all(isinstance(token, int) for token in positions.tokens):
        return write
    forms = [
        (token,) if isinstance(token, int) else model.reader.token_forms(token) for token in positions.tokens
    ]
    ids = tuple(index for form in forms for index in form)
    return _Relocated(write, replace(write.where, positions=Matching(ids)))
