"""How text and numbers of a model are shown, in a terminal, a notebook or a page.

Owns: visible whitespace, harmless control characters, the number of digits.
Invariant: what is shown has no invisible character, no line break and no change of writing direction.
Spaces inside a text stay spaces; at its ends they are "·". Escaping for HTML is `markup.py`'s work.
"""

import math
import unicodedata

Number = int | float  # a caller may write 2 for 2.0, also where types are checked
REPLACED = {"\n": "↵", "\r": "␍", "\t": "⇥", "\N{NO-BREAK SPACE}": "⍽"}
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{VARIATION SELECTOR-16}"}


def shown(text: str, at_most: int = 0) -> str:
    """`text` with every character visible: " the" is "·the", a newline "↵", U+200B "⟨200B⟩".

    Args:
        text: A token, a prompt, or any text that came from a model or a file.
        at_most: Longest result in characters; longer text ends in "…". 0 is no limit.
    """
    first, last = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    parts = [
        "·"
        if char == " " and not first <= i < last
        else _visible(char, text[i - 1 : i] if i else "", text[i + 1 : i + 2])
        for i, char in enumerate(text)
    ]
    result = "".join(parts) if text else "∅"
    return result if not at_most or len(result) <= at_most else result[: at_most - 1] + "…"


def number(value: Number | None, digits: int = 3) -> str:
    """A number as a person reads it: `digits` significant digits, a real minus sign, no needless zeros."""
    if value is None or not math.isfinite(value):
        return fixed(value, 0)
    size = abs(value)
    if size != 0 and not 1e-3 <= size < 10**6:
        return (
            f"{value:.{digits - 1}e}".replace("e-0", "e-")
            .replace("e+0", "e")
            .replace("e+", "e")
            .replace("-", "−")
        )
    text = fixed(value, decimals_for(size, digits))
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: Number | None, decimals: int) -> str:
    """A number with so many decimals: for columns, cells and intervals, where digits stand under digits."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def with_interval(value: Number, low: Number, high: Number) -> tuple[str, str]:
    """An estimate and its interval, as exact as the interval is narrow: ("0.79", "[0.71, 0.86]")."""
    known = math.isfinite(low) and math.isfinite(high) and high > low
    decimals = decimals_for(high - low if known else abs(value), 2)
    return fixed(value, decimals), f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"


def decimals_for(size: Number, digits: int) -> int:
    """How many decimals show `digits` significant digits of something as large as `size`; at most 6."""
    if not math.isfinite(size) or size == 0:
        return digits - 1
    return max(0, min(6, digits - 1 - math.floor(math.log10(size))))


def width_of(text: str) -> int:
    """Columns that `text` takes in a fixed-width font: wide characters two, combining ones none."""
    return sum(
        0
        if unicodedata.combining(char) or char in JOINERS
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )


def _visible(char: str, before: str, after: str) -> str:
    if char in REPLACED:
        return REPLACED[char]
    if char in JOINERS and before and not before.isascii():
        return char if char != "\N{ZERO WIDTH JOINER}" or (after and not after.isascii()) else "⟨200D⟩"
    if char != " " and unicodedata.category(char) in INVISIBLE:
        return f"⟨{ord(char):04X}⟩"
    if unicodedata.combining(char) and not before:
        return "◌" + char
    return char
