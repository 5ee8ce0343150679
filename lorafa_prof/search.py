"""Where a condition that holds for small numbers stops to hold."""

from __future__ import annotations

from collections.abc import Callable


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
