"""Foreign files: tensors from safetensors, npz and torch pickles, settings from JSON and YAML; nothing runs.

A pickle is read with `weights_only=True` or refused; npz without pickled objects; YAML by the safe loader.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechscope.records.files import open_json, open_tensors
from mechscope.records.pickles import refuse_unless_file
from mechscope.vocabulary.errors import BadFile, DictionaryError, UnsafeFile


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadFile: missing, torn, or something else than an object.
    """
    value = open_json(path)
    if not isinstance(value, dict):
        raise BadFile(f"{path.name} holds no settings.", got=type(value).__name__, instead="a JSON object")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read without constructing objects."""
    import yaml

    refuse_unless_file(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise BadFile(f"{path.name} is not whole YAML.", got=path, because=str(error)) from error
    if not isinstance(value, dict):
        raise BadFile(f"{path.name} holds no settings.", got=type(value).__name__, instead="a YAML mapping")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Named torch tensors."""
    return open_tensors(path, "torch")


def tensor_names(path: Path) -> set[str]:
    """Names in a safetensors file, from its header alone; none if it is no such file."""
    if not path.is_file():
        return set()
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return set()


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of an npz archive; object arrays are refused.

    Raises:
        BadFile: missing, torn, or with pickled objects.
    """
    refuse_unless_file(path)
    try:
        # numpy leaves a file that it opened itself open when the archive is torn
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name].copy()) for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadFile(
            f"{path.name} is not a whole archive of arrays.", got=path, because=str(error)
        ) from error


def read_pickle(path: Path) -> dict[str, Any]:
    """A torch checkpoint of tensors and plain values, read with `weights_only=True`.

    Raises:
        UnsafeFile: it would have to run code.
        BadFile: missing, torn, or something else than a mapping.
    """
    refuse_unless_file(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UnsafeFile(
            f"{path.name} holds more than tensors.",
            got=path,
            because=f"opening it would run code of its author: {str(error).splitlines()[0][:200]}",
            instead="the same weights as safetensors, from somebody who trusts the file",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise BadFile(f"{path.name} is not a whole checkpoint.", got=path, because=str(error)) from error
    if not isinstance(value, Mapping):
        raise BadFile(
            f"{path.name} holds no named tensors.",
            got=type(value).__name__,
            because="its format is a mapping from names to tensors",
        )
    return dict(value)


def take(tensors: Mapping[str, Tensor], *names: str, path: Path) -> list[Tensor]:
    """Tensors by name.

    Raises:
        BadFile: one is missing; the message lists what is there.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise BadFile(
            f"{path.name} lacks {', '.join(missing)}.",
            got=", ".join(sorted(map(str, tensors))),
            because="its format keeps the dictionary under these names",
        )
    return [tensors[name] for name in names]


def refuse_others(tensors: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Refuse tensors that nothing here would use: they would be dropped silently.

    Raises:
        DictionaryError
    """
    others = sorted(set(tensors) - known)
    if others:
        raise DictionaryError(
            f"{path.name} holds tensors that its format does not explain.",
            got=", ".join(others),
            because="whatever they do to codes or reconstructions would be dropped silently",
            instead="a file of the plain format, or fold them into the weights first",
        )


def refuse_shape(name: str, tensor: Tensor, shape: tuple[int, ...], path: Path) -> None:
    """Refuse a tensor of another shape than the settings beside it say.

    Raises:
        BadFile
    """
    if tuple(tensor.shape) != shape:
        raise BadFile(
            f"{name} in {path.name} has another shape than its settings say.",
            got=list(tensor.shape),
            because=f"the settings make it {list(shape)}",
            instead="the weights and the settings that were saved together",
        )


def in_one_dtype(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors contiguous and in the decoder's dtype; thresholds in others are often kept in double."""
    dtype = next(tensor.dtype for name, tensor in tensors.items() if name.startswith("W_dec"))
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
