"""A labelled array is found by name, never changes, and comes back equal."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mechscope.figures import LabelledArray
from mechscope.vocabulary.errors import BadFile, PositionOutOfRange, ShapeError

NUMBERS = arrays(np.float64, array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=0))


def grid() -> LabelledArray:
    return LabelledArray(
        np.array([[1.0, -5.0, 2.0], [3.0, np.nan, -2.0]]),
        ("layer", "pos"),
        coords={"layer": [4, 7]},
        texts={"pos": [" the", " cat", " the"]},
        unit="nats",
        title="Effect",
        conventions={"direction": "denoising"},
        low=np.zeros((2, 3)),
        high=np.ones((2, 3)),
    )


@given(NUMBERS)
def test_json_round_trips_are_exact(values: np.ndarray) -> None:
    array = LabelledArray(values, ("a", "b", "c")[: values.ndim])
    text = json.dumps(array.to_json(), allow_nan=False)
    back = LabelledArray.from_json(json.loads(text))
    assert back == array
    assert back.values.dtype == array.values.dtype
    assert np.array_equal(back.values, values, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_other_dtypes_come_back_as_they_were(dtype: str) -> None:
    array = LabelledArray(np.array([0, 1, 1]).astype(dtype), ("x",))
    back = LabelledArray.from_json(json.loads(json.dumps(array.to_json())))
    assert back.values.dtype == np.dtype(dtype)
    assert back == array


def test_everything_that_is_said_about_the_numbers_comes_back() -> None:
    assert LabelledArray.from_json(json.loads(json.dumps(grid().to_json()))) == grid()


@pytest.mark.parametrize(
    "change", [{"unit": "bits"}, {"title": "x"}, {"conventions": {}}, {"low": None}, {"texts": {}}]
)
def test_arrays_that_say_something_else_are_not_equal(change: dict[str, object]) -> None:
    saved = grid().to_json() | change
    assert LabelledArray.from_json(saved) != grid()


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"format": 2}, {"shape": [9]}, {"dims": ["a"]}, {"dtype": "sausage"}]
)
def test_a_broken_saved_array_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadFile):
        LabelledArray.from_json(grid().to_json() | change)


def test_selecting_by_name_gives_the_same_cell_as_counting() -> None:
    array = grid()
    assert float(array.sel(layer=7, pos=0).values) == 3.0
    assert array.sel(layer=7).dims == ("pos",)
    assert array.sel(layer=7).labels("pos") == (" the", " cat", " the")
    assert array.sel(layer=7).title == "Effect, layer 7"
    assert array.sel(layer=7).high.shape == (3,)  # pyright: ignore
    part = array.sel(layer=[7, 4], pos=[2, 0])
    assert part.values.tolist() == [[-2.0, 3.0], [2.0, 1.0]]
    assert part.coords == {"layer": (7, 4), "pos": (2, 0)}
    assert array.sel() == array


def test_the_strongest_cells_come_first_and_missing_ones_never() -> None:
    array = grid()
    assert array.top(2) == [({"layer": 4, "pos": 1}, -5.0), ({"layer": 7, "pos": 0}, 3.0)]
    assert array.top(1, by="largest") == [({"layer": 7, "pos": 0}, 3.0)]
    assert array.top(2, by="smallest")[1] == ({"layer": 7, "pos": 2}, -2.0)
    assert len(array.top(99)) == 5
    assert LabelledArray(np.full(3, np.nan), ("x",)).top() == []


def test_ties_keep_reading_order() -> None:
    array = LabelledArray(np.array([2.0, -2.0, 2.0]), ("x",))
    assert [labels["x"] for labels, _ in array.top()] == [0, 1, 2]


def test_values_never_change() -> None:
    source = np.zeros(3)
    array = LabelledArray(source, ("x",))
    source[0] = 9
    assert array.values.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        array.values[0] = 1


def test_every_misfit_is_named_at_once() -> None:
    with pytest.raises(ShapeError) as refusal:
        LabelledArray(
            np.zeros((2, 3)),
            ("layer", "pos"),
            coords={"layer": [1, 1], "head": [0]},
            texts={"pos": ["a"]},
            low=np.zeros(2),
        )
    for words in ("two equal coordinates", "has not: head", "1 texts", "low is of shape"):
        assert words in refusal.value.got


@pytest.mark.parametrize(
    ("values", "dims"), [(np.zeros(2), ("a", "b")), (np.zeros((2, 2)), ("a", "a")), (np.array(["x"]), ("a",))]
)
def test_names_that_do_not_fit_are_refused(values: np.ndarray, dims: tuple[str, ...]) -> None:
    with pytest.raises(ShapeError):
        LabelledArray(values, dims)


def test_a_coordinate_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PositionOutOfRange) as refusal:
        grid().sel(layer=5)
    assert refusal.value.instead == "4, 7"
    with pytest.raises(PositionOutOfRange, match='no axis "head"'):
        grid().sel(head=0)
    with pytest.raises(PositionOutOfRange):
        LabelledArray(np.zeros(2), ("x",)).sel(x=True)


def test_it_reads_as_a_table_in_a_terminal() -> None:
    text = repr(grid())
    lines = text.splitlines()
    assert lines[0] == "Effect [layer 2 x pos 3] in nats"
    assert lines[1].split() == ["layer/pos", "0", "·the", "1", "·cat", "2", "·the"]
    assert lines[2].split() == ["4", "1", "−5", "2"]
    assert lines[-1] == "conventions: direction=denoising"
    assert "more rows" in repr(LabelledArray(np.zeros((30, 2)), ("a", "b")))
    assert repr(LabelledArray(np.array(2.5), (), title="Loss", unit="nats")) == "Loss in nats 2.5"


def test_numpy_takes_it_as_an_array() -> None:
    assert np.asarray(grid()).shape == (2, 3)
    assert math.isclose(float(np.nansum(grid())), -1.0)  # pyright: ignore


@settings(deadline=None)  # the first plot imports Plotly
@given(st.integers(1, 3), st.data())
def test_plots_hold_every_value(n_axes: int, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 3)) for _ in range(n_axes))
    array = LabelledArray(np.arange(float(np.prod(shape))).reshape(shape), ("a", "b", "c")[:n_axes])
    figure = array.plot()
    shown = np.concatenate([np.ravel(trace.x if trace.type == "bar" else trace.z) for trace in figure.data])
    assert sorted(shown.tolist()) == array.values.ravel().tolist()


def test_plots_are_symmetrical_around_zero_where_values_are() -> None:
    (trace,) = grid().plot().data
    assert (trace.zmin, trace.zmax) == (-5.0, 5.0)
    (trace,) = LabelledArray(np.array([[0.0, 2.0]]), ("a", "b")).plot().data
    assert (trace.zmin, trace.zmax) == (0.0, 2.0)


def test_plotly_reads_no_tag_in_a_token() -> None:
    figure = LabelledArray(
        np.ones((1, 2)), ("a", "b"), texts={"b": ["<b>x</b>", "\n"]}, title="<i>t</i>"
    ).plot()
    assert list(figure.data[0].x) == ["0 &lt;b&gt;x&lt;/b&gt;", "1 ↵"]
    assert figure.layout.title.text == "&lt;i&gt;t&lt;/i&gt;"


def test_an_array_of_four_axes_is_refused_by_plot_and_shown_as_a_table_in_a_notebook() -> None:
    array = LabelledArray(np.ones((2, 2, 2, 2)), ("a", "b", "c", "d"))
    with pytest.raises(ShapeError, match="4 axes"):
        array.plot()
    assert "<table" in array._repr_html_()
