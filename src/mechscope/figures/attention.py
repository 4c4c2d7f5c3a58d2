"""AttentionView: where each token of a prompt looks, one panel a head, all panels linked.

Invariant: rows are the tokens that look (query), columns the tokens looked at (key); colour is the
weight from 0 to 1 on one scale for all heads, so that panels can be compared.
"""

from dataclasses import dataclass

import numpy as np

from mechscope.figures.block import Block, framed
from mechscope.figures.drawing import drawing_of
from mechscope.figures.grid import Grid, draw_grid
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.scale import ColourScale
from mechscope.figures.shown import number, shown
from mechscope.vocabulary.errors import ShapeError

PANEL = 300


@dataclass(frozen=True)
class AttentionView(Block):
    """Attention patterns of some heads on one prompt.

    Args:
        patterns: Axes head, query, key (in this order, under any names), token strings as texts of
            the last two. Weights from 0 to 1; NaN where the mask forbids is fine.
        caption: What to see in it.
    """

    patterns: LabelledArray
    caption: str = ""

    def __post_init__(self) -> None:
        if len(self.patterns.dims) != 3 or self.patterns.shape[1] != self.patterns.shape[2]:
            raise ShapeError(
                "An attention view needs head, query and key axes, the last two of one length.",
                got=f"axes {list(self.patterns.dims)} of shape {self.patterns.shape}",
                instead='dims=("head", "query", "key"), texts={"query": tokens, "key": tokens}',
            )

    def markup(self) -> Markup:
        head, query, _ = self.patterns.dims
        names = self.patterns.labels(head)
        tokens = self.patterns.labels(query)
        strip = [
            element("span", shown(token), class_="ms-token", data_row=i) for i, token in enumerate(tokens)
        ]
        drawing = element(
            "div",
            element(
                "div",
                *strip,
                class_="ms-tokens",
                title="Point at a token: every head shows where it looks from there",
            ),
            element(
                "div", *(self._panel(i, name, tokens) for i, name in enumerate(names)), class_="ms-panels"
            ),
            class_="ms-attention",
        )
        said = joined(self.caption, " ", element("span", "Colour: weight, 0 to 1.", class_="ms-quiet"))
        return framed(drawing, title=self.patterns.title, caption=said, conventions=self.patterns.conventions)

    def _panel(self, index: int, name: str, tokens: tuple[str, ...]) -> Markup:
        values = np.asarray(self.patterns.values[index], dtype=float)
        cell = min(22.0, max(2.5, PANEL / max(len(tokens), 1)))
        grid = Grid(
            values=values,
            rows=tokens,
            columns=tokens,
            row_name="from (query)",
            column_name="to (key)",
            unit=self.patterns.unit,
            scale=ColourScale(1.0, False),
            cell_width=cell,
            cell_height=cell,
        )
        drawing = drawing_of(
            draw_grid(grid, x=grid.left, y=6, numbers=False),
            width=grid.left + grid.width + 8,
            height=6 + grid.height + grid.below,
            described=f"Attention pattern of head {name}",
        )
        title = element(
            "h4", f"{self.patterns.dims[0]} {shown(name)}", " ", element("small", *_last_look(values, tokens))
        )
        return element("div", title, drawing, class_="ms-panel")


def _last_look(values: np.ndarray, tokens: tuple[str, ...]) -> list[str | Markup]:
    """Where the last token, which predicts, looks most."""
    if not values.size or np.isnan(values[-1]).all():
        return []
    key = int(np.nanargmax(values[-1]))
    return [
        element("span", shown(tokens[-1], 14), class_="ms-code"),
        " → ",
        element("span", shown(tokens[key], 14), class_="ms-code"),
        f" {number(float(values[-1, key]), 2)}",
    ]
