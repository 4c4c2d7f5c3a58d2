"""What is shown has nothing invisible in it."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechscope.figures.shown import JOINERS, fixed, number, shown, width_of, with_interval

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text())
def test_no_text_shows_invisible_characters(text: str) -> None:
    result = shown(text)
    assert result
    assert not [char for char in result if unicodedata.category(char) in HIDDEN and char not in JOINERS]
    assert not result.startswith(" ")
    assert not result.endswith(" ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the", "·the"),
        ("a b", "a b"),
        ("  ", "··"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("\u200b", "⟨200B⟩"),
        ("\u202eevil", "⟨202E⟩evil"),
        ("a\u200db", "a⟨200D⟩b"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("", "∅"),
        ("\u0301", "◌\u0301"),
        ("\x00", "⟨0000⟩"),
        ("\ud800", "⟨D800⟩"),
        ("é", "é"),
    ],
)
def test_tokens_are_shown_with_everything_visible(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_long_text_is_cut_and_says_so() -> None:
    assert shown("abcdef", 4) == "abc…"
    assert shown("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.79, "0.79"),
        (0.98765, "0.988"),
        (-3.0, "−3"),
        (1234.5, "1234"),
        (0.0001234, "1.23e−4"),
        (2.5e9, "2.50e9"),
        (math.nan, "–"),
        (None, "–"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (100.0, "100"),
        (-0.0, "0"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, expected: str) -> None:
    assert number(value) == expected


@given(st.floats(-1e300, 1e300))
def test_a_shown_number_is_within_half_a_percent_of_itself(value: float) -> None:
    assert math.isclose(float(number(value).replace("−", "-")), value, rel_tol=0.0051)


def test_an_interval_is_as_exact_as_it_is_narrow() -> None:
    assert with_interval(0.789, 0.7123, 0.8588) == ("0.79", "[0.71, 0.86]")
    assert with_interval(12.3456, 12.3411, 12.3502) == ("12.3456", "[12.3411, 12.3502]")
    assert with_interval(2.0, -math.inf, 3.0) == ("2.0", "[−∞, 3.0]")
    assert fixed(-0.004, 2) == "0.00"


def test_wide_characters_take_two_columns() -> None:
    assert (width_of("abc"), width_of("日本"), width_of("e\u0301")) == (3, 4, 1)
