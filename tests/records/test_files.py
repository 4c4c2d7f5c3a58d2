"""Files are whole or absent, come back as they were, and are refused when they could run code."""

import errno
import json
import math
import os
import pickle
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechscope.records.canonical import from_plain, readable_json
from mechscope.records.files import (
    canonical_json,
    hash_json,
    open_json,
    open_tensor_metadata,
    open_tensors,
    refuse_unless_safe,
    save_json,
    save_tensors,
    save_text,
    sha256_of,
    write_atomically,
)
from mechscope.vocabulary.errors import BadFile, DiskFull, NotSerializable, UnsafeFile

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_text(path, "old")
    with pytest.raises(RuntimeError, match="halfway"), write_atomically(path) as file:
        file.write(b"ne")
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["result.json"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    save_text(path, "old")
    with write_atomically(path, "w") as file:
        file.write("new\n")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == b"new\n"


def test_missing_folders_are_made_and_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    save_text(path, "1")
    path.chmod(0o640)
    save_text(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    save_text(target, "old")
    link.symlink_to(target)
    save_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_folder_is_refused_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is a folder"):
        save_text(tmp_path, "x")
    with pytest.raises(BadFile, match="not a file"):
        open_json(tmp_path)


@given(VALUES)
def test_what_is_written_as_json_comes_back_equal(value: object) -> None:
    if isinstance(value, dict) and set(value) == {"$float"}:
        return
    assert from_plain(json.loads(readable_json(value))) == value
    assert from_plain(json.loads(canonical_json(value))) == value


def test_nan_and_infinities_survive_a_file_that_is_still_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_json(path, {"x": [math.nan, math.inf, -math.inf, -0.0, 0.1]})
    back = open_json(path)["x"]  # pyright: ignore
    assert math.isnan(back[0])
    assert back[1:] == [math.inf, -math.inf, 0.0, 0.1]
    assert math.copysign(1, back[3]) == -1
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not strict JSON"))


def test_the_hash_depends_on_the_value_and_not_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": (2, 3)}) == hash_json({"b": [2, 3], "a": np.int64(1)})
    assert hash_json({"a": 1}) != hash_json({"a": 1.0000000000000002})
    assert canonical_json({"b": [1.5, True, None], "a": "é"}) == '{"a":"\\u00e9","b":[1.5,true,null]}'


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", ["\ud800", "é↵"])
    assert open_json(tmp_path / "a.json") == ["\ud800", "é↵"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {"b": object()}]}, r"value\.a\[1\]\.b"),
        ({1: 2}, "key that is not text"),
        ({"a": np.zeros(3)}, "save_tensors"),
        ({"$float": 1}, "our own escape"),
        ({"a": {1, 2}}, "set"),
    ],
)
def test_what_is_not_json_is_refused_before_anything_is_written(
    tmp_path: Path, value: object, words: str
) -> None:
    with pytest.raises(NotSerializable) as refusal:
        save_json(tmp_path / "a.json", value)
    assert re.search(words, str(refusal.value))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1', "not whole JSON"),
        ('{"a": 1, "a": 2}', "stands there twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not whole JSON"),
        ('{"$float": "0.5"}', "nan, inf or -inf"),
    ],
)
def test_torn_or_careless_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BadFile) as refusal:
        open_json(path)
    assert words in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile):
        open_json(path)


LAYOUTS = {
    "plain": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
    "reversed": np.arange(4)[::-1],
    "big-endian": np.arange(3, dtype=">i4"),
    "scalar": np.float64(3.5),
    "empty": np.zeros((0, 3), np.float16),
    "booleans": np.array([True, False]),
}


def test_arrays_come_back_equal_from_any_memory_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, LAYOUTS)
    back = open_tensors(path)
    assert set(back) == set(LAYOUTS)
    for name, array in LAYOUTS.items():
        assert back[name].shape == np.shape(array)
        assert np.array_equal(back[name], array), name


