"""Fingerprints: which weights, which software. What two people compare before they compare numbers.

Owns: the hash of a set of named arrays, the model's fingerprint, the list of versions.
Invariant: the hash depends on names, dtypes, shapes and bits only: not on order, device, memory layout,
framework or file format. One changed bit changes it.
"""

import hashlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mechscope.records.files import Array, is_torch
from mechscope.vocabulary.errors import NotSerializable

PIECE_BYTES = 1 << 24
SHA256 = r"^[0-9a-f]{64}$"


class ModelFingerprint(BaseModel):
    """Which model, exactly: equal fingerprints mean equal weights, in equal precision, equally wired.

    Args:
        name: As it was opened: a bundled name, a hub id or a folder's name.
        family: The adapter that opened it.
        revision: The checkpoint's commit or version, "" if it has none.
        dtype: In which it was run, such as "float32".
        weights_sha256: `hash_tensors` of its state, as run.
        n_parameters: Tied weights counted once.
        config_sha256: `hash_json` of its configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    revision: str = ""
    dtype: str
    weights_sha256: str = Field(pattern=SHA256)
    n_parameters: int = Field(ge=0)
    config_sha256: str = Field(pattern=SHA256)

    def differences(self, other: "ModelFingerprint") -> list[str]:
        """The fields in which two fingerprints differ, by name; empty if they are one model."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]


class SoftwareVersions(BaseModel):
    """Versions of what computes the numbers; None where a package is not installed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str
    mechscope: str | None = None
    torch: str | None = None
    transformers: str | None = None
    numpy: str | None = None

    @classmethod
    def here(cls) -> "SoftwareVersions":
        """The versions in this process, read from package metadata: imports none of them."""
        packages = [name for name in cls.model_fields if name != "python"]
        return cls(python=platform.python_version(), **{name: version_of(name) for name in packages})


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hash_tensors(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over named arrays, as 64 hexadecimal digits; see the module for what it depends on.

    Args:
        tensors: NumPy arrays or torch tensors of any dtype, bfloat16 included, on any device.

    Raises:
        NotSerializable: an array of objects or text, or a tensor without storage (device "meta").

    Cost: reads every byte once, in pieces; one tensor at a time is copied to the CPU if it lies elsewhere.
    """
    whole = hashlib.sha256()
    for name, digest in hash_each_tensor(tensors).items():
        whole.update(f"{len(name.encode())}:{name}={digest}\n".encode())
    return whole.hexdigest()


def hash_each_tensor(tensors: Mapping[str, Array]) -> dict[str, str]:
    """SHA-256 of each array alone, sorted by name: which of a model's tensors an edit has changed."""
    return {name: _digest(name, tensors[name]) for name in sorted(tensors)}


def _digest(name: str, tensor: Array) -> str:
    data, dtype = _torch_bytes(name, tensor) if is_torch(tensor) else _numpy_bytes(name, tensor)
    digest = hashlib.sha256(f"{dtype}{list(np.shape(tensor))}".encode())
    for start in range(0, data.size, PIECE_BYTES):
        digest.update(data[start : start + PIECE_BYTES].data)
    return digest.hexdigest()


def _torch_bytes(name: str, tensor: Array) -> tuple[np.ndarray, str]:
    torch = sys.modules["torch"]
    if tensor.is_meta:
        raise NotSerializable(
            f'tensor "{name}" has no values.',
            got='device "meta"',
            because="the model's weights were not loaded",
            instead="a model opened with its weights",
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return data, str(tensor.dtype).removeprefix("torch.")


def _numpy_bytes(name: str, array: Array) -> tuple[np.ndarray, str]:
    array = np.asarray(array)
    if array.dtype.kind not in "fiubc":
        raise NotSerializable(
            f'array "{name}" can\'t be hashed.', got=f"dtype {array.dtype}", instead="numbers"
        )
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = np.ascontiguousarray(little).reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
    return data, array.dtype.name
