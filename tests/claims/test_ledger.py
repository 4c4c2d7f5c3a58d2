"""Every opening of a held-out split is on record before it happens."""

import multiprocessing
from pathlib import Path

import pytest

from mechscope.claims.ledger import FILE_NAME, FRESH, VERIFY, Ledger
from mechscope.vocabulary.errors import BadFile


def test_openings_are_counted_by_split(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert ledger.openings("a") == 0
    assert ledger.record("a", claim_id="1") == 1
    assert ledger.record("b", claim_id="1") == 1
    assert ledger.record("a", claim_id="2") == 2
    assert ledger.record("c", claim_id="2", purpose=FRESH) == 1
    assert Ledger(tmp_path / FILE_NAME).openings("a") == 2
    assert [entry.claim_id for entry in ledger.entries()] == ["1", "1", "2", "2"]


def test_verifying_a_file_is_recorded_and_not_counted(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.record("a", claim_id="1")
    assert ledger.record("a", claim_id="1", purpose=VERIFY) == 1
    assert ledger.openings("a") == 1
    assert len(ledger.entries()) == 2


def test_claims_frozen_before_one_opening_share_its_line(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert ledger.record("a", claim_id="1", also=["2"]) == 1
    assert ledger.record("a", claim_id="3") == 2, "a later look is another opening"
    first, second = ledger.entries()
    assert (first.claim_id, first.also, second.also) == ("1", ("2",), ())
    assert "also" not in ledger.path.read_text().splitlines()[1], "lines of one claim are as they were"


@pytest.mark.parametrize("damage", ["half", "edited", "extra"])
def test_a_damaged_ledger_is_refused_rather_than_undercounted(tmp_path: Path, damage: str):
    ledger = Ledger(tmp_path)
    ledger.record("a", claim_id="1")
    ledger.record("a", claim_id="2")
    text = ledger.path.read_text()
    damaged = {"half": text[:-10], "edited": text.replace("purpose", "why", 1), "extra": text + "hello\n"}
    broken = damaged[damage]
    ledger.path.write_text(broken)
    with pytest.raises(BadFile, match="broken line"):
        ledger.openings("a")
    with pytest.raises(BadFile, match="broken line"):
        ledger.record("a", claim_id="3")
    assert ledger.path.read_text() == broken  # nothing was added to it


def test_an_unknown_purpose_is_refused(tmp_path: Path):
    with pytest.raises(BadFile, match="no known purpose"):
        Ledger(tmp_path).record("a", claim_id="1", purpose="peek")
    assert not Ledger(tmp_path).path.exists()


def record_many(folder: str, who: int) -> None:
    """Twenty openings, from another process."""
    for _ in range(20):
        Ledger(folder).record("a", claim_id=str(who))


def test_processes_that_record_at_once_lose_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=record_many, args=(str(tmp_path), who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Ledger(tmp_path).openings("a") == 80
