"""TokenStrip: text as a model reads it, each token coloured by a number: loss, attribution, an activation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.grid import STRONG
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import LEVELS, ColourScale
from mechscope.figures.shown import Number, number, shown
from mechscope.vocabulary.errors import ShapeError


@dataclass(frozen=True)
class TokenStrip(Block):
    """One or more prompts, all on one colour scale; the value of a token shows when one points at it.

    Args:
        strips: One-axis arrays with token texts; each one's title stands before its line.
        title: Of the figure.
        caption: What to see in it.
    """

    strips: Sequence[LabelledArray]
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        wrong = [list(strip.dims) for strip in self.strips if len(strip.dims) != 1]
        if wrong or not self.strips:
            raise ShapeError(
                "A token strip has one axis, the tokens.",
                got=f"axes {wrong}",
                instead="a list of one-axis arrays",
            )

    def markup(self) -> Markup:
        scale = ColourScale.of(
            np.concatenate([np.asarray(strip.values, dtype=float) for strip in self.strips])
        )
        ends = (
            f"{number(-scale.limit)} to {number(scale.limit)}"
            if scale.diverging
            else f"0 to {number(scale.limit)}"
        )
        unit = self.strips[0].unit
        drawing = joined(*(_strip(strip, scale) for strip in self.strips))
        caption = joined(self.caption, " ", element("span", f"Colour: {ends} {unit}", class_="ms-quiet"))
        return framed(
            drawing,
            title=self.title or self.strips[0].title,
            caption=caption,
            conventions=self.strips[0].conventions,
        )


def _strip(strip: LabelledArray, scale: ColourScale) -> Markup:
    tokens = strip.labels(strip.dims[0])
    spans = [
        _token(text, float(value), strip.unit, scale)
        for text, value in zip(tokens, strip.values, strict=True)
    ]
    name = element("span", strip.title, class_="ms-strip-name") if strip.title else None
    return element("div", name, *spans, class_="ms-tokens")


def _token(text: str, value: Number, unit: str, scale: ColourScale) -> Markup:
    level = 0 if np.isnan(value) else scale.level(value)
    hue = "ms-up" if level > 0 else "ms-down" if level < 0 else ""
    strong = " ms-strong" if abs(level) > STRONG * LEVELS else ""
    return element(
        "span",
        shown(text),
        class_=f"ms-token {hue}{strong}",
        style=f"--strength:{abs(level) / LEVELS * 100:.0f}%",
        data_tip=f"{shown(text)}  {number(value, 4)} {unit}",
    )
