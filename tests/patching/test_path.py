"""Path patching equals passes done by hand, finds the path that is there, and nothing where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attribution.precision import double
from engine.edges_by_hand import EdgesByHand
from family_cases import opened
from mechscope.behaviors.loading import load as load_behavior
from mechscope.engine.edge_runs.ablations import Constant, Resampled, mean_of, zero
from mechscope.engine.edge_runs.run import EdgeRuns
from mechscope.interventions.intervention import Value
from mechscope.models.opening import load
from mechscope.models.wiring import wiring_of
from mechscope.patching.grid_result import PatchGrid
from mechscope.patching.path import path_patch
from mechscope.patching.path_settings import PRESETS, PathConvention, direct_edge
from mechscope.specimens.compiled import truth_of
from mechscope.vocabulary.edges import Edge, Node
from mechscope.vocabulary.errors import InterventionMismatch, PositionOutOfRange, UnknownEdge
from patching.drawn_pairs import DrawnPairs, induction_pairs, random_pairs, specimen

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox")
HELD = (("heads", "mlps"), ("heads",), ("mlps",), ())
SOME = [(name, held) for i, name in enumerate(FAMILIES) for held in (HELD[i], HELD[(i + 1) % 4])]
CLOSE = 1e-10


def pairs_for(name: str) -> DrawnPairs:
    return random_pairs(opened(name), lengths=(9, 6), differ_at=(1, 3))


def difference(pairs: DrawnPairs, logits: torch.Tensor) -> np.ndarray:
    metric, last = pairs.metric, logits[:, -1]
    right, wrong = (last.gather(1, torch.tensor(ids)) for ids in (metric.answers, metric.wrong))
    return (right - wrong)[:, 0].numpy()


def by_hand(
    name: str,
    pairs: DrawnPairs,
    sender: Node,
    receiver: str | tuple[str, ...],
    held: tuple[str, ...],
    carried: torch.Tensor | None = None,
) -> np.ndarray:
    """Pass C keeps what the receivers read; pass D is the clean run with the receivers reading that.

    The sender carries its value in the corrupt run, or what is `carried`.
    """
    model = opened(name)
    arithmetic, wiring = EdgesByHand(model.hf), wiring_of(model)
    names = (receiver,) if isinstance(receiver, str) else receiver
    edges = [Edge.parse(f"embed->{one}") for one in names]
    targets = {(edge.target, edge.input) for edge in edges}
    clean, corrupt = arithmetic.added_in(pairs.clean), arithmetic.added_in(pairs.corrupt)
    seen: dict[tuple[Node, str], torch.Tensor] = {}

    def value(source: Node, own: dict[Node, torch.Tensor]) -> torch.Tensor:
        if source == sender:
            return corrupt[source] if carried is None else carried
        is_held = {"head": "heads", "mlp": "mlps"}.get(source.kind, "heads") in held
        return clean[source] if is_held else own[source]

    def travelling(node, which, rest, own):
        stream = rest + sum(value(source, own) for source in wiring.sources(node))
        if (node, which) in targets:
            seen[node, which] = stream
        return stream

    def receiving(node, which, rest, own):
        if (node, which) in targets:
            return seen[node, which]
        return rest + sum(own[source] for source in wiring.sources(node))

    arithmetic._pass(pairs.clean, travelling)
    return difference(pairs, arithmetic._pass(pairs.clean, receiving)[1])


def receivers_of(name: str) -> list[str]:
    wiring = wiring_of(opened(name))
    last = wiring.n_layers - 1
    kv = "kv" if wiring.n_kv_heads < wiring.n_heads else "a"
    return [f"a{last}.1.q", f"{kv}{last}.0.k", f"{kv}{last}.1.v", f"m{last}", "logits"]


@pytest.mark.parametrize(("name", "held"), SOME)
def test_paths_equal_the_two_passes_by_hand(name, held):
    pairs, receivers = pairs_for(name), receivers_of(name)
    senders = ["a0.1", "m0", f"a{opened(name).n_layers - 1}.0"]
    with double(name):
        found = path_patch(
            opened(name),
            pairs,
            senders=senders,
            receivers=receivers,
            convention=PathConvention(frozen=held),
        ).per_pair.values
        clean = path_patch(opened(name), pairs, receivers=["logits"]).clean.values
        wiring = wiring_of(opened(name))
        for i, sender in enumerate(senders):
            for j, receiver in enumerate(receivers):
                target = Edge.parse(f"embed->{receiver}").target
                if Node.parse(sender) not in wiring.sources(target):
                    assert (found[i, j] == clean).all()
                    continue
                wanted = by_hand(name, pairs, Node.parse(sender), receiver, held)
                assert np.abs(found[i, j] - wanted).max() < CLOSE, (sender, receiver)


@pytest.mark.parametrize(("name", "held"), SOME)
def test_several_receivers_at_once_equal_the_two_passes_by_hand(name, held):
    pairs, wiring = pairs_for(name), wiring_of(opened(name))
    kv = "kv" if wiring.n_kv_heads < wiring.n_heads else "a"
    last = wiring.n_layers - 1
    # Parts in several layers: what an earlier one gives changes the later ones' inputs that are not named.
    groups = [
        ("a1.0.q", "a1.1.q", f"{kv}1.0.k"),
        ("a1.0.q", f"a{last}.1.q", f"{kv}{last}.0.v"),
        ("m0", f"{kv}{last}.0.k"),
        ("a1.1.q", "m1", "resid_post.1"),
        ("a1.1.q",),
    ]
    senders = ["embed", "a0.1", "m0"]
    with double(name):
        convention = PathConvention(frozen=held)
        found = path_patch(opened(name), pairs, senders=senders, receivers=groups, convention=convention)
        clean = found.clean.values
        for i, sender in enumerate(senders):
            for j, group in enumerate(groups):
                if "resid_post.1" in group:
                    continue
                wanted = by_hand(name, pairs, Node.parse(sender), group, held)
                assert np.abs(found.per_pair.values[i, j] - wanted).max() < CLOSE, (sender, group)
        single = path_patch(
            opened(name), pairs, senders=senders, receivers=["a1.1.q", "resid_post.1"], convention=convention
        )
    assert np.abs(found.per_pair.values[:, 4] - single.per_pair.values[:, 0]).max() < CLOSE
    # A stream that is overwritten behind the other parts hides what they do.
    assert np.abs(found.per_pair.values[:, 3] - single.per_pair.values[:, 1]).max() < CLOSE
    assert np.abs(found.per_pair.values[:, 1] - clean).max() > 1e3 * CLOSE
    assert found.per_pair.coords["receiver"][2] == f"m0 + {kv}{last}.0.k"


def test_two_receivers_are_not_the_sum_of_each_and_a_later_one_sees_the_earlier_one():
    pairs = pairs_for("llama")
    with double("llama"):
        found = path_patch(
            opened("llama"), pairs, senders=["embed"], receivers=["m0", "a2.1.q", ("m0", "a2.1.q")]
        ).effects.values[0]
    assert abs(found[2] - found[0] - found[1]) > 1e3 * CLOSE


@pytest.mark.parametrize("receivers", [[()], [("m1", "m1")]])
def test_a_receiver_without_parts_or_with_one_twice_is_refused(receivers):
    with pytest.raises(UnknownEdge, match="each of them once"):
        path_patch(opened("gpt2"), pairs_for("gpt2"), receivers=receivers)


def test_holding_other_classes_gives_other_numbers():
    pairs, name = pairs_for("gpt2"), "gpt2"
    with double(name):
        edge, ioi = (
            path_patch(opened(name), pairs, senders=["a0.1"], receivers=["logits"], convention=how)
            for how in ("direct-edge", "ioi")
        )
    assert np.abs(edge.per_pair.values - ioi.per_pair.values).max() > 1e3 * CLOSE


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "resample") for name in FAMILIES), ("llama", "mean"), ("gpt2", "zero")]
)
def test_direct_edges_equal_edge_runs(name, how):
    pairs, model = pairs_for(name), opened(name)
    with double(name):
        ablation = {
            "resample": lambda: Resampled(prompts=pairs.corrupt),
            "mean": lambda: mean_of(model, pairs.clean),
            "zero": lambda: zero(model),
        }[how]()
        runs = EdgeRuns(model, pairs.clean, metric=pairs.metric, ablation=ablation)
        edges = [edge for edge in runs.wiring.edges() if edge.source in runs.wiring.writers[:4]]
        index = {edge: i for i, edge in enumerate(runs.wiring.edges())}
        receivers = list(dict.fromkeys(str(edge).split("->")[1] for edge in edges))
        masks = np.ones((len(edges), runs.wiring.n_edges), dtype=bool)
        for row, edge in enumerate(edges):
            masks[row, index[edge]] = False
        wanted = runs.measure(masks).numpy()
        senders = list(runs.wiring.writers[:4])
        found = path_patch(
            model, pairs, senders=senders, receivers=receivers, convention=direct_edge(ablation=how)
        )
    for edge, values in zip(edges, wanted, strict=True):
        cell = found.per_pair.values[senders.index(edge.source), receivers.index(str(edge).split("->")[1])]
        assert np.abs(cell - values).max() < CLOSE, str(edge)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_learned_constants_are_what_the_sender_carries(name):
    pairs, model, sender = pairs_for(name), opened(name), Node.parse("a0.1")
    with double(name):
        writers = wiring_of(model).writers
        values = torch.randn(len(writers), model.d_model, generator=torch.Generator().manual_seed(4)).double()
        constants = Constant(how="optimal", values=Value(values))
        for held in (("heads", "mlps"), ("heads",)):
            convention = PathConvention(frozen=held, ablation="optimal", constants=constants)
            found = path_patch(
                model, pairs, senders=["a0.1"], receivers=["a1.1.q", "logits"], convention=convention
            )
            for column, receiver in enumerate(("a1.1.q", "logits")):
                carried = values[writers.index(sender)].expand(*pairs.clean.shape, -1)
                wanted = by_hand(name, pairs, sender, receiver, held, carried)
                assert np.abs(found.per_pair.values[0, column] - wanted).max() < CLOSE
    assert found.settings["constants"]["how"] == "optimal"


def test_optimal_constants_and_no_others_go_with_optimal():
    constants = Constant(how="optimal", values=Value(torch.zeros(2, 3)))
    for given in ({"ablation": "optimal"}, {"constants": constants}):
        with pytest.raises(InterventionMismatch, match="no convention"):
            PathConvention(**given)
    convention = direct_edge(ablation="optimal", constants=constants)
    with pytest.raises(InterventionMismatch, match="another model"):
        path_patch(opened("gpt2"), pairs_for("gpt2"), receivers=["logits"], convention=convention)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_mean_of_a_template_is_that_of_its_prompts_place_by_place(name, monkeypatch):
    """Three prompts of one template and length, one of another template, one shorter; one block each."""
    model = opened(name)
    drawn = random_pairs(model, lengths=(9, 9, 9, 9, 6), differ_at=(1, 3))
    templates = ("a", "b", "a", "a", "a")
    pairs = SimpleNamespace(
        clean=drawn.clean, corrupt=drawn.corrupt, metric=drawn.metric, templates=templates
    )
    sender, groups = Node.parse("a0.1"), [[0, 2, 3], [1], [4]]
    monkeypatch.setattr("mechscope.patching.path.PATH_BYTES", 1)
    with double(name):
        own = EdgesByHand(model.hf).added_in(drawn.clean)[sender]
        carried = own.clone()
        for rows in groups:
            carried[rows] = own[rows].mean(0)
        found = path_patch(
            model,
            pairs,
            senders=["a0.1"],
            receivers=["a1.1.q"],
            convention=direct_edge(ablation="template-mean"),
        ).per_pair.values[0, 0]
        wanted = by_hand(name, drawn, sender, "a1.1.q", ("heads", "mlps"), carried)
        clean = by_hand(name, drawn, sender, "a1.1.q", ("heads", "mlps"), own)
    assert np.abs(found - wanted).max() < CLOSE
    # Prompts that are alone in their group carry their own values.
    assert np.abs(found - clean)[[1, 4]].max() < CLOSE
    assert np.abs(found - clean)[[0, 2, 3]].min() > 1e3 * CLOSE


def test_pairs_of_several_lengths_give_the_same_in_blocks_of_one(monkeypatch):
    """A block of short prompts alone has fewer columns than all of them."""
    pairs = pairs_for("gpt2")

    def measured() -> np.ndarray:
        return path_patch(
            opened("gpt2"), pairs, senders=["a0.1", "m0"], receivers=["logits"], positions=[-1, -2]
        ).per_pair.values

    with double("gpt2"):
        whole = measured()
        monkeypatch.setattr("mechscope.patching.path.PATH_BYTES", 1)
        assert np.abs(measured() - whole).max() < CLOSE


@pytest.mark.parametrize("end", ["clean", "corrupt"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_linear_path_divides_by_the_denominator_of_the_run_named(name, end):
    pairs, model = pairs_for(name), opened(name)
    convention = PathConvention(norm=end)
    with double(name):
        found = path_patch(model, pairs, senders=["a0.1"], receivers=["a1.1.q"], convention=convention)
        arithmetic = EdgesByHand(model.hf)
        head = Node.parse("a0.1")
        change = arithmetic.added_in(pairs.corrupt)[head] - arithmetic.added_in(pairs.clean)[head]
        batch = getattr(pairs, end)
        stream = arithmetic.run(batch.ids, batch.n_pad)["resid_pre.1"]
        is_layer = arithmetic.names.kind == "layer"
        if is_layer:
            stream, change = (x - x.mean(-1, keepdim=True) for x in (stream, change))
        scale = (stream.pow(2).mean(-1, keepdim=True) + arithmetic.eps).sqrt()
        prefix = arithmetic.names.layer.format(1)
        moved = change / scale * arithmetic.weights[f"{prefix}{arithmetic.names.ln1}.weight"]
        project = arithmetic.projections(prefix)[0]
        moved = arithmetic.heads(project(moved) - project(torch.zeros_like(moved)))
        moved[:, :, [h for h in range(model.n_heads) if h != 1]] = 0
        clean = pairs.clean
        values = arithmetic.run(clean.ids, clean.n_pad, {"q_proj.1": lambda q: q + moved})
    assert np.abs(found.per_pair.values[0, 0] - difference(pairs, values["logits"])).max() < CLOSE


def test_senders_changed_nowhere_change_nothing_and_at_one_position_less():
    pairs = pairs_for("llama")
    with double("llama"):
        found = [
            path_patch(
                opened("llama"), pairs, senders=["embed"], receivers=["logits", "resid_pre.0"], positions=p
            )
            for p in (0, (1, 3), None)
        ]
    nowhere, there, everywhere = (grid.effects.values for grid in found)
    assert np.abs(nowhere).max() < CLOSE
    assert np.abs(there - everywhere).max() < CLOSE
    assert np.abs(found[2].recovered.values[0, 1]) < CLOSE  # the whole embedding is the other run


def test_denoising_an_embedding_into_the_stream_is_the_clean_run():
    pairs = pairs_for("gemma2")
    with double("gemma2"):
        found = path_patch(
            opened("gemma2"),
            pairs,
            senders=["embed"],
            receivers=["resid_pre.0"],
            convention=PathConvention(direction="denoising"),
        )
    assert np.abs(found.per_pair.values[0, 0] - found.clean.values).max() < CLOSE
    assert np.abs(found.clean.values - found.corrupt.values).max() > 1e3 * CLOSE


@pytest.mark.parametrize("preset", PRESETS)
def test_edges_of_a_compiled_program_are_found_and_no_others(preset):
    model = load("compiled/reverse")
    split = load_behavior("compiled/reverse", model, n=96, seed=0).train
    split = split.select(range(24))
    truth = {str(edge) for edge in truth_of("reverse").edges("resample")}
    wiring = wiring_of(model)
    receivers = list(dict.fromkeys(str(edge).split("->")[1] for edge in wiring.edges()))
    senders = list(wiring.writers)
    if preset == "ioi":  # a path through an MLP counts there, so only edges into the program's own MLP agree
        receivers = [name for name in receivers if name in ("m0", "a0.0.k")]
    found = path_patch(model, split, senders=senders, receivers=receivers, convention=preset)
    effect = np.abs(found.per_pair.values - found.clean.values).mean(-1)
    gap = found.gap[0]
    strong = {f"{senders[i]}->{receivers[j]}" for i, j in zip(*np.nonzero(effect > 1e-3 * gap), strict=True)}
    assert strong == {name for name in truth if name.split("->")[1] in receivers}


def test_the_induction_path_is_found_and_every_other_does_nothing():
    model = specimen()
    pairs = induction_pairs(model, "key", n=8)
    receivers = [f"a1.{h}.{which}" for h in (3, 11) for which in "qkv"]
    found = path_patch(model, pairs, senders=["a0.2", "a0.5"], receivers=receivers)
    share = np.abs(found.effects.values) / abs(found.gap[0])
    path = (1, receivers.index("a1.11.k"))
    assert share[path] > 0.5
    share[path] = 0
    assert share.max() < 0.05


def test_a_result_is_saved_and_read_again(tmp_path):
    found = path_patch(
        opened("llama"), pairs_for("llama"), senders=["a0.1", "m0"], receivers=["a1.0.q", "m1"]
    )
    found.save(tmp_path / "paths.json")
    again = PatchGrid.load(tmp_path / "paths.json")
    assert (again.per_pair.values == found.per_pair.values).all()
    assert again.per_pair.coords["receiver"] == ("a1.0.q", "m1")
    assert again.per_pair.conventions["frozen"] == ["heads", "mlps"]


@pytest.mark.parametrize(
    ("receiver", "sender"),
    [("a0.9.q", "m0"), ("a1.0", "m0"), ("resid_pre.7", "m0"), ("m1:3", "m0"), ("m1", "m9")],
)
def test_nodes_that_the_model_does_not_have_are_refused(receiver, sender):
    with pytest.raises(UnknownEdge):
        path_patch(opened("gpt2"), pairs_for("gpt2"), senders=[sender], receivers=[receiver])


def test_positions_that_no_prompt_has_and_paths_from_nowhere_are_refused():
    ask = {"senders": ["a0.1"], "receivers": ["logits"]}
    for positions in (6, [0, 40], -20):
        with pytest.raises(PositionOutOfRange, match="no such position"):
            path_patch(opened("gpt2"), pairs_for("gpt2"), positions=positions, **ask)
    for wrong in ({"senders": []}, {"receivers": []}):
        with pytest.raises(UnknownEdge, match="from a sender to a receiver"):
            path_patch(opened("gpt2"), pairs_for("gpt2"), **ask | wrong)


def test_one_name_is_a_list_of_one():
    model, pairs = opened("gpt2"), pairs_for("gpt2")
    one = path_patch(model, pairs, senders="a0.1", receivers="logits")
    listed = path_patch(model, pairs, senders=["a0.1"], receivers=["logits"])
    assert np.array_equal(one.per_pair.values, listed.per_pair.values)


def test_unknown_conventions_are_refused():
    with pytest.raises(InterventionMismatch, match="direct-edge"):
        path_patch(opened("gpt2"), pairs_for("gpt2"), receivers=["m1"], convention="acdc")
