"""Block: anything that can stand in a report, and show itself alone in a notebook.

Owns: the frame around a figure, and the style and script that every page shares (`assets/`).
Invariant: a block's markup needs nothing but these two files: no network, no other script.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib import resources

from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.shown import shown


class Block(ABC):
    """One piece of a report. Subclasses are frozen and say how they become markup."""

    @abstractmethod
    def markup(self) -> Markup:
        """This block as HTML."""

    def _repr_html_(self) -> str:
        style = element("style", Markup(asset("figures.css")))
        script = element("script", Markup(asset("figures.js")))
        return element("div", style, self.markup(), script, class_="ms ms-alone")


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script that ships with the package."""
    return resources.files("mechscope.figures").joinpath("assets", name).read_text(encoding="utf-8")


def framed(
    drawing: Markup, *, title: str, caption: str = "", conventions: Mapping[str, object] | None = None
) -> Markup:
    """A drawing with its caption: the title, what is to be said, and the conventions it was made with."""
    facts = [
        element("span", element("b", shown(name)), " ", shown(str(value)), class_="ms-convention")
        for name, value in (conventions or {}).items()
    ]
    said = joined(element("b", shown(title), "." if title[-1:].isalnum() else ""), " ", caption)
    below = element("div", *facts, class_="ms-conventions") if facts else None
    return element(
        "figure",
        element("div", drawing, class_="ms-drawing"),
        element("figcaption", said, below),
        class_="ms-figure",
    )
