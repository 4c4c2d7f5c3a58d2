"""Saving: an attribution graph as a record, and back to the bit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.graphs.adjacency import Adjacency, RowBlock
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import Nodes
from mechscope.graphs.supernodes import Supernode
from mechscope.graphs.targets import Target
from mechscope.records.record import Record

_NODE_ARRAYS = ("kinds", "layers", "positions", "numbers", "activations", "sites")
_ARRAYS = ("weights", "totals", "biases", "remainders")


class GraphRecord(Record):
    """A saved `AttributionGraph`."""

    kind: ClassVar[str] = "attribution-graph"


def save_graph(graph: AttributionGraph, path: str | Path) -> None:
    """Write a graph: JSON at `path`, arrays beside it."""
    nodes, blocks = graph.nodes, graph.adjacency.blocks
    arrays: dict[str, np.ndarray] = {f"nodes.{name}": getattr(nodes, name) for name in _NODE_ARRAYS}
    arrays |= {name: getattr(graph, name) for name in _ARRAYS}
    dtype = blocks[0].values.dtype if blocks else np.dtype(np.float32)
    arrays |= {
        "targets": _joined([block.targets.astype(np.int32) for block in blocks], np.int32),
        "sources": _joined([block.sources.astype(np.int32) for block in blocks], np.int32),
        "values": _joined([block.values.ravel() for block in blocks], dtype),
        "shapes": np.array([block.values.shape for block in blocks], dtype=np.int64).reshape(-1, 2),
    }
    settings = dict(graph.settings)
    if "cumulative" in settings:
        arrays["cumulative"] = np.asarray(settings.pop("cumulative"), dtype=np.float64)
    numbers: dict[str, Any] = {
        "n_active": graph.n_active,
        "targets": [asdict(target) for target in graph.targets],
        "supernodes": [{"label": group.label, "members": list(group.members)} for group in graph.supernodes],
        "site_names": list(nodes.site_names),
        "tokens": list(nodes.tokens),
        "token_ids": list(nodes.token_ids),
        "logits": list(nodes.logits),
    }
    record = GraphRecord(
        settings=settings, model=graph.model, data_sha256=graph.data_sha256, numbers=numbers, arrays=arrays
    )
    record.save(path)


def open_graph(path: str | Path) -> AttributionGraph:
    """Read what `save_graph` wrote.

    Raises:
        BadFile: no attribution graph.
        ChecksumMismatch: changed since it was saved.
    """
    record = GraphRecord.load(path)
    arrays, numbers = record.arrays, record.numbers
    columns: dict[str, Any] = {name: arrays[f"nodes.{name}"] for name in _NODE_ARRAYS}
    columns |= {name: tuple(numbers[name]) for name in ("site_names", "tokens", "token_ids", "logits")}
    nodes = Nodes(**columns)
    blocks, row, column, entry = [], 0, 0, 0
    for n_rows, n_columns in arrays["shapes"].tolist():
        size = n_rows * n_columns
        blocks.append(
            RowBlock(
                arrays["targets"][row : row + n_rows],
                arrays["sources"][column : column + n_columns],
                arrays["values"][entry : entry + size].reshape(n_rows, n_columns),
            )
        )
        row, column, entry = row + n_rows, column + n_columns, entry + size
    settings = dict(record.settings)
    if "cumulative" in arrays:
        settings["cumulative"] = arrays["cumulative"].tolist()
    return AttributionGraph(
        nodes=nodes,
        adjacency=Adjacency(len(nodes), blocks),
        **{name: arrays[name] for name in _ARRAYS},
        n_active=numbers["n_active"],
        targets=tuple(Target(**target) for target in numbers["targets"]),
        settings=settings,
        model=record.model,
        data_sha256=record.data_sha256,
        supernodes=tuple(Supernode(one["label"], tuple(one["members"])) for one in numbers["supernodes"]),
    )


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
