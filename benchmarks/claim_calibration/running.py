"""Running: what every calibration is told, and how it shows progress."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

TELL_EVERY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a calibration.

    Args:
        n_claims: Claims, at least 400 for a gate.
        n_power: Claims about the true mechanism, at least 100.
        seed: Root of the tree of seeds.
        village: The trained model: bundled name or folder.
        work: Where tables are kept, so that an interrupted run goes on where it was.
        n_workers: Processes, one thread each.
    """

    n_claims: int = 400
    n_power: int = 100
    seed: int = 0
    village: str = "village"
    work: Path = Path("runs/claim_calibration")
    n_workers: int = 2

    def facts(self) -> dict[str, Any]:
        """As results keep them: no paths."""
        return {
            "n_claims": self.n_claims,
            "n_power": self.n_power,
            "seed": self.seed,
            "village": Path(self.village).name,
        }

    def told(self, what: str) -> Callable[[str], None]:
        """Progress on the error stream, every two seconds; results go to the output stream."""
        last = [monotonic()]

        def tell(text: str) -> None:
            if monotonic() - last[0] >= TELL_EVERY_SECONDS:
                last[0] = monotonic()
                print(f"{what}: {text}", file=sys.stderr, flush=True)

        return tell
