"""Evaluation of circuits of parts: faithfulness, its complement's, errors alone, and random parts of equal number.

    completeness: |F(model less C)|, what is left of the behaviour without the circuit; 0 is complete
    errors alone: F of the errors that a circuit of latents keeps, without its latents
    random:       as many parts at each site, drawn from those that are active in the prompts, the same errors kept

Many circuits share the base run, and go through the engine together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechscope.behaviors.split import Split
from mechscope.circuits.conventions import Conventions
from mechscope.circuits.faithfulness import Faithfulness, refuse_without_gap, saved_fields
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.engine.kept_parts.run import Ablation, Kept, KeptRuns
from mechscope.figures.prose import Cell, Table
from mechscope.models.inputs import TokenBatch
from mechscope.models.model import Model
from mechscope.records.record import Record
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import BadFile, InterventionMismatch, NotEnoughEvidence


@dataclass(frozen=True, kw_only=True)
class PartMeasures:
    """What is measured beside faithfulness.

    Args:
        n_random: Random circuits of equal size; 0 for none.
        seed: Of those.
        n_resamples: Of the intervals.
    """

    n_random: int = 20
    seed: int = 0
    n_resamples: int = 2000


class PartEvaluationRecord(Record):
    """A saved `PartEvaluation`."""

    kind: ClassVar[str] = "part-evaluation"


@dataclass(frozen=True, kw_only=True, eq=False)
class PartEvaluation(Faithfulness):
    """What a circuit of latents or experts does on a split, pair by pair.

    Args:
        circuit: The circuit.
        rest_values: The metric with everything but the circuit, [pair].
        error_values: With the errors that the circuit keeps and no latent, [pair]; None where it keeps none.
        random_values: Under random circuits, [draw, pair].
    """

    circuit: PartCircuit
    rest_values: np.ndarray
    error_values: np.ndarray | None
    random_values: np.ndarray

    @property
    def complement(self) -> float:
        """Faithfulness of everything but the circuit; near 0 where nothing of the behaviour was left out."""
        return self.share(self.rest_values)

    @property
    def completeness(self) -> float:
        """Magnitude of `complement`, as `CircuitEvaluation.completeness` with K the whole circuit; 0 is complete."""
        return abs(self.complement)

    @property
    def errors_alone(self) -> float | None:
        """Faithfulness of the errors that are kept, without a latent; None where none is kept."""
        return None if self.error_values is None else self.share(self.error_values)

    @property
    def random_faithfulness(self) -> np.ndarray:
        """Faithfulness of each random circuit, [draw]."""
        return np.array([self.share(values) for values in self.random_values])

    @property
    def p(self) -> float | None:
        """Rank of the circuit among random ones by nearness to the model: (1 + those as near) / (1 + draws)."""
        if not len(self.random_values):
            return None
        as_near = np.abs(1 - self.random_faithfulness) <= abs(1 - self.faithfulness)
        return float((1 + as_near.sum()) / (1 + len(as_near)))

    def to_json(self) -> dict[str, Any]:
        """Numbers for a machine."""
        return {
            "n_parts": len(self.circuit),
            "errors_kept": self.settings.get("errors_kept"),
            **self.summary(),
            "complement": self.complement,
            "completeness": self.completeness,
            "errors_alone": self.errors_alone,
            "random_faithfulness": self.random_faithfulness.tolist(),
            "p": self.p,
        }

    def table(self) -> Table:
        """The numbers for a report."""
        rows: list[list[Cell]] = [["circuit", self.circuit.name]]
        if self.circuit.part == "latent":
            rows.append(["errors kept at", ", ".join(self.settings.get("errors_kept", ())) or "no site"])
        rows += self.rows("nothing kept")
        rows.append(["faithfulness of the complement", f"{self.complement:.3f}"])
        if self.errors_alone is not None:
            rows.append(["faithfulness of the kept errors alone", f"{self.errors_alone:.3f}"])
        if self.p is not None:
            found = self.random_faithfulness
            told = f"{np.median(found):.3f} ({found.min():.3f} to {found.max():.3f}), p {self.p:.3f}"
            rows.append([f"faithfulness of {len(found)} random circuits", told])
        return Table(["measure", "value"], rows, caption=self.said)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        told = f"faithfulness {self.faithfulness:.3f} over {len(self.values)} pairs"
        return f"<PartEvaluation of {self.circuit.name}: {told}, complement {self.complement:.3f}>"

    def save(self, path: str | Path) -> None:
        """Write a record."""
        arrays = self.arrays | {"rest": self.rest_values, "random": self.random_values}
        arrays |= {} if self.error_values is None else {"errors": self.error_values}
        scores = self.circuit.scores or {}
        PartEvaluationRecord(
            settings={**self.settings, "found_by": dict(self.circuit.settings)},
            model=self.model,
            data_sha256=self.data_sha256,
            numbers={
                "circuit": self.circuit.to_json(),
                "unit": self.circuit.unit,
                "summary": self.to_json(),
            },
            arrays=arrays | {f"scores of {site}": np.asarray(of) for site, of in scores.items()},
        ).save(path)

    @classmethod
    def load(cls, path: str | Path) -> "PartEvaluation":
        """Read what `save` wrote."""
        record = PartEvaluationRecord.load(path)
        saved, arrays = record.numbers["circuit"], record.arrays
        kinds = {one.record.kind: one for one in PartCircuit.__subclasses__()}
        if saved["kind"] not in kinds:
            raise BadFile(
                "This is an evaluation of another kind of circuit.",
                got=saved["kind"],
                instead=", ".join(kinds),
            )
        scores = {
            site: arrays[f"scores of {site}"] for site in saved["parts"] if f"scores of {site}" in arrays
        }
        circuit = kinds[saved["kind"]].from_json(
            saved,
            scores=scores or None,
            unit=record.numbers["unit"],
            settings=record.settings["found_by"],
            model=record.model,
        )
        return cls(
            circuit=circuit,
            rest_values=arrays["rest"],
            error_values=arrays.get("errors"),
            random_values=arrays["random"],
            **saved_fields(record),
        )


def prompts_for(split: Split, conventions: Conventions) -> tuple[TokenBatch, TokenBatch, Ablation]:
    """Prompts that are run, prompts that removed parts' values are from, and how.

    Raises:
        InterventionMismatch: an ablation that gives parts no value.
    """
    if conventions.ablation == "optimal":
        raise InterventionMismatch(
            'A removed latent or expert has no value under "optimal".',
            got='ablation="optimal"',
            because="constants are learned for whole writers, and not for their parts",
            instead='"resample", "mean" or "zero"',
        )
    if conventions.direction == "denoising" and conventions.ablation != "resample":
        raise InterventionMismatch(
            "Latents and experts are restored in the twin's run only.",
            got=f'direction="denoising", ablation={conventions.ablation!r}',
            because="the run that starts with every part at a constant is there for edges only",
            instead='direction="noising", or ablation="resample"',
        )
    if conventions.direction == "denoising":
        return split.corrupt, split.clean, "resample"
    other = split.clean if conventions.ablation == "mean" else split.corrupt
    return split.clean, other, conventions.ablation


def measure_kept(
    runs: KeptRuns,
    circuits: Sequence[Kept],
    conventions: Conventions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The metric of circuits, [circuit, pair], in either direction.

    Denoising runs the corrupt prompts and gives what is kept the clean run's values.
    """
    if conventions.direction == "denoising":
        circuits = [{site: ~which for site, which in kept.items()} for kept in circuits]
    return runs.measure(circuits, progress=progress)


