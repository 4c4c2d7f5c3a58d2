"""`write_toy_figures`: every toy model trained, measured and drawn, as one offline page with its numbers beside it."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from mechscope.figures.bars import Bars
from mechscope.figures.block import Block
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.lines import Lines
from mechscope.figures.prose import Prose, Table
from mechscope.figures.report import Report, Section
from mechscope.records.files import save_json, save_text
from mechscope.records.fingerprint import SoftwareVersions
from mechscope.superposition.absolute_value import (
    AbsoluteValueModels,
    AbsoluteValueSettings,
    train_absolute_value,
)
from mechscope.superposition.drawings import ArrowFigure, PhaseFigure, StickyFigure
from mechscope.superposition.facts import FactSettings, LearntFacts, learn_facts
from mechscope.superposition.geometry import STICKY, feature_dimensionality, find_shapes
from mechscope.superposition.phase import CASES, PhaseDiagram, PhaseSettings, draw_phase_diagram
from mechscope.superposition.shapes_toy import CASES as SHAPE_CASES
from mechscope.superposition.shapes_toy import TrainedShape, train_shape
from mechscope.superposition.toy import ToyModels, ToySettings, train_toy

STICKY_NAMES = (
    "alone, 1",
    "tetrahedron, 3/4",
    "triangle, 2/3",
    "digon, 1/2",
    "pentagon, 2/5",
    "antiprism, 3/8",
)
FACT_WIDTH = 30


def write_toy_figures(out: str | Path, *, seed: int = 0, tell: Callable[[str], None] | None = None) -> Path:
    """Train the toy models and write `toy.html`, and each figure's numbers as JSON beside it.

    Args:
        out: A folder; made if missing.
        seed: Of all trainings.
        tell: Called with a line before each part.

    Returns:
        The page. The same seed gives the same numbers on one machine.

    Cost: under a minute on one CPU core.
    """
    out, began = Path(out), perf_counter()
    say = tell or (lambda line: None)
    arrays: dict[str, LabelledArray] = {}
    report = Report(
        "Superposition in toy models",
        subtitle="Why a network stores more features than it has dimensions, and what that looks like.",
    )
    say("phase diagrams")
    diagrams = [draw_phase_diagram(PhaseSettings(n_features=n, n_hidden=m, seed=seed)) for n, m in CASES]
    arrays |= {f"phases_n{d.settings.n_features}": d.array() for d in diagrams}
    report.add(Section("When features are superposed", _phase_blocks(diagrams)))
    say("shapes")
    report.add(
        Section("The shapes they form", _shape_blocks([train_shape(case, seed=seed) for case in SHAPE_CASES]))
    )
    say("dimensions per feature")
    settings = ToySettings(seed=seed)
    models = train_toy(settings)
    arrays |= _dimension_arrays(settings, models)
    report.add(Section("How many dimensions a feature gets", _dimension_blocks(settings, models, arrays)))
    say("computation in superposition")
    absolute = train_absolute_value(AbsoluteValueSettings(seed=seed))
    arrays["absolute_value"] = absolute.array()
    report.add(Section("Computing in superposition", _absolute_blocks(absolute)))
    say("100 facts in 30 neurons")
    facts = learn_facts(FactSettings(seed=seed))
    arrays["facts"] = facts.array()
    report.add(Section("100 facts in 30 neurons", _fact_blocks(facts)))

    report.record = {
        "seed": str(seed),
        **{k: str(v) for k, v in SoftwareVersions.here().model_dump().items()},
    }
    for name, array in arrays.items():
        save_json(out / f"{name}.json", array.to_json())
    page = out / "toy.html"
    save_text(page, report.to_html())
    say(f"done in {perf_counter() - began:.0f} s")
    return page


def _phase_blocks(diagrams: list[PhaseDiagram]) -> list[Block]:
    intro = Prose(
        "A tied model x' = relu(W Wᵀx + b) has one dimension fewer than features. The extra feature can be "
        "dropped, share a dimension with another, or take one from another. Each cell is the best of several trained "
        "models; the line is where the closed-form losses of the candidate solutions cross."
    )
    captions = (
        "Below the line both features share one dimension as opposite directions: sparse inputs rarely collide.",
        "With three features in two dimensions sharing also takes the form of a triangle.",
    )
    return [intro, *(PhaseFigure(d, caption) for d, caption in zip(diagrams, captions, strict=True))]


def _shape_blocks(shapes: list[TrainedShape]) -> list[Block]:
    rows: list[tuple[str, ...]] = []
    for shape in shapes:
        found = find_shapes(shape.weights)
        values = feature_dimensionality(shape.weights)
        rows.append(
            (
                f"{shape.weights.shape[0]} in {shape.weights.shape[1]}",
                shape.case.name,
                f"{shape.case.density:g}",
                ", ".join(item.name for item in found),
                f"{float(values.mean()):.3f}",
                f"{float(values.min()):.3f} to {float(values.max()):.3f}",
            )
        )
    table = Table(
        ("features in dimensions", "expected", "density", "recognised", "mean dimensionality", "range"),
        rows,
        caption="Trained on equal importances, the best of 12 starts.",
    )
    panels = [(shape.case.name, shape.weights.numpy()) for shape in shapes]
    return [ArrowFigure(panels, "Each arrow is the direction of one feature."), table]


def _dimension_arrays(settings: ToySettings, models: ToyModels) -> dict[str, LabelledArray]:
    densities = [round(p, 4) for p in settings.densities]
    curve = LabelledArray(
        models.dimensions_per_feature.numpy(),
        ("density",),
        coords={"density": densities},
        unit="dimensions per feature",
        title="Dimensions per learnt feature",
        conventions={"measure": "m / |W|²", "features": settings.n_features, "dimensions": settings.n_hidden},
    )
    values = feature_dimensionality(models.weights)
    shown = torch.where(models.weights.norm(dim=2) > 0.5, values, torch.nan)
    each = LabelledArray(
        shown.numpy(),
        ("density", "feature"),
        coords={"density": densities},
        unit="dimensions",
        title="Feature dimensionality",
        conventions={"shown": "features of norm above 0.5"},
    )
    return {"dimensions_per_feature": curve, "feature_dimensionality": each}


def _dimension_blocks(
    settings: ToySettings, models: ToyModels, arrays: dict[str, LabelledArray]
) -> list[Block]:
    lines = [(float(value), name) for value, name in zip(STICKY, STICKY_NAMES, strict=True)]
    return [
        Prose(
            f"{settings.n_features} equally important features through {settings.n_hidden} dimensions. "
            "Where inputs are dense a learnt feature takes a dimension; sparser ones pack more features in."
        ),
        Lines(arrays["dimensions_per_feature"], "The plateau at 1/2 is the regime of opposite pairs."),
        StickyFigure(
            settings.densities,
            np.asarray(arrays["feature_dimensionality"].values),
            lines,
            "A dot for each learnt feature. Dots gather on the lines: features sit in regular shapes.",
        ),
    ]


def _absolute_blocks(models: AbsoluteValueModels) -> list[Block]:
    array = models.array()
    advantage = LabelledArray(
        np.asarray(array.sel(measure="advantage").values),
        ("density",),
        coords={"density": array.coords["density"]},
        unit="share of loss",
        title="Loss saved by computing in superposition",
        conventions=array.conventions,
    )
    rows = [
        (f"{p:g}", f"{float(loss):.4g}", f"{float(without):.4g}", f"{float(per_neuron):.2f}")
        for p, loss, without, per_neuron in zip(
            models.settings.densities,
            models.losses,
            models.cost_without,
            models.features_per_neuron.mean(1),
            strict=True,
        )
    ]
    table = Table(
        ("density", "loss", "best loss at two neurons a feature", "features per neuron"),
        rows,
        caption=f"|x| of {models.settings.n_features} features by {models.settings.n_neurons} neurons.",
    )
    note = "Without superposition |x| takes two neurons a feature. Sparse inputs let a neuron serve several."
    return [Prose(note), Bars(advantage, "Above zero only by sharing neurons."), table]


def _fact_blocks(facts: LearntFacts) -> list[Block]:
    row = facts.settings.widths.index(FACT_WIDTH)
    fires, needed = facts.neurons_of(FACT_WIDTH)
    live = fires > 0
    n_facts = facts.answers.shape[2]
    right, linear = float(facts.accuracy[row].mean()), float(facts.accuracy[0].mean())
    text = (
        f"{n_facts} people, each a first and a last name out of ten, have one of {facts.settings.n_attributes} "
        f"attributes at random. {FACT_WIDTH} neurons answer {right:.0%} of the facts; the best linear readout of the "
        f"names {linear:.0%}. There are fewer neurons than facts, so no neuron can be a fact: one fires on "
        f"{float(fires[live].mean()):.0f} of them on average, and {float(needed[live].mean()):.0f} lose a quarter "
        "of their margin or more when it is held at its mean."
    )
    order = needed[0].argsort(descending=True)
    lost = LabelledArray(
        needed[0][order].numpy(),
        ("neuron",),
        coords={"neuron": [int(i) for i in order]},
        unit="facts",
        title="Facts that rest on each neuron",
        conventions={"ablation": "mean over facts", "model": f"{FACT_WIDTH} neurons, first seed"},
    )
    return [Prose(text), Bars(facts.array()), Bars(lost, "Every working neuron carries several facts.")]
