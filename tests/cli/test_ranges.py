"""Ranges of integers on the command line: what is written is what is meant, or is refused with the right spelling."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.cli.ranges import MOST_VALUES, integers
from lorafa_prof.errors import BadInputError


def parsed(text: str, most: int = 2**20) -> list[int]:
    return list(integers("batch size", text, most=most))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", [8]),
        ("1,2,4", [1, 2, 4]),
        ("4,1,4,1", [4, 1]),
        ("1:4", [1, 2, 3, 4]),
        ("3:3", [3]),
        ("1:64:21", [1, 22, 43, 64]),
        ("1:10:4", [1, 5, 9]),
        ("1:64:*2", [1, 2, 4, 8, 16, 32, 64]),
        ("3:64:*4", [3, 12, 48]),
        ("512, 1024 ,8:12:2,8", [512, 1024, 8, 10, 12]),
        (" 1 : 8 : * 2 ", [1, 2, 4, 8]),
    ],
)
def test_what_is_written(text: str, expected: list[int]) -> None:
    """Both ends belong to a range; values keep their order and come once."""
    assert parsed(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("64:1", "the range '64:1' is reversed: write 1:64"),
        ("64:1:4", "write 1:64:4"),
        ("64:1:*2", "write 1:64:*2"),
        ("1:8:0", "the step of '1:8:0' must be at least 1"),
        ("1:8:-1", "must be at least 1"),
        ("1:8:*1", "the factor of 1:8:*1 must be at least 2"),
        ("0:8", "must be between 1 and 1048576, not 0"),
        ("1:1048577", "must be between 1 and 1048576, not 1048577"),
        ("-3", "not -3"),
        ("", "'' is not an integer or a range"),
        ("1,,2", "'' is not an integer or a range"),
        ("1:", "'1:' is not an integer or a range"),
        ("1:2:3:4", "is not an integer"),
        ("1..8", "write 8, 1,2,4, 1:64 (all from 1 to 64), 1:64:4 (every 4th) or 1:64:*2 (doubling)"),
        ("1.5", "is not an integer"),
        ("eight", "'eight' is not"),
        ("9" * 5000, "is not an integer"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    """The refusal says what is wrong, and where it can how it is written right."""
    with pytest.raises(BadInputError) as refusal:
        parsed(text)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("batch size")
    assert len(str(refusal.value)) < 200


def test_too_many_values_are_counted_before_they_are_made() -> None:
    """A range of a billion answers at once."""
    with pytest.raises(BadInputError, match=f"1,000,000,000 values are more than the {MOST_VALUES:,}"):
        parsed("1:1000000000", most=2**30)
    with pytest.raises(BadInputError, match="values are more than"):
        parsed("1:1000000,2000000:2100000", most=2**30)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 50))
def test_a_range_holds_what_python_says(a: int, b: int, step: int) -> None:
    """Every step-th number from the first to the last."""
    low, high = sorted((a, b))
    assert parsed(f"{low}:{high}:{step}") == list(range(low, high + 1, step))


@given(st.text(alphabet="0123456789:*,- ", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else comes out than distinct values within the bounds, or our refusal."""
    try:
        values = parsed(text, most=10_000)
    except BadInputError:
        return
    assert values
    assert len(set(values)) == len(values)
    assert all(1 <= value <= 10_000 for value in values)
