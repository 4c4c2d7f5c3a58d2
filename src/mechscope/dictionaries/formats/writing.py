"""Writing in foreign formats: what of a dictionary another library can hold, and the refusal of what it can't.

Other formats have no place for an input scale beside the weights, so a normalisation that can be folded is folded
first; the function is the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.records.files import save_json, save_tensors
from mechscope.vocabulary.errors import DictionaryError


def plainly(dictionary: Dictionary, format: str, *, kinds: tuple[str, ...] = ("sae",)) -> Dictionary:
    """The dictionary as it can be written: of one of `kinds`, without a normalisation beside the weights.

    Raises:
        DictionaryError: the format holds no such dictionary.
    """
    if dictionary.kind not in kinds:
        raise cannot_write(format, f"a {dictionary.kind}", f"it holds {' and '.join(kinds)} only")
    norm = dictionary.settings.normalization
    if norm.is_per_token:
        raise cannot_write(
            format, f'inputs normalised by "{norm.rule}"', "it does not normalise token by token"
        )
    return dictionary.folded() if norm.is_pending else dictionary


def cannot_write(format: str, what: str, because: str) -> DictionaryError:
    """The refusal to write something in a format that would hold something else."""
    return DictionaryError(
        f"{format} can't hold this dictionary.",
        got=what,
        because=because,
        instead="dictionary.save(path), our own format, which holds everything",
    )


def write_folder(
    folder: str | Path,
    *,
    weights: str,
    tensors: Mapping[str, Tensor],
    config: str,
    settings: Mapping[str, Any],
) -> None:
    """Tensors as safetensors and settings as JSON, each whole or absent; the settings come last."""
    folder = Path(folder)
    save_tensors(folder / weights, {name: one.detach().contiguous() for name, one in tensors.items()})
    save_json(folder / config, dict(settings))


def notes_of(dictionary: Dictionary) -> Mapping[str, Any]:
    """What else is on record about where a dictionary comes from."""
    return dictionary.settings.source.notes
