"""Single edges: what a circuit does when each of some edges alone is taken out of it.

Each is run as a difference from the circuit, from the edge's reader on, and edges into one layer together. Under
denoising an edge that is taken out is one more that runs, from a writer that may not have been computed: those are
run whole.
"""

from collections.abc import Callable

import numpy as np

from mechscope.circuits.conventions import CircuitRuns
from mechscope.circuits.methods.acdc import edge_order

_BATCH = 64


def metric_without_each(
    runs: CircuitRuns,
    kept: np.ndarray,
    *,
    edges: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, np.ndarray]:
    """The mean metric of a circuit, and of the circuit without each of some edges, [edge].

    Args:
        runs: Prompts under some conventions.
        kept: The circuit, [edge] truth values.
        edges: Indices of edges that it keeps.
        progress: Told edges done and edges in all.

    Cost: one forward for each edge, from its reader on; many in a batch.
    """
    if runs.is_denoising:
        masks = np.repeat(kept[None], 1 + len(edges), axis=0)
        masks[1 + np.arange(len(edges)), edges] = False
        whole, *without = runs.measure(masks, progress=progress).mean(1)
        return float(whole), np.array(without)
    walker = runs.runs
    order, _, layer_of = edge_order(walker.wiring)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    sequence = edges[np.argsort(rank[edges])]
    found = np.zeros(walker.wiring.n_edges)
    with walker.open():
        state = walker.state(kept)
        whole = float(walker.walk(kept[None], state).values.mean())
        start = 0
        while start < len(sequence):
            batch = sequence[start : start + min(_BATCH, walker.batch_size)]
            batch = batch[layer_of[batch] == layer_of[batch[0]]]
            masks = np.repeat(kept[None], len(batch), axis=0)
            masks[np.arange(len(batch)), batch] = False
            found[batch] = walker.walk(masks, state).values.numpy().mean(1)
            start += len(batch)
            if progress is not None:
                progress(start, len(sequence))
    return whole, found[edges]
