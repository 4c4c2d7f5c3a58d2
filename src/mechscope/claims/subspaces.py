"""Continuous controls: random subspaces and directions that the activations could as well have had.

Owns the control families that are always available, also where a layer has three heads. Refuses a mechanism
whose captured variance only the mechanism itself has.
Invariant: draw `i` depends on the claim's seed, the family's name and `i` only.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from mechscope.claims.controls import DIRECTIONS, SUBSPACES
from mechscope.records.seeds import generator_for
from mechscope.vocabulary.errors import NotEnoughEvidence, ShapeError

CLOSEST_TO_EXTREME = 0.999
"""A subspace that captures more than this of the most that any could has no random peers."""


def random_subspaces(
    basis: Float[np.ndarray, "dim d_site"],
    covariance: Float[np.ndarray, "d_site d_site"],
    *,
    n_draws: int,
    seed: int,
    name: str = SUBSPACES,
) -> Float[np.ndarray, "draw dim d_site"]:
    """Random subspaces that capture as much variance as the mechanism's, with its norms.

    Gaussian vectors are tilted by a power of the covariance, and the power is solved for. The variance that
    they capture grows with the power (its slope is a sum of |P_ij|^2 (f_i - f_j)(g_i - g_j) over pairs of
    eigenvectors, f and g both increasing in the eigenvalue), so every draw has exactly one solution.

    Args:
        basis: The mechanism's directions as rows; one row for a direction. Need not be orthonormal.
        covariance: Of the activations at the site.

    Returns:
        Orthogonal rows, the i-th with the norm of the mechanism's i-th row.

    Raises:
        NotEnoughEvidence: the mechanism is all of the site, or (nearly) the subspace of most or of least variance,
            so that whatever captures as much is the mechanism itself.

    Cost: one eigendecomposition, then about 15 QR of [d_site, dim] per draw.
    """
    values, vectors = _spectrum(covariance, basis.shape[1])
    dim = basis.shape[0]
    frame = np.linalg.qr(basis.T.astype(np.float64))[0]
    target = float(np.einsum("dk,de,ek->", frame, covariance, frame))
    _refuse_extremes(target, values, dim)
    norms = np.linalg.norm(basis.astype(np.float64), axis=1)
    draws = np.empty((n_draws, dim, basis.shape[1]))
    for index in range(n_draws):
        gaussian = generator_for(seed, "controls", name, index).standard_normal((len(values), dim))
        draws[index] = (vectors @ _tilted_to(target, gaussian, values)).T * norms[:, None]
    return draws


def matched_directions(
    covariance: Float[np.ndarray, "d_site d_site"],
    *,
    norm: float,
    n_draws: int,
    seed: int,
    name: str = DIRECTIONS,
) -> Float[np.ndarray, "draw d_site"]:
    """Directions drawn as the activations themselves are spread, each scaled to `norm`."""
    values, vectors = _spectrum(covariance, covariance.shape[0])
    draws = np.stack(
        [
            vectors
            @ (np.sqrt(values) * generator_for(seed, "controls", name, i).standard_normal(len(values)))
            for i in range(n_draws)
        ]
    )
    return draws * (norm / np.linalg.norm(draws, axis=1, keepdims=True))


def _spectrum(
    covariance: Float[np.ndarray, "d_site d_site"], d_site: int
) -> tuple[Float[np.ndarray, " d_site"], Float[np.ndarray, "d_site d_site"]]:
    if covariance.shape != (d_site, d_site):
        raise ShapeError(
            "a covariance of another width", got=covariance.shape, instead=f"({d_site}, {d_site})"
        )
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    if values[-1] <= 0:
        raise NotEnoughEvidence(
            "activations that do not vary",
            got=f"largest variance {values[-1]:.3g}",
            because="every direction captures nothing, so none is matched to the mechanism",
        )
    return np.maximum(values, 1e-12 * values[-1]), vectors  # round-off makes small eigenvalues negative


def _refuse_extremes(target: float, values: Float[np.ndarray, " d_site"], dim: int) -> None:
    if dim >= len(values):
        raise NotEnoughEvidence(
            "a whole site has no random peers",
            got=f"{dim} of {len(values)} dimensions",
            because="the only subspace of that dimension is the site itself",
            instead="other components as controls",
        )
    most, least = float(values[-dim:].sum()), float(values[:dim].sum())
    room = most - least
    reached = (target - least) / room if room > 1e-9 * most else 0.5
    if not 1 - CLOSEST_TO_EXTREME <= reached <= CLOSEST_TO_EXTREME:
        raise NotEnoughEvidence(
            "no random subspace captures as much variance as the mechanism",
            got=f"{target:.4g}; the possible range is {least:.4g} to {most:.4g}",
            because="it is the extreme subspace of these activations, so its only peer is itself",
            instead="covariance-matched directions, label-shuffled re-estimates, or other components",
        )


def _tilted_to(
    target: float, gaussian: Float[np.ndarray, "d_site dim"], values: Float[np.ndarray, " d_site"]
) -> Float[np.ndarray, "d_site dim"]:
    """Orthonormal columns spanning covariance^p gaussian, with p such that they capture `target`."""
    scaled = np.log(values / values.max())

    def frame(power: float) -> Float[np.ndarray, "d_site dim"]:
        exponent = power * scaled
        return np.linalg.qr(np.exp(exponent - exponent.max())[:, None] * gaussian)[0]

    def captured(power: float) -> float:
        return float((values[:, None] * frame(power) ** 2).sum())

    low, high = -1.0, 1.0
    while captured(low) > target and low > -1e6:
        low *= 2
    while captured(high) < target and high < 1e6:
        high *= 2
    if captured(low) < target < captured(high):
        # Types are inferred from scipy's code: that of `rtol` from its default, and a pair if more is asked for.
        root: Any = brentq(
            lambda power: captured(power) - target,
            low,
            high,
            xtol=1e-10,
            rtol=1e-12,  # pyright: ignore[reportArgumentType]
        )
        high = float(root)
    found = captured(high)
    if abs(found - target) > 1e-3 * target:
        raise NotEnoughEvidence(
            "no random subspace with the mechanism's captured variance was found",
            got=f"{found:.4g} instead of {target:.4g}",
            because="the spectrum of these activations is too steep for the arithmetic",
            instead="covariance-matched directions, label-shuffled re-estimates, or other components",
        )
    return frame(high)
