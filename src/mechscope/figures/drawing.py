"""What several figures draw: the SVG around a drawing, whiskers, and the sizes in pixels."""

from mechscope.figures.markup import Markup, element
from mechscope.figures.shown import Number

WIDTH = 880  # of a full figure; the page's column is as wide
LETTER = 6.3  # of one column of 10.5 px fixed-width text


def drawing_of(inside: Markup, *, width: Number, height: Number, described: str) -> Markup:
    """An SVG of this size that shrinks with the page and names itself to a screen reader."""
    return element(
        "svg",
        inside,
        class_="ms-svg",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
        aria_label=described,
    )


def whisker(low: Number, high: Number, y: Number, class_: str = "ms-whisker") -> Markup:
    """An interval from `low` to `high` (pixels) as a line with end caps."""
    caps = "".join(f"M{x:.1f} {y - 4:.1f}v8" for x in (low, high))
    return element("path", class_=class_, d=f"M{low:.1f} {y:.1f}H{high:.1f}{caps}")
