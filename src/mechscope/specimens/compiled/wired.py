"""The blueprint: what each node of a compiled model is for, and which edges carry something by construction.

Owns: `Blueprint`. An edge is *wired* if its reader has a weight on something that its writer writes for the program.
Distractors are listed beside; what they read is nobody's business. Which wired edges are *needed* is `truth.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechscope.specimens.compiled.plan import Plan
from mechscope.specimens.compiled.rasp import Applied, Averaged, Copied, Counted, Series
from mechscope.specimens.compiled.weights import Head
from mechscope.vocabulary.edges import Edge, Node

EMBED, LOGITS = Node(kind="embed"), Node(kind="logits")


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What is known before the model has run once.

    Args:
        roles: Node to the names of the series that it computes.
        wired: Edges that carry something for the program.
        distractors: Heads and MLPs that compute nothing of the program.
        units: Series to the neurons that compute it, as nodes.
    """

    roles: Mapping[Node, tuple[str, ...]]
    wired: tuple[Edge, ...]
    distractors: tuple[Node, ...]
    units: Mapping[str, tuple[Node, ...]]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that the program uses."""
        return tuple(self.roles)


def draw_blueprint(
    plan: Plan,
    order: Mapping[Series, int],
    *,
    heads: Sequence[Sequence[Head]],
    neurons: Sequence[Mapping[Series, range]],
) -> Blueprint:
    """The blueprint of a plan, given which head and which neurons compute which series."""
    writers = plan.writers(order)
    roles: dict[Node, tuple[str, ...]] = {}
    for series in plan.written:
        roles[writers[series]] = (*roles.get(writers[series], ()), plan.names[series])
    every = [
        Node(kind="head", layer=layer, head=head)
        for layer, row in enumerate(heads)
        for head in range(len(row))
    ]
    every += [Node(kind="mlp", layer=layer) for layer in range(plan.n_layers)]
    return Blueprint(
        roles=roles | {LOGITS: ("output",)},
        wired=_wired(plan, writers, heads=heads),
        distractors=tuple(node for node in every if node not in roles),
        units={
            plan.names[series]: tuple(Node(kind="mlp", layer=layer, unit=unit) for unit in units)
            for layer, found in enumerate(neurons)
            for series, units in found.items()
        },
    )


def _wired(
    plan: Plan, writers: Mapping[Series, Node], *, heads: Sequence[Sequence[Head]]
) -> tuple[Edge, ...]:
    edges: dict[Edge, None] = {}
    for series in plan.written:
        node = writers[series]
        if (
            isinstance(series, Copied | Averaged | Counted)
            and node.layer is not None
            and node.head is not None
        ):
            for which, matrix in heads[node.layer][node.head].reads().items():
                used = [written for written in plan.written if bool(matrix[:, plan.place(written)].any())]
                sources = {writers[written] for written in used}
                sources |= {EMBED} if bool(matrix[:, plan.subspaces["is_bos"]].any()) else set()
                edges |= {Edge(source=source, target=node, input=which): None for source in sources}  # type: ignore[arg-type]
        elif isinstance(series, Applied):
            edges |= {Edge(source=source, target=node): None for source in _sources(plan, series, writers)}
    output = (written for written, _ in plan.views[plan.program.output].parts)
    edges |= {Edge(source=writers[written], target=LOGITS): None for written in output}
    return tuple(sorted(edges, key=str))


def _sources(plan: Plan, series: Applied, writers: Mapping[Series, Node]) -> set[Node]:
    sources = {writers[written] for argument in series.arguments for written, _ in plan.views[argument].parts}
    is_gated_by_bos = len(series.arguments) == 1 and plan.domains[series.arguments[0]].is_number
    parts = [written for argument in series.arguments for written, _ in plan.views[argument].parts]
    is_gated_by_bos |= any(isinstance(written, Copied) for written in parts)
    return sources | ({EMBED} if is_gated_by_bos else set())
