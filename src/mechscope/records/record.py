"""Record: a result with everything that is needed to compute it again.

Owns: the one saved form of a result, JSON with its arrays as safetensors beside it.
Refuses: a kind that nobody registered, a file that was edited or torn, settings that are not JSON.
Invariant: what `load` returns equals what was saved, bit for bit, or is refused.

The checksum finds accidents and careless edits; somebody who recomputes it can forge a record.
What protects against that is running it again.
"""

# arrays of every dtype pass through here
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mechscope.records.canonical import to_plain
from mechscope.records.files import hash_json, open_json, open_tensors, save_json, save_tensors
from mechscope.records.fingerprint import SHA256, ModelFingerprint, SoftwareVersions, hash_tensors
from mechscope.vocabulary.errors import BadFile, ChecksumMismatch, NotSerializable, RegistrationError

FORMAT = 1
_CLASSES: dict[str, type["Record"]] = {}

# typing.Self is refused by the runtime checks that our tests run under
Kind = TypeVar("Kind", bound="Record")


def now() -> str:
    """This second in UTC, as ISO 8601: "2026-07-01T09:30:00+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Record(BaseModel):
    """Settings, seed, model, software, data and numbers of one result. A subclass names its kind:

        class GridRecord(Record):
            kind: ClassVar[str] = "patch-grid"

    Args:
        settings: What the method was told; JSON.
        seed: Root of the tree of seeds.
        model: Fingerprint of the model it ran on; None for what has no model.
        versions: Software; this process's by default.
        data_sha256: Hash of the prompts or tokens used; None if there were none.
        created: When, ISO 8601.
        numbers: The results; JSON. NaN and infinities are kept.
        arrays: Larger results by name, NumPy; saved beside the JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    kind: ClassVar[str] = "record"

    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    model: ModelFingerprint | None = None
    versions: SoftwareVersions = Field(default_factory=SoftwareVersions.here)
    data_sha256: str | None = Field(default=None, pattern=SHA256)
    created: str = Field(default_factory=now)
    numbers: dict[str, Any] = Field(default_factory=dict)
    arrays: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _register(cls)

    @field_validator("settings", "numbers", mode="before")
    @classmethod
    def _only_json(cls, value: Mapping[str, Any], info: Any) -> Any:
        to_plain(value, str(info.field_name))
        return value

    @field_validator("arrays", mode="after")
    @classmethod
    def _only_frozen_arrays(cls, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: _frozen(name, array) for name, array in arrays.items()}

    @property
    def sha256(self) -> str:
        """The hash of everything in the record: its id."""
        return hash_json(self._body())

    def save(self, path: str | Path) -> None:
        """Write `path` (JSON) and, if there are arrays, the same name with ".safetensors" beside it.

        Both are atomic, and the arrays come first: a crash in between leaves a JSON that refuses
        the arrays, never one that believes them.
        """
        path = Path(path)
        if self.arrays:
            save_tensors(arrays_path(path), self.arrays, {"kind": self.kind})
        save_json(path, self._body() | {"sha256": self.sha256})

    @classmethod
    def load(cls: type[Kind], path: str | Path) -> Kind:
        """Read what `save` wrote, as the class of its kind.

        Raises:
            BadFile: torn, no record, of an unknown kind or format, or of a kind that this class is not.
            ChecksumMismatch: the JSON or the arrays were changed since they were saved.
        """
        path = Path(path)
        body = open_json(path)
        if not isinstance(body, dict) or not {"kind", "format", "sha256"} <= set(body):
            raise BadFile(
                f"{path.name} is not a record.", got=path, because="it has no kind, format and checksum"
            )
        chosen = cls._class_of(path, body["kind"])
        if body["format"] != FORMAT:
            raise BadFile(
                f"{path.name} is of another format.", got=body["format"], instead=f"format {FORMAT}"
            )
        stored = body.pop("sha256")
        if hash_json(body) != stored:
            raise ChecksumMismatch(
                f"{path.name} was changed after it was saved.",
                got=f"sha256 {hash_json(body)[:12]}, on record {str(stored)[:12]}",
                because="the numbers in a record are evidence only as they were written",
                instead="the file as it was saved, or run the settings again",
            )
        return chosen._from_body(path, body)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(other) is type(self) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return int(self.sha256[:15], 16)

    def _body(self) -> dict[str, Any]:
        fields = self.model_dump(exclude={"arrays"})
        described = (
            {"sha256": hash_tensors(self.arrays), "names": sorted(self.arrays)} if self.arrays else None
        )
        return fields | {"kind": self.kind, "format": FORMAT, "arrays": described}

    @classmethod
    def _class_of(cls: type[Kind], path: Path, kind: object) -> type[Kind]:
        chosen = _CLASSES.get(str(kind))
        if chosen is None or not issubclass(chosen, cls):
            wanted = sorted(name for name, known in _CLASSES.items() if issubclass(known, cls))
            raise BadFile(
                f"{path.name} is a record of another kind."
                if chosen
                else f"{path.name} is of an unknown kind.",
                got=f'kind "{kind}"',
                because="a record is opened by the class that knows its settings",
                instead=", ".join(wanted)
                + ("" if chosen else "; or import the module that defines the kind first"),
            )
        return chosen

    @classmethod
    def _from_body(cls: type[Kind], path: Path, body: dict[str, Any]) -> Kind:
        described = body.pop("arrays")
        fields = {name: value for name, value in body.items() if name not in {"kind", "format"}}
        arrays = open_tensors(arrays_path(path)) if described else {}
        if described and hash_tensors(arrays) != described["sha256"]:
            raise ChecksumMismatch(
                f"{arrays_path(path).name} does not belong to {path.name}.",
                got=f"sha256 {hash_tensors(arrays)[:12]}, on record {described['sha256'][:12]}",
                because="the arrays were changed or replaced after the record was saved",
                instead="both files as they were saved together",
            )
        try:
            return cls(**fields, arrays=arrays)
        except ValidationError as error:
            raise BadFile(
                f"{path.name} is not whole.", got=path, because=str(error).replace("\n", " ")
            ) from error


def arrays_path(path: Path) -> Path:
    """Where the arrays of the record at `path` lie."""
    return path.with_suffix(".safetensors")


def _register(cls: type[Record]) -> None:
    if "kind" not in vars(cls):
        raise RegistrationError(
            f"{cls.__name__} has no kind.",
            got=f"{cls.__module__}.{cls.__qualname__}",
            because="its files would be opened as another class",
            instead='kind: ClassVar[str] = "..." in the class',
        )
    known = _CLASSES.get(cls.kind)
    # a notebook cell run twice defines the same class again: that one may replace itself
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise RegistrationError(
            f'The kind "{cls.kind}" is taken.',
            got=f"{cls.__module__}.{cls.__qualname__}",
            because=f"{known.__module__}.{known.__qualname__} saves records of that kind",
            instead="another kind",
        )
    _CLASSES[cls.kind] = cls


def _frozen(name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise NotSerializable(
            f'array "{name}" is no NumPy array.',
            got=type(array).__name__,
            instead="tensor.float().cpu().numpy()",
        )
    copy = array.copy()
    copy.setflags(write=False)
    return copy


_register(Record)
