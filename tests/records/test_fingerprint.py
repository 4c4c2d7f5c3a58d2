"""The hash of weights depends on names, types, shapes and bits, and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mechscope.records.fingerprint import (
    ModelFingerprint,
    SoftwareVersions,
    hash_each_tensor,
    hash_tensors,
    version_of,
)
from mechscope.vocabulary.errors import NotSerializable

HASH = "a" * 64


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(True),
        "d": torch.empty(0, 3),
    }


def test_order_layout_framework_and_gradients_change_nothing() -> None:
    plain = weights()
    expected = hash_tensors(plain)
    assert hash_tensors(dict(reversed(plain.items()))) == expected
    assert hash_tensors(plain | {"a": plain["a"].T.contiguous().T}) == expected
    assert hash_tensors(plain | {"a": torch.nn.Parameter(plain["a"])}) == expected
    assert hash_tensors(plain | {"a": plain["a"].numpy(), "c": np.array(True)}) == expected
    assert hash_tensors(plain | {"a": plain["a"].numpy().astype(">f4")}) == expected


@pytest.mark.parametrize("change", ["bit", "name", "shape", "dtype", "missing", "sign of zero"])
def test_every_change_changes_the_hash(change: str) -> None:
    plain = {"a": torch.zeros(2, 6), "b": torch.ones(3)}
    bit = torch.zeros(2, 6)
    bit.view(torch.int32)[1, 5] = 1
    other = {
        "bit": plain | {"a": bit},
        "name": {"a": plain["a"], "b2": plain["b"]},
        "shape": plain | {"a": torch.zeros(6, 2)},
        "dtype": plain | {"a": torch.zeros(2, 6, dtype=torch.int32)},
        "missing": {"a": plain["a"]},
        "sign of zero": plain | {"a": -plain["a"]},
    }[change]
    assert hash_tensors(other) != hash_tensors(plain)


def test_a_large_tensor_is_hashed_to_its_last_byte() -> None:
    large = torch.zeros(9_000_000)
    before = hash_tensors({"a": large})
    large[-1] = 1
    assert hash_tensors({"a": large}) != before


def test_the_hash_of_each_tensor_says_which_one_was_edited() -> None:
    before, edited = weights(), weights()
    edited["b"][2] += 1
    one, two = hash_each_tensor(before), hash_each_tensor(edited)
    assert [name for name in one if one[name] != two[name]] == ["b"]


def test_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(NotSerializable, match="has no values"):
        hash_tensors({"a": torch.empty(2, device="meta")})
    with pytest.raises(NotSerializable, match="can't be hashed"):
        hash_tensors({"a": np.array(["x"])})


def fingerprint(**changes: object) -> ModelFingerprint:
    fields = {
        "name": "village", "family": "llama", "dtype": "float32", "weights_sha256": HASH, "n_parameters": 3,
        "config_sha256": HASH,
    }  # fmt: skip
    return ModelFingerprint.model_validate(fields | changes)


def test_two_fingerprints_name_their_differences() -> None:
    assert fingerprint().differences(fingerprint()) == []
    assert fingerprint().differences(fingerprint(weights_sha256="b" * 64, dtype="bfloat16")) == [
        "dtype",
        "weights_sha256",
    ]


@pytest.mark.parametrize("change", [{"weights_sha256": "abc"}, {"n_parameters": -1}, {"layers": 3}])
def test_an_impossible_fingerprint_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        fingerprint(**change)


def test_versions_are_those_of_this_process() -> None:
    versions = SoftwareVersions.here()
    assert versions.torch == torch.__version__
    assert versions.numpy == np.__version__
    assert versions.python == ".".join(map(str, sys.version_info[:3]))
    assert version_of("no-such-package-anywhere") is None


def test_records_import_no_torch() -> None:
    code = (
        "import sys, mechscope.records.record, mechscope.records.seeds, mechscope.figures;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'plotly', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
