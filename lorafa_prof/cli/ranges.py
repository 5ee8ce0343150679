"""Ranges of integers as people write them on the command line: 1:64, 1:64:4, 1:64:*2, and comma lists of these."""

from __future__ import annotations

import re

from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import require_int

#: Values that one option may have.
MOST_VALUES = 2**20
_PIECE = re.compile(r"\s*(-?\d{1,30})(?:\s*:\s*(-?\d{1,30})(?:\s*:\s*(\*?)\s*(-?\d{1,30}))?)?\s*")
_FORMS = "write 8, 1,2,4, 1:64 (all from 1 to 64), 1:64:4 (every 4th) or 1:64:*2 (doubling)"


def integers(what: str, text: str, *, least: int = 1, most: int) -> tuple[int, ...]:
    """Return the integers that a text names, each once, in the order in which it does.

    Args:
        what: what they are, in words, for errors.
        text: a comma list of integers and of ranges, both ends included: "1:8" or "1:8:2" or "1:8:*2".
        least: the smallest that is allowed.
        most: the largest that is allowed.

    Raises:
        BadInputError: not such a text, a range that is empty or reversed, a value out of bounds, too many values.
    """
    values: dict[int, None] = {}
    for piece in text.split(","):
        found = _PIECE.fullmatch(piece)
        if found is None:
            raise BadInputError(f"{what}: {_shown(piece)} is not an integer or a range of them: {_FORMS}")
        values.update(dict.fromkeys(_values(what, found, least, most)))
        if len(values) > MOST_VALUES:
            raise _too_many(what, len(values))
    return tuple(values)


def _values(what: str, found: re.Match[str], least: int, most: int) -> range | list[int]:
    first, last, times, by = found.groups()
    start = require_int(what, int(first), least, most)
    if last is None:
        return range(start, start + 1)
    end = require_int(what, int(last), least, most)
    step = f":{times}{by}" if by else ""
    if end < start:
        raise BadInputError(f"{what}: the range {_shown(found[0])} is reversed: write {end}:{start}{step}")
    if times:
        return _multiples(what, start, end, int(by))
    stride = int(by or 1)
    if stride < 1:
        raise BadInputError(f"{what}: the step of {_shown(found[0])} must be at least 1")
    values = range(start, end + 1, stride)
    if len(values) > MOST_VALUES:
        raise _too_many(what, len(values))
    return values


def _multiples(what: str, start: int, end: int, factor: int) -> list[int]:
    if factor < 2:
        raise BadInputError(f"{what}: the factor of {start}:{end}:*{factor} must be at least 2")
    if start < 1:
        raise BadInputError(f"{what}: a range that multiplies cannot begin at {start}")
    values = [start]
    while values[-1] * factor <= end:
        values.append(values[-1] * factor)
    return values


def _too_many(what: str, number: int) -> BadInputError:
    return BadInputError(f"{what}: {number:,} values are more than the {MOST_VALUES:,} that one option may have")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
