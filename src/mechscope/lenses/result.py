"""LensResult: the frozen form of what a lens saw, and how it is saved. Holds labelled arrays, never the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mechscope.figures.labelled import KIND, LabelledArray
from mechscope.models.inputs import TokenBatch
from mechscope.records.fingerprint import ModelFingerprint, hash_tensors
from mechscope.records.record import Record
from mechscope.vocabulary.errors import BadFile

# typing.Self is refused by the runtime checks that our tests run under
Seen = TypeVar("Seen", bound="LensResult")


class LensRecord(Record):
    """A saved `LensResult`; the setting "lens" says which."""

    kind: ClassVar[str] = "lens"


@dataclass(frozen=True, kw_only=True)
class LensResult:
    """Base of what lenses return. Abstract: a subclass names itself and adds its arrays as fields.

    Args:
        settings: What the lens was told, as JSON.
        model: Which weights.
        data_sha256: Hash of the prompts.
    """

    lens: ClassVar[str] = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def save(self, path: str | Path) -> None:
        """Write a record: JSON at `path`."""
        numbers = {
            spec.name: _to_json(getattr(self, spec.name)) for spec in fields(self) if spec.name not in _FACTS
        }
        LensRecord(
            settings={"lens": self.lens, **self.settings},
            seed=int(self.settings.get("seed", 0)),
            model=self.model,
            data_sha256=self.data_sha256,
            numbers=numbers,
        ).save(path)

    @classmethod
    def load(cls: type[Seen], path: str | Path) -> Seen:
        """Read what `save` wrote.

        Raises:
            BadFile: what another lens saw.
        """
        record = LensRecord.load(path)
        settings = dict(record.settings)
        lens = settings.pop("lens")
        if lens != cls.lens:
            raise BadFile(
                f"{Path(path).name} was saved by another lens.",
                got=lens,
                because=f"this class opens {cls.lens}",
            )
        arrays = {name: _from_json(saved) for name, saved in record.numbers.items()}
        return cls(**arrays, settings=settings, model=record.model, data_sha256=record.data_sha256)


_FACTS = {spec.name for spec in fields(LensResult)}


def hash_of(batch: TokenBatch) -> str:
    """SHA-256 of the prompts' real tokens, the same however they are padded."""
    import torch

    return hash_tensors({str(row): torch.tensor(batch.row(row)) for row in range(len(batch))})


def mean_over_prompts(array: LabelledArray) -> LabelledArray:
    """The mean over the last axis, the prompts."""
    dims = array.dims[:-1]
    return LabelledArray(
        array.values.mean(-1),
        dims,
        coords={dim: array.coords[dim] for dim in dims},
        texts=array.texts,
        unit=array.unit,
        title=array.title,
        conventions=array.conventions,
    )


def _to_json(value: Any) -> Any:
    return value.to_json() if isinstance(value, LabelledArray) else value


def _from_json(saved: Any) -> Any:
    is_array = isinstance(saved, dict) and saved.get("kind") == KIND
    return LabelledArray.from_json(saved) if is_array else saved
