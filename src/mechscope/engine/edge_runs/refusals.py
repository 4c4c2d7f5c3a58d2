"""What edge runs refuse before they start."""

import torch

from mechscope.engine.edge_runs.ablations import EdgeAblation, Resampled
from mechscope.engine.edge_runs.block import TokenSpans
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.vocabulary.errors import InterventionMismatch, PairLengthMismatch, PointUnavailable, ShapeError
from mechscope.vocabulary.sites import Site


def refuse_out_of_reach(model: Model) -> None:
    """Refuse a family whose attention can't be run on streams of its own.

    Raises:
        PointUnavailable
    """
    if not model.binding.anatomy.attention.has_interface:
        raise PointUnavailable(
            f"Edges into the heads of {model.binding.anatomy.family} are out of reach.",
            got=type(model.hf).__name__,
            because="its attention does not call the library's attention interface",
            instead="a family that does (mechscope doctor MODEL), or head-level patching",
        )


def refuse_other_tokens(tokens: TokenBatch, spans: TokenSpans | None) -> None:
    """Refuse spans of other tokens.

    Raises:
        ShapeError
    """
    if spans is None:
        return
    of = spans.of_tokens
    if of.shape != tokens.ids.shape or int(of.min()) < 0 or int(of.max()) >= spans.n:
        raise ShapeError(
            "Spans are numbered token by token.",
            got=f"{spans.n} spans of shape {list(of.shape)}, tokens of shape {list(tokens.ids.shape)}",
            because="every token is in one span, padding too",
            instead="a number from 0 on for each token of the batch",
        )


def refuse_other_lengths(tokens: TokenBatch, ablation: Resampled) -> None:
    """Refuse twins that do not line up token by token.

    Raises:
        PairLengthMismatch
    """
    other = ablation.prompts
    if tokens.shape != other.shape or not torch.equal(tokens.n_pad, other.n_pad):
        raise PairLengthMismatch(
            "The prompts that removed edges' values come from are of other lengths.",
            got=f"{list(tokens.shape)} tokens and {list(other.shape)}",
            because="values are taken from the same position of the twin prompt",
            instead="pairs of equal lengths, or a mean ablation",
        )


def refuse_without_units(model: Model, ablation: EdgeAblation) -> None:
    """Refuse units of MLPs that form none in reach, and ablations that give them no value.

    Raises:
        PointUnavailable, InterventionMismatch
    """
    formed = set(model.binding.formed)
    if any(Site("mlp_post", layer) not in formed for layer in range(model.n_layers)):
        raise PointUnavailable(
            f"Units of the MLPs of {model.identity.name} are out of reach.",
            got=model.binding.anatomy.family,
            because=model.binding.anatomy.why_missing.get("mlp_post", "it forms no activations of units"),
            instead="whole MLPs, as nodes of edges",
        )
    if ablation.how not in ("resample", "zero"):
        raise InterventionMismatch(
            f'A removed unit has no value under "{ablation.how}".',
            got=ablation.how,
            because="constants are kept for what a whole MLP adds, and not for its units",
            instead='"resample" or "zero"',
        )
