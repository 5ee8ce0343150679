"""Where a condition that holds for small numbers stops to hold, and with how few looks that is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from lorafa_prof.search import largest, last_within


@given(limit=st.integers(0, 2**21), most=st.integers(1, 2**20), guess=st.integers(-5, 2**21))
def test_the_largest_is_the_last_for_which_it_holds(limit: int, most: int, guess: int) -> None:
    """0 where it holds for none, never beyond `most`, wherever the search begins."""
    assert largest(lambda n: n <= limit, most=most, guess=guess) == min(limit, most)


@given(
    terms=st.tuples(st.integers(0, 10**10), st.integers(0, 10**7), st.integers(0, 50)),
    granule=st.sampled_from([1, 512, 2**21]),
    limit=st.integers(0, 10**13),
    most=st.sampled_from([1, 2, 5, 100, 4096, 2**20]),
    guess=st.integers(-5, 2**21),
)
def test_the_last_within_a_limit(terms: tuple[int, int, int], granule: int, limit: int, most: int, guess: int) -> None:
    """Exact for any sum of squares and lines, rounded up to blocks or not, in at most three looks a halving."""
    looks = 0

    def size(n: int) -> int:
        nonlocal looks
        looks += 1
        assert 1 <= n <= most
        constant, linear, square = terms
        return -(-(constant + linear * n + square * n * n) // granule) * granule

    found = last_within(size, limit, most=most, guess=guess)
    assert looks <= 3 * 21
    assert found == 0 or size(found) <= limit
    assert found == most or size(found + 1) > limit


@pytest.mark.parametrize(
    ("size", "most_looks"),
    [(lambda n: 13_000_000_000 + 2_345_678 * n, 5), (lambda n: 10**9 + 3 * 10**5 * n + 40 * n * n, 14)],
)
def test_what_is_nearly_a_line_takes_few_looks(size: Callable[[int], int], most_looks: int) -> None:
    """Memory is a line in batch and rank, and a parabola in the length where scores are kept; halving takes 20."""
    seen: list[int] = []

    def counted(n: int) -> int:
        seen.append(n)
        return size(n)

    last_within(counted, 80 * 10**9, most=2**20)
    assert len(seen) <= most_looks
