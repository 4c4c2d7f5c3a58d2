"""From a prompt and a path of dictionaries to files in a folder."""

from pathlib import Path

import pytest

from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.exchange import open_graph_json
from mechscope.graphs.files import open_transcoders, write_graph_files
from mechscope.graphs.graph import AttributionGraph
from mechscope.vocabulary.errors import BadFile


def test_a_folder_of_dictionaries_becomes_a_page_a_record_and_a_front_ends_file(tmp_path: Path) -> None:
    for layer, one in enumerate(dictionaries("llama")):
        one.save(tmp_path / "transcoders" / f"layer_{layer}")
    graph = write_graph_files(
        exact_model("llama"),
        prompt(),
        transcoders=tmp_path / "transcoders",
        out=tmp_path / "out",
        targets=[3],
    )
    assert 0 < len(graph) < graph.n_active
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frontend.json",
        "graph.html",
        "graph.json",
        "graph.safetensors",
    ]
    back = AttributionGraph.load(tmp_path / "out" / "graph.json")
    assert repr(back) == repr(graph)
    assert len(open_graph_json(tmp_path / "out" / "frontend.json").nodes.of("latent")) == len(
        graph.nodes.of("latent")
    )


def test_dictionaries_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    given = dictionaries("llama")
    for name, one in zip(("layer_10", "layer_2", "layer_0"), given, strict=True):
        one.save(tmp_path / name)
    found = open_transcoders(tmp_path)
    assert [one.reads for one in found] == [one.reads for one in reversed(given)]
    assert [one.reads for one in open_transcoders(tmp_path / "layer_2")] == [given[1].reads]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="no dictionaries"):
        open_transcoders(tmp_path / "empty")
