"""Phase diagrams of the toy model: is the extra feature dropped, superposed, or given a dimension of its own?

Owns: n=2 in m=1 and n=3 in m=2, trained over density and the extra feature's importance on exact losses, and the
regions that follow from the closed-form losses of the candidate solutions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechscope.superposition.toy import ToyModels, make_patterns, train_on_patterns
from mechscope.vocabulary.errors import InputError

if TYPE_CHECKING:
    from mechscope.figures.labelled import LabelledArray

PHASES = ("not represented", "in superposition", "own dimension")
CASES = ((2, 1), (3, 2))


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A grid of toy models.

    Args:
        n_features: 2 or 3; the last one is the extra feature, the others have importance 1.
        n_hidden: n_features - 1.
        n_cells: Along each axis.
        least_density: Densities run from 1 down to this, evenly in the logarithm.
        importance_range: Importance of the extra feature runs from 1 / this to this.
        n_restarts: Starts of each cell; the best is kept.
        n_steps: Of Adam.
        seed: Of the starts.
    """

    n_features: int = 2
    n_hidden: int = 1
    n_cells: int = 20
    least_density: float = 0.01
    importance_range: float = 10.0
    n_restarts: int = 8
    n_steps: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.n_features, self.n_hidden) not in CASES:
            raise InputError(
                "Phase diagrams have analytic regions for two cases.",
                got=f"n={self.n_features}, m={self.n_hidden}",
                instead="n=2, m=1 or n=3, m=2",
            )

    @property
    def densities(self) -> Float[Tensor, " cell"]:
        """Along the rows, dense to sparse."""
        return torch.logspace(0, float(np.log10(self.least_density)), self.n_cells)

    @property
    def importances(self) -> Float[Tensor, " cell"]:
        """Along the columns."""
        end = float(np.log10(self.importance_range))
        return torch.logspace(-end, end, self.n_cells)


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseDiagram:
    """What was trained, and what the analysis says. Phases are numbers into `PHASES`.

    Args:
        settings: Its grid.
        trained: Phase of the extra feature in each cell's best model.
        analytic: Phase in the candidate of least loss.
        losses: Of the trained models, over those of the best candidate: 1 where they agree, less where
            training found something better than any candidate.
    """

    settings: PhaseSettings
    trained: Int[np.ndarray, "density importance"]
    analytic: Int[np.ndarray, "density importance"]
    losses: Float[np.ndarray, "density importance"]

    @property
    def agreement(self) -> float:
        """Share of cells where both say the same."""
        return float((self.trained == self.analytic).mean())

    def array(self) -> "LabelledArray":
        """Trained (first) and analytic phases by name of axis."""
        from mechscope.figures.labelled import LabelledArray

        case = f"n={self.settings.n_features}, m={self.settings.n_hidden}"
        return LabelledArray(
            np.stack([self.trained, self.analytic]),
            ("source", "density", "importance of the extra feature"),
            coords={
                "source": ("trained", "analytic"),
                "density": [round(float(p), 5) for p in self.settings.densities],
                "importance of the extra feature": [round(float(i), 5) for i in self.settings.importances],
            },
            unit="phase",
            title=f"Phases of the extra feature, {case}",
            conventions={
                "phases": ", ".join(f"{i} {name}" for i, name in enumerate(PHASES)),
                "other importances": 1,
            },
        )


def draw_phase_diagram(settings: PhaseSettings) -> PhaseDiagram:
    """Train every cell at once and compare it with the analysis.

    Cost: seconds on one core for 20 x 20 cells.
    """
    densities, importances = (
        part.ravel() for part in torch.meshgrid(settings.densities, settings.importances, indexing="ij")
    )
    importance = torch.ones(len(densities), settings.n_features)
    importance[:, -1] = importances
    models = train_on_patterns(
        make_patterns(settings.n_features, n_nodes=4, most_on=settings.n_features),
        n_hidden=settings.n_hidden,
        densities=densities,
        importance=importance,
        n_restarts=settings.n_restarts,
        n_steps=settings.n_steps,
        seed=settings.seed,
    )
    candidates = candidate_losses(settings.n_features, densities.double(), importances.double())
    names = list(candidates)
    losses = torch.stack([candidates[name] for name in names])
    best = losses.min(0)
    phases = torch.tensor([PHASES.index(name.split(":")[0]) for name in names])
    shape = (settings.n_cells, settings.n_cells)
    return PhaseDiagram(
        settings=settings,
        trained=classify_extra(models).view(shape).numpy(),
        analytic=phases[best.indices].view(shape).numpy(),
        losses=(models.losses.double() / best.values).view(shape).numpy(),
    )


def classify_extra(models: ToyModels) -> Int[Tensor, " instance"]:
    """The phase of the last feature: by its norm, then by how much of its direction the others use."""
    extra, others = models.weights[:, -1], models.weights[:, :-1]
    norm = extra.norm(dim=1)
    unit = extra / norm.clamp(min=1e-9)[:, None]
    shared = torch.einsum("ifh,ih->if", others, unit).square().sum(1)
    phase = torch.where(shared > 0.1 * norm.square(), 1, 2)
    return torch.where(norm < 0.5, 0, phase)


def candidate_losses(
    n_features: int, density: Float[Tensor, "*cell"], importance: Float[Tensor, "*cell"]
) -> dict[str, Float[Tensor, "*cell"]]:
    """Closed-form losses of the candidates, by "phase of the extra feature: solution".

    A feature that is not represented is predicted by its mean, which leaves its variance p/3 - p^2/4. An
    antipodal pair with W = +-1 and b = 0 errs only where both are on, by the smaller of the two on each side:
    p^2 / 6 for unit importance. A triangle errs by E min(x, y/2)^2 = 1/16 a feature and pair on, and by
    1/6 a feature where all three are.
    """
    p, variance = density, density / 3 - density**2 / 4
    if n_features == 2:
        return {
            "not represented: (1, 0)": importance * variance,
            "own dimension: (0, 1)": variance,
            "in superposition: antipodal": p**2 * (1 + importance) / 6,
        }
    return {
        "not represented: two axes": importance * variance,
        "own dimension: another dropped": variance,
        "own dimension: others antipodal": p**2 / 3,
        "in superposition: antipodal": p**2 * (1 + importance) / 6,
        "in superposition: triangle": (2 + importance) * (p**2 * (1 - p) / 8 + p**3 / 6),
    }
