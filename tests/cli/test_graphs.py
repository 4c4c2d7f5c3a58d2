"""`mechscope graph`: a prompt becomes a page, a record and a front end's file; what can't be traced leaves nothing."""

from pathlib import Path

import pytest
import torch

import mechscope as ms
from command_line_runs import Shell, is_refusal
from mechscope.features.shipped import bundled_indexes
from mechscope.graphs.exchange import open_graph_json
from mechscope.graphs.graph import AttributionGraph

PROMPT = "Now Susan is"


@pytest.fixture(scope="module")
def transcoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transcoders that ship with village, one in each subfolder."""
    folder = tmp_path_factory.mktemp("transcoders")
    for name, place in bundled_indexes("village").items():
        if name.startswith("mlp."):
            one = ms.dictionaries.Dictionary.open(place / "dictionary").to(dtype=torch.float32)
            one.save(folder / name)
    return folder


def test_a_prompt_becomes_a_page_a_record_and_a_front_ends_file(
    shell: Shell, tmp_path: Path, transcoders: Path
) -> None:
    words = ("graph", "village", PROMPT, "--transcoders", transcoders, "--out", tmp_path / "o")
    done = shell(*words, "--target", "happy", "--target", "happy - sad", "--json")
    assert done.code == 0, done.err
    said = done.json
    assert said["targets"] == ["happy", "happy − sad"] and said["out"] == str(tmp_path / "o")
    assert 0 < said["replacement"] < 1 and 0 < said["completeness"] <= 1
    files = {path.name for path in (tmp_path / "o").iterdir()}
    assert files == {"graph.html", "graph.json", "graph.safetensors", "frontend.json"}
    graph = AttributionGraph.load(tmp_path / "o" / "graph.json")
    assert (len(graph), graph.adjacency.n_edges) == (said["nodes"], said["edges"])
    token = ms.load("village").token
    assert [(t.token, t.foil) for t in graph.targets] == [
        (token("happy"), None),
        (token("happy"), token("sad")),
    ]
    strongest = graph.latents()[: len(said["latents"])]
    assert len(strongest) == 12
    assert [one["node"] for one in said["latents"]] == [node.name for node in strongest]
    assert open_graph_json(tmp_path / "o" / "frontend.json").targets == graph.targets


def test_a_person_reads_scores_latents_and_where_the_page_is(
    shell: Shell, tmp_path: Path, transcoders: Path
) -> None:
    out = tmp_path / "o"
    done = shell("graph", "village", PROMPT, "--transcoders", transcoders, "--out", out, "--max-latents", 150)
    assert done.code == 0, done.err
    assert "replacement" in done.out and done.out.strip().endswith(str(out / "graph.html"))
    graph = AttributionGraph.load(out / "graph.json")
    assert graph.settings["max_latents"] == 150 and graph.latents()
    assert all(node.name in done.out for node in graph.latents()[:3])


@pytest.mark.parametrize(
    ("prompt", "more", "name"),
    [
        (PROMPT, ("--target", "Susan - "), "BadCommand"),
        (PROMPT, ("--target", "zzzz"), "NotOneToken"),
        (PROMPT, ("--max-latents", 0), "BadCommand"),
        ("", (), "EmptyPrompt"),
        ("  ", (), "EmptyPrompt"),
    ],
)
def test_what_can_not_be_traced_leaves_no_folder(
    shell: Shell, tmp_path: Path, transcoders: Path, prompt: str, more: tuple[object, ...], name: str
) -> None:
    words = ("graph", "village", prompt, "--transcoders", transcoders, "--out", tmp_path / "o")
    assert is_refusal(shell(*words, *more), name)
    assert not (tmp_path / "o").exists()


def test_dictionaries_that_are_not_there_or_of_another_model_leave_no_folder(
    shell: Shell, tmp_path: Path, transcoders: Path
) -> None:
    (tmp_path / "empty").mkdir()
    words = ("graph", "village", PROMPT, "--out", tmp_path / "o", "--transcoders")
    assert is_refusal(shell(*words, tmp_path / "empty"), "BadFile")
    assert shell(*words, tmp_path / "nowhere").code == 2
    other = ("graph", "induction", "a b", "--out", tmp_path / "o", "--transcoders", transcoders)
    assert shell(*other).code == 2
    assert not (tmp_path / "o").exists()
