"""The legend of a colour scale: a vertical bar with its ends, zero and unit."""

from mechscope.figures.drawing import LETTER
from mechscope.figures.markup import Markup, element, rounded
from mechscope.figures.scale import LEVELS, ColourScale
from mechscope.figures.shown import Number, number, shown

BAR = 11


def draw_legend(scale: ColourScale, *, x: Number, y: Number, height: Number, unit: str) -> Markup:
    """The bar with its upper left corner at (x, y), drawn with the very colours of the cells."""
    bottom = -LEVELS if scale.diverging else 0
    step = height / (LEVELS - bottom)
    bars = [
        element(
            "rect",
            class_=hue_of(level),
            fill_opacity=abs(level) / LEVELS,
            x=x,
            y=y + (LEVELS - level) * step,
            width=BAR,
            height=step,
        )
        for level in range(LEVELS, bottom, -1)
        if level
    ]
    inner = [scale.limit / 2, -scale.limit / 2] if height >= 90 else []
    marks = [value for value in (scale.limit, *inner, 0.0, -scale.limit) if value >= 0 or scale.diverging]
    place = height / (scale.limit * (2 if scale.diverging else 1))
    texts = [
        element(
            "text",
            number(value, 2),
            class_="ms-tick",
            x=x + BAR + 5,
            y=y + (scale.limit - value) * place + 3.5,
        )
        for value in marks
    ]
    unit_x = x + BAR + 18 + LETTER * max(len(number(value, 2)) for value in marks)
    turned = f"translate({rounded(unit_x)} {rounded(y + height / 2)}) rotate(90)"
    return element(
        "g",
        element("rect", class_="ms-ground", x=x, y=y, width=BAR, height=height),
        *bars,
        *texts,
        element(
            "text", shown(unit) if unit else "", class_="ms-axis", transform=turned, text_anchor="middle"
        ),
        class_="ms-legend",
    )


def hue_of(level: int) -> str:
    """The class that colours a level."""
    return "ms-plus" if level > 0 else "ms-minus"
