"""scrub: resample everything that a hypothesis says does not matter, and see how much of the output is left."""

from dataclasses import asdict, dataclass

import numpy as np

from mechscope.circuits.abstraction.examples import Examples
from mechscope.circuits.scrubbing.hypothesis import Hypothesis
from mechscope.circuits.scrubbing.resampling import (
    SHARINGS,
    Resampling,
    Sharing,
    refuse_too_few,
    unchanged_tree,
)
from mechscope.circuits.scrubbing.result import ScrubResult
from mechscope.circuits.scrubbing.treeified import Treeified
from mechscope.engine.execute import Progress
from mechscope.engine.pairs import metric_facts
from mechscope.interventions.metrics import LogProbability, Metric
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import InterventionMismatch, ShapeError

CONDITIONS = ("scrubbed", "shuffled", "random")


@dataclass(frozen=True, kw_only=True)
class Scrubbing:
    """Conventions of causal scrubbing.

    Args:
        n_draws: Resamplings of every example.
        unimportant: What the hypothesis does not name comes from one random prompt for all inputs of a "node" (Chan et
            al. 2022), from one for each "input" of it (q, k, v), or from one for each "edge".
        seed: Root of the tree of seeds.
    """

    n_draws: int = 10
    unimportant: Sharing = "node"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unimportant not in SHARINGS or self.n_draws < 1:
            raise InterventionMismatch(
                "These are no conventions of scrubbing.",
                got=f"unimportant={self.unimportant!r}, n_draws={self.n_draws}",
                instead=f"unimportant: {', '.join(SHARINGS)}; at least one draw",
            )


def scrub(
    model: Model,
    hypothesis: Hypothesis,
    *,
    examples: Examples,
    metric: Metric | None = None,
    settings: Scrubbing | None = None,
    progress: Progress | None = None,
) -> ScrubResult:
    """Test a hypothesis by causal scrubbing.

    The model is unrolled into a tree. From the logits down, what comes over an edge of the hypothesis is computed from
    another prompt on which the edge's feature is the same; what comes over any other edge is from a random prompt. If
    the hypothesis is right, that changes nothing.

    Args:
        model: An open model.
        hypothesis: Edges and what each carries.
        examples: Prompts of one length; what is resampled is drawn from them.
        metric: One answer an example; None is the log-probability of `examples.answers`.
        settings: Draws, conventions, seed.
        progress: Told draws done and draws in all.

    Returns:
        The share of the loss that is recovered, (scrubbed - random) / (model - random), with its interval, beside the
        same hypothesis with its features given to other examples; and how much was resampled along each edge.

    Raises:
        UnknownEdge: edges that the model does not have, or that lead nowhere.
        PointUnavailable: a family whose heads can't be computed apart.
        PairLengthMismatch: prompts of several lengths.

    Cost: for each draw and each path from a node of the hypothesis to the logits, a run of that node over the examples.
    Caveat: a hypothesis with many classes resamples little and is hard to refute; see `.draws`. 1 says that nothing
        is missing, not that all of it is needed. docs/methods/causal_scrubbing.md.
    """
    settings = settings or Scrubbing()
    metric = metric or LogProbability(
        answers=tuple((int(i),) for i in examples.answers), position=examples.position
    )
    _refuse_unusable(examples, metric)
    hypothesis.refuse_unless_it_fits(wiring_of(model))
    treeified = Treeified(model, examples)
    rows = np.arange(len(examples))
    tables: dict[str, list[np.ndarray]] = {name: [] for name in CONDITIONS}
    makers = _makers(treeified, hypothesis, settings)
    with treeified.open():
        whole = treeified.measure(unchanged_tree(rows), metric)
        for draw in range(settings.n_draws):
            for name, maker in makers.items():
                tables[name].append(treeified.measure(maker.tree(rows), metric))
            if progress is not None:
                progress(draw + 1, settings.n_draws)
    tree = makers["scrubbed"].tree(rows)
    return ScrubResult(
        model_values=whole,
        **{name: np.stack(found) for name, found in tables.items()},
        units=examples.units,
        draws={name: asdict(found) for name, found in makers["scrubbed"].draws.items()},
        settings={
            **asdict(settings),
            "hypothesis": hypothesis.to_json(),
            "metric": metric_facts(metric),
            "n_examples": len(examples),
            "n_tree_nodes": sum(1 for _ in tree.branches()),
        },
        unit=metric.unit,
        model=model.fingerprint,
        data_sha256=examples.data_sha256,
    )


def _makers(treeified: Treeified, hypothesis: Hypothesis, settings: Scrubbing) -> dict[str, Resampling]:
    """What draws the trees of each condition; random output is always one prompt's."""
    nothing = Hypothesis.of("nothing matters", features={})
    return {
        name: Resampling(
            nothing if name == "random" else hypothesis,
            treeified.wiring,
            examples=treeified.examples,
            sharing="node" if name == "random" else settings.unimportant,
            random=generator_for(settings.seed, "scrubbing", name),
            shuffled=name == "shuffled",
        )
        for name in CONDITIONS
    }


def _refuse_unusable(examples: Examples, metric: Metric) -> None:
    refuse_too_few(examples)
    if metric.n_rows not in (None, len(examples)):
        raise ShapeError(
            "The metric has answers for another number of prompts.",
            got=f"{metric.n_rows} answers, {len(examples)} examples",
            instead="one answer an example",
        )
