"""Dictionary places: where the dictionaries of a claim lie, and the ones there that a circuit's latents are of.

A place is the name of a bundled one ("village/mlp.3", "village/mlp.*"), a folder, a folder of folders, or a hub id. A
dictionary is known by the hash of its tensors, so that what is opened is what the claim was made about, or refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from mechscope.circuits.parts.latents import LatentCircuit
from mechscope.dictionaries.dictionary import Dictionary
from mechscope.features.index import open_index
from mechscope.features.shipped import bundled, bundled_indexes
from mechscope.graphs.files import open_transcoders
from mechscope.records.fingerprint import hash_tensors
from mechscope.vocabulary.errors import BadFile

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Precisions that are tried: a circuit knows its dictionaries by the hash of what they were when it was found."""


@dataclass(frozen=True)
class Placed:
    """A dictionary and where it lies.

    Args:
        dictionary: Open.
        place: "" where nobody said.
    """

    dictionary: Dictionary
    place: str = ""

    @property
    def site(self) -> str:
        """The site that it writes, or all of them."""
        return ", ".join(map(str, self.dictionary.writes))

    @property
    def recorded_place(self) -> str:
        """What a file says of it: of a folder by its absolute path the last part."""
        return Path(self.place).name if Path(self.place).is_absolute() else self.place

    @property
    def dtype(self) -> str:
        """Its precision: "float32"."""
        return str(self.dictionary.dtype).removeprefix("torch.")


def open_place(place: str | Path) -> list[Placed]:
    """The dictionaries at a place.

    Raises:
        BadFile: none there.
    """
    text = str(place)
    if not Path(place).exists():
        model, _, pattern = text.partition("/")
        names = [name for name in bundled_indexes(model) if fnmatch(name, pattern)]
        if not pattern and bundled(text) is not None:
            return [Placed(open_index(text).dictionary(), text)]
        if names:
            return [
                Placed(open_index(f"{model}/{name}").dictionary(), f"{model}/{name}")
                for name in sorted(names)
            ]
    return [Placed(one, text) for one in open_transcoders(place)]


def find_dictionaries(
    circuit: LatentCircuit, given: Sequence[Dictionary | str | Path] | None
) -> dict[str, Placed]:
    """A circuit's own dictionaries among some, by site.

    Args:
        circuit: Of latents.
        given: Dictionaries or places; None looks among those that ship with the circuit's model.

    Raises:
        BadFile: a site's is not among them, or a place holds none.
        DictionaryMismatch: that of a site has another width or other weights.
    """
    shipped = _shipped_with(circuit)
    if given is None:
        found = _fitting(circuit, shipped)
        if set(found) != set(circuit.kept):
            raise _not_found(circuit, set(circuit.kept) - set(found), because="none was given")
        return found
    placed: list[Placed] = []
    for one in given:
        placed += [Placed(one)] if isinstance(one, Dictionary) else open_place(one)
    found = _or_refuse(circuit, placed)
    known = {site for site, one in found.items() if not one.place}
    by_name = _fitting(circuit, shipped) if known else {}
    return {
        site: Placed(one.dictionary, by_name[site].place) if site in known and site in by_name else one
        for site, one in found.items()
    }


def reopen(
    circuit: LatentCircuit,
    opened: Mapping[str, Mapping[str, Any]],
    *,
    given: Sequence[str | Path | Dictionary] = (),
    beside: Path | None = None,
) -> dict[str, Placed]:
    """The dictionaries that a file remembers, by site.

    Args:
        circuit: From the file.
        opened: Place and precision of each site's, from the file.
        given: Where to look instead, if they are not where the file says.
        beside: The file's folder: places are also looked for there.

    Raises:
        BadFile: they are nowhere.
        DictionaryMismatch: what lies there are others.
    """
    if given:
        return find_dictionaries(circuit, given)
    named = list(dict.fromkeys(str(one.get("place", "")) for one in opened.values()))
    placed: list[Placed] = []
    for place in filter(None, named):
        near = None if beside is None else beside / place
        try:
            placed += open_place(near if near is not None and near.exists() else place)
        except BadFile:
            continue
    found = {one.site for one in placed}
    if missing := set(circuit.kept) - found:
        told = ", ".join(filter(None, named))
        because = f"nothing lies at {told}" if told else "the claim was made about dictionaries in memory"
        raise _not_found(circuit, missing, because=because)
    return _or_refuse(circuit, placed)


def _shipped_with(circuit: LatentCircuit) -> list[Placed]:
    name = "" if circuit.model is None else circuit.model.name
    here = bundled_indexes(name)
    return [Placed(open_index(f"{name}/{one}").dictionary(), f"{name}/{one}") for one in here]


def _or_refuse(circuit: LatentCircuit, placed: Sequence[Placed]) -> dict[str, Placed]:
    found = _fitting(circuit, placed)
    by_site = {one.site: one for one in reversed(placed)}
    if missing := set(circuit.kept) - set(by_site):
        sites = ", ".join(by_site) or "nothing"
        raise _not_found(circuit, missing, because=f"those that were given write {sites}")
    chosen = {site: found.get(site, by_site[site]) for site in circuit.kept}
    circuit.refuse_other_dictionaries({site: one.dictionary for site, one in chosen.items()})
    return chosen


def _fitting(circuit: LatentCircuit, placed: Sequence[Placed]) -> dict[str, Placed]:
    """By site the first whose tensors have the hash that the circuit knows, in the precision in which they have it."""
    found: dict[str, Placed] = {}
    for site, digest in ((site, circuit.dictionaries.get(site, "")) for site in circuit.kept):
        fitting = (
            Placed(one, here.place)
            for here in placed
            if here.site == site
            for one in _precisions(here.dictionary)
            if digest in ("", hash_tensors(one.tensors))
        )
        if (first := next(fitting, None)) is not None:
            found[site] = first
    return found


def _precisions(dictionary: Dictionary) -> Iterator[Dictionary]:
    yield dictionary
    for dtype in DTYPES:
        if dtype != dictionary.dtype:
            yield dictionary.to(dtype=dtype)


def _not_found(circuit: LatentCircuit, missing: set[str], *, because: str) -> BadFile:
    told = [f"{site} ({circuit.dictionaries.get(site, '')[:12]})" for site in circuit.kept if site in missing]
    return BadFile(
        "The dictionaries that this circuit's latents are of were not found.",
        got=f"none that writes {', '.join(told)}",
        because=because,
        instead="Claim.about(circuit, dictionaries=[...]); for a file: mechscope claim verify FILE --dictionary "
        "FOLDER, a dictionary's or one with a dictionary in each subfolder",
    )
