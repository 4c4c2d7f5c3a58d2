"""From what a claim file remembers of a mechanism back to the mechanism. Refuses kinds that are not saved whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechscope.circuits.circuit import Circuit
from mechscope.circuits.parts.experts import ExpertCircuit
from mechscope.circuits.parts.latents import LatentCircuit
from mechscope.claims.mechanisms import Components, Direction
from mechscope.claims.neurons import Neurons
from mechscope.claims.part_claims import Parts
from mechscope.claims.sites import Sites
from mechscope.vocabulary.errors import BadClaim


def mechanism_from_json(
    saved: Mapping[str, Any],
    *,
    dictionaries: Sequence[str | Path] = (),
    beside: Path | None = None,
) -> Components | Neurons | Direction | Sites | Circuit | Parts:
    """Rebuild a mechanism that a claim file remembers.

    Args:
        saved: From the file.
        dictionaries: Of a circuit of latents: where its dictionaries are, if not where the file says.
        beside: The file's folder: they are looked for there too.

    Raises:
        BadClaim: another kind; components, neurons, directions, sites and circuits are saved whole.
        BadFile, DictionaryMismatch: the dictionaries of latents are nowhere, or others.
    """
    match saved.get("kind"):
        case "components":
            return Components(tuple((layer, head) for layer, head in saved["heads"]), tuple(saved["mlps"]))
        case "neurons":
            return Neurons(tuple((layer, unit) for layer, unit in saved["units"]))
        case "direction":
            return Direction(saved["site"], tuple(saved["vector"]), saved["label"], saved.get("position"))
        case "sites":
            return Sites.from_json(saved)
        case "circuit":
            return Circuit.from_json(saved)
        case LatentCircuit.record.kind | ExpertCircuit.record.kind:
            return Parts.from_json(saved, dictionaries=dictionaries, beside=beside)
        case _:
            pass
    raise BadClaim(
        "a mechanism of unknown kind",
        got=str(saved.get("kind")),
        instead="components, neurons, direction, sites, or a circuit of edges, latents or experts",
    )
