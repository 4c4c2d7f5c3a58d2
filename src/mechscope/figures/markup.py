"""HTML and SVG by construction: the only door through which text becomes markup.

Owns: escaping. Everything that a page shows passes `element`, which escapes text and attributes.
Invariant: no string of a caller, a model or a file can open a tag, close an attribute or start a script.
"""

import re
from html import escape

from mechscope.figures.shown import Number

# control characters, and those that turn the direction of the text after them
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Value = str | int | float | bool | None


class Markup(str):
    """Text that is HTML already, because `element` or `joined` made it."""

    __slots__ = ()


Child = str | int | float | None


def element(tag: str, *children: Child, **attributes: Value) -> Markup:
    """`<tag attributes>children</tag>`, with every child escaped that is not Markup.

    Attribute names are written in Python: `class_` is "class", `data_tip` is "data-tip". None and
    False leave an attribute out, True writes it bare, numbers are rounded to hundredths.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    inside = joined(*children)
    if not inside and tag in {"br", "hr", "meta", "rect", "line", "path", "circle", "stop", "col", "input"}:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{inside}</{tag}>")


def joined(*children: Child) -> Markup:
    """Children in a row, each escaped unless it is Markup."""
    return Markup("".join(_text(child) for child in children if child is not None))


def rounded(value: Number) -> str:
    """A coordinate to a hundredth, as short as it can be written."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def _text(child: str | float) -> str:
    if isinstance(child, Markup):
        return child
    text = UNSEEN.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", str(child))
    return escape(text.encode("utf-8", errors="replace").decode("utf-8"), quote=True)


def _attribute(name: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{rounded(value) if isinstance(value, (int, float)) else _text(value)}"'
