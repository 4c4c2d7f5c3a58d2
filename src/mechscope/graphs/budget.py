"""Budget: how much of an attribution graph is computed and kept."""

from dataclasses import dataclass
from numbers import Integral

from mechscope.vocabulary.errors import InterventionMismatch


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What of a graph is computed and kept.

    Args:
        max_latents: Compute rows for so many of the most influential latents only; None for all.
        row_share: Keep of each row the strongest effects that together hold this share of its absolute sum, 0 to 1.
            1 keeps every effect. What is dropped is counted: its sum is in the graph's `remainders`, its size
            in `dropped`.
    """

    max_latents: int | None = None
    row_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.row_share <= 1:
            raise InterventionMismatch(
                "A row keeps a share of its effects.",
                got=f"row_share={self.row_share}",
                because="the share is of the sum of absolute effects",
                instead="0.95, or 1 to keep all",
            )
        if self.max_latents is not None and (
            not isinstance(self.max_latents, Integral) or self.max_latents < 0
        ):
            raise InterventionMismatch(
                "Rows are computed for a number of latents.",
                got=f"max_latents={self.max_latents!r}",
                because="the most influential ones are counted",
                instead="7500, 0 for targets only, or None for all",
            )

    @classmethod
    def of(cls, given: "int | Budget | None") -> "Budget":
        """A budget from what `attribution_graph` takes for `max_latents`."""
        return given if isinstance(given, Budget) else cls(max_latents=given)
