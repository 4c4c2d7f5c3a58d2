"""path_patch: what one node tells another along the paths that a convention leaves open, as one plan of the engine.

For each sender and receiver: the sender's change travels to the receiver as the convention says, the receiver's own
output is computed from what it then reads, and the rest of the patched run goes on from that output, all online.
Receivers named together are recorded in one pass and given in one run: inputs of theirs that are not named are online.
Refuses nodes and inputs that the model does not have. A sender that is not computed before a receiver reads has no
path to it, and the effect is exactly 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechscope.engine.edge_runs.layer_parts import Attention, LayerParts
from mechscope.engine.edge_runs.recording import Recorded, record_run
from mechscope.engine.execute import run_experiments
from mechscope.engine.experiment import Experiment
from mechscope.engine.pairs import Pairs, hash_of_prompts, metric_facts, refuse_unless_pairs
from mechscope.figures.labelled import LabelledArray
from mechscope.interventions.donor import Donor
from mechscope.interventions.intervention import Value
from mechscope.interventions.replace import Patch, patch
from mechscope.models.frame import Frame, refuse_positions_outside
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.models.wiring import wiring_of
from mechscope.patching.grid_result import PatchGrid, per_pair_metric
from mechscope.patching.path_constants import Constants, constants_of
from mechscope.patching.path_settings import PathConvention, convention_of
from mechscope.patching.path_streams import Arriving, Travel
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import PairLengthMismatch, PointUnavailable, UnknownEdge
from mechscope.vocabulary.sites import Site
from mechscope.vocabulary.where import Where

PATH_BYTES = 2**28
"""Values of receivers held at once; more senders or pairs than fit go in several plans."""


@dataclass(frozen=True)
class _Receiver:
    """A node's input, or the residual stream before a layer."""

    name: str
    kind: str
    layer: int
    reader: int = 0
    heads: tuple[int, ...] = ()


def path_patch(
    model: Model,
    pairs: Pairs,
    *,
    receivers: Sequence[str | Sequence[str]],
    senders: Sequence[str | Node] | None = None,
    convention: PathConvention | str = "direct-edge",
    positions: Any = None,
) -> PatchGrid:
    """Patch the paths from each sender to each receiver; measure the metric.

    Args:
        model: An open model.
        pairs: A behavior, one of its splits, or anything with `clean`, `corrupt` and `metric`. Of a behavior, the
            train split.
        receivers: Inputs: "a3.4.q" (of a head: .q, .k or .v; where heads share keys and values "kv3.1.k"), "m3",
            "logits", or the stream before or after a layer: "resid_pre.3", "resid_post.3". A tuple of them is one
            receiver of several parts, all given what the sender tells them: ("a9.6.q", "a9.9.q", "a10.0.q").
        senders: "embed", "a1.0" (a head), "m1" (an MLP); None is all of them.
        convention: What is held on the way, or the name of a preset: "direct-edge", "ioi", "greater-than",
            "linearized".
        positions: Where senders are changed; None is everywhere.

    Returns:
        `values` [sender, receiver] in the metric's own unit, `effects` (0 where there is no path), `recovered`,
        `per_pair`.

    Raises:
        BadPairs, PairLengthMismatch: prompts that cannot be patched token by token.
        UnknownEdge: a sender or receiver that the model does not have; none.
        PositionOutOfRange: positions that some prompt does not have.
        PointUnavailable: the family's attention is out of reach.

    Cost: two runs; for each sender the nodes that are not held; for each pair of sender and receiver one experiment
        from the receiver's layer on.
    Caveat: one sender at a time, and one receiver or one tuple of receivers. What arrives along two paths at once is
        not the sum of both.
        docs/methods/path_patching.md.
    """
    refuse_unless_pairs(pairs)
    _refuse_out_of_reach(model)
    _refuse_other_padding(pairs.clean, pairs.corrupt)
    convention, wiring = convention_of(convention), wiring_of(model)
    nodes = [_sender_of(wiring, name) for name in (wiring.writers if senders is None else _listed(senders))]
    groups = [_group_of(wiring, names) for names in _listed(receivers)]
    _refuse_nothing(nodes, groups)
    frame = Frame.of(pairs.clean)
    refuse_positions_outside(Where.of(positions), frame)
    mask = frame.selected(Where.of(positions), frame.last_columns(pairs.clean.shape[1]))
    blocks = _blocks(model, pairs.clean, len(wiring.writers))
    constants = constants_of(model, pairs, convention, blocks)
    work = _Work(model, pairs, nodes, groups, convention, mask, constants)
    tables = [work.measure(rows) for rows in blocks]
    labels = {"sender": [str(node) for node in nodes], "receiver": [_name_of(group) for group in groups]}
    settings = convention.to_json() | {
        "site": "paths",
        "positions": "all" if positions is None else str(positions),
        "metric": metric_facts(pairs.metric),
        "n_pairs": len(pairs.clean),
        "bos": pairs.clean.bos,
    }
    return _result(model, pairs, np.concatenate(tables, axis=-1), labels, settings)


