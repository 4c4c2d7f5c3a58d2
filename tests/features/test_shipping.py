"""Dictionaries and indexes of a bundled model are made by one command, and come out the same when made again."""

from pathlib import Path

import pytest
import torch

from features.cases import dictionary_of
from mechscope.features.building import compact
from mechscope.features.index import FeatureIndex
from mechscope.features.shipping import Shipment, build_bundled, rounded


def test_a_rounded_dictionary_is_kept_in_half_its_bytes_and_loses_nothing() -> None:
    plain = dictionary_of("topk").to(dtype=torch.float32)
    assert compact(plain).dtype == torch.float32
    half = rounded(plain)
    assert half.dtype == torch.float32 and compact(half).dtype == torch.float16
    for name, tensor in half.tensors.items():
        assert torch.equal(compact(half).tensors[name].float(), tensor)
        assert torch.allclose(tensor, plain.tensors[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_shipment_is_deterministic_and_opens_with_its_model(tmp_path: Path) -> None:
    import mechscope as ms

    tiny = Shipment(width=64, k=4, n_documents=400, n_tokens=9000, n_indexed=20, n_labels=3)
    for name in ("a", "b"):
        build_bundled("village", out=tmp_path / name, work=tmp_path / f"work-{name}", shipment=tiny)
    for path in (tmp_path / "a").rglob("*"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        if path.is_file() and path.name != "labels.json":  # which says when
            assert path.read_bytes() == other.read_bytes(), path
    index = FeatureIndex(tmp_path / "a" / "mlp.1").attached(ms.load("village"))
    assert len(index.labels) == 3 and index.search("the").hits and index[0].promoted is not None
