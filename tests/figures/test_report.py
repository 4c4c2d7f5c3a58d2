"""A report is one file that asks nothing of a network and runs nothing that a model wrote."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from mechscope.figures import (
    AttentionView,
    Bars,
    Code,
    ForestPlot,
    ForestRow,
    Heatmap,
    LabelledArray,
    Lines,
    Prose,
    Report,
    Section,
    Table,
    TokenStrip,
    Verdict,
)
from mechscope.figures.grid import draw_grid
from mechscope.figures.heatmap import grid_of
from mechscope.figures.markup import Markup, element
from mechscope.figures.scale import LEVELS, Axis, ColourScale, ticks
from mechscope.vocabulary.errors import PositionOutOfRange, ShapeError
from sample_report import HOSTILE, TOKENS, attention, head_grid, patch_grid, predictions, sample, strips

VOID = {"meta", "br", "hr", "rect", "line", "path", "circle", "stop", "col"}


class Page(HTMLParser):
    """Collects what a browser would see: tags, attributes, text; and refuses tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def grids(html: str) -> list[dict[str, object]]:
    return [json.loads(value) for _, name, value in Page(html).attributes if name == "data-grid"]


def test_hostile_tokens_change_no_tag_and_no_attribute_of_the_page() -> None:
    plain, hostile = Page(sample().to_html()), Page(sample(HOSTILE * 2).to_html())
    assert hostile.tags["script"] == plain.tags["script"] == 1
    assert set(hostile.tags) == set(plain.tags)
    assert {name for _, name, _ in hostile.attributes} == {name for _, name, _ in plain.attributes}
    assert "<script>alert(1)</script>" in "".join(hostile.texts)


def test_the_check_for_hostile_tokens_can_fail() -> None:
    careless = element("p", Markup(HOSTILE[0]))
    assert Page(careless).tags["script"] == 1


def test_hostile_text_stays_text_in_every_block_and_field() -> None:
    bad = "</style></script><img src=x onerror=alert(1)>\u202e"
    array = LabelledArray(
        np.ones((1, 2)),
        ("a", "b"),
        title=bad,
        unit=bad,
        texts={"a": [bad], "b": [bad, bad]},
        conventions={bad: bad},
    )
    row = ForestRow(label=bad, effect=1, low=0, high=2, unit=bad, note=bad, outcome=bad, controls=[1.0])
    line = array.sel(a=0)
    pattern = LabelledArray(np.ones((1, 1, 1)), ("h", "q", "k"), texts={"q": [bad]})
    blocks = [
        Prose(f"`{bad}` **{bad}** {bad}"), Code(bad, bad), Table([bad], [[bad]], bad), Heatmap(array, bad),
        Bars(line, bad), Lines(array, bad), TokenStrip([line], bad, bad), ForestPlot([row], bad, bad),
        Verdict(bad, bad, bad, {bad: bad}), AttentionView(pattern),
    ]  # fmt: skip
    html = Report(bad, bad, Verdict(bad, bad), {bad: bad}).add(Section(bad, blocks)).to_html()
    page = Page(html)
    assert page.tags["img"] == 0
    assert (page.tags["script"], page.tags["style"]) == (1, 1)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "\u202e" not in html


def test_the_file_asks_nothing_of_a_network() -> None:
    html = sample().to_html()
    assert not re.search(r"(src|href)=\"(?!#)", html)
    links = re.findall(r"https?://[^\s\"'<]+", html)
    assert set(links) <= {"http://www.w3.org/2000/svg"}, links
    assert "@import" not in html
    assert "url(" not in html


def test_only_our_script_may_run() -> None:
    html = sample().to_html()
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in html
    assert "default-src &#x27;none&#x27;" in html


def test_a_whole_report_is_small_and_always_the_same_bytes() -> None:
    html = sample().to_html()
    assert len(html.encode()) < 150_000
    assert html == sample().to_html()


def test_eight_heads_of_a_hundred_tokens_fit_into_half_a_megabyte() -> None:
    weights = np.tril(np.random.default_rng(0).dirichlet(np.full(100, 0.05), (8, 100)))
    view = AttentionView(LabelledArray(weights, ("head", "query", "key")))
    assert len(view.markup().encode()) < 500_000


def test_every_value_of_a_heatmap_can_be_read_back_from_the_page() -> None:
    array = head_grid()
    (grid,) = grids(Heatmap(array).markup())
    back = np.array([np.nan if v is None else v * grid["step"] for v in grid["values"]]).reshape(5, 6)  # pyright: ignore
    assert np.allclose(back, array.values, atol=2.31e-4, equal_nan=True)
    assert np.isnan(back[0, 5])


def test_the_attention_view_shows_each_head_on_a_scale_from_zero_to_one() -> None:
    view = AttentionView(attention())
    html = view.markup()
    assert len(grids(html)) == 4
    weak = LabelledArray(np.full((1, 2, 2), 1 / LEVELS), ("head", "query", "key"))
    assert 'fill-opacity="0.03"' in AttentionView(weak).markup()


def test_tokens_are_shown_visibly_in_every_view() -> None:
    for block in (Heatmap(patch_grid()), AttentionView(attention()), TokenStrip(strips())):
        html = block.markup()
        assert "·Mary" in html
        assert "↵" in html
        assert "> Mary<" not in html


