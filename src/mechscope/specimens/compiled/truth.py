"""Which edges are needed, in both senses of the word, by cutting each of them.

*zero*: without the edge its reader gets nothing from its writer. *resample*: its reader gets what the writer adds on
the corrupt prompt. They differ: an edge that carries the same on both prompts (positions, a length) is needed under
zero and can't be seen under resampling. Owns: `Needed`, `find_needed`, `Truth`. Invariant: everything is measured,
one edge at a time, in double precision, and both sides of the threshold are on record.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.models.native import NativeForCausalLM
from mechscope.specimens.compiled.streams import LOGITS, Outputs, Streams
from mechscope.vocabulary.edges import Edge

Ablation = Literal["zero", "resample"]
THRESHOLD = 1e-3
"""Least effect of a needed edge, as a fraction of the gap between clean and corrupt prompts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Prompts on which edges are cut, and what is read of them: a difference of logits at the last position.

    Args:
        clean: Token ids, equally long and unpadded.
        corrupt: Their twins.
        answers: Id of the clean answer of each row.
        wrong: Id that it is measured against.
    """

    clean: Int[Tensor, "row pos"]
    corrupt: Int[Tensor, "row pos"]
    answers: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]

    def measure(self, outputs: Outputs) -> Float[Tensor, " row"]:
        """Logit of the answer less the foil's."""
        logits = outputs[LOGITS][:, -1]
        return (logits.gather(1, self.answers[:, None]) - logits.gather(1, self.wrong[:, None]))[:, 0]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The needed edges under one ablation.

    Args:
        ablation: "zero" or "resample".
        edges: Edges whose cut, alone, changes the metric by at least `THRESHOLD` of the gap: mean absolute change.
        least: Effect of the least of them.
        rest: Greatest effect of all other edges.
        n_pairs: Pairs measured on.
    """

    ablation: Ablation
    edges: tuple[Edge, ...]
    least: float
    rest: float
    n_pairs: int

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "edges": [str(edge) for edge in self.edges],
            "least_effect": round(self.least, 6),
            "greatest_effect_of_the_rest": round(self.rest, 9),
            "n_pairs": self.n_pairs,
        }


def find_effects(
    network: NativeForCausalLM, case: Case, *, ablation: Ablation, of: Iterable[Edge] | None = None
) -> dict[Edge, float]:
    """Mean absolute change of the metric when an edge alone is cut, as a fraction of the gap; for every edge.

    Cost: one slow forward pass an edge, in double precision.
    """
    streams = Streams(network)
    corrupt = streams.outputs(case.corrupt)
    known = streams.outputs(case.clean)
    clean = case.measure(known)
    gap = float((clean - case.measure(corrupt)).mean().abs())
    instead = corrupt if ablation == "resample" else {}

    def effect(edge: Edge) -> float:
        cut = streams.run(case.clean, cut=[edge], instead=instead, known=known)
        return float((case.measure(cut) - clean).abs().mean()) / gap

    return {edge: effect(edge) for edge in (streams.wiring.edges() if of is None else of)}


def find_needed(network: NativeForCausalLM, case: Case, *, ablation: Ablation) -> Needed:
    """The needed edges of a model on a case, by cutting each edge alone."""
    effects = find_effects(network, case, ablation=ablation)
    edges = tuple(edge for edge, effect in effects.items() if effect >= THRESHOLD)
    return Needed(
        ablation=ablation,
        edges=edges,
        least=min((effects[edge] for edge in edges), default=0.0),
        rest=max((effect for edge, effect in effects.items() if edge not in edges), default=0.0),
        n_pairs=len(case.clean),
    )


def keep_only(
    network: NativeForCausalLM, case: Case, *, edges: Collection[Edge], ablation: Ablation
) -> Float[Tensor, " row"]:
    """The metric when all other edges are cut: what a circuit does alone."""
    streams = Streams(network)
    kept = set(edges)
    instead = streams.outputs(case.corrupt) if ablation == "resample" else {}
    cut = [edge for edge in streams.wiring.edges() if edge not in kept]
    return case.measure(streams.run(case.clean, cut=cut, instead=instead))


def full(network: NativeForCausalLM, case: Case) -> Float[Tensor, " row"]:
    """The metric of the whole model on the clean prompts, in double precision."""
    return case.measure(Streams(network).outputs(case.clean))


def case_of(pairs: Iterable[Any], ids: dict[str, int], *, bos: int) -> Case:
    """Pairs as token ids."""
    pairs = list(pairs)

    def rows(side: str) -> Tensor:
        return torch.tensor([[bos, *(ids[word] for word in getattr(pair, side))] for pair in pairs])

    answers, wrong = (
        torch.tensor([ids[getattr(pair, side)] for pair in pairs]) for side in ("answer", "wrong")
    )
    return Case(clean=rows("clean"), corrupt=rows("corrupt"), answers=answers, wrong=wrong)