@dataclass(frozen=True)
class _Work:
    """What is asked, for any rows of the pairs."""

    model: Model
    pairs: Pairs
    nodes: list[Node]
    groups: list[tuple[_Receiver, ...]]
    convention: PathConvention
    mask: Tensor | None
    constants: Constants | None

    def measure(self, rows: Tensor) -> np.ndarray:
        """Metrics [clean, corrupt, *(sender x receiver); pair] of some pairs."""
        which = rows.tolist()
        clean, corrupt = self.pairs.clean.select(which), self.pairs.corrupt.select(which)
        metric = self.pairs.metric.select(which)
        is_noising = self.convention.direction == "noising"
        recipient, other = (clean, corrupt) if is_noising else (corrupt, clean)
        ends = [Experiment(inputs=one, metric=metric) for one in (clean, corrupt)]
        found = run_experiments(self.model, ends).table().numpy()
        table = np.repeat(found[[0 if is_noising else 1]], len(self.nodes) * len(self.groups), axis=0)
        n_receivers = sum(len(group) for group in self.groups)
        layers = [LayerParts(self.model.binding, layer) for layer in range(self.model.n_layers)]
        with self.model.ready():
            run, twin = (
                record_run(self.model.binding, layers, frame=Frame.of(batch)) for batch in (recipient, other)
            )
        size = max(1, PATH_BYTES // (n_receivers + 2) // (run.embed.nbytes + 1))
        for start in range(0, len(self.nodes), size):
            chunk = list(range(start, min(start + size, len(self.nodes))))
            writes = self._writes(layers, (run, twin), recipient, (chunk, rows))
            experiments = [Experiment(inputs=recipient, writes=w, metric=metric) for _, w in writes]
            if experiments:
                values = run_experiments(self.model, experiments).table().numpy()
                table[[cell for cell, _ in writes]] = values
        return np.concatenate([found, table])

    def _writes(
        self,
        layers: list[LayerParts],
        runs: tuple[Recorded, Recorded],
        recipient: TokenBatch,
        asked: tuple[list[int], Tensor],
    ) -> list[tuple[int, tuple[Patch, ...]]]:
        """The patches of each sender and receiver between which there is a path, with their cell."""
        (run, twin), (chunk, rows) = runs, asked
        clean, corrupt = (run, twin) if self.convention.direction == "noising" else (twin, run)
        scales = {"recomputed": None, "clean": clean, "corrupt": corrupt}[self.convention.norm]
        attention, binding = Attention(self.model.binding), self.model.binding
        found: dict[int, tuple[Patch, ...]] = {}
        with torch.no_grad(), self.model.ready(), attention.standing():
            travel = Travel(binding, layers, attention, run, recipient.shape, self.convention, scales)
            changes = torch.stack([self._change(self.nodes[i], run, twin, rows) for i in chunk])
            for arriving in travel.send([self.nodes[i] for i in chunk], changes):
                if not arriving.senders:
                    continue
                for column, group in enumerate(self.groups):
                    for site, values, heads in _given_to(group, arriving, travel):
                        for sender, value in zip(arriving.senders, values, strict=True):
                            tensor = value.unflatten(0, tuple(recipient.shape))
                            donor = Donor(((str(site), Value(tensor)),), Value(recipient.n_pad))
                            cell = chunk[sender] * len(self.groups) + column
                            found[cell] = (*found.get(cell, ()), patch(site, donor, heads=heads))
        return list(found.items())

    def _change(self, node: Node, run: Recorded, twin: Recorded, rows: Tensor) -> Tensor:
        """What a sender adds less what it adds in the patched run, [tokens, d_model]."""
        own = _added(run, node)
        n_columns = len(own) // len(rows)  # those that are padding in all of the rows are cut off
        if self.constants is None:
            given = _added(twin, node)
        else:
            writer = wiring_of(self.model).writers.index(node)
            given = self.constants.of(writer, rows, n_columns).to(own)
        if self.mask is None:
            return given - own
        return (given - own) * self.mask[rows, -n_columns:].flatten()[:, None].to(own)


def _stream_at(arriving: Arriving) -> tuple[str, int]:
    """The stream before a layer is there when its heads read; the last one when the logits do."""
    return ("stream", arriving.layer) if arriving.kind != "mlp" else ("", -1)


_Given = tuple[Site, Tensor, tuple[int, ...] | None]
"""A site, values [sender, tokens, ...], and heads."""


def _given_to(group: tuple[_Receiver, ...], arriving: Arriving, travel: Travel) -> Iterator[_Given]:
    """What receivers are given of what arrives here."""
    here = (arriving.kind, arriving.layer), _stream_at(arriving)
    places = [place for place in group if (place.kind, place.layer) in here]
    heads = [place for place in places if place.kind == "attention"]
    for place in places:
        if place.kind != "attention":
            yield _output_of(place, arriving, travel)
    if heads and len(group) == 1:
        # A head whose other inputs nothing changes: what it gives is known.
        z = travel.z_of(arriving.layer, arriving.change, [heads[0].reader])
        yield Site("z", arriving.layer), z, heads[0].heads
    elif heads:
        yield from _inputs_of(heads, arriving, travel)


def _output_of(place: _Receiver, arriving: Arriving, travel: Travel) -> _Given:
    """What a receiver with one input gives on what has arrived."""
    last = Site("resid_post", len(travel.layers) - 1)
    if place.kind == "stream":
        site = Site("resid_pre", place.layer) if place.layer < len(travel.layers) else last
        return site, travel.own.before[place.layer] + arriving.change, None
    if place.kind == "mlp":
        return Site("mlp_out", place.layer), travel.mlp_of(place.layer, arriving.change), None
    point, values = travel.end_of(arriving.change)
    return Site(point) if point else last, values, None


def _inputs_of(heads: list[_Receiver], arriving: Arriving, travel: Travel) -> Iterator[_Given]:
    """Queries, keys and values of receivers whose other inputs another receiver may change."""
    readers = sorted(place.reader for place in heads)
    every = travel.projections_of(arriving.layer, arriving.change, readers).permute(1, 2, 0, 3)
    anatomy = travel.binding.anatomy.attention
    start = 0
    for point, n in (("q_proj", anatomy.n_heads), ("k_proj", anatomy.n_kv_heads), ("v", anatomy.n_kv_heads)):
        chosen = tuple(reader - start for reader in readers if start <= reader < start + n)
        if chosen:
            yield Site(point, arriving.layer), every[:, :, start : start + n], chosen
        start += n


def _added(run: Recorded, node: Node) -> Tensor:
    """What a node adds in a run, [tokens, d_model]."""
    if node.layer is None:
        return run.embed
    return run.mlps[node.layer] if node.head is None else run.heads[node.layer][node.head]


def _blocks(model: Model, prompts: TokenBatch, n_writers: int) -> list[Tensor]:
    """Rows of the pairs, cut so that two recorded runs fit into `PATH_BYTES`."""
    per_row = 2 * prompts.shape[1] * n_writers * model.d_model * model.dtype.itemsize
    return list(torch.arange(len(prompts)).split(max(1, PATH_BYTES // per_row)))


def _listed(names: Any) -> Sequence[Any]:
    """Names as they were given; one alone is a list of one."""
    return [names] if isinstance(names, str | Node) else list(names)


def _refuse_nothing(senders: Sequence[Any], receivers: Sequence[Any]) -> None:
    if not senders or not receivers:
        raise UnknownEdge(
            "A path goes from a sender to a receiver.",
            got=f"{len(senders)} senders, {len(receivers)} receivers",
            instead='senders=["a0.5"] (None for all), receivers=["a1.11.k"]',
        )


def _sender_of(wiring: Wiring, name: str | Node) -> Node:
    node = Node.parse(name)
    if node not in wiring.writers:
        raise UnknownEdge(
            f'"{node}" is no sender of this model.',
            got=f"{node}; {wiring.n_layers} layers, {wiring.n_heads} heads",
            because="senders are whole nodes that add to the residual stream",
            instead='"embed", a head ("a0.1"), an MLP ("m0")',
        )
    return node


def _group_of(wiring: Wiring, names: str | Sequence[str]) -> tuple[_Receiver, ...]:
    given = (names,) if isinstance(names, str) else tuple(names)
    if not given or len(set(given)) < len(given):
        raise UnknownEdge(
            "A receiver of several parts names each of them once.",
            got=", ".join(given) or "an empty tuple",
            instead='("a3.4.q", "a3.5.q")',
        )
    return tuple(_receiver_of(wiring, name) for name in given)


def _name_of(group: tuple[_Receiver, ...]) -> str:
    return " + ".join(place.name for place in group)


def _receiver_of(wiring: Wiring, name: str) -> _Receiver:
    point, _, layer = name.partition(".")
    if point in ("resid_pre", "resid_post") and layer.isdecimal() and int(layer) < wiring.n_layers:
        return _Receiver(name, "stream", int(layer) + (point == "resid_post"))
    if point.startswith("resid"):
        raise UnknownEdge(
            f'"{name}" is no stream of this model.',
            got=f"{name}; {wiring.n_layers} layers",
            instead='"resid_pre.0" or "resid_post.0", with a layer of the model',
        )
    # The name of an edge without its source; the embedding is a source of every reader.
    edge = Edge.parse(f"embed->{name}")
    wiring.refuse_unless_it_has(edge)
    node = edge.target
    if (node, edge.input) not in wiring.readers:
        raise UnknownEdge(
            f'"{name}" is a part of a receiver.',
            got=name,
            because="receivers are read whole; senders may be changed at some positions only",
            instead=str(node.whole),
        )
    if node.layer is None:
        return _Receiver(name, "end", wiring.n_layers)
    if node.kind == "mlp":
        return _Receiver(name, "mlp", node.layer)
    head, n_kv = node.head or 0, wiring.n_kv_heads
    first = {"q": 0, "k": wiring.n_heads, "v": wiring.n_heads + n_kv}[edge.input]
    group = wiring.n_heads // n_kv
    heads = (head,) if edge.input == "q" else tuple(range(head * group, (head + 1) * group))
    return _Receiver(name, "attention", node.layer, first + head, heads)


def _refuse_out_of_reach(model: Model) -> None:
    if not model.binding.anatomy.attention.has_interface:
        raise PointUnavailable(
            f"Paths into the heads of {model.binding.anatomy.family} are out of reach.",
            got=type(model.hf).__name__,
            because="its attention does not call the library's attention interface",
            instead="a family that does (mechscope doctor MODEL), or ms.patch_grid",
        )


def _refuse_other_padding(clean: TokenBatch, corrupt: TokenBatch) -> None:
    if clean.shape != corrupt.shape or not torch.equal(clean.n_pad, corrupt.n_pad):
        raise PairLengthMismatch(
            "The prompts of the pairs are padded differently.",
            got=f"{list(clean.shape)} tokens and {list(corrupt.shape)}",
            because="a change is taken from the same column of the twin prompt",
            instead="batches padded alike, as ms.behaviors makes them",
        )


def _result(
    model: Model, pairs: Pairs, table: np.ndarray, labels: dict[str, list[str]], settings: dict[str, Any]
) -> PatchGrid:
    named = {k: settings[k] for k in ("convention", "frozen", "norm", "direction", "ablation", "positions")}
    per_pair = LabelledArray(
        table[2:].reshape(*map(len, labels.values()), -1),
        (*labels, "pair"),
        coords=labels,
        unit=pairs.metric.unit,
        title="paths: metric under the patch, pair by pair",
        conventions=named | {"metric": pairs.metric.kind, "pairs": table.shape[1]},
    )
    return PatchGrid(
        per_pair=per_pair,
        clean=per_pair_metric(table[0], pairs.metric.unit, "clean"),
        corrupt=per_pair_metric(table[1], pairs.metric.unit, "corrupt"),
        settings=settings,
        model=model.fingerprint,
        data_sha256=hash_of_prompts(pairs.clean, pairs.corrupt),
    )
