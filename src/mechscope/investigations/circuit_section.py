"""The circuit in a report: the drawing, the edges, the sizes tried, and how it fits the heads that were found."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from mechscope.circuits.circuit import Circuit
from mechscope.circuits.evaluation import CircuitEvaluation
from mechscope.circuits.size_curve import SizeCurve
from mechscope.figures import Block, LabelledArray, Lines, Prose, Section, Table, number
from mechscope.figures.circuit_graph import CircuitGraph
from mechscope.investigations.edges import EdgePart
from mechscope.investigations.relation import PartInCircuit, Relation, Scored
from mechscope.investigations.search import ENOUGH

N_EDGES_SHOWN = 20
N_OTHERS_SHOWN = 6
N_ENDS_SHOWN = 3

HOW_TO_READ = (
    "An edge is what one part adds to what a later one reads: `a2.1` is head 1 of layer 2 and `m2` is the MLP of that "
    "layer. Edges into a head say whether they reach its query, key or value (`q`, `k`, `v`)."
)


def found_circuit_section(part: EdgePart, relation: Relation | None, *, name: str) -> Section:
    """What was found about edges, for the report of an investigation.

    Args:
        part: From the search.
        relation: The heads that were found beside the circuit; None without one of the two.
        name: Of the behaviour.
    """
    if part.circuit is None or part.evaluation is None:
        return Section("The circuit", [Prose(part.stopped), *_sizes(part)])
    marked = () if relation is None else tuple(str(claimed.node) for claimed in relation.shared)
    blocks: list[Block] = [
        Prose(_how_found(part)),
        draw_circuit(part.circuit, title=f"The circuit of {name}", marked=marked),
        *([] if relation is None else _beside_heads(relation)),
        *_sizes(part),
        edge_table(part.circuit, part.evaluation),
    ]
    return Section("The circuit", blocks)


def draw_circuit(circuit: Circuit, *, title: str, marked: Iterable[str] = ()) -> CircuitGraph:
    """The drawing, with a caption that says how to read it."""
    marked = tuple(marked)
    figure = circuit.figure(title=f"{title}, {len(circuit)} edges")
    told = "Layers from below; blue edges raise the metric, orange ones lower it, and width is the score. "
    told += "Filled green: heads of the claim above. " if marked else ""
    told += "Point at a node for its edges, click to pin it."
    return replace(figure, caption=" ".join(filter(None, (told, figure.caption))), marked=marked)


def draw_sizes(curve: SizeCurve, sizes: Sequence[int], *, chosen: int | None = None) -> Lines:
    """Faithfulness over the number of edges, with what was wanted.

    Args:
        curve: On some prompts.
        sizes: Edges kept at each of its points.
        chosen: The point that was taken.
    """
    rows = [list(curve.faithfulness), [ENOUGH] * len(sizes)]
    names = ["recovered", f"wanted: {ENOUGH:.0%}"]
    if chosen is not None:
        rows.append([value if i == chosen else np.nan for i, value in enumerate(curve.faithfulness)])
        names.append(f"taken: {curve.n_edges[chosen]} edges")
    array = LabelledArray(
        np.array(rows),
        ("series", "strongest edges kept"),
        coords={"series": names, "strongest edges kept": list(sizes)},
        unit="fraction of the gap",
        title="How many edges are enough",
        conventions=curve.settings,
    )
    return Lines(
        array,
        "The strongest edges alone, all others carrying the corrupt prompt's values. Edges on no path from the "
        "embedding to the logits are dropped, so that a circuit may have fewer than were asked for.",
    )


def edge_table(circuit: Circuit, evaluation: CircuitEvaluation | None = None) -> Table:
    """The strongest edges, with what is lost when each alone is left out, where that was measured."""
    needs: dict[str, float] = {}
    if evaluation is not None and evaluation.edge_needs is not None:
        names = [str(edge) for edge in evaluation.circuit.edges]
        needs = dict(zip(names, evaluation.edge_needs.tolist(), strict=True))
    top = circuit.top(N_EDGES_SHOWN)
    left = len(circuit) - len(top)
    caption = f"The {len(top)} strongest edges by score" + (
        f"; {left} more are in `circuit.json`." if left else "."
    )
    if not needs:
        return Table(("edge", "score"), [(str(edge), score) for edge, score in top], caption=caption)
    rows = [(str(edge), score, f"{needs[str(edge)]:.1%}") for edge, score in top]
    return Table(("edge", "score", "change when it alone is removed, of the gap"), rows, caption=caption)


def _sizes(part: EdgePart) -> list[Block]:
    return [] if part.curve is None else [draw_sizes(part.curve, part.sizes, chosen=part.chosen)]


def _how_found(part: EdgePart) -> str:
    circuit, evaluation, curve = part.circuit, part.evaluation, part.curve
    assert circuit is not None and evaluation is not None and curve is not None
    n_edges, interval = circuit.wiring.n_edges, evaluation.to_json()["faithfulness_interval"]
    scored = circuit.settings.get("attribution", {}).get("n_pairs", "the")
    unneeded = len(evaluation.unneeded_edges)
    told = (
        f"**{len(circuit)} of the model's {n_edges:,} edges ({len(circuit) / n_edges:.1%})**. {HOW_TO_READ}\n\n"
        f"Every edge was scored on {scored} train pairs by {circuit.settings['method'].upper()}: how much the metric "
        "would fall, to first order, if that edge alone carried the corrupt prompt's value. Then ever more of the "
        "strongest edges were kept and **all others** given the corrupt prompt's values, and the first circuit that "
        f"kept {ENOUGH:.0%} of the gap on {len(evaluation.values)} validation pairs was taken. There it keeps "
        f"{evaluation.faithfulness:.0%}"
    )
    told += "." if interval is None else f" [{interval[0]:.0%}, {interval[1]:.0%}]."
    if unneeded:
        told += (
            f" {unneeded} of its edges could be left out one at a time at a cost below 1% of the gap: it is a faithful "
            "circuit, not a minimal one."
        )
    return told


def _beside_heads(relation: Relation) -> list[Block]:
    shown = relation.others[:N_OTHERS_SHOWN]
    missing = [part for part in relation.claimed if not part.is_in_circuit]
    n_all, n_shared = len(relation.claimed), len(relation.shared)
    told = f"**The heads of the claim above and this circuit.** {n_shared} of {n_all} are in it. "
    if missing:
        names = ", ".join(f"`{part.node}`" for part in missing)
        told += f"Not in it: {names}; the two searches disagree there, and each claim stands for itself. "
    between = ", ".join(f"`{edge}` ({number(score)})" for edge, score in relation.between)
    told += (
        f"Among themselves they are connected by {between}. "
        if between
        else "No edge connects them directly. "
    )
    told += (
        f"The circuit has {len(relation.others)} other heads and MLPs. The set of heads is a statement with every MLP "
        "free; here whatever is not drawn is held to the corrupt run, so the circuit also names what the heads need to "
        "be fed with."
    )
    rows = [_row(part) for part in (*relation.claimed, *shown)]
    left = len(relation.others) - len(shown)
    caption = "Strongest edges first, with their scores. "
    caption += (
        f"Then the {len(shown)} other parts with the strongest edges; {left} more are drawn above."
        if left
        else ""
    )
    heads = ("part", "claimed", "receives", "sends to")
    return [Prose(told), Table(heads, rows, caption=caption)]


def _row(part: PartInCircuit) -> tuple[str, bool, str, str]:
    by_input = groupby(
        sorted(part.receives, key=lambda scored: scored[0].input), key=lambda scored: scored[0].input
    )
    received = [
        (f"{which}: " if which else "") + _ends([(str(edge.source), score) for edge, score in scored])
        for which, scored in by_input
    ]
    sent = _ends([(_reader(scored), scored[1]) for scored in part.sends])
    return str(part.node), part.is_claimed, " · ".join(received) or "–", sent or "–"


def _ends(ends: list[tuple[str, float]]) -> str:
    told = ", ".join(f"{name} {number(score)}" for name, score in ends[:N_ENDS_SHOWN])
    return told + (f" and {len(ends) - N_ENDS_SHOWN} more" if len(ends) > N_ENDS_SHOWN else "")


def _reader(scored: Scored) -> str:
    edge = scored[0]
    return str(edge.target) + (f".{edge.input}" if edge.input else "")
