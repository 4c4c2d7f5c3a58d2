"""What checks of a circuit found: tests corrected for their number, and the search where there is nothing to find.

Holds numbers, no model. Invariant: `CircuitChecks.from_json(c.to_json()) == c`, also after a trip through a file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mechscope.circuits.statistics.control_result import DiscoveryControls
from mechscope.circuits.statistics.significance_result import CANNOT_TELL, HOLDS, NOT_SHOWN, CircuitTest
from mechscope.figures.prose import Table
from mechscope.figures.shown import number

COLUMNS = ("test", "what is measured", "estimate [95%]", "p", "p (Holm)", "outcome")
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class WorldCheck:
    """One world without the mechanism: how the circuit stands among what the same search finds there.

    Args:
        world: "redrawn weights", "permuted weights" or "permuted answers".
        rank: The circuit's place among itself and the draws, by what is carried of the real gap; ties count against.
        n_draws: Searches in that world.
        most: The largest share of the real gap that a draw's circuit carries, in either direction.
        p: (1 + draws that carry as much) / (1 + draws).
    """

    world: str
    rank: int
    n_draws: int
    most: float
    p: float

    @property
    def outcome(self) -> str:
        """ "holds", "not shown", or "can't tell" where the circuit is first among too few draws."""
        if self.p <= LEVEL + 1e-12:
            return HOLDS
        return CANNOT_TELL if self.rank == 1 else NOT_SHOWN


@dataclass(frozen=True, kw_only=True)
class CircuitChecks:
    """Everything that a circuit was held against, beside a claim about it.

    Args:
        tests: With p corrected over all of them by Holm's rule.
        edge_p: p that an edge matters no more than a random one, Holm-corrected over edges; {} if left out.
        controls: The search again in worlds without the mechanism; None if that was left out.
        left_out: What could not be done, and why.
        settings: JSON.
        data_sha256: Hash of the prompts that all was measured on.
    """

    tests: tuple[CircuitTest, ...] = ()
    edge_p: Mapping[str, float] = field(default_factory=dict)
    controls: DiscoveryControls | None = None
    left_out: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None

    def __getitem__(self, name: str) -> CircuitTest:
        return next(test for test in self.tests if test.name == name)

    @property
    def worlds(self) -> tuple[WorldCheck, ...]:
        """How the circuit stands in each world without the mechanism."""
        if self.controls is None:
            return ()
        found = []
        for world in self.controls.worlds:
            n, p = len(self.controls.of(world)), self.controls.p(world)
            rank = round(p * (1 + n))
            most = self.controls.most_carried(world)
            found.append(WorldCheck(world=world, rank=rank, n_draws=n, most=most, p=p))
        return tuple(found)

    @property
    def outcomes(self) -> dict[str, str]:
        """What each test and each world says, in a word."""
        return {test.name: test.outcome for test in self.tests} | {
            f"search with {one.world}": one.outcome for one in self.worlds
        }

    def table(self) -> Table:
        """Tests in rows."""
        return Table(COLUMNS, [test.row() for test in self.tests])

    def lines(self) -> list[str]:
        """A line of text for each test and world."""
        told = []
        for test in self.tests:
            name, measured, estimate, _, p, outcome = test.row()
            told.append(f"{name}: {outcome} ({measured}: {estimate}, corrected p {p})")
        for one in self.worlds:
            told.append(
                f"the search with {one.world}: {one.outcome} (carries at most {number(one.most)} of the gap in "
                f"{one.n_draws} draws, p {number(one.p)})"
            )
        return told + [f"left out: {reason}" for reason in self.left_out]

    def _repr_html_(self) -> str:
        worlds = "" if self.controls is None else self.controls._repr_html_()
        return self.table()._repr_html_() + worlds

    def __repr__(self) -> str:
        by_outcome: dict[str, list[str]] = {}
        for name, outcome in self.outcomes.items():
            by_outcome.setdefault(outcome, []).append(name)
        told = "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in by_outcome.items())
        return f"<CircuitChecks: {told or 'nothing could be done'}>"

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "tests": [asdict(test) | {"outcome": test.outcome} for test in self.tests],
            "edge_p": dict(self.edge_p),
            "worlds": [asdict(one) | {"outcome": one.outcome} for one in self.worlds],
            "controls": None if self.controls is None else self.controls.to_json(),
            "left_out": list(self.left_out),
            "settings": dict(self.settings),
            "data_sha256": self.data_sha256,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "CircuitChecks":
        """The inverse of `to_json`; outcomes and worlds follow from the rest."""
        tests = [{k: v for k, v in entry.items() if k != "outcome"} for entry in plain["tests"]]
        controls = plain["controls"]
        return cls(
            tests=tuple(CircuitTest.from_json(entry) for entry in tests),
            edge_p=dict(plain["edge_p"]),
            controls=None if controls is None else DiscoveryControls.from_json(controls),
            left_out=tuple(plain["left_out"]),
            settings=dict(plain["settings"]),
            data_sha256=plain["data_sha256"],
        )
