"""What planted activations are made of: one frozen settings object, and a function for each named variant.

Refuses settings that contradict each other, all at once. The reference case is the one that every dictionary
must recover; each variant adds one trouble that real activations have, and names the failure it is known for.
"""

from dataclasses import dataclass

from mechscope.vocabulary.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PlantedSettings:
    """Sparse features in superposition.

    Args:
        d_model: Width of the activations.
        n_features: How many unit-norm directions are planted; their coherence is that of random directions.
        n_active: Features on for a token, on average.
        n_children: Children of each parent feature; 0 plants no hierarchy. A child is on only where its parent is.
        child_probability: That a child is on where its parent is, each on its own.
        group_size: Features in a group that fires together; 0 makes features independent.
        group_probability: That a member is on where its group is, each on its own; about the correlation.
        rate_exponent: 0 gives all features one rate; s gives rates proportional to rank ** -s.
        tail: Standard deviation of the logarithm of a feature's magnitude; the median magnitude is 1.
        noise: Standard deviation of the noise on each coordinate, times sqrt(d_model): its typical norm.
        seed: Of the directions and of all batches.
    """

    d_model: int = 256
    n_features: int = 4096
    n_active: float = 8.0
    n_children: int = 0
    child_probability: float = 0.3
    group_size: int = 0
    group_probability: float = 0.5
    rate_exponent: float = 0.0
    tail: float = 0.25
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = _contradictions(self)
        if problems:
            raise InputError(
                "These settings plant no features.",
                got="; ".join(problems),
                instead="planted.reference(), or one of planted.VARIANTS",
            )


def reference(*, n_active: float = 8.0, seed: int = 0) -> PlantedSettings:
    """Independent, positive, equally frequent features without noise: what every dictionary must recover."""
    return PlantedSettings(n_active=n_active, seed=seed)


def hierarchical(*, seed: int = 0) -> PlantedSettings:
    """Parents with three children each. Known failure: absorption, the parent's latent silent under a child."""
    return PlantedSettings(n_children=3, seed=seed)


def correlated(*, seed: int = 0) -> PlantedSettings:
    """Groups of four that fire together. Known failure: latents that mix the members of a group."""
    return PlantedSettings(group_size=4, seed=seed)


def heavy_tailed(*, seed: int = 0) -> PlantedSettings:
    """Magnitudes and rates over orders of magnitude. Known failure: rare and weak features are lost."""
    return PlantedSettings(rate_exponent=0.7, tail=1.0, seed=seed)


def noisy(*, seed: int = 0) -> PlantedSettings:
    """Isotropic noise of half a feature's norm. Known failure: latents that fire on noise, weak ones missed."""
    return PlantedSettings(noise=0.5, seed=seed)


VARIANTS = {
    "reference": reference,
    "hierarchical": hierarchical,
    "correlated": correlated,
    "heavy-tailed": heavy_tailed,
    "noisy": noisy,
}


def _contradictions(settings: PlantedSettings) -> list[str]:
    problems: list[str] = []
    if settings.d_model < 2 or settings.n_features < 1:
        problems.append(f"d_model {settings.d_model}, n_features {settings.n_features}")
    if not 0 < settings.n_active < settings.n_features:
        problems.append(f"n_active {settings.n_active} of {settings.n_features} features")
    if settings.n_children and settings.group_size:
        problems.append("n_children and group_size: a feature has a parent or a group, not both")
    if settings.n_children < 0 or settings.n_features % (settings.n_children + 1):
        problems.append(f"n_features {settings.n_features} is no multiple of n_children + 1")
    if settings.group_size < 0 or (settings.group_size and settings.n_features % settings.group_size):
        problems.append(
            f"n_features {settings.n_features} is no multiple of group_size {settings.group_size}"
        )
    for name in ("child_probability", "group_probability"):
        if not 0 < getattr(settings, name) <= 1:
            problems.append(f"{name} {getattr(settings, name)} is no probability above 0")
    for name in ("rate_exponent", "tail", "noise"):
        if not 0 <= getattr(settings, name) < float("inf"):
            problems.append(f"{name} {getattr(settings, name)} is not at least 0")
    return problems
