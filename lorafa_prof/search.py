"""Where a condition that holds for small numbers stops to hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def largest(fits: Callable[[int], bool], *, most: int, guess: int = 1) -> int:
    """Return the largest number from 1 to `most` for which `fits` holds, 0 where it does not even for 1.

    Memory rises with what is asked of it, so the threshold is a root: bracketed by ever longer steps from `guess`,
    then bisected.
    """
    low = min(max(1, guess), most)
    stride = 1
    if fits(low):
        while low < most:
            high = min(low + stride, most)
            if not fits(high):
                return _bisect(fits, low, high)
            low, stride = high, 2 * stride
        return most
    high = low
    while high > 1:
        low = max(1, high - stride)
        if fits(low):
            return _bisect(fits, low, high)
        high, stride = low, 2 * stride
    return 0


def _bisect(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number that fits, of which `low` is known to and `high` not to."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def last_within(size: Callable[[int], int], limit: int, *, most: int, guess: int = 1) -> int:
    """Return the largest number from 1 to `most` whose size is within `limit`, 0 where that of 1 is not.

    For sizes that never fall, and are costly to ask for: what is known of them, taken for a straight line, says where
    to look next. Memory nearly is one, so that a handful of looks does; where that has not halved what is left to
    search, the next look does.
    """
    low, high = _Point(0, None), _Point(most + 1, None)  # within, and beyond or not asked for
    before, number, halving = low, min(max(1, guess), most), False
    while True:
        width = high.number - low.number
        reached = _Point(number, size(number))
        if reached.size is not None and reached.size <= limit:
            before, low = low, reached
        else:
            high = reached
        if high.number - low.number <= 1:
            return low.number
        halving = high.size is not None and not halving and 2 * (high.number - low.number) > width
        number = _between(low.number, high.number)
        if not halving and low.size is not None:
            number = _on_line(low, before if high.size is None else high, limit, high.number)


@dataclass(frozen=True)
class _Point:
    number: int
    size: int | None


def _between(low: int, high: int) -> int:
    """Return the middle; of numbers that are far apart, the one as many times the one as the other is times it."""
    return math.isqrt(low * high) if high > 4 * low > 0 else (low + high) // 2


def _on_line(low: _Point, other: _Point, limit: int, high: int) -> int:
    """Return where the line through two points reaches `limit`, strictly between `low` and `high`.

    Of one point alone, or from a level, a step further away.
    """
    assert low.size is not None, "the size within the limit is known"
    step = low.number + max(1, low.number // 8)
    if other.size is not None:
        run, rise = other.number - low.number, other.size - low.size
        step = low.number + (limit - low.size) * run // rise if rise else 2 * low.number
    return min(max(low.number + 1, step), high - 1)
