"""Each call in docs/coming_from.md runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest

import mechscope as ms

ROW = re.compile(r"^\| .+ \| `([^`]+)` \|$", re.MULTILINE)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def calls_of(page: str) -> list[str]:
    """The code of a page: its blocks, then the right-hand column of its tables."""
    return [*BLOCK.findall(page), *ROW.findall(page)]


def run_all(calls: list[str]) -> dict[str, object]:
    """Execute calls one after another in one namespace."""
    names: dict[str, object] = {}
    for call in calls:
        exec(compile(call, f"<{call.splitlines()[0]}>", "exec"), names)  # our own documentation
    return names


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")


def test_every_call_in_the_table_runs(page: str) -> None:
    calls = calls_of(page)
    assert len(calls) > 25
    names = run_all(calls)
    assert isinstance(names["model"], ms.Model)
    assert isinstance(names["story"], str)


QUICK_STARTS = {
    "TransformerLens": (
        "from_pretrained(",
        "to_tokens",
        "to_str_tokens",
        "to_single_token",
        'return_type="loss"',
        "run_with_cache(",
        'cache["resid_post", 2]',
        "get_act_name",
        "attention_patterns(",
        "decompose_resid",
        "accumulated_resid",
        "stack_head_results",
        "logit_attrs",
        "run_with_hooks(",
        "model.hooks(",
        "generate(",
        "test_prompt",
        "get_act_patch_resid_pre",
        "get_act_patch_attn_head_out",
        "get_act_patch_block_every",
        "detect_head",
        "W_Q",
    ),
    "SAELens": (
        "SAE.from_pretrained",
        "load_from_disk",
        "sae.encode",
        "sae.decode",
        "run_with_cache_with_saes",
        "run_with_saes",
        "TrainingRunner",
        "run_evals",
        "save_model",
    ),
    "circuit-tracer": (
        "ReplacementModel.from_pretrained",
        "attribute(",
        "prune_graph",
        "compute_graph_scores",
        "to_pt",
        "create_graph_files",
        "feature_intervention",
        "get_activations",
    ),
}
"""Calls of the other tools' quick starts and main demos, by the heading that lists them."""


@pytest.mark.parametrize("tool", QUICK_STARTS)
def test_every_call_of_their_quick_starts_has_a_row(tool: str, page: str) -> None:
    section = page.split(f"\n## {tool}\n")[1].split("\n## ")[0]
    theirs = "\n".join(line.rsplit(" | `", 1)[0] for line in section.splitlines() if line.startswith("| "))
    assert [call for call in QUICK_STARTS[tool] if call not in theirs] == []


def test_every_table_is_whole(page: str) -> None:
    """A row that stands apart from its table's head is no row to a reader."""
    lines = page.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("|") and lines[index - 1] == ""]
    assert all(lines[index + 1].startswith("|---") for index in starts)


def test_every_row_is_read(page: str) -> None:
    rows = [line for line in page.splitlines() if line.startswith("| `") or line.startswith("| the same")]
    assert len(ROW.findall(page)) == len(rows)


def test_a_call_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AttributeError):
        run_all(["import mechscope as ms", "ms.from_pretrained('gpt2')"])
