"""Saving: an attribution graph as a record, and back to the bit."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.graphs.adjacency import Adjacency
from mechscope.graphs.graph import AttributionGraph
from mechscope.graphs.nodes import Nodes
from mechscope.graphs.row_blocks import Block, RowBlock, SparseRows
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
    sparse = [block for block in blocks if isinstance(block, SparseRows)]
    arrays |= {
        "targets": _joined([block.targets.astype(np.int32) for block in blocks], np.int32),
        "sources": _joined([block.sources.astype(np.int32) for block in blocks], np.int32),
        "values": _joined([_stored(block) for block in blocks], np.float32),
        "shapes": np.array([(len(block.targets), len(block.sources)) for block in blocks], np.int64),
    }
    arrays["shapes"] = arrays["shapes"].reshape(-1, 2)
    if sparse:
        arrays["n_stored"] = np.array([_n_stored(block) for block in blocks], np.int64)
        arrays["bits"] = _joined([block.bits.ravel() for block in sparse], np.uint8)
    if any(block.dropped is not None for block in blocks):
        nothing = [np.zeros(len(b.targets)) if b.dropped is None else b.dropped for b in blocks]
        arrays["dropped"] = np.concatenate(nothing)
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
    settings = dict(record.settings)
    if "cumulative" in arrays:
        settings["cumulative"] = arrays["cumulative"].tolist()
    return AttributionGraph(
        nodes=nodes,
        adjacency=Adjacency(len(nodes), _blocks(arrays)),
        **{name: arrays[name] for name in _ARRAYS},
        n_active=numbers["n_active"],
        targets=tuple(Target(**target) for target in numbers["targets"]),
        settings=settings,
        model=record.model,
        data_sha256=record.data_sha256,
        supernodes=tuple(Supernode(one["label"], tuple(one["members"])) for one in numbers["supernodes"]),
    )


def _blocks(arrays: Mapping[str, np.ndarray]) -> list[Block]:
    """The blocks as they were; a record without "n_stored" has dense ones only."""
    shapes = arrays["shapes"].tolist()
    stored = arrays["n_stored"].tolist() if "n_stored" in arrays else [-1] * len(shapes)
    found: list[Block] = []
    row, column, entry, byte = 0, 0, 0, 0
    for (n_rows, n_columns), n in zip(shapes, stored, strict=True):
        size = n_rows * n_columns if n < 0 else n
        targets = arrays["targets"][row : row + n_rows]
        sources = arrays["sources"][column : column + n_columns]
        values = arrays["values"][entry : entry + size]
        dropped = arrays["dropped"][row : row + n_rows] if "dropped" in arrays else None
        if n < 0:
            found.append(RowBlock(targets, sources, values.reshape(n_rows, n_columns), dropped))
        else:
            width = -(-n_columns // 8)
            bits = arrays["bits"][byte : byte + n_rows * width].reshape(n_rows, width)
            found.append(SparseRows(targets, sources, bits, values, dropped))
            byte += n_rows * width
        row, column, entry = row + n_rows, column + n_columns, entry + size
    return found


def _stored(block: Block) -> np.ndarray:
    return block.effects if isinstance(block, SparseRows) else block.values.ravel()


def _n_stored(block: Block) -> int:
    """How many entries a sparse block stores; -1 for a dense one."""
    return block.n_edges if isinstance(block, SparseRows) else -1


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
