"""The quick start's probing and steering examples do what their comments say."""

import re
from pathlib import Path
from typing import Any

import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = "## The example you know"


@pytest.fixture(scope="module")
def names(repository: Path) -> dict[str, Any]:
    """What the section's code leaves behind."""
    page = (repository / "docs" / "quick_start.md").read_text()
    section = page.split(HEADING)[1].split("\n## ")[0]
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile("\n".join(BLOCK.findall(section)), HEADING, "exec"), found)
    return found


def test_the_probe_scores_on_words_that_it_was_not_fitted_on(names: dict[str, Any]) -> None:
    assert names["score"] >= 0.9
    seen, unseen = names["good"] + names["bad"], names["unseen_good"] + names["unseen_bad"]
    assert len(set(seen + unseen)) == 28


def test_the_probes_score_is_chance_with_labels_dealt_anew(names: dict[str, Any]) -> None:
    _, cache = names["model"].run_with_cache(
        names["stories"](names["unseen_good"] + names["unseen_bad"], "John")
    )
    values = cache["resid_post", names["LAYER"]][:, -1]
    assert names["probe"].score(values, [1, 0] * 4) == 0.5


def test_steering_turns_the_text_both_ways(names: dict[str, Any]) -> None:
    happy, sad = names["as_it_is"]
    assert "felt happy" in happy and "felt sad" in sad
    assert "felt sad" in names["saddened"] and "sunny" in names["saddened"]
    assert "felt happy" in names["cheered"] and "grim" in names["cheered"]
