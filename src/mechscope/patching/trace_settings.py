"""Settings of causal tracing: how strong the noise is, how often it is drawn, how many layers are restored at once."""

from dataclasses import dataclass

from mechscope.vocabulary.errors import InterventionMismatch


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What `causal_trace` holds fixed.

    Args:
        noise: Standard deviation of the noise, in standard deviations of the subjects' embeddings (over all entries
            of all subject tokens of the prompts given).
        n_draws: Draws of noise a prompt; every cell of a prompt sees the same draws.
        window: Layers restored at once, centred on the cell's layer and clipped at the ends; None is 1 for the
            residual stream and 10 for attention and MLP outputs.
        seed: Root of the noise. A prompt's noise depends on it, the draw and the prompt's row only.
    """

    noise: float = 3.0
    n_draws: int = 10
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise <= 0 or self.n_draws < 1 or (self.window is not None and self.window < 1):
            raise InterventionMismatch(
                "Causal tracing needs noise, a draw and a window.",
                got=f"noise={self.noise}, n_draws={self.n_draws}, window={self.window}",
                instead="noise > 0, n_draws >= 1, window >= 1",
            )

    def width_at(self, point: str) -> int:
        """Layers restored at once at a point."""
        if self.window is not None:
            return self.window
        return 1 if point in ("resid_pre", "resid_mid", "resid_post") else 10


def window_around(layer: int, width: int, n_layers: int) -> range:
    """Layers of a window: `width` of them with `layer` in the middle (the upper middle if even), clipped.

    >>> list(window_around(6, 10, 48))
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    >>> list(window_around(0, 3, 4))
    [0, 1]
    """
    start = layer - width // 2
    return range(max(0, start), min(n_layers, start + width))
