"""Graphs in circuit-tracer's own code, both ways: its models read our JSON, and we read what its writer wrote.

Needs an interpreter that has it, in `MECHSCOPE_CIRCUIT_TRACER`; see tests/dictionaries/formats/test_interop.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dictionaries.formats.test_interop import run_their_side
from graphs.frozen_cases import dictionaries, exact_model, prompt
from mechscope.graphs.build import attribution_graph
from mechscope.graphs.exchange import open_graph_json, save_graph_json
from mechscope.models.opening import BUNDLED

TRACER = "circuit_tracer"


@pytest.mark.slow
def test_their_models_read_our_graph_and_keep_every_field_that_they_know(tmp_path: Path) -> None:
    whole = attribution_graph(exact_model("gpt2"), dictionaries("gpt2"), prompt(), targets=[3, (4, 5)])
    save_graph_json(whole.prune(0.95), tmp_path / "ours.json", slug="s", scan="gpt2-small")
    run_their_side(TRACER, "read", tmp_path / "ours.json", tmp_path / "back.json")
    ours, back = (json.loads((tmp_path / name).read_text()) for name in ("ours.json", "back.json"))
    assert back["links"] == ours["links"] and back["qParams"] == ours["qParams"]
    for theirs, own in zip(back["nodes"], ours["nodes"], strict=True):
        known = {name: value for name, value in own.items() if name in theirs}
        assert {name: theirs[name] for name in known} == known and len(known) == len(own)
    assert back["metadata"]["prompt_tokens"] == ours["metadata"]["prompt_tokens"]


@pytest.mark.slow
def test_a_graph_that_their_writer_wrote_has_their_numbers_here(tmp_path: Path) -> None:
    tokenizer = (
        tmp_path / "tokenizer"
    )  # without the class's name, which their version of the library may not know
    tokenizer.mkdir()
    shutil.copy(BUNDLED / "village" / "tokenizer.json", tokenizer)
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    run_their_side(TRACER, "write", tokenizer, tmp_path / "graph.json", tmp_path / "out.npz")
    graph = open_graph_json(tmp_path / "graph.json")
    with np.load(tmp_path / "out.npz") as out:
        table, active, values = out["table"], out["active"], out["values"]
    n_layers, n_pos, n = 3, 4, len(active)
    place = {}
    for index in range(len(graph)):
        node = graph.nodes[index]
        if node.kind == "latent":
            (found,) = np.flatnonzero((active == (node.layer, node.position, node.number)).all(1))
            assert node.activation == pytest.approx(values[found])
        elif node.kind == "error":
            found = n + node.layer * n_pos + node.position
        elif node.kind == "token":
            found = n + n_layers * n_pos + node.position
        else:
            found = n + n_layers * n_pos + n_pos + node.number
        place[index] = int(found)
    assert sorted(place.values())[-2:] == [len(table) - 2, len(table) - 1], "both targets are there"
    order = [place[index] for index in range(len(graph))]
    assert np.allclose(graph.adjacency.to_dense(), table[np.ix_(order, order)], atol=1e-6)
    left = set(range(len(table))) - set(order)
    assert not table[:, sorted(left)].any(), "only nodes without an effect are left out"
    assert [target.token for target in graph.targets] == [11, 12]
    assert [target.label for target in graph.targets] == ["one", "two"]
    assert np.allclose([target.weight for target in graph.targets], [0.6, 0.3], atol=1e-6)
