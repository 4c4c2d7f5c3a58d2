"""das: distributed alignment search, with what must stand beside it.

Owns: the public verb and its result. The subspace is learnt on train examples, chosen on validation examples and tested
on held-out ones as `interchange` tests any place: with the row-space re-patch, random subspaces and the whole place.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples, refuse_shared_prompts
from mechscope.circuits.abstraction.interchange import (
    Interchanging,
    Test,
    measure_interchange,
    principal_subspace,
    refuse_unusable_places,
)
from mechscope.circuits.abstraction.interchanges import Interchanges, draw_interchanges
from mechscope.circuits.abstraction.learning import Das, Rows, learn_basis
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.result import ROW_SPACE, InterchangeResult
from mechscope.circuits.abstraction.swapping import carried_by, refuse_choice, sources_at
from mechscope.engine.execute import Progress
from mechscope.figures.labelled import LabelledArray
from mechscope.models.model import Model
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record
from mechscope.vocabulary.errors import BadPairs, InterventionMismatch, ShapeError
from mechscope.vocabulary.sites import Site

SPLITS = ("train", "validation", "held_out")
PRINCIPAL = "principal components"
BATCH_PLACES = 4096
"""Train values that principal components are taken from, at most."""


class DasRecord(Record):
    """A saved `DasResult`."""

    kind: ClassVar[str] = "das"


@dataclass(frozen=True, kw_only=True, eq=False)
class DasResult:
    """Result of `das`. Never holds the model.

    Args:
        basis: Orthonormal rows over the place's coordinates, [dim, coordinate]; `place.within(basis)` is the place.
        held_out: The test on held-out interchanges: aligned, row space, random subspaces, whole place, and the
            principal components of the sources' values.
        losses: Cross entropy of each training step's batch, in nats, [step].
        checks: (step, loss in nats, IIA) on the validation pairs, [look, 3].
        settings: JSON.
        model: Which weights.
        data_sha256: Hash of the held-out prompts and of which were put together.
    """

    basis: np.ndarray
    held_out: InterchangeResult
    losses: np.ndarray
    checks: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    @property
    def dim(self) -> int:
        return len(self.basis)

    @property
    def row_space_gap(self) -> float | None:
        """IIA of the subspace less that of its part in the row space, over decisive pairs; None where that is unknown.

        A large gap says that the subspace works through directions that nothing reads: an illusion.
        """
        if ROW_SPACE not in self.held_out.answers:
            return None
        whole, part = (self.held_out.iia(name, decisive=True).value for name in ("aligned", ROW_SPACE))
        return whole - part

    @property
    def curve(self) -> LabelledArray:
        """Validation IIA over steps."""
        return LabelledArray(
            self.checks[:, 2],
            ("step",),
            coords={"step": [int(step) for step in self.checks[:, 0]]},
            unit="IIA",
            title="validation pairs while learning",
        )

    def plot(self) -> Any:
        """A Plotly figure of the held-out conditions."""
        return self.held_out.plot()

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`, basis and tables as safetensors beside it."""
        numbers, arrays = self.held_out.parts()
        own = {"basis": self.basis, "losses": self.losses, "checks": self.checks}
        DasRecord(
            settings={**self.settings, "held_out": dict(self.held_out.settings)},
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers=numbers,
            arrays=own | arrays,
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "DasResult":
        """Read what `save` wrote."""
        record = DasRecord.load(path)
        settings = dict(record.settings)
        facts = {"model": record.model, "data_sha256": record.data_sha256}
        held_out = InterchangeResult.of_parts(
            record.numbers, record.arrays, settings=settings.pop("held_out"), **facts
        )
        tables = {name: record.arrays[name] for name in ("basis", "losses", "checks")}
        return cls(**tables, held_out=held_out, settings=settings, **facts)

    def __repr__(self) -> str:
        gap = self.row_space_gap
        said = "unknown" if gap is None else f"{gap:.3f}"
        steps = f"learnt in {len(self.losses)} steps"
        return f"DasResult of dimension {self.dim}, {steps}; row-space gap {said}\n{self.held_out!r}"

    def _repr_html_(self) -> str:
        return self.held_out._repr_html_()


def das(
    model: Model,
    high: CausalModel,
    *,
    variable: str,
    place: Place,
    examples: Mapping[str, Examples],
    settings: Das | None = None,
    progress: Progress | None = None,
) -> DasResult:
    """Learn the subspace of a place that holds a variable, and test it on held-out interchanges.

    Args:
        model: An open model.
        high: What we believe it computes.
        variable: Which variable.
        place: Site, positions, heads or units; the subspace is learnt inside it.
        examples: "train", "validation" and "held_out", without a prompt in common: `examples.divided()`.
        settings: Dimension, optimiser, seed.
        progress: Told steps done and steps in all.

    Returns:
        The basis; IIA on held-out pairs beside the row-space re-patch, random subspaces, principal components, the
        whole place, nothing patched and wrong labels.

    Raises:
        BadPairs: splits that are missing or share prompts.
        BadProgram, PositionOutOfRange, InterventionMismatch, ShapeError: a variable, place or dimension that does
            not fit.
        NotEnoughEvidence: the variable changes no prediction.

    Cost: a forward and a backward pass over a batch each step, from the place's layer on; then as `interchange`.
    Caveat: a flexible enough subspace can put a variable where the model does not use it. Compare with the row space
        and with `relabelled=True`, and see whether smaller dimensions do. docs/methods/causal_abstraction.md.
    """
    settings = settings or Das()
    refuse_choice(settings.choice)
    whole = place.within(None)
    _refuse_unusable(model, whole, examples, settings)
    parts = {name: _draw(high, examples[name], variable, settings, name=name) for name in SPLITS}
    train, validation = _rows(model, high, parts, whole, settings)
    learnt = learn_basis(train, validation, settings, progress=progress)
    test = Test(
        alignment={variable: whole.within(learnt.basis)},
        high=high,
        more=_principal(model, parts["train"], whole, variable, settings.dim),
    )
    testing = Interchanging(
        n_pairs=len(parts["held_out"]),
        decisive=settings.decisive,
        choice=settings.choice,
        n_random=settings.n_random,
        seed=settings.seed,
    )
    held_out = measure_interchange(model, parts["held_out"], test=test, settings=testing)
    return DasResult(
        basis=learnt.basis.numpy(),
        held_out=held_out,
        losses=np.array(learnt.losses),
        checks=np.array(learnt.checks),
        settings={
            **asdict(settings),
            "variable": variable,
            "place": whole.to_json(),
            "causal_model": high.to_json(),
            "stopped_early": learnt.stopped_early,
            "train_sha256": parts["train"].data_sha256,
            "validation_sha256": parts["validation"].data_sha256,
        },
        model=model.fingerprint,
        data_sha256=parts["held_out"].data_sha256,
    )


def _rows(
    model: Model, high: CausalModel, parts: Mapping[str, Interchanges], place: Place, settings: Das
) -> list[Rows]:
    """The train and the validation interchanges, ready to be run under any basis."""
    answer_ids = tuple(sorted({i for part in parts.values() for i in part.answer_ids}))
    return [
        Rows(
            model=model,
            pairs=parts[name],
            place=place,
            labels=_labels(parts[name], high, settings),
            choice=settings.choice,
            answer_ids=answer_ids,
        )
        for name in SPLITS[:2]
    ]


def _draw(high: CausalModel, examples: Examples, variable: str, settings: Das, *, name: str) -> Interchanges:
    """Interchanges of one split; those that are tested use no example twice."""
    counts = {"train": settings.n_train, "validation": max(1, settings.n_train // 4), "held_out": None}
    return draw_interchanges(
        high,
        examples,
        variables=(variable,),
        n=counts[name],
        seed=settings.seed,
        decisive=settings.decisive,
    )


def _labels(pairs: Interchanges, high: CausalModel, settings: Das) -> np.ndarray:
    return pairs.relabelled(high, seed=settings.seed) if settings.relabelled else pairs.labels


def _principal(
    model: Model, pairs: Interchanges, place: Place, variable: str, dim: int
) -> dict[str, dict[str, Place]]:
    """The place cut to the principal components of what the train sources carry there."""
    site = model.binding.site(place.site)
    few = pairs.select(np.arange(min(len(pairs), BATCH_PLACES)))
    values = sources_at(few, place, carried=carried_by(model, few, [site]), variable=variable, site=site)
    chosen = place.coordinates(model)
    return {PRINCIPAL: {variable: place.within(principal_subspace(values[:, chosen.to(values.device)], dim))}}


def _refuse_unusable(model: Model, place: Place, examples: Mapping[str, Examples], settings: Das) -> None:
    if set(examples) != set(SPLITS):
        raise BadPairs(
            "A subspace is learnt, chosen and tested on three splits.",
            got=", ".join(examples),
            because="what was learnt on a prompt can't be tested on it",
            instead="examples.divided(), or " + ", ".join(SPLITS),
        )
    refuse_shared_prompts(examples)
    for split in examples.values():
        refuse_unusable_places(model, {"": place}, split)
    width = len(place.coordinates(model))
    if not 1 <= settings.dim <= width:
        raise ShapeError(
            f"No subspace of {place.site} has this dimension.",
            got=f"dim={settings.dim}",
            because=f"the place has {width} coordinates",
            instead=f"a dimension from 1 to {width}",
        )
    if model.binding.site(place.site) > Site("resid_post", model.n_layers - 1):
        raise InterventionMismatch(
            f"A subspace can't be learnt at {place.site}.",
            got=place.site,
            because="nothing but the unembedding comes after it",
            instead=f"resid_post.{model.n_layers - 1}",
        )
