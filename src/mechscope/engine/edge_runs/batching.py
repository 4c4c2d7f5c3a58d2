"""Batching: which circuits run together, so that a small one does not pay for what a large one has to compute.

A batch computes the union of what its circuits need, in every row. Circuits that come in the order of their size are
therefore cut where the union grows by more than a batch of its own costs.
"""

import numpy as np

from mechscope.engine.edge_runs.places import Places, work_of

_READER, _HEAD, _MLP, _MIX = 2.0, 1.0, 8.0, 1.0
"""Costs in d_model^2 a token: all readers of a layer, all heads' outputs, an MLP, and attention's own."""

_BATCH = 2.0
"""What a batch costs for each layer that it touches, whatever its rows."""


def cut_batches(places: Places, circuits: np.ndarray, *, most: int) -> list[slice]:
    """Consecutive circuits to run together, as differences from the circuit without edges.

    Args:
        places: Indices of the wiring.
        circuits: [circuit, edge] truth values; neighbours should be alike.
        most: Circuits in a batch.
    """
    found: list[slice] = []
    start, union, row, fixed = 0, np.zeros(0, dtype=bool), 0.0, 0.0
    for index, circuit in enumerate(circuits):
        alone_row, alone_fixed = _cost(places, circuit)
        if index > start and index - start < most:
            both = union | circuit
            joint_row, joint_fixed = _cost(places, both)
            n = index - start
            together = joint_row * (n + 1) + joint_fixed
            if together <= row * n + fixed + alone_row + alone_fixed:
                union, row, fixed = both, joint_row, joint_fixed
                continue
        if index > start:
            found.append(slice(start, index))
        start, union, row, fixed = index, circuit, alone_row, alone_fixed
    return [*found, slice(start, len(circuits))]


def _cost(places: Places, circuits: np.ndarray) -> tuple[float, float]:
    """What each of some circuits costs in a batch of them, given their union, and what the batch costs beside."""
    work, n_heads = work_of(places, circuits, circuits), places.wiring.n_heads
    row = fixed = 0.0
    for readers, heads, mlp in zip(work.readers, work.heads, work.mlps, strict=True):
        is_mixed = len(readers) > 0
        fixed += _BATCH * (is_mixed or mlp)
        row += _READER * len(readers) / places.n_readers + _HEAD * len(heads) / n_heads
        row += _MIX * is_mixed + _MLP * mlp
    return row, fixed
