"""From what a claim file remembers of a mechanism back to the mechanism. Refuses kinds that are not saved whole."""

from collections.abc import Mapping
from typing import Any

from mechscope.circuits.circuit import Circuit
from mechscope.claims.mechanisms import Components, Direction
from mechscope.claims.neurons import Neurons
from mechscope.vocabulary.errors import BadClaim


def mechanism_from_json(saved: Mapping[str, Any]) -> Components | Neurons | Direction | Circuit:
    """Rebuild a mechanism that a claim file remembers.

    Raises:
        BadClaim: another kind; components, neurons, directions and circuits are saved whole.
    """
    match saved.get("kind"):
        case "components":
            return Components(tuple((layer, head) for layer, head in saved["heads"]), tuple(saved["mlps"]))
        case "neurons":
            return Neurons(tuple((layer, unit) for layer, unit in saved["units"]))
        case "direction":
            return Direction(saved["site"], tuple(saved["vector"]), saved["label"], saved.get("position"))
        case "circuit":
            return Circuit.from_json(saved)
        case _:
            pass
    raise BadClaim(
        "a mechanism of unknown kind",
        got=str(saved.get("kind")),
        instead="components, neurons, direction or circuit",
    )
