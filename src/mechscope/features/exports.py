"""Exports: an index as the files that other front ends read: Neuronpedia's bulk import, circuit-tracer's features.

Written from the index alone, latent by latent, so that memory does not grow with it.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechscope.features.page import Example, FeaturePage
from mechscope.records.files import save_text, write_atomically
from mechscope.records.record import now

if TYPE_CHECKING:
    from mechscope.features.index import FeatureIndex

PER_BATCH = 256
"""Latents in a batch file."""


def export_neuronpedia(
    index: "FeatureIndex",
    folder: str | Path,
    *,
    source_set: str,
    model_id: str | None = None,
    creator: str = "mechscope",
    latents: Sequence[int] | None = None,
) -> Path:
    """Write Neuronpedia's bulk import: one folder of JSON lines for the model and one for the source.

    Args:
        index: Open.
        folder: Gets `{model_id}/{source_id}/...`.
        source_set: Name of the set of dictionaries: "mechscope-res"; the source is "{layer}-{source_set}".
        model_id: As Neuronpedia knows the model; the last part of the index's own name by default.
        creator: Who made it.
        latents: Which; all by default.

    Returns:
        The folder of the source.
    """
    model_id = model_id or str(index.manifest.origin.model["name"]).rsplit("/", 1)[-1]
    layer = _layer(index)
    source_id, here = f"{layer}-{source_set}", Path(folder) / model_id / f"{layer}-{source_set}"
    common = {"creatorId": creator, "createdAt": now()}
    _save_lines(here / "release.jsonl", [{"name": source_set, "creatorNameShort": creator, **common}])
    _save_lines(
        here / "model.jsonl", [{"id": model_id, "displayName": model_id, "layers": layer + 1, **common}]
    )
    _save_lines(here / "sourceset.jsonl", [{"modelId": model_id, "name": source_set, **common}])
    _save_lines(
        here / "source.jsonl",
        [{"id": source_id, "modelId": model_id, "setName": source_set, "hookName": index.source, **common}],
    )
    wanted = list(range(index.n_latents)) if latents is None else list(latents)
    for start in range(0, len(wanted), PER_BATCH):
        pages = [index[latent] for latent in wanted[start : start + PER_BATCH]]
        name = f"batch-{start // PER_BATCH}.jsonl.gz"
        where = {"modelId": model_id, "layer": source_id, **common}
        _save_lines(here / "features" / name, (_feature(page, where, index) for page in pages))
        _save_lines(here / "activations" / name, (row for page in pages for row in _activations(page, where)))
        _save_lines(
            here / "explanations" / name, (row for page in pages for row in _explanations(page, where))
        )
    return here


def export_circuit_tracer(
    index: "FeatureIndex",
    folder: str | Path,
    *,
    transcoder_id: str = "",
    latents: Sequence[int] | None = None,
) -> Path:
    """Write circuit-tracer's feature files, `{latent}.json` each.

    Args:
        index: Open.
        folder: Gets the files; a graph's `feature_json_base_url` points at it.
        transcoder_id: Name of the dictionary in the files.
        latents: Which; all that fire by default.
    """
    folder = Path(folder)
    alive = np.flatnonzero(index.statistics.fires > 0).tolist()
    for latent in alive if latents is None else latents:
        page = index[latent]
        save_text(folder / f"{latent}.json", _json(feature_json(page, transcoder_id or index.source)))
    return folder


def feature_json(page: FeaturePage, transcoder_id: str) -> dict[str, Any]:
    """One latent as circuit-tracer's front end reads it."""
    activity, histogram = page.activity, page.activity.histogram
    return {
        "index": page.latent,
        "transcoder_id": transcoder_id,
        "examples_quantiles": [
            {
                "quantile_name": "Top activations" if group.name == "top" else group.name.capitalize(),
                "examples": [
                    {
                        "tokens": list(one.tokens),
                        "tokens_acts_list": list(one.values),
                        "train_token_ind": one.peak,
                        "is_repeated_datapoint": False,
                    }
                    for one in group.examples
                ],
            }
            for group in page.groups
        ],
        "top_logits": list(page.promoted.labels("token")) if page.promoted is not None else [],
        "bottom_logits": list(page.suppressed.labels("token")) if page.suppressed is not None else [],
        "act_min": activity.smallest,
        "act_max": activity.largest,
        "quantile_values": [group.low for group in page.groups],
        "histogram": histogram.values.tolist(),
        "activation_frequency": activity.density,
    }


def _feature(page: FeaturePage, where: dict[str, Any], index: "FeatureIndex") -> dict[str, Any]:
    activity = page.activity
    found: dict[str, Any] = {
        **where,
        "index": str(page.latent),
        "sourceSetName": str(where["layer"]).partition("-")[2],
        "maxActApprox": activity.largest,
        "frac_nonzero": activity.density,
        "hasVector": False,
        "vector": [],
        "hookName": index.source,
        "freq_hist_data_bar_values": [float(edge) for edge in activity.histogram.coords["size"]],
        "freq_hist_data_bar_heights": activity.histogram.values.tolist(),
        "topkCosSimIndices": [one.latent for one in page.neighbors["decoder"]],
        "topkCosSimValues": [one.value for one in page.neighbors["decoder"]],
        "correlated_features_indices": [one.latent for one in page.neighbors["behavior"]],
        "correlated_features_pearson": [one.value for one in page.neighbors["behavior"]],
        "n_tokens": activity.n_tokens,
    }
    for name, effects in (("pos", page.promoted), ("neg", page.suppressed)):
        if effects is not None:
            found |= {f"{name}_str": list(effects.labels("token")), f"{name}_values": effects.values.tolist()}
    return found


def _activations(page: FeaturePage, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in page.groups:
        for one in group.examples:
            yield {
                **where,
                "id": f"{where['modelId']}-{where['layer']}-{page.latent}-{one.token}",
                "index": str(page.latent),
                "tokens": list(one.tokens),
                "values": list(one.values),
                "maxValue": max(one.values),
                "maxValueTokenIndex": _peak(one),
                "minValue": min(one.values),
                "binMin": group.low,
                "binMax": group.high,
                "binContains": len(group.examples),
                "qualifyingTokenIndex": one.peak,
                "dataIndex": str(one.row),
            }


def _explanations(page: FeaturePage, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if page.label is not None:
        yield {
            **where,
            "id": f"{where['modelId']}-{where['layer']}-{page.latent}",
            "index": str(page.latent),
            "description": page.label.text,
            "authorId": where["creatorId"],
            "typeName": "manual" if page.label.by == "hand" else "automatic",
            "explanationModelName": page.label.by,
        }


def _peak(one: Example) -> int:
    return max(range(len(one.values)), key=lambda i: one.values[i])


def _layer(index: "FeatureIndex") -> int:
    last = index.manifest.origin.reads[-1].rpartition(".")[2]
    return int(last) if last.isdigit() else 0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _save_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    data = "".join(_json(row) + "\n" for row in rows).encode()
    with write_atomically(path) as file:
        file.write(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
