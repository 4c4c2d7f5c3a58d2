"""Dictionaries and indexes of a bundled model are made by one command, and come out the same when made again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from features.cases import dictionary_of, model_of, texts
from mechscope.dictionaries.evaluation.run import evaluate
from mechscope.features.building import compact
from mechscope.features.cards import is_measured, open_card, save_card, save_table
from mechscope.features.index import FeatureIndex
from mechscope.features.shipping import Shipment, build_bundled, rounded
from mechscope.features.statistics import Statistics, narrowed


def test_a_rounded_dictionary_is_kept_in_half_its_bytes_and_loses_nothing() -> None:
    plain = dictionary_of("topk").to(dtype=torch.float32)
    assert compact(plain).dtype == torch.float32
    half = rounded(plain)
    assert half.dtype == torch.float32 and compact(half).dtype == torch.float16
    for name, tensor in half.tensors.items():
        assert torch.equal(compact(half).tensors[name].float(), tensor)
        assert torch.allclose(tensor, plain.tensors[name], rtol=1e-3, atol=1e-6)


def test_a_card_tells_what_was_measured_and_on_which_text(tmp_path: Path) -> None:
    model, dictionary = model_of(), dictionary_of("topk")
    evaluation = evaluate(dictionary, model, texts(12))
    card = save_card(tmp_path, dictionary, evaluation, text={"n_documents": 12, "seed": 0})
    assert open_card(tmp_path) == json.loads(json.dumps(card))
    assert card["figures"]["l0"]["value"] == pytest.approx(evaluation["l0"].value, rel=1e-5)
    dead = card["figures"]["dead"]
    assert dead["low"] <= dead["value"] <= dead["high"]
    assert card["text"]["data_sha256"] == evaluation.data_sha256
    save_table(tmp_path / "README.md", {"resid_post.1": card}, model="tiny", command="make it")
    assert "| `resid_post.1` | 24 |" in (tmp_path / "README.md").read_text()
    assert open_card(tmp_path / "elsewhere") is None
    assert is_measured(tmp_path, dictionary, text={"n_documents": 12, "seed": 0})
    assert not is_measured(tmp_path, dictionary, text={"n_documents": 12, "seed": 1})
    assert not is_measured(tmp_path, dictionary_of("relu"), text={"n_documents": 12, "seed": 0})


def test_statistics_come_back_as_they_were_kept() -> None:
    counts = np.array([[0, 3], [70_000, 1]])
    assert narrowed(counts).dtype == np.int32 and narrowed(counts[:1]).dtype == np.uint16
    kept = Statistics.nothing(4).with_entries(np.ones(3), np.array([0, 1, 1, 3, 3]), 9)
    again = Statistics.from_arrays(kept.arrays())
    for name, array in again.arrays().items():
        assert np.array_equal(array, kept.arrays()[name]), name
    assert again.histogram.dtype == np.int64 and kept.arrays()["histogram"].dtype == np.uint16


@pytest.mark.slow
def test_a_shipment_is_deterministic_and_opens_with_its_model(tmp_path: Path) -> None:
    import mechscope as ms

    sizes = {"n_documents": 400, "n_tokens": 9000, "batch": 1024, "n_indexed": 20, "n_measured": 15}
    tiny = Shipment(width=64, k=4, n_labels=3, **sizes)
    for name in ("a", "b"):
        build_bundled("village", out=tmp_path / name, work=tmp_path / f"work-{name}", shipment=tiny)
    for path in (tmp_path / "a").rglob("*"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        if path.is_file() and path.name != "labels.json":  # which says when
            assert path.read_bytes() == other.read_bytes(), path
    card = open_card(tmp_path / "a" / "mlp.1")
    assert card is not None and card["reads"] == ["mlp_in.1"] and card["figures"]["fvu"]["value"] < 1.5
    assert "| `mlp.1` | 64 |" in (tmp_path / "a" / "README.md").read_text()
    index = FeatureIndex(tmp_path / "a" / "mlp.1").attached(ms.load("village"))
    assert len(index.labels) == 3 and index.search("the").hits and index[0].promoted is not None
