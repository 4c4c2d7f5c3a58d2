"""Conventions of circuit work as data, and a split made ready to be run under them.

Published circuits of one behaviour differ because of these choices, so every result stores them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.engine.edge_runs.ablations import Constant, EdgeAblation, Resampled, Restored, mean_of, zero
from mechscope.engine.edge_runs.block import TokenSpans
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.engine.naive import read_columns
from mechscope.interventions.intervention import Value
from mechscope.interventions.metrics import KL, Metric
from mechscope.models.frame import Frame
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.resources import head_of
from mechscope.vocabulary.errors import BadPairs, InterventionMismatch

ABLATIONS = ("resample", "mean", "zero", "optimal")
DIRECTIONS = ("noising", "denoising")


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What removed edges carry, and in which run.

    Args:
        ablation: "resample" (the corrupt twin's values), "mean" (over the split's clean prompts), "zero", or
            "optimal" (constants given as `constants`, which `learn_constants` learns).
        direction: "noising" runs the clean prompts and removes what is outside the circuit: it is gone, and the
            circuit's edges carry what is left. "denoising" starts where every edge carries its removed value (the
            corrupt run, or the constants), and gives the circuit's edges the clean run's values: what they set in
            motion spreads over all edges.
        constants: For "optimal" only.
    """

    ablation: Literal["resample", "mean", "zero", "optimal"] = "resample"
    direction: Literal["noising", "denoising"] = "noising"
    constants: EdgeAblation | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.ablation not in ABLATIONS:
            problems.append(f"ablations are {', '.join(ABLATIONS)}")
        if self.direction not in DIRECTIONS:
            problems.append(f"directions are {' and '.join(DIRECTIONS)}")
        if (self.ablation == "optimal") != (self.constants is not None):
            problems.append(
                "optimal constants are learned first: ms.circuits.learn_constants(model, split, circuit=...)"
            )
        if problems:
            raise InterventionMismatch(
                "These conventions do not fit together.",
                got=f"ablation={self.ablation!r}, direction={self.direction!r}",
                because="; ".join(problems),
                instead='Conventions(ablation="resample", direction="noising")',
            )

    def to_json(self) -> dict[str, Any]:
        """For records."""
        named = {k: v for k, v in asdict(self).items() if k in ("ablation", "direction")}
        return named if self.constants is None else named | {"constants": self.constants.to_json()}


class CircuitRuns:
    """A split's prompts, ready to be run under circuits in either direction.

    Args:
        model: An open model.
        split: Prompt pairs.
        conventions: What removed edges carry, and in which run.
        metric: Read instead of the split's.
        spans: Where circuits keep edges span by span.
        with_units: Whether circuits may keep some units of an MLP and remove the others; noising only.
    """

    def __init__(
        self,
        model: Model,
        split: Split,
        *,
        conventions: Conventions,
        metric: Metric | None = None,
        spans: TokenSpans | None = None,
        with_units: bool = False,
    ) -> None:
        self.split, self.conventions = split, conventions
        self.is_denoising = conventions.direction == "denoising"
        tokens, ablation = _prompts_and_removed(model, split, conventions)
        self.runs = EdgeRuns(
            model,
            tokens,
            metric=metric or split.metric,
            ablation=ablation,
            spans=spans,
            with_units=with_units,
        )
        self.wiring = self.runs.wiring

    def measure(
        self,
        circuits: Sequence[np.ndarray] | np.ndarray,
        units: np.ndarray | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The metric of circuits, [circuit, pair]; circuits that are given twice are run once.

        Args:
            circuits: [circuit, edge] truth values; [circuit, span, edge] where there are spans.
            units: Units of each MLP that are kept, [circuit, layer, d_mlp] truth values; None keeps all.
            progress: Told circuits done and circuits in all.
        """
        masks = np.asarray(circuits, dtype=bool)
        masks = ~masks if self.is_denoising else masks
        flat = masks.reshape(len(masks), -1)
        all_bits = flat if units is None else np.concatenate([flat, units.reshape(len(masks), -1)], axis=1)
        unique, where = np.unique(np.packbits(all_bits, axis=1), axis=0, return_inverse=True)
        first = np.zeros(len(unique), dtype=np.int64)
        first[where.ravel()[::-1]] = np.arange(len(masks))[::-1]
        # Circuits of like size share what they compute, so they are run next to each other.
        order = first[np.argsort(flat[first].sum(1), kind="stable")]
        values = np.zeros((len(masks), self.runs.n_rows))
        some = None if units is None else units[order]
        values[order] = self.runs.measure(masks[order], some, progress=progress).numpy()
        return values[first[where.ravel()]]

    def measure_weighted(self, weights: Tensor) -> Tensor:
        """The metric with edges kept in part, [circuit, edge] to [circuit, pair]; gradients flow to the weights."""
        return self.runs.measure_weighted(1 - weights if self.is_denoising else weights)

    def hold(self) -> AbstractContextManager[None]:
        """Hold the model for a series of runs."""
        return self.runs.open()


def _prompts_and_removed(
    model: Model, split: Split, conventions: Conventions
) -> tuple[TokenBatch, EdgeAblation]:
    """Prompts to run, and what the engine's removed edges carry; in denoising those are the circuit's."""
    is_denoising = conventions.direction == "denoising"
    match conventions.ablation:
        case "resample":
            tokens, other = (split.corrupt, split.clean) if is_denoising else (split.clean, split.corrupt)
            return tokens, Resampled(prompts=other)
        case "mean":
            constants = mean_of(model, split.clean)
        case "zero":
            constants = zero(model)
        case "optimal":
            assert isinstance(conventions.constants, Constant)
            constants = conventions.constants
    return split.clean, Restored(constants=constants) if is_denoising else constants


def split_to_search(behavior: Behavior | Split, *, ablation: str = "resample") -> Split:
    """Where circuits are looked for: a behaviour's train split, or the split given.

    Args:
        behavior: Prompt pairs.
        ablation: What removed parts will carry.

    Raises:
        BadPairs: they would carry the corrupt twin's values, and every twin is its clean prompt.
    """
    split = behavior.train if isinstance(behavior, Behavior) else behavior
    if ablation == "resample" and torch.equal(split.clean.ids, split.corrupt.ids):
        raise BadPairs(
            "There is no circuit to find between prompts and themselves.",
            got=f"{len(split)} pairs whose corrupt prompt is the clean one",
            because="a removed part carries what it has in the corrupt prompt, so removing it changes nothing",
            instead='corrupt prompts that differ, or conventions=Conventions(ablation="zero")',
        )
    return split


def kl_to_model(model: Model, split: Split) -> KL:
    """Divergence of a run from the model's own output on the clean prompts, at the metric's position."""
    last = f"resid_post.{model.n_layers - 1}"
    run = model.run(split.clean, capture=[last], stop_after=last)
    stream = run.cache[last]
    columns = read_columns(Frame.of(split.clean), (split.metric.position,)).to(stream.device)
    at = torch.arange(len(columns), device=stream.device)[:, None]
    with torch.no_grad():
        logits: Tensor = head_of(model.binding)(stream[at, columns])[:, 0]
    return KL(position=split.metric.position, reference=Value(logits.detach()))