def evaluate_parts(
    model: Model,
    circuits: Sequence[PartCircuit],
    *,
    runs: KeptRuns,
    split: Split,
    conventions: Conventions,
    measures: PartMeasures,
) -> list[PartEvaluation]:
    """Evaluate circuits over prompts that were made ready; `evaluate_latents` and `evaluate_experts` come in here.

    Raises:
        NotEnoughEvidence: there is no gap.
    """
    whole = runs.whole
    none = {site: np.zeros_like(every) for site, every in whole.items()}
    asked: list[Kept] = [whole, none]
    for one in circuits:
        asked += [one.kept, {site: ~which for site, which in one.kept.items()}, _errors_of(one)]
        asked += [
            random_parts(one, runs.active, seed=measures.seed, index=i) for i in range(measures.n_random)
        ]
    values = measure_kept(runs, asked, conventions)
    refuse_without_gap(values[0], values[1])
    settings = {"split": split.name, "metric": split.metric.kind, **conventions.to_json()}
    settings |= {"n_random": measures.n_random, "seed": measures.seed, "n_resamples": measures.n_resamples}
    found: list[PartEvaluation] = []
    for one, own in zip(circuits, values[2:].reshape(len(circuits), -1, values.shape[1]), strict=True):
        found.append(
            PartEvaluation(
                circuit=one,
                values=own[0],
                model_values=values[0],
                none_values=values[1],
                rest_values=own[1],
                error_values=own[2] if any(which.any() for which in _errors_of(one).values()) else None,
                random_values=own[3:],
                units=split.units,
                settings=settings | one.conventions,
                model=model.fingerprint,
                data_sha256=split.data_hash,
            )
        )
    return found


def refuse_none(circuits: Sequence[Any]) -> None:
    """Refuse an empty list.

    Raises:
        NotEnoughEvidence
    """
    if not circuits:
        raise NotEnoughEvidence(
            "There is no circuit to evaluate.", got="an empty list", instead="one circuit or more"
        )


def _errors_of(circuit: PartCircuit) -> dict[str, np.ndarray]:
    """The errors that a circuit keeps, alone."""
    found = {site: np.zeros_like(which) for site, which in circuit.kept.items()}
    if circuit.part == "latent":
        for site, which in circuit.kept.items():
            found[site][-1] = which[-1]
    return found


def random_parts(
    circuit: PartCircuit, active: Mapping[str, np.ndarray], *, seed: int, index: int
) -> dict[str, np.ndarray]:
    """As many active parts at each site as the circuit keeps, and the same errors."""
    found = _errors_of(circuit)
    for site, which in circuit.kept.items():
        pool = np.flatnonzero(active[site])
        n = int((which & active[site]).sum())
        found[site][generator_for(seed, "random parts", site, index).choice(pool, n, replace=False)] = True
    return found
