"""Files that are whole or absent: atomic writes, JSON, safetensors, checksums.

Owns: how anything of ours gets onto a disk and back.
Refuses: pickles, torn or foreign files, JSON with duplicate keys.
Invariant: a reader sees the old file or the new one, never a part of it; an exception while
writing, a full disk's too, leaves the old file as it was and nothing else in the folder.
"""

# safetensors and torch ship partial types
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from mechscope.records.canonical import Json, canonical_json, from_plain, hash_json, readable_json
from mechscope.records.pickles import refuse_unless_file, refuse_unless_safe
from mechscope.vocabulary.errors import BadFile, DiskFull, NotSerializable

__all__ = [
    "append_line",
    "canonical_json",
    "hash_json",
    "is_full_disk",
    "open_json",
    "open_tensor_metadata",
    "open_tensors",
    "refuse_unless_safe",
    "save_json",
    "save_tensors",
    "save_text",
    "sha256_of",
    "write_atomically",
]

METADATA_KEY = "mechscope"

Array = Any  # a NumPy array or a torch tensor: this floor names torch only where it is given one


@contextmanager
def write_atomically(path: str | Path, mode: Literal["w", "wb"] = "wb") -> Generator[IO[Any], None, None]:
    """Open `path` for writing; it appears, whole, only when the block ends without an exception.

    Missing folders are made. Text is UTF-8 with "\\n". A link is written through; an existing
    file keeps its permissions.

    Raises:
        DiskFull: no room; the old file stands.

    Cost: one fsync of the file and one of its folder.
    """
    with _replacing(Path(path)) as temporary:
        is_text = mode == "w"
        with temporary.open(
            mode, encoding="utf-8" if is_text else None, newline="\n" if is_text else None
        ) as file:
            yield file


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a log, as UTF-8; missing folders are made.

    Raises:
        DiskFull: no room; the lines before still stand, this one may be torn.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        if is_full_disk(error):
            raise _no_room(path, error) from error
        raise


def save_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically: a report's HTML, a table."""
    with write_atomically(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


def save_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as readable, sorted JSON, atomically.

    Raises:
        NotSerializable: before anything is written; the message names the path to the offender.
    """
    text = readable_json(value)
    with write_atomically(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def open_json(path: str | Path) -> Json:
    """Read what `save_json` wrote; any strict JSON file will do.

    Raises:
        BadFile: missing, torn, not UTF-8, not JSON, a key twice, or a bare NaN.
        UnsafeFile: a pickle.
    """
    path = Path(path)
    refuse_unless_safe(path)
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_refuse_duplicate_keys,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise BadFile(
            f"{path.name} is not whole JSON.",
            got=path,
            because=str(error),
            instead="the file as it was saved; write it again if it was cut off or edited",
        ) from error
    return from_plain(value)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, object] | None = None
) -> None:
    """Write named arrays to `path` as safetensors, atomically.

    Args:
        path: The file; by custom it ends in ".safetensors".
        tensors: NumPy arrays or torch tensors, also mixed, in any memory layout and on any device.
        metadata: Any JSON. It is stored as one canonical text, so equal input gives equal bytes.

    Raises:
        NotSerializable: an array of objects or text, or metadata that is not JSON.

    Cost: a copy of what is not contiguous or not on the CPU.
    """
    header = {METADATA_KEY: canonical_json(dict(metadata or {}))}
    with _replacing(Path(path)) as temporary:
        if any(is_torch(value) for value in tensors.values()):
            from safetensors.torch import save_file

            save_file(_torch_tensors(tensors), temporary, metadata=header)
        else:
            from safetensors.numpy import save_file

            save_file(
                {name: _plain_array(name, value) for name, value in tensors.items()},
                temporary,
                metadata=header,
            )


def open_tensors(path: str | Path, framework: Literal["numpy", "torch"] = "numpy") -> dict[str, Array]:
    """Read the arrays of a safetensors file, by name.

    Raises:
        BadFile: missing, torn, not safetensors, or a dtype that NumPy has not (bfloat16): ask for torch.
        UnsafeFile: a pickle.
    """
    path = Path(path)
    with _open_safetensors(path, "np" if framework == "numpy" else "pt") as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (TypeError, AttributeError) as error:
            raise BadFile(
                f"{path.name} holds a dtype that NumPy has not.",
                got=error,
                because="bfloat16 and the 8-bit floats exist only in torch",
                instead='open_tensors(path, framework="torch")',
            ) from error


def open_tensor_metadata(path: str | Path) -> dict[str, Json]:
    """The metadata of a safetensors file, without reading its arrays; a foreign file's as it stands."""
    path = Path(path)
    with _open_safetensors(path, "np") as file:
        header = dict(file.metadata() or {})
    if set(header) != {METADATA_KEY}:
        return header
    try:
        return from_plain(json.loads(header[METADATA_KEY]))  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise BadFile(
            f"{path.name} has broken metadata.", got=header[METADATA_KEY][:80], because=str(error)
        ) from error


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits; reads it in pieces."""
    path = Path(path)
    refuse_unless_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_torch(value: object) -> bool:
    """True for a torch tensor. Imports nothing: where torch was never imported there is no tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@contextmanager
def _replacing(path: Path) -> Generator[Path, None, None]:
    """A new, empty file beside `path`; it takes `path`'s place when the block ends well."""
    path = path.resolve()
    if path.is_dir():
        raise BadFile(f"{path.name} is a folder.", got=path, instead="the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    permissions = path.stat().st_mode & 0o777 if path.exists() else 0o666
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, permissions))
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_full_disk(error):
            raise _no_room(path, error) from error
        raise
    if os.name == "posix":
        _sync(path.parent, os.O_RDONLY)


def _no_room(path: Path, error: BaseException) -> DiskFull:
    return DiskFull(
        f"There is no room for {path.name}.",
        got=str(error),
        because="what stood there before still stands, and no half-written file is left",
        instead="make room and run the same again: what resumes goes on from there",
    )


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception is a full disk's, or a full quota's."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ == "SafetensorError" and "No space left" in str(error)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _open_safetensors(path: Path, framework: str) -> Generator[Any, None, None]:
    from safetensors import SafetensorError, safe_open

    refuse_unless_safe(path)
    try:
        file = safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        raise BadFile(
            f"{path.name} is not a whole safetensors file.",
            got=path,
            because=str(error),
            instead="the file as it was saved; fetch or write it again if it was cut off",
        ) from error
    with file as opened:
        yield opened


def _plain_array(name: str, value: object) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise NotSerializable(
            f'array "{name}" can\'t be saved.',
            got=f"dtype {array.dtype}",
            because="safetensors holds real numbers and booleans",
            instead="save_json for text; the real and imaginary part of a complex array apart",
        )
    # safetensors writes the buffer as it lies: a transposed or big-endian array would come back wrong
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _torch_tensors(tensors: Mapping[str, Array]) -> dict[str, Array]:
    import torch

    plain: dict[str, Array] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = (
            value if isinstance(value, torch.Tensor) else torch.from_numpy(_plain_array(name, value).copy())
        )
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights, slices): each gets its own
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def _refuse_duplicate_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) != len(keys) else []
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands there twice")
    return dict(pairs)


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")
