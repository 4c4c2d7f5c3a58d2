"""Floor 1: from labelled arrays to figures and reports. Knows no model and writes no file."""

from mechscope.figures.attention import AttentionView
from mechscope.figures.bars import Bars
from mechscope.figures.block import Block
from mechscope.figures.forest import ForestPlot, ForestRow
from mechscope.figures.heatmap import Heatmap
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.lines import Lines
from mechscope.figures.prose import Bullets, Callout, Code, Prose, Table, Verdict
from mechscope.figures.report import Report, Section
from mechscope.figures.shown import number, shown
from mechscope.figures.tokens import TokenStrip

__all__ = [
    "AttentionView",
    "Bars",
    "Block",
    "Bullets",
    "Callout",
    "Code",
    "ForestPlot",
    "ForestRow",
    "Heatmap",
    "LabelledArray",
    "Lines",
    "Prose",
    "Report",
    "Section",
    "Table",
    "TokenStrip",
    "Verdict",
    "number",
    "shown",
]
