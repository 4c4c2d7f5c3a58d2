"""interchange: put what a source carries at a place into a base, and see whether the model says what is predicted.

Owns: which conditions a test consists of. Refuses places that the model does not have and variables that the causal
model does not have, before anything is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from mechscope.circuits.abstraction.causal_model import CausalModel
from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.abstraction.interchanges import Interchanges, draw_interchanges
from mechscope.circuits.abstraction.place import Place
from mechscope.circuits.abstraction.result import (
    ALIGNED,
    PREDICTED,
    RANDOM,
    RELABELLED,
    ROW_SPACE,
    UNTOUCHED,
    WHOLE,
    InterchangeResult,
)
from mechscope.circuits.abstraction.row_space import row_space_of
from mechscope.circuits.abstraction.swapping import Alignment, Choice, answers_under, refuse_choice
from mechscope.engine.execute import Progress
from mechscope.models.model import Model
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadPairs, PointUnavailable


@dataclass(frozen=True, kw_only=True)
class Interchanging:
    """How an interchange is tested.

    Args:
        n_pairs: None is as many as there are without using an example twice; then pairs are independent.
        decisive: Share of the pairs whose prediction should not be the base's own answer, 0 to 1.
        choice: What the model says: the most probable token of the "vocabulary", or of the "answers".
        n_random: Random subspaces of the same dimension, where the place is a subspace.
        seed: Root of the tree of seeds.
    """

    n_pairs: int | None = None
    decisive: float = 0.5
    choice: Choice = "vocabulary"
    n_random: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_choice(self.choice)


def interchange(
    model: Model,
    high: CausalModel,
    *,
    alignment: Mapping[str, Place],
    examples: Examples,
    rivals: Sequence[CausalModel] = (),
    settings: Interchanging | None = None,
    progress: Progress | None = None,
) -> InterchangeResult:
    """Test whether places hold variables of a causal model.

    The causal model predicts the answer when each variable takes the value that it has on a source; the model is run
    on the base with the source's activations in the aligned places. With several variables, all at once, each from a
    source of its own.

    Args:
        model: An open model.
        high: What we believe it computes.
        alignment: Variable to place.
        examples: Bases and sources; for a place that was searched for, held-out ones.
        rivals: Other causal models with the same inputs and variables; the same runs are compared with what they
            predict.
        settings: Pairs, how the answer is read, seed.
        progress: Told rows done and rows in all.

    Returns:
        Interchange intervention accuracy (IIA) with intervals, beside: nothing patched, the labels of wrong sources,
        and for subspaces the whole place, random subspaces of equal dimension and the part in the row space of what
        reads it.

    Raises:
        BadProgram: no such variable.
        UnknownSite, PointUnavailable, PositionOutOfRange, ShapeError, InterventionMismatch: no such place.
        NotEnoughEvidence: the variable changes no prediction on these examples.

    Cost: two forward passes over the pairs, and one more for each condition from the place's layer on.
    Caveat: 1 at a place shows that the variable can be set there, not that it is computed there; a whole vector holds
        many variables. docs/methods/causal_abstraction.md.
    """
    settings = settings or Interchanging()
    refuse_unusable_places(model, alignment, examples)
    pairs = draw_interchanges(
        high,
        examples,
        variables=tuple(alignment),
        n=settings.n_pairs,
        seed=settings.seed,
        decisive=settings.decisive,
    )
    test = Test(alignment=alignment, high=high, rivals=tuple(rivals))
    return measure_interchange(model, pairs, test=test, settings=settings, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Test:
    """What is tested on some pairs.

    Args:
        alignment: Variable to place.
        high: Predicts.
        rivals: Other causal models.
        more: Further conditions by name.
    """

    __test__ = False

    alignment: Alignment
    high: CausalModel
    rivals: tuple[CausalModel, ...] = ()
    more: Mapping[str, Alignment] = field(default_factory=dict)


def measure_interchange(
    model: Model,
    pairs: Interchanges,
    *,
    test: Test,
    settings: Interchanging,
    progress: Progress | None = None,
) -> InterchangeResult:
    """`interchange` for pairs that were drawn already."""
    labels = {PREDICTED: pairs.labels, RELABELLED: pairs.relabelled(test.high, seed=settings.seed)}
    labels |= {rival.name: pairs.labels_of(rival) for rival in _named_apart(test.rivals, labels)}
    conditions, notes = conditions_of(model, test.alignment, settings)
    conditions |= test.more
    answers = answers_under(
        model, pairs, alignments=list(conditions.values()), choice=settings.choice, progress=progress
    )
    return InterchangeResult(
        answers=dict(zip(conditions, answers, strict=True)),
        labels=labels,
        unchanged=pairs.unchanged,
        units=pairs.units,
        settings={
            **asdict(settings),
            "n_pairs": len(pairs),
            "causal_model": test.high.to_json(),
            "alignment": {name: place.to_json() for name, place in test.alignment.items()},
            "rivals": [rival.to_json() for rival in test.rivals],
            "units": pairs.units.basis,
        },
        notes=(*notes, *_said_of_units(pairs)),
        model=model.fingerprint,
        data_sha256=pairs.data_sha256,
    )


def conditions_of(
    model: Model, alignment: Alignment, settings: Interchanging
) -> tuple[dict[str, Alignment], list[str]]:
    """The alignment and its controls by name, and what a reader should know of them."""
    found: dict[str, Alignment] = {ALIGNED: alignment, UNTOUCHED: {}}
    notes: list[str] = []
    if all(place.subspace is None for place in alignment.values()):
        return found, notes
    found[WHOLE] = {name: place.within(None) for name, place in alignment.items()}
    inside, notes = inside_row_space(model, alignment)
    if inside is not None:
        found[ROW_SPACE] = inside
    for draw in range(settings.n_random):
        found[f"{RANDOM} {draw}"] = {
            name: random_place(model, place, seed=settings.seed, name=name, draw=draw)
            for name, place in alignment.items()
        }
    return found, notes


def inside_row_space(model: Model, alignment: Alignment) -> tuple[Alignment | None, list[str]]:
    """The alignment with each subspace cut to what is read of it; a place without a part there is left out."""
    inside: dict[str, Place] = {}
    notes: list[str] = []
    for name, place in alignment.items():
        if place.subspace is None:
            inside[name] = place
            continue
        try:
            space = row_space_of(model, place)
        except PointUnavailable as error:
            return None, [f"{name}: no row-space re-patch: {error.what}"]
        part = space.inside(place.subspace.tensor)
        if len(part):
            inside[name] = place.within(part)
        shares = ", ".join(f"{share:.3f}" for share in space.shares(place.subspace.tensor))
        said = f"{name}: row space of {space.matrix}: rank {space.rank} of {space.width}; lengths inside it {shares}"
        notes.append(said + ("; every direction is read, so this is no control" * space.is_everything))
    return inside, notes


def random_place(model: Model, place: Place, *, seed: int, name: str, draw: int) -> Place:
    """The place with a random subspace of its subspace's dimension, uniform; itself where it has none."""
    if place.subspace is None:
        return place
    shape = (len(place.subspace.tensor), len(place.coordinates(model)))
    return place.within(generator_for(seed, "random subspaces", name, draw).standard_normal(shape))


def refuse_unusable_places(model: Model, alignment: Alignment, examples: Examples) -> None:
    """Refuse what can't be patched, before anything is run."""
    if not alignment:
        raise BadPairs(
            "An alignment names a place for some variable.", got="{}", instead='{"sum": Place.of("z.0")}'
        )
    for place in alignment.values():
        place.coordinates(model)
        place.full_subspace(model)
        place.positions_of(examples, range(len(examples)))


def principal_subspace(values: torch.Tensor, n: int) -> torch.Tensor:
    """The n directions of most variance, [n, coordinate]."""
    centred = values.double() - values.double().mean(0)
    return torch.linalg.svd(centred, full_matrices=False)[2][:n]


def _named_apart(rivals: Sequence[CausalModel], labels: Mapping[str, np.ndarray]) -> Sequence[CausalModel]:
    names = [*labels, *(rival.name for rival in rivals)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadPairs("Two causal models have one name.", got=", ".join(twice), instead="a name each")
    return rivals


def _said_of_units(pairs: Interchanges) -> list[str]:
    if pairs.units.basis == "pairs":
        return []
    return ["pairs share examples: intervals resample the units of bases and sources"]
