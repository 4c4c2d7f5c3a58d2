"""Our own format: a folder with `dictionary.json` (settings, hash of the tensors) and `dictionary.safetensors`.

Self-describing: gate rule, normalisation and whether it is folded, what is read and written, and where the
dictionary comes from all stand in the JSON. Refuses tensors that are not the ones that were saved.
"""

from pathlib import Path

from mechscope.dictionaries.dictionary import Dictionary
from mechscope.dictionaries.settings import settings_from_json
from mechscope.records.files import open_json, open_tensors, save_json, save_tensors
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import BadFile, ChecksumMismatch

FORMAT = "mechscope dictionary 1"
_JSON, _TENSORS = "dictionary.json", "dictionary.safetensors"


def save_dictionary(dictionary: Dictionary, path: str | Path) -> None:
    """Write a folder that `open_saved` reads. The tensors come first, and the JSON names their hash."""
    folder = Path(path)
    tensors = {name: tensor.detach().contiguous() for name, tensor in dictionary.tensors.items()}
    save_tensors(folder / _TENSORS, tensors)
    save_json(
        folder / _JSON,
        {
            "format": FORMAT,
            "kind": dictionary.kind,
            "settings": dictionary.settings.to_json(),
            "tensors_sha256": hash_tensors(tensors),
        },
    )


def is_ours(path: str | Path) -> bool:
    """Whether a folder holds a dictionary of ours."""
    return (Path(path) / _JSON).is_file()


def open_saved(path: str | Path) -> Dictionary:
    """Read what `save_dictionary` wrote.

    Raises:
        BadFile: torn, or of another format.
        ChecksumMismatch: the tensors are not the ones that were saved.
    """
    folder = Path(path)
    saved = open_json(folder / _JSON)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise BadFile(
            f"{folder.name} is not a dictionary of this format.",
            got=saved.get("format") if isinstance(saved, dict) else type(saved).__name__,
            because=f'we read "{FORMAT}"',
            instead="a newer mechscope, or ms.dictionaries.open for foreign formats",
        )
    tensors = open_tensors(folder / _TENSORS, framework="torch")
    if (found := hash_tensors(tensors)) != saved["tensors_sha256"]:
        raise ChecksumMismatch(
            f"{_TENSORS} does not belong to {_JSON}.",
            got=f"sha256 {found[:12]}, on record {str(saved['tensors_sha256'])[:12]}",
            because="the tensors were changed or replaced after the dictionary was saved",
            instead="both files as they were saved together",
        )
    return Dictionary(settings_from_json(saved["settings"]), tensors)
