"""The true mechanism of the induction specimen, for methods and claims to be scored against.

Owns: which two heads do the work, and which edges between embeddings, heads and logits carry it,
    under zero ablation and under resampling from a corrupted prompt.
Invariant: tests recompute every statement here from the weights, for each head and each edge.
"""

from dataclasses import asdict, dataclass

PREVIOUS_TOKEN = (0, 5)
INDUCTION = (1, 11)
HEADS = (PREVIOUS_TOKEN, INDUCTION)


@dataclass(frozen=True)
class Edge:
    """What `target` reads from `source`, and as which of its inputs.

    Nodes are "embed", "pos_embed", "logits", or a head as "layer.head". `reads` is "q", "k" or "v"
    for a head, and None for the logits.
    """

    source: str
    target: str
    reads: str | None = None


TOKEN_TO_PREVIOUS = Edge("embed", "0.5", "v")
PREVIOUS_TO_INDUCTION = Edge("0.5", "1.11", "k")
TOKEN_ASKS = Edge("embed", "1.11", "q")
TOKEN_IS_COPIED = Edge("embed", "1.11", "v")
INDUCTION_TO_LOGITS = Edge("1.11", "logits")

# Removing any of these (zero in place of what the source adds to that input) destroys the behaviour.
EDGES_UNDER_ZERO = (
    Edge("pos_embed", "0.5", "q"),
    Edge("pos_embed", "0.5", "k"),
    TOKEN_TO_PREVIOUS,
    PREVIOUS_TO_INDUCTION,
    TOKEN_ASKS,
    TOKEN_IS_COPIED,
    INDUCTION_TO_LOGITS,
)

# The induction head rests on the first token while nothing repeats. Real, and not needed for the answer.
RESTING_EDGES = (Edge("pos_embed", "1.11", "q"), Edge("embed", "1.11", "k"))

# Taking the source from the corrupted prompt instead moves the answer. Positions are the same in both
# prompts, so no edge from "pos_embed" can be seen this way; and each template differs in one role only.
EDGES_UNDER_RESAMPLING = {
    "key": (TOKEN_TO_PREVIOUS, PREVIOUS_TO_INDUCTION, INDUCTION_TO_LOGITS),
    "query": (TOKEN_ASKS, INDUCTION_TO_LOGITS),
    "value": (TOKEN_IS_COPIED, INDUCTION_TO_LOGITS),
}
HEADS_UNDER_RESAMPLING = {"key": HEADS, "query": (INDUCTION,), "value": (INDUCTION,)}


def truth_as_json() -> dict[str, object]:
    """The whole truth as plain JSON, for the card."""
    return {
        "heads": {"previous_token": list(PREVIOUS_TOKEN), "induction": list(INDUCTION)},
        "edges_under_zero": [asdict(edge) for edge in EDGES_UNDER_ZERO],
        "resting_edges": [asdict(edge) for edge in RESTING_EDGES],
        "edges_under_resampling": {
            template: [asdict(edge) for edge in edges] for template, edges in EDGES_UNDER_RESAMPLING.items()
        },
        "heads_under_resampling": {
            template: [list(head) for head in heads] for template, heads in HEADS_UNDER_RESAMPLING.items()
        },
    }
