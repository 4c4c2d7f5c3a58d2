"""One canonical JSON text for one value, so that a hash of a value means something.

Owns: which values may be written, their one spelling (sorted keys, no spaces, ASCII), its hash.
Refuses: live objects, arrays, keys that are not text, a dict that looks like our own escape.
Invariant: `open` of `save` gives back an equal value, infinities and NaN included: JSON has no word
for them, so they are written as `{"$float": "nan" | "inf" | "-inf"}`. Tuples come back as lists.
"""

# values of every kind pass through here
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechscope.vocabulary.errors import BadFile, NotSerializable

Json = None | bool | int | float | str | list[Any] | dict[str, Any]

ESCAPE = "$float"
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def canonical_json(value: object) -> str:
    """The canonical text of `value`: equal values give equal text on every machine.

    Raises:
        NotSerializable: something in `value` is no JSON; the message names the path to it.
    """
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def hash_json(value: object) -> str:
    """SHA-256 of `canonical_json(value)`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def readable_json(value: object) -> str:
    """JSON for a file: sorted keys, indented, a row of numbers or words on one line, text unescaped."""
    return _indented(to_plain(value), "\n") + "\n"


def to_plain(value: Any, path: str = "value") -> Json:
    """`value` in JSON's own types; NumPy scalars and tuples are converted, the rest is refused."""
    match value:
        case None | bool():
            return value
        case np.bool_():
            return bool(value)
        case int() | np.integer():
            return int(value)
        case float() | np.floating():
            return _plain_float(float(value))
        case str():
            return str.__str__(value)
        case list() | tuple():
            return [to_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        case Mapping():
            return _plain_mapping(value, path)
        case _:
            pass
    raise NotSerializable(
        f"{path} can't be written as JSON.",
        got=type(value).__name__,
        because="a record holds only text, numbers, lists and dictionaries, so that anybody can read it",
        instead="a dictionary of its settings, or its numbers with .tolist(); save_tensors for large arrays",
    )


def from_plain(value: Json, path: str = "value") -> Json:
    """The inverse of `to_plain`: turns our escapes for NaN and infinities back into floats."""
    if isinstance(value, list):
        return [from_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if set(value) == {ESCAPE}:
        word = value[ESCAPE]
        if not isinstance(word, str) or word not in NON_FINITE:
            raise BadFile(f"{path} is not a number.", got=word, because=f'"{ESCAPE}" is nan, inf or -inf')
        return NON_FINITE[word]
    return {key: from_plain(item, f"{path}.{key}") for key, item in value.items()}


def _indented(value: Json, newline: str) -> str:
    deeper = newline + " "
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, (dict, list)) for item in items) and not (
        isinstance(value, dict) and len(value) > 1
    ):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        pairs = (
            f"{json.dumps(key, ensure_ascii=False)}: {_indented(value[key], deeper)}" for key in sorted(value)
        )
        return "{" + deeper + ("," + deeper).join(pairs) + newline + "}"
    assert isinstance(value, list)
    return "[" + deeper + ("," + deeper).join(_indented(item, deeper) for item in value) + newline + "]"


def _plain_float(number: float) -> Json:
    if math.isfinite(number):
        return number
    return {ESCAPE: "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")}


def _plain_mapping(mapping: Mapping[object, object], path: str) -> Json:
    plain: dict[str, Json] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            raise NotSerializable(
                f"{path} has a key that is not text.",
                got=repr(key),
                because='JSON knows only text keys: 1 and "1" would become the same',
                instead=f"{str(key)!r}, or a list of pairs",
            )
        plain[str.__str__(key)] = to_plain(item, f"{path}.{key}")
    if set(plain) == {ESCAPE}:
        raise NotSerializable(
            f"{path} looks like our own escape for NaN.",
            got=repr(dict(mapping)),
            because=f'a dictionary whose only key is "{ESCAPE}" is how a non-finite number is written',
            instead="another key",
        )
    return plain
