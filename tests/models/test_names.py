"""Names on record open the model again, and say nothing about where somebody keeps it."""

from pathlib import Path

import torch

import mechscope as ms
from mechscope.models.identity import Identity
from mechscope.models.opening import bundled_names, load, name_to_open
from tiny_models import tiny


def test_a_bundled_name_and_an_id_are_recorded_whole() -> None:
    for name in (*bundled_names(), "EleutherAI/pythia-70m", "gpt2"):
        assert Identity(name=name).on_record == name_to_open(name) == name
    assert load("compiled/length").fingerprint.name == "compiled/length"


def test_of_a_folder_the_last_part_is_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "somebody" / "tuned"
    tiny("gpt2").save_pretrained(folder)
    for opened in (load(folder), load(f"{folder}/"), ms.wrap(tiny("gpt2"), name=str(folder))):
        assert opened.fingerprint.name == "tuned"
        assert str(folder) in opened.identity.name


def test_a_folder_is_no_specimen_wherever_it_lies(tmp_path: Path) -> None:
    """The checkpoint's own dtype, not the specimens' float32."""
    tiny("gpt2", torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half").dtype == torch.bfloat16
    assert load("compiled/length").dtype == torch.float32


def test_a_record_that_holds_the_last_part_of_a_bundled_name_opens_it(tmp_path: Path, monkeypatch) -> None:
    assert name_to_open("reverse") == "compiled/reverse" and name_to_open("village") == "village"
    assert name_to_open("no such specimen") == "no such specimen"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reverse").mkdir()
    assert name_to_open("reverse") == "reverse", "a folder at hand comes first"
