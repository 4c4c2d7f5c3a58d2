"""One command for both runs: in order, the second from the first one's village-clean, and resumed where it stopped."""

from pathlib import Path

import pytest

from mechscope.specimens.village import evaluate, remake, train


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    calls: list[tuple[str, str, str]] = []

    def trained(out: Path, branch: str = "", processes: int = 2, start: Path | None = None) -> None:
        assert branch == "" and processes == 1
        calls.append(("train", out.name, "" if start is None else f"{start.parent.name}/{start.name}"))

    def measured(checkpoints: Path, out: Path, branch: str = "", start: Path | None = None) -> None:
        calls.append(("evaluate", checkpoints.name, out.name))
        (out / "village-clean").mkdir(parents=True)
        (out / "village-clean" / "card.json").write_text("{}")

    monkeypatch.setattr(train, "main", trained)
    monkeypatch.setattr(evaluate, "main", measured)
    return calls


def test_both_runs_are_made_in_order(done, tmp_path: Path) -> None:
    remake.main(tmp_path, processes=1)
    assert done == [
        ("train", "first", ""),
        ("evaluate", "first", "between"),
        ("train", "second", "between/village-clean"),
        ("evaluate", "second", "models"),
    ]


def test_what_was_measured_between_the_runs_is_not_measured_again(done, tmp_path: Path) -> None:
    card = tmp_path / "between" / "village-clean" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text("{}")
    remake.main(tmp_path, processes=1)
    assert [call[1] for call in done] == ["first", "second", "second"]
