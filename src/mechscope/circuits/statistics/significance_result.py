"""What tests of a circuit found: each with its null, estimate, interval and p, corrected for their number, told.

Some nulls speak for the circuit ("it does what the model does"), some against it. Either way only a rejection asserts
anything, so Holm's rule over all tests bounds the chance of any false assertion; what is not rejected is said to be
that, and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from mechscope.circuits.circuit import Circuit
from mechscope.figures.prose import Cell, Table
from mechscope.figures.shown import number

HOLDS, NOT_SHOWN, CONTRADICTED, NOT_CONTRADICTED, CANNOT_TELL = (
    "holds",
    "not shown",
    "contradicted",
    "not contradicted",
    "can't tell",
)


@dataclass(frozen=True, kw_only=True)
class CircuitTest:
    """One test.

    Args:
        name: "equivalence", ...
        null: What is rejected at a small p.
        statistic: See the test's function.
        p: Of the null.
        passes: Whether the circuit does, by p alone; None where the test can't tell.
        note: In words.
        measured: What `estimate` is, in words.
        estimate: What a reader looks at; None where the statistic says nothing to one.
        interval: 95%, of `estimate`; None where there is none.
        speaks_for: Whether the null speaks for the circuit, so that rejecting it contradicts the circuit.
        level: At which the null is rejected.
        p_holm: p corrected over the tests that were done together; None before that.
    """

    name: str
    null: str
    statistic: float
    p: float
    passes: bool | None
    note: str = ""
    measured: str = ""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    speaks_for: bool = False
    level: float = 0.05
    p_holm: float | None = None

    @property
    def outcome(self) -> str:
        """What it says in a word; by the corrected p, if there is one."""
        if self.passes is None:
            return CANNOT_TELL
        is_rejected = (self.p if self.p_holm is None else self.p_holm) <= self.level
        if self.speaks_for:
            return CONTRADICTED if is_rejected else NOT_CONTRADICTED
        return HOLDS if is_rejected else NOT_SHOWN

    def row(self) -> tuple[Cell, ...]:
        """Name, what was measured, estimate with interval, p, corrected p, outcome."""
        told = "–" if self.estimate is None else number(self.estimate)
        if self.interval is not None:
            told += f" [{number(self.interval[0])}, {number(self.interval[1])}]"
        corrected = "–" if self.p_holm is None else number(self.p_holm)
        return self.name, self.measured, told, number(self.p), corrected, self.outcome

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "CircuitTest":
        """The inverse of `asdict`, also after a trip through a file."""
        interval = plain["interval"]
        return cls(**{**plain, "interval": None if interval is None else (interval[0], interval[1])})


@dataclass(frozen=True, kw_only=True)
class CircuitTests:
    """All tests of one circuit.

    Args:
        circuit: The circuit.
        tests: By name.
        edge_p: p that an edge matters no more than a random one, Holm-corrected, by edge; {} if left out.
        settings: JSON.
        data_sha256: Hash of the prompts.
    """

    circuit: Circuit
    tests: Mapping[str, CircuitTest]
    edge_p: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None

    def __getitem__(self, name: str) -> CircuitTest:
        return self.tests[name]

    def table(self) -> Table:
        """Tests in rows."""
        said = {True: "yes", False: "no", None: "can't tell"}
        rows = [
            (t.name, t.null, f"{t.statistic:.3g}", f"{t.p:.3g}", said[t.passes], t.note)
            for t in self.tests.values()
        ]
        return Table(("test", "null", "statistic", "p", "passed", ""), rows)

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "circuit": self.circuit.to_json(),
            "tests": {name: asdict(test) for name, test in self.tests.items()},
            "edge_p": dict(self.edge_p),
            "settings": dict(self.settings),
            "data_sha256": self.data_sha256,
        }


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number, stepping down."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty(len(p))
    out[order] = np.minimum(stepped, 1.0)
    return out


def corrected(tests: Sequence[CircuitTest]) -> tuple[CircuitTest, ...]:
    """Tests that were done together, each with its p corrected over all of them."""
    if not tests:
        return ()
    found = holm(np.array([test.p for test in tests]))
    return tuple(replace(test, p_holm=float(p)) for test, p in zip(tests, found, strict=True))