def test_torch_tensors_that_share_memory_come_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "row": base[1],
        "turned": base.T,
        "half": base.bfloat16(),
        "np": np.ones(2),
    }
    save_tensors(path, tensors)
    back = open_tensors(path, "torch")
    for name, tensor in tensors.items():
        assert torch.equal(back[name], torch.as_tensor(tensor)), name
        assert back[name].dtype == torch.as_tensor(tensor).dtype


def test_bfloat16_is_refused_by_numpy_with_the_way_out(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(BadFile, match="NumPy has not") as refusal:
        open_tensors(tmp_path / "a.safetensors")
    assert 'framework="torch"' in refusal.value.instead


def test_metadata_is_any_json_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = {"a": [1, {"b": math.inf}], "c": None, "d": "é", "e": 1}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, {"x": np.ones(2), "y": np.zeros(3)}, metadata)
    assert open_tensor_metadata(tmp_path / "one") == metadata
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    save_tensors(tmp_path / "two", {"x": np.ones(2), "y": np.zeros(3)}, metadata | {"e": 2})
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "two")


def test_a_foreign_files_metadata_is_given_as_it_stands(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, tmp_path / "a", metadata={"format": "pt"})
    assert open_tensor_metadata(tmp_path / "a") == {"format": "pt"}


def test_arrays_of_text_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(NotSerializable, match='array "a"'):
        save_tensors(tmp_path / "a.safetensors", {"a": np.array(["x"])})
    assert names_in(tmp_path) == []


def test_a_cut_off_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": np.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match="not a whole safetensors"):
        open_tensors(path)


@pytest.mark.parametrize(
    "reason", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota")]
)
def test_a_full_disk_is_told_and_the_old_file_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: OSError
) -> None:
    writers = {
        "a.json": lambda path: save_json(path, {"new": 1}),
        "b.txt": lambda path: save_text(path, "new"),
    }
    writers["c.safetensors"] = lambda path: save_tensors(path, {"new": np.ones(3)})
    for name, write in writers.items():
        (tmp_path / name).write_text("old")

        def full(*_args) -> None:
            raise reason

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull, match=name):
            write(tmp_path / name)
        monkeypatch.undo()
        assert (tmp_path / name).read_text() == "old"
    assert names_in(tmp_path) == sorted(writers)


def test_another_error_of_the_disk_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="broken") as kept:
        save_text(tmp_path / "a.txt", "new")
    assert not isinstance(kept.value, DiskFull) and names_in(tmp_path) == []


def pickles(folder: Path) -> list[Path]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"protocol{protocol}.json").write_bytes(pickle.dumps(Path("x"), protocol=protocol))
    torch.save({"a": torch.ones(2)}, folder / "weights.bin")
    torch.save({"a": torch.ones(2)}, folder / "old.bin", _use_new_zipfile_serialization=False)
    (folder / "empty.pt").write_bytes(b"")
    return sorted(folder.iterdir())


def test_a_pickle_of_any_protocol_is_refused_whatever_its_name(tmp_path: Path) -> None:
    found = pickles(tmp_path)
    assert len(found) == pickle.HIGHEST_PROTOCOL + 4
    for path in found:
        for opener in (open_json, open_tensors, refuse_unless_safe):
            with pytest.raises(UnsafeFile) as refusal:
                opener(path)
            assert "safetensors" in refusal.value.instead


@pytest.mark.parametrize(
    "content",
    [
        b"clean,corrupt,answer\nWhen Mary,When John,Mary\n",
        b'{"a": 1}',
        b"clean\nWhen Mary\n",
        b"",
        b"I am text.\n",
        b"PK\x03\x04",
    ],
)
def test_what_is_no_pickle_is_let_through(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    refuse_unless_safe(path)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_looks_like_a_pickles_mark_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": np.ones(2)}, {"note": ""})
    shortest = int.from_bytes(path.read_bytes()[:8], "little")
    save_tensors(path, {"a": np.ones(2)}, {"note": "x" * (length - shortest)})  # headers are multiples of 8
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    assert open_tensors(path)["a"].tolist() == [1.0, 1.0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnsafeFile):
        open_tensors(path)  # no header of that length is there


def test_a_checksum_is_the_one_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(BadFile, match="not a file"):
        sha256_of(tmp_path / "missing")
