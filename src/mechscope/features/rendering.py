"""Rendering: a latent's page as one HTML file, and as a fragment in a notebook.

All text passes the figures' escaping.
"""

from dataclasses import dataclass

import numpy as np

from mechscope.features.labels import Label
from mechscope.features.page import Activity, Example, ExampleGroup, FeaturePage, Related
from mechscope.figures.bars import Bars
from mechscope.figures.block import Block, asset, framed
from mechscope.figures.drawing import drawing_of
from mechscope.figures.labelled import LabelledArray
from mechscope.figures.markup import Markup, element, joined
from mechscope.figures.prose import Callout, Prose, Table, Verdict
from mechscope.figures.report import Report, Section
from mechscope.figures.shown import fixed, number, shown
from mechscope.figures.tokens import TokenStrip

BAR, HEIGHT, LEFT = 22, 120, 8


@dataclass(frozen=True)
class SizeHistogram(Block):
    """How often each size of activation came, four bins to the octave: columns, the exact count where one points.

    Args:
        activity: Of the latent.
    """

    activity: Activity

    def markup(self) -> Markup:
        array = self.activity.histogram
        counts = np.asarray(array.values, dtype=float)
        most = max(1.0, float(counts.max(initial=0)))
        edges = [float(edge) for edge in array.coords["size"]]
        bar = min(60.0, max(BAR, 860 / max(1, len(counts)) - 4)) if len(counts) < 36 else 860 / len(counts)
        columns = [self._column(i, count, most, edges, bar) for i, count in enumerate(counts)]
        every = max(1, len(edges) // 8)
        ticks = [
            element("text", number(edge), class_="ms-tick", x=LEFT + i * bar, y=HEIGHT + 18)
            for i, edge in enumerate(edges)
            if i % every == 0
        ]
        rule = element(
            "line", class_="ms-rule", x1=LEFT, x2=LEFT + bar * len(counts), y1=HEIGHT + 2, y2=HEIGHT + 2
        )
        name = element("text", "activation (lower edge, log scale)", class_="ms-axis", x=LEFT, y=HEIGHT + 38)
        drawing = drawing_of(
            joined(*columns, rule, *ticks, name),
            width=LEFT + max(bar * len(counts), 260) + 8,
            height=HEIGHT + 46,
            described="Histogram of activations",
        )
        caption = f"{self.activity.fires:,} of {self.activity.n_tokens:,} tokens; the highest column is {most:,.0f}."
        return framed(drawing, title="Activations", caption=caption)

    def _column(self, i: int, count: float, most: float, edges: list[float], bar: float) -> Markup:
        height = max(HEIGHT * count / most, 1.0 if count else 0.0)
        upper = edges[i] * 2**0.25 if edges[i] else 2.0**-16
        return element(
            "rect",
            class_="ms-plus ms-bar",
            x=LEFT + i * bar,
            y=HEIGHT - height + 2,
            width=max(1.0, bar - 2),
            height=height,
            data_tip=f"{number(edges[i])} to {number(upper)}: {count:,.0f} tokens",
        )


@dataclass(frozen=True)
class Beside(Block):
    """Blocks next to each other where the page is wide enough."""

    blocks: tuple[Block, ...]

    def markup(self) -> Markup:
        return element("div", *(element("div", one.markup()) for one in self.blocks), class_="ms-panels")


@dataclass(frozen=True)
class _Parts(Block):
    """Blocks under each other."""

    blocks: tuple[Block, ...]

    def markup(self) -> Markup:
        return joined(*(one.markup() for one in self.blocks))


def report_of(page: FeaturePage) -> Report:
    """The whole page."""
    report = Report(
        f"Latent {page.latent}",
        subtitle=shown_line(page.source),
        verdict=Verdict(
            page.activity.flag or "alive",
            page.label.text if page.label else "Nobody has said yet what it means.",
            _said_by(page.label),
            _figures(page.activity),
        ),
        record={name: str(value) for name, value in page.conventions.items()},
    )
    for section in _sections(page):
        report.add(section)
    return report


def fragment_of(page: FeaturePage) -> str:
    """The page in a notebook: the same blocks, without the page around them."""
    blocks: list[Block] = [Prose(f"**{page.title}** · {page.source}")]
    blocks += [block for section in _sections(page)[:3] for block in section.blocks]
    style = element("style", Markup(asset("figures.css")))
    script = element("script", Markup(asset("figures.js")))
    return element("div", style, _Parts(tuple(blocks)).markup(), script, class_="ms ms-alone")


def shown_line(text: str) -> str:
    """Text from a file on one line, with every character visible."""
    return shown(text)


def _sections(page: FeaturePage) -> list[Section]:
    found = [
        Section("Where it fires", _example_blocks(page)),
        Section("How much", [SizeHistogram(page.activity)]),
    ]
    if page.promoted is not None and page.suppressed is not None:
        effects = LabelledArray(
            np.concatenate([page.promoted.values, page.suppressed.values[::-1]]),
            ("token",),
            texts={"token": (*page.promoted.labels("token"), *page.suppressed.labels("token")[::-1])},
            unit=page.promoted.unit,
            title="Direct effect on the logits",
            conventions={"final norm": page.conventions.get("final norm", "")},
        )
        found.append(Section("What it writes", [Bars(effects)]))
    found.append(Section("What is near", [_neighbors(page)]))
    if page.label and page.label.scores:
        found.append(Section("Does the label hold?", [_scores(page.label)]))
    return found


def _example_blocks(page: FeaturePage) -> list[Block]:
    if not page.groups:
        return [Callout("Dead", "It fires nowhere in this text.", tone="caution")]
    return [_strip(group, page.activity.largest) for group in page.groups if group.examples]


def _strip(group: ExampleGroup, largest: float) -> Block:
    arrays = [_array(one, i) for i, one in enumerate(group.examples)]
    title = "Strongest" if group.name == "top" else group.name.capitalize()
    span = f"activations {number(group.low)} to {number(group.high)}"
    return TokenStrip(arrays, title=title, caption=f"{span}; one piece for each row of the text.")


def _array(one: Example, _place: int) -> LabelledArray:
    return LabelledArray(
        np.array(one.values),
        ("token",),
        texts={"token": one.tokens},
        title=f"{fixed(one.value, 3)} ",
        unit="",
    )


def _neighbors(page: FeaturePage) -> Block:
    heads = {
        "decoder": "By what they write (cosine)",
        "encoder": "By what they read (cosine)",
        "behavior": "By when they fire (correlation)",
    }
    tables = [_table(caption, page.neighbors.get(name, ())) for name, caption in heads.items()]
    return Beside((*tables, _table("Fire where it fires (share)", page.together)))


def _table(caption: str, found: tuple[Related, ...]) -> Table:
    rows = [[one.latent, one.value, shown(one.label, 40) if one.label else None] for one in found]
    return Table(["latent", "", "label"], rows, caption=caption)


def _scores(label: Label) -> Table:
    rows = [
        [
            one.test,
            one.value,
            f"[{fixed(one.low, 2)}, {fixed(one.high, 2)}]",
            one.chance,
            one.n_questions,
            one.judge,
        ]
        for one in label.scores.values()
    ]
    heads = ["test", "right", "95% interval", "by chance", "questions", "judge"]
    return Table(heads, rows, caption="Questions about texts that the label was not written from.")


def _figures(activity: Activity) -> dict[str, str]:
    return {
        "fires at": f"{activity.density:.3%} of tokens",
        "95% interval": f"[{activity.density_low:.3%}, {activity.density_high:.3%}]",
        "tokens": f"{activity.fires:,}",
        "mean when on": number(activity.mean),
        "largest": number(activity.largest),
    }


def _said_by(label: Label | None) -> str:
    return "" if label is None else f"Label by {label.by}."
