"""What discovery controls found: the real circuit beside those of worlds without the mechanism, told and drawn."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.circuits.circuit import Circuit
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.prose import Cell, Table
from mechscope.records.fingerprint import ModelFingerprint
from mechscope.records.record import Record

MODEL = "model"


class DiscoveryControlsRecord(Record):
    """A saved `DiscoveryControls`."""

    kind: ClassVar[str] = "discovery-controls"


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What one discovery found.

    Args:
        world: "model", or the control's name.
        circuit: What was found; None where the method found nothing to go by.
        gap: m(model) less m(none) in this world, on prompts that the search has not seen.
        gap_interval: 95%, by resampling units.
        carried: What the circuit carries there, in units of the real gap; for the model its faithfulness.
        concentration: Share of all edges' (or parts') absolute scores that the circuit's number of strongest holds.
        curve: Carried by the strongest edges (or parts), for each size.
        note: Why there is no circuit.
    """

    world: str
    circuit: Circuit | PartCircuit | None
    gap: float
    gap_interval: tuple[float, float]
    carried: float
    concentration: float | None
    curve: tuple[float, ...]
    note: str = ""

    @property
    def has_a_gap(self) -> bool:
        """Whether its behaviour can be told from nothing."""
        low, high = self.gap_interval
        return low > 0 or high < 0

    def to_json(self) -> dict[str, Any]:
        """For records."""
        circuit = None if self.circuit is None else self.circuit.to_json()
        return asdict(replace(self, circuit=None)) | {"circuit": circuit}


@dataclass(frozen=True, kw_only=True)
class DiscoveryControls:
    """A discovery beside the same discovery where there is nothing to find.

    Args:
        real: In the model.
        controls: In each world without the mechanism, draw by draw.
        fractions: Sizes of the curves.
        settings: Conventions, JSON.
        model: Which weights.
        data_sha256: Hash of the prompts that all were evaluated on.
    """

    real: Discovery
    controls: tuple[Discovery, ...]
    fractions: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelFingerprint | None = None
    data_sha256: str | None = None

    def of(self, world: str) -> list[Discovery]:
        """The draws of one control."""
        return [found for found in self.controls if found.world == world]

    @property
    def worlds(self) -> tuple[str, ...]:
        """The controls drawn."""
        return tuple(dict.fromkeys(found.world for found in self.controls))

    def p(self, world: str) -> float:
        """Chance that a draw of a control carries as much, in either direction: (1 + those that do) / (1 + draws)."""
        found = self.of(world)
        as_much = sum(abs(one.carried) >= self.real.carried - 1e-9 for one in found)
        return (1 + as_much) / (1 + len(found))

    def most_carried(self, world: str) -> float:
        """The largest share of the real gap that a draw of a control carries, in either direction."""
        return max(abs(one.carried) for one in self.of(world))

    def table(self) -> Table:
        """Real and controls, side by side."""
        rows: list[list[Cell]] = []
        for world in (MODEL, *self.worlds):
            found = [self.real] if world == MODEL else self.of(world)
            carried = [one.carried for one in found]
            dense = [one.concentration for one in found if one.concentration is not None]
            rows.append(
                [
                    world,
                    f"{np.mean([one.gap for one in found]):.3g}",
                    f"{sum(one.has_a_gap for one in found)} of {len(found)}",
                    f"{np.mean(carried):.3f}" + (f" ({min(carried):.3f} to {max(carried):.3f})"),
                    f"{np.mean(dense):.3f}" if dense else "–",
                    "" if world == MODEL else f"{self.p(world):.3g}",
                ]
            )
        head = ["found in", "gap", "gap told from 0", "carried, of the real gap", "score in its edges", "p"]
        return Table(head, rows, caption="The same discovery in worlds without the mechanism")

    def labelled(self) -> LabelledArray:
        """Curves over size: the model's, and each control's mean with its lowest and highest draw."""
        names = (MODEL, *self.worlds)
        sizes = "parts, times the circuit's" if "part" in self.settings else "share of edges"
        curves = [np.array([one.curve for one in self.of(world)]) for world in self.worlds]
        real = np.array(self.real.curve)
        return LabelledArray(
            np.stack([real, *(curve.mean(0) for curve in curves)]),
            ("found in", sizes),
            coords={"found in": list(names), sizes: [f"{k:g}" for k in self.fractions]},
            unit="carried, of the real gap",
            title="Discovery where there is nothing to find",
            low=np.stack([real, *(curve.min(0) for curve in curves)]),
            high=np.stack([real, *(curve.max(0) for curve in curves)]),
            conventions={k: v for k, v in self.settings.items() if k in ("ablation", "direction", "split")},
        )

    def plot(self) -> Any:
        """A Plotly figure: one curve for the model and one for each control."""
        return self.labelled().plot(kind="lines")

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        told = ", ".join(f"{world} at most {self.most_carried(world):.2f}" for world in self.worlds)
        return f"<DiscoveryControls: the model's circuit carries {self.real.carried:.2f}; {told}>"

    def to_json(self) -> dict[str, Any]:
        """All but the model."""
        return {
            "real": self.real.to_json(),
            "controls": [one.to_json() for one in self.controls],
            "fractions": list(self.fractions),
            "settings": dict(self.settings),
            "data_sha256": self.data_sha256,
        }

    @classmethod
    def from_json(
        cls, plain: Mapping[str, Any], *, model: ModelFingerprint | None = None
    ) -> "DiscoveryControls":
        """The inverse of `to_json`, also after a trip through a file."""
        return cls(
            real=_discovery_of(plain["real"]),
            controls=tuple(_discovery_of(one) for one in plain["controls"]),
            fractions=tuple(plain["fractions"]),
            settings=plain["settings"],
            model=model,
            data_sha256=plain["data_sha256"],
        )

    def save(self, path: str | Path) -> None:
        """Write a record."""
        numbers = {k: v for k, v in self.to_json().items() if k in ("real", "controls", "fractions")}
        DiscoveryControlsRecord(
            settings=dict(self.settings), model=self.model, data_sha256=self.data_sha256, numbers=numbers
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "DiscoveryControls":
        """Read what `save` wrote."""
        record = DiscoveryControlsRecord.load(path)
        plain = {**record.numbers, "settings": record.settings, "data_sha256": record.data_sha256}
        return cls.from_json(plain, model=record.model)


def _circuit_of(saved: Mapping[str, Any]) -> Circuit | PartCircuit:
    for one in PartCircuit.__subclasses__():
        if one.record.kind == saved["kind"]:
            return one.from_json(saved)
    return Circuit.from_json(saved)


def _discovery_of(saved: Mapping[str, Any]) -> Discovery:
    circuit = None if saved["circuit"] is None else _circuit_of(saved["circuit"])
    low, high = saved["gap_interval"]
    rest = {k: v for k, v in saved.items() if k not in ("circuit", "gap_interval", "curve")}
    return Discovery(circuit=circuit, gap_interval=(low, high), curve=tuple(saved["curve"]), **rest)
