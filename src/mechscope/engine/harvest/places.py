"""Places: a local folder or an address behind fsspec, for whole files only.

Files appear whole or not at all: locally by renaming, elsewhere because object stores do.
"""

from pathlib import Path
from typing import Any

from mechscope.records.files import write_atomically
from mechscope.vocabulary.errors import OptionalPackageMissing


class Place:
    """A folder on this machine."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        with write_atomically(self.path / name) as file:
            file.write(data)


class RemotePlace(Place):
    """A folder behind fsspec, such as "s3://bucket/name" or "memory://name"."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address.rstrip("/")
        self._files: Any = _filesystem(address)

    def __str__(self) -> str:
        return self.address

    def has(self, name: str) -> bool:
        return bool(self._files.isfile(f"{self.address}/{name}"))

    def read(self, name: str) -> bytes:
        return self._files.cat_file(f"{self.address}/{name}")

    def write(self, name: str, data: bytes) -> None:
        self._files.makedirs(self.address, exist_ok=True)
        self._files.pipe_file(f"{self.address}/{name}", data)


def place_of(folder: str | Path) -> Place:
    """The place that a path or an address means."""
    return RemotePlace(str(folder)) if "://" in str(folder) else Place(folder)


def _filesystem(address: str) -> Any:
    try:
        import fsspec

        return fsspec.url_to_fs(address)[0]
    except ImportError as error:
        raise OptionalPackageMissing(
            f"{address} needs a package that is not installed.",
            got=str(error),
            instead="pip install fsspec s3fs",
        ) from error