def test_zero_has_the_colour_of_the_ground_and_missing_does_not() -> None:
    def paths(value: float) -> int:
        array = LabelledArray(np.array([[value, 1.0]]), ("a", "b"))
        return draw_grid(grid_of(array, ColourScale.of(array.values), 400), x=0, y=0).count("<path")

    assert (paths(0.0), paths(np.nan), paths(-1.0)) == (1, 2, 2)


def test_marks_outline_cells_and_a_mark_that_is_nowhere_is_refused() -> None:
    html = Heatmap(head_grid(), marks=[{"layer": 3, "head": 1}]).markup()
    assert html.count("ms-mark") == 1
    with pytest.raises(PositionOutOfRange):
        Heatmap(head_grid(), marks=[{"layer": 9, "head": 1}])
    with pytest.raises(ShapeError, match="one coordinate an axis"):
        Heatmap(head_grid(), marks=[{"layer": 1}])


def test_three_axes_become_small_multiples_with_their_own_marks() -> None:
    html = Heatmap(attention(), marks=[{"head": "3.1", "query": 3, "key": 2}]).markup()
    assert len(grids(html)) == 4
    assert html.count("ms-mark") == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Heatmap(LabelledArray(np.ones(3), ("a",))),
        lambda: Bars(LabelledArray(np.ones((3, 3)), ("a", "b"))),
        lambda: Lines(LabelledArray(np.ones((9, 3)), ("a", "b"))),
        lambda: TokenStrip([]),
        lambda: AttentionView(LabelledArray(np.ones((2, 3, 4)), ("h", "q", "k"))),
        lambda: Table(["a", "b"], [[1]]),
        lambda: ForestPlot([]),
    ],
)
def test_what_a_figure_cannot_show_is_refused_when_it_is_made(build: object) -> None:
    with pytest.raises(ShapeError):
        build()  # pyright: ignore


def test_bars_that_are_left_out_are_counted() -> None:
    array = LabelledArray(np.arange(10.0), ("head",), title="x")
    assert "(7 weaker ones not shown.)" in Bars(array, at_most=3).markup()
    assert "not shown" not in Bars(array).markup()


def test_a_forest_shows_effect_bound_controls_and_outcome_of_each_prediction() -> None:
    html = ForestPlot(predictions()).markup()
    text = " ".join(Page(html).texts)
    for words in ("2.84", "[2.51, 3.17]", "≥ 2", "± 0.1", "0.004", "holds", "undecided", "fails", "nats"):
        assert words in text
    assert html.count("ms-control-shape") == 2
    assert html.count("ms-control-ticks") == 1
    assert html.count("ms-axis-row") == 2  # rows of one unit share an axis


def test_missing_numbers_break_no_figure() -> None:
    gone = np.full(3, np.nan)
    Bars(LabelledArray(gone, ("a",), low=gone, high=gone)).markup()
    Lines(LabelledArray(np.array([1.0, np.nan, np.inf]), ("a",), low=gone, high=gone)).markup()
    TokenStrip([LabelledArray(gone, ("a",))]).markup()
    Heatmap(LabelledArray(np.full((2, 2), np.nan), ("a", "b"))).markup()
    Heatmap(LabelledArray(np.array([[np.inf, -np.inf]]), ("a", "b"))).markup()
    AttentionView(LabelledArray(np.full((1, 2, 2), np.nan), ("h", "q", "k"))).markup()
    ForestPlot(
        [ForestRow(label="x", effect=np.nan, low=-np.inf, high=np.inf, controls=[np.nan, np.inf])]
    ).markup()


def test_a_block_shows_itself_alone_in_a_notebook() -> None:
    html = patch_grid()._repr_html_()
    page = Page(html)
    assert (page.tags["style"], page.tags["script"], page.tags["svg"]) == (1, 1, 1)


def test_prose_knows_two_marks_and_no_more() -> None:
    html = Prose("one `a<b` **two**\n\nthree * four _five_").markup()
    assert html == "<p>one <code>a&lt;b</code> <strong>two</strong></p><p>three * four _five_</p>"


def test_a_table_aligns_the_digits_of_a_column() -> None:
    html = Table(["n", "x"], [[1, 0.985], [-2, 0.9], [None, None]]).markup()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert cells == ["1", "0.985", "−2", "0.900", "–", "–"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.37, 2.9), (1e-9, 3e-9), (-1e6, 5e7), (-3, -1)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    slack = (high - low) * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert np.allclose(np.diff(found), np.diff(found)[0])


def test_a_scale_is_symmetrical_only_where_it_must_be() -> None:
    assert ColourScale.of(np.array([-1.0, 3.0])) == ColourScale(3.0, True)
    assert ColourScale.of(np.array([0.0, 3.0, np.nan])) == ColourScale(3.0, False)
    assert ColourScale.of(np.array([])) == ColourScale(1.0, False)
    scale = ColourScale(2.0, True)
    assert [scale.level(v) for v in (-9, -2, 0, 1, np.inf)] == [-LEVELS, -LEVELS, 0, LEVELS // 2, LEVELS]


def test_an_axis_always_holds_zero() -> None:
    axis = Axis.around(np.array([5.0, 6.0]), start=0, end=100)
    assert axis.low < 0 < axis.high
    assert axis(axis.high) == 100
    assert len(TOKENS) == 16
