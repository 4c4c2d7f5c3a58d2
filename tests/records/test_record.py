"""A record comes back equal or is refused."""

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from mechscope.records.files import hash_json, open_json, save_json
from mechscope.records.record import Record, arrays_path
from mechscope.vocabulary.errors import BadFile, ChecksumMismatch, NotSerializable, RegistrationError


class SampleRecord(Record):
    kind: ClassVar[str] = "sample-for-tests"

    n_pairs: int = 0


class OtherRecord(Record):
    kind: ClassVar[str] = "other-for-tests"


def sample() -> SampleRecord:
    return SampleRecord(
        settings={"site": "z", "heads": [1, 2], "dose": 0.4},
        seed=7,
        data_sha256="b" * 64,
        numbers={"effect": 1.25, "interval": [1.0, math.inf], "missing": math.nan},
        arrays={"grid": np.arange(6.0).reshape(2, 3).T},
        n_pairs=3,
    )


def test_a_record_comes_back_equal_and_as_its_own_kind(tmp_path: Path) -> None:
    record = sample()
    record.save(tmp_path / "r.json")
    back = Record.load(tmp_path / "r.json")
    assert type(back) is SampleRecord
    assert back == record
    assert hash(back) == hash(record)
    assert np.array_equal(back.arrays["grid"], record.arrays["grid"])
    assert math.isnan(back.numbers["missing"])
    assert SampleRecord.load(tmp_path / "r.json").n_pairs == 3


def test_records_that_differ_in_one_number_or_one_array_are_not_equal() -> None:
    record = sample()
    assert record != record.model_copy(update={"seed": 8})
    assert record != record.model_copy(update={"arrays": {"grid": np.zeros((3, 2))}})
    assert record != "something else"


@pytest.mark.parametrize("field", ["numbers", "seed", "n_pairs", "settings"])
def test_an_edited_file_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "r.json"
    sample().save(path)
    body = dict(open_json(path))  # pyright: ignore
    body[field] = {"effect": 9.0} if isinstance(body[field], dict) else 99
    save_json(path, body)
    with pytest.raises(ChecksumMismatch, match="was changed after it was saved"):
        Record.load(path)


def test_exchanged_arrays_are_refused(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.json")
    SampleRecord(arrays={"grid": np.ones((3, 2))}).save(tmp_path / "b.json")
    arrays_path(tmp_path / "b.json").replace(arrays_path(tmp_path / "a.json"))
    with pytest.raises(ChecksumMismatch, match="does not belong"):
        Record.load(tmp_path / "a.json")
    with pytest.raises(BadFile):
        Record.load(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "no-such-kind"}, "unknown kind"),
        ({"format": 2}, "another format"),
        ({"n_pairs": "many"}, "not whole"),
    ],
)
def test_a_file_of_another_kind_format_or_shape_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "r.json"
    SampleRecord().save(path)
    body = dict(open_json(path)) | change  # pyright: ignore
    del body["sha256"]
    save_json(path, body | {"sha256": hash_json(body)})
    with pytest.raises(BadFile, match=words):
        Record.load(path)


def test_a_record_of_one_kind_does_not_open_as_another(tmp_path: Path) -> None:
    sample().save(tmp_path / "r.json")
    with pytest.raises(BadFile, match="another kind") as refusal:
        OtherRecord.load(tmp_path / "r.json")
    assert refusal.value.instead == "other-for-tests"


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_other_json_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadFile, match="not a record"):
        Record.load(tmp_path / "r.json")


def test_live_objects_are_refused_by_name() -> None:
    with pytest.raises(NotSerializable, match=r"settings\.model"):
        Record(settings={"model": object()})
    with pytest.raises(NotSerializable, match='array "grid"'):
        Record(arrays={"grid": [1, 2]})


def test_a_record_and_its_arrays_do_not_change() -> None:
    source = np.zeros(2)
    record = Record(arrays={"a": source})
    source[0] = 1
    assert record.arrays["a"][0] == 0
    with pytest.raises(ValueError, match="read-only"):
        record.arrays["a"][0] = 1
    with pytest.raises(ValidationError, match="frozen"):
        record.seed = 3  # pyright: ignore


def test_a_kind_is_registered_once_and_never_half() -> None:
    with pytest.raises(RegistrationError, match="is taken"):
        type("Thief", (Record,), {"kind": "sample-for-tests", "__annotations__": {"kind": ClassVar[str]}})
    with pytest.raises(RegistrationError, match="has no kind"):
        type("Nameless", (Record,), {})
