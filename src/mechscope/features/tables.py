"""Tables: the index as DuckDB sees it. In memory, over the Parquet files: nothing is copied, nobody is locked out.

activations(latent, token, value)                   every non-zero activation
tokens(token, id, text, row, counts)                the text; `counts` is false for special tokens
latents(latent, fires, density, mean, largest, label)
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechscope.features.manifest import refuse_unless_intact

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex


def connected(index: "FeatureIndex") -> Any:
    """A connection with the three tables."""
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    files = [file for run in index.manifest.runs for file in run.files]
    for file in files:
        refuse_unless_intact(index.folder, file)
    names = [str(index.folder / file.file) for file in files]
    if index.manifest.settings.value_dtype == "float16":
        connection.register("activations", _in_single_precision(names, pa))
    else:
        listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
        connection.execute(
            f"create view activations as select latent, token, value from read_parquet([{listed}])"
        )
    connection.register("tokens", _tokens(index, pa))
    statistics = index.statistics
    columns = {
        "latent": np.arange(index.n_latents, dtype=np.int32),
        "fires": statistics.fires,
        "density": statistics.density,
        "mean": statistics.mean,
        "largest": statistics.largest,
    }
    labels = [found.text if (found := index.labels.get(i)) else None for i in range(index.n_latents)]
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    connection.register("latents", table.append_column("label", pa.array(labels, pa.string())))
    return connection


def _in_single_precision(names: list[str], pa: Any) -> Any:
    """Files of float16, which DuckDB does not read in the encoding that they have, as Arrow reads them: in pieces."""
    import pyarrow.dataset as ds

    columns = {name: ds.field(name) for name in ("latent", "token")}
    columns["value"] = ds.field("value").cast(pa.float32())
    return ds.dataset(names).scanner(columns=columns)


def _tokens(index: "FeatureIndex", pa: Any) -> Any:
    parts: list[Any] = []
    row = 0
    strings = pa.array(index.strings, pa.string())
    for number, file in enumerate(index.manifest.tokens):
        arrays = index.tokens.arrays(number)
        lengths = np.diff(arrays["row_starts"])
        columns = {
            "token": np.arange(file.first, file.last + 1),
            "id": np.asarray(arrays["ids"]),
            "row": np.repeat(np.arange(row, row + len(lengths)), lengths),
            "counts": np.asarray(arrays["counts"]),
        }
        table = pa.table({name: pa.array(column) for name, column in columns.items()})
        parts.append(table.append_column("text", strings.take(table.column("id"))))
        row += len(lengths)
    return pa.concat_tables(parts)
