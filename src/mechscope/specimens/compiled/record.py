"""The truth of a compiled model as a record: what is true by construction, and what cutting each edge showed.

Owns: `Truth`, its JSON form, and `truth_of` for the programs that ship with the package. Invariant: tests measure
every bundled truth again from the weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from mechscope.models.opening import BUNDLED
from mechscope.records.files import open_json
from mechscope.specimens.compiled.compiler import Compiled
from mechscope.specimens.compiled.pairs import draw_pairs
from mechscope.specimens.compiled.tokenizer import BOS
from mechscope.specimens.compiled.truth import Ablation, Needed, case_of, find_needed
from mechscope.vocabulary.edges import Edge, Node, Wiring
from mechscope.vocabulary.errors import BadProgram

N_PAIRS = 64


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of a compiled model.

    Args:
        name: Of the program.
        wiring: All nodes and edges of the model, distractors too.
        roles: Node to the series that it computes.
        wired: Edges that carry something for the program, by construction.
        resample: Edges that are needed when a cut edge carries the corrupt prompt's value. This is what ACDC, edge
            attribution and edge pruning with corrupt prompts should find.
        zero: Edges that are needed when a cut edge carries zero.
        distractors: Nodes that compute nothing of the program.
        units: Series to the neurons that compute it.
    """

    name: str
    wiring: Wiring
    roles: Mapping[Node, tuple[str, ...]]
    wired: tuple[Edge, ...]
    resample: Needed
    zero: Needed
    distractors: tuple[Node, ...]
    units: Mapping[str, tuple[Node, ...]]

    def edges(self, ablation: Ablation = "resample") -> tuple[Edge, ...]:
        """The edges that are needed under an ablation."""
        return self.resample.edges if ablation == "resample" else self.zero.edges

    def nodes(self, ablation: Ablation = "resample") -> tuple[Node, ...]:
        """Nodes at either end of a needed edge, in the order of computation."""
        ends = {node for edge in self.edges(ablation) for node in (edge.source, edge.target)}
        return tuple(node for node in self.wiring.nodes if node in ends)

    def to_json(self) -> dict[str, Any]:
        """JSON form; `truth_from_json` is its inverse."""
        return {
            "name": self.name,
            "wiring": asdict(self.wiring),
            "roles": {str(node): list(names) for node, names in self.roles.items()},
            "wired": [str(edge) for edge in self.wired],
            "needed": {"resample": self.resample.to_json(), "zero": self.zero.to_json()},
            "distractors": [str(node) for node in self.distractors],
            "units": {name: [str(node) for node in nodes] for name, nodes in self.units.items()},
        }


def truth_from_json(saved: Mapping[str, Any]) -> Truth:
    """Rebuild a truth from `to_json`."""

    def nodes(names: list[str]) -> tuple[Node, ...]:
        return tuple(map(Node.parse, names))

    def needed(ablation: Ablation) -> Needed:
        found = saved["needed"][ablation]
        return Needed(
            ablation=ablation,
            edges=tuple(map(Edge.parse, found["edges"])),
            least=found["least_effect"],
            rest=found["greatest_effect_of_the_rest"],
            n_pairs=found["n_pairs"],
        )

    return Truth(
        name=saved["name"],
        wiring=Wiring(**saved["wiring"]),
        roles={Node.parse(name): tuple(roles) for name, roles in saved["roles"].items()},
        wired=tuple(map(Edge.parse, saved["wired"])),
        resample=needed("resample"),
        zero=needed("zero"),
        distractors=nodes(saved["distractors"]),
        units={name: nodes(units) for name, units in saved["units"].items()},
    )


def find_truth(compiled: Compiled, *, n: int = N_PAIRS, seed: int = 0) -> Truth:
    """Measure the truth of a compiled program on pairs of its train split.

    Cost: two slow forward passes an edge; seconds.
    """
    case = case_of(draw_pairs(compiled.program, n=n, seed=seed), compiled.vocabulary.ids, bos=BOS)
    found = {
        ablation: find_needed(compiled.network, case, ablation=ablation) for ablation in ("resample", "zero")
    }
    return Truth(
        name=compiled.program.name,
        wiring=compiled.wiring,
        roles=compiled.blueprint.roles,
        wired=compiled.blueprint.wired,
        distractors=compiled.blueprint.distractors,
        units=compiled.blueprint.units,
        **found,
    )


@lru_cache(maxsize=32)
def truth_of(name: str) -> Truth:
    """The truth of a bundled program, by name: "reverse", or "compiled/reverse".

    Raises:
        BadProgram: no such program is bundled.
    """
    folder = BUNDLED / "compiled"
    short = name.removeprefix("compiled/")
    known = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if short not in known:
        raise BadProgram(
            f'There is no bundled program "{name}".',
            got=name,
            because="a program of your own has its truth from find_truth(compile_program(program))",
            instead=", ".join(known),
        )
    card: Any = open_json(folder / short / "card.json")
    return truth_from_json(card["truth"])
