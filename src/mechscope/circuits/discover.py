"""discover: find a circuit by any registered method, and find it again as it was found.

A circuit remembers what it was asked for, so that the same discovery can be run where there is nothing to find.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from mechscope.behaviors.behavior import Behavior
from mechscope.behaviors.split import Split
from mechscope.circuits.circuit import Circuit
from mechscope.circuits.conventions import Conventions, split_to_search
from mechscope.circuits.parts.circuit import PartCircuit
from mechscope.circuits.registry import methods
from mechscope.models.model import Model
from mechscope.records.canonical import to_plain
from mechscope.vocabulary.errors import InputError, NotSerializable

Found = TypeVar("Found", bound=Circuit | PartCircuit)


def discover(
    model: Model,
    behavior: Behavior | Split,
    *,
    method: str = "eap-ig",
    n_edges: int | None = None,
    **settings: Any,
) -> Circuit:
    """Find the edges that carry a behaviour, on its train split.

    Args:
        model: An open model.
        behavior: Prompt pairs; of a behaviour the train split is looked at and no other.
        method: A name of `ms.circuits.methods()`: "acdc", "eap-ig", "edge-pruning", ...
        n_edges: How many edges at most, where the method takes a number.
        settings: Of the method: the fields of its settings class.

    Returns:
        A circuit with the method's scores. What it is worth is another question: `circuit.evaluate(model,
        behavior.held_out)`.

    Raises:
        InputError: no such method or setting.
        BadPairs: corrupt prompts that are the clean ones.

    Cost: the method's own; docs/methods/circuits.md.
    """
    known = methods()
    if method not in known:
        raise InputError(
            f'There is no way to find circuits called "{method}".', got=method, instead=", ".join(known)
        )
    chosen = known[method]
    names = [field.name for field in fields(chosen.settings)]
    given = settings | ({} if n_edges is None else {"n_edges": n_edges})
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(
            f'"{method}" has no setting {", ".join(unknown)}.',
            got=", ".join(f"{name}={given[name]!r}" for name in unknown),
            because=f"its settings are those of {chosen.settings.__name__}",
            instead=", ".join(names),
        )
    asked = chosen.settings(**given)
    split = split_to_search(behavior, ablation=vars(asked).get("conventions", Conventions()).ablation)
    found = chosen.find(model, split, asked)
    found = replace(found, settings={**found.settings, **_asked(method, settings, n_edges)})
    return remember(found, behavior) if isinstance(behavior, Behavior) else found


def search_of(circuit: Circuit) -> Callable[[Model, Split], Circuit] | None:
    """The discovery that found a circuit, to be run on other prompts or in another model; None if it is not known.

    Not known is that of a circuit that was written down, or whose method was given settings that are no JSON.
    """
    asked = circuit.settings.get("asked")
    if asked is None:
        return None
    size = circuit.settings.get("n_edges") if asked["has_size"] else None
    settings = dict(asked["settings"])
    if isinstance(settings.get("conventions"), dict):
        settings["conventions"] = Conventions(**settings["conventions"])
    return lambda model, split: discover(model, split, method=asked["method"], n_edges=size, **settings)


def _asked(method: str, settings: dict[str, Any], n_edges: int | None) -> dict[str, Any]:
    """What `search_of` needs; the size stands by itself, since it may be chosen afterwards."""
    conventions = settings.get("conventions")
    if isinstance(conventions, Conventions) and conventions.constants is None:
        settings = settings | {"conventions": conventions.to_json()}
    try:
        plain = to_plain(settings)
    except NotSerializable:
        return {}
    asked = {"method": method, "settings": plain, "has_size": n_edges is not None}
    return {"asked": asked} | ({} if n_edges is None else {"n_edges": n_edges})


def remember(circuit: Found, behavior: Behavior) -> Found:
    """The circuit with the behaviour that it was found for in its settings, as `Claim.about` reads it."""
    recorded = {"name": behavior.name, "recipe": to_plain(behavior.recipe())}
    return replace(circuit, settings={**circuit.settings, "behavior": recorded})
