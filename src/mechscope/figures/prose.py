"""The words of a report: prose, lists, boxes, tables, code, verdicts. All text is escaped.

Prose knows two marks: `code` in backticks and **strong**; an empty line starts a paragraph.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mechscope.figures.block import Block
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.shown import fixed, number, shown
from mechscope.vocabulary.errors import ShapeError

Cell = str | int | float | bool | None
MARKS = re.compile(r"(`[^`\n]+`|\*\*[^*\n]+\*\*)")
TONES = {
    "supported": ("good", "✓"),
    "holds": ("good", "✓"),
    "refuted": ("bad", "✗"),
    "fails": ("bad", "✗"),
    "inconclusive": ("unsure", "?"),
    "undecided": ("unsure", "?"),
}


@dataclass(frozen=True)
class Prose(Block):
    """Paragraphs."""

    text: str

    def markup(self) -> Markup:
        return joined(*(element("p", inline(part)) for part in re.split(r"\n\s*\n", self.text.strip())))


@dataclass(frozen=True)
class Bullets(Block):
    """A list of short points."""

    items: Sequence[str]

    def markup(self) -> Markup:
        return element("ul", *(element("li", inline(item)) for item in self.items))


@dataclass(frozen=True)
class Callout(Block):
    """A box that must not be overlooked: a limit, a warning, what was not shown.

    Args:
        title: A few words.
        text: Prose, or a list of points.
        tone: "note" is quiet, "caution" is not.
    """

    title: str
    text: str | Sequence[str]
    tone: Literal["note", "caution"] = "note"

    def markup(self) -> Markup:
        inside = Prose(self.text) if isinstance(self.text, str) else Bullets(self.text)
        return element(
            "aside", element("h4", self.title), inside.markup(), class_=f"ms-callout ms-{self.tone}"
        )


@dataclass(frozen=True)
class Code(Block):
    """Text to be copied: a command, a program. A button copies it."""

    text: str
    title: str = ""

    def markup(self) -> Markup:
        button = element("button", "copy", type="button", class_="ms-copy")
        name = element("div", self.title, class_="ms-code-title") if self.title else None
        return element(
            "div", name, button, element("pre", element("code", self.text.strip("\n"))), class_="ms-block"
        )


@dataclass(frozen=True)
class Table(Block):
    """Rows under heads; columns of numbers are aligned right and shown with 3 digits.

    Args:
        columns: The heads.
        rows: As many cells each. None shows as a dash. Text goes as it is: pass tokens through `shown`.
        caption: Above the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        wrong = [i for i, row in enumerate(self.rows) if len(row) != len(self.columns)]
        if wrong:
            raise ShapeError(
                "A table's rows don't fit its heads.",
                got=f"rows {wrong[:5]}",
                instead=f"{len(self.columns)} cells each",
            )

    def markup(self) -> Markup:
        right = [
            all(_is_number(row[i]) for row in self.rows) and bool(self.rows) for i in range(len(self.columns))
        ]
        side = ["ms-right" if is_right else None for is_right in right]
        heads = [element("th", head, class_=s) for head, s in zip(self.columns, side, strict=True)]
        decimals = [_decimals([row[i] for row in self.rows]) for i in range(len(self.columns))]
        body = [
            element(
                "tr",
                *(
                    element("td", _cell(*it[:2]), class_=it[2])
                    for it in zip(row, decimals, side, strict=True)
                ),
            )
            for row in self.rows
        ]
        name = element("caption", inline(self.caption)) if self.caption else None
        table = element(
            "table", name, element("thead", element("tr", *heads)), element("tbody", *body), class_="ms-table"
        )
        return element("div", table, class_="ms-scroll")


@dataclass(frozen=True)
class Verdict(Block):
    """The summary at the head of a report: what was claimed, what came out, and why.

    Args:
        outcome: "supported", "refuted" or "inconclusive"; another word is shown without a colour.
        statement: The claim in one sentence.
        because: One or two sentences.
        figures: The few numbers that matter, by name, as they should be read.
    """

    outcome: str
    statement: str
    because: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)

    def markup(self) -> Markup:
        tiles = [
            element("div", element("dt", name), element("dd", value)) for name, value in self.figures.items()
        ]
        return element(
            "div",
            badge(self.outcome),
            element("p", inline(self.statement), class_="ms-statement"),
            element("p", inline(self.because), class_="ms-because") if self.because else None,
            element("dl", *tiles) if tiles else None,
            class_=f"ms-verdict ms-{_tone(self.outcome)[0]}",
        )


def badge(outcome: str) -> Markup:
    """An outcome as a coloured word with its sign."""
    tone, sign = _tone(outcome)
    return element("span", element("i", sign), " ", outcome, class_=f"ms-badge ms-{tone}")


def inline(text: str) -> Markup:
    """One paragraph's text with its two marks; everything else is escaped."""
    return joined(*(_mark(part) for part in MARKS.split(text)))


def _tone(outcome: str) -> tuple[str, str]:
    return TONES.get(outcome, ("unsure", "·"))


def _mark(part: str) -> str:
    if len(part) > 2 and part[0] == part[-1] == "`":
        return element("code", shown(part[1:-1]))
    if len(part) > 4 and part[:2] == part[-2:] == "**":
        return element("strong", part[2:-2])
    return part


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool))


def _decimals(column: list[Cell]) -> int:
    """As many as its most precise number needs to show 3 digits."""
    texts = [number(cell) for cell in column if isinstance(cell, float)]
    return max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0)


def _cell(cell: Cell, decimals: int) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return str(cell).replace("-", "−")
    if isinstance(cell, float) and cell != 0 and abs(cell) < 10**-3:
        return number(cell)
    return fixed(cell, decimals) if cell is None or isinstance(cell, float) else cell
