"""Many lines of CSV at once, as one array of bytes: formatting a million rows one by one is most of a sweep's time.

Each line is as wide as the widest; what a shorter one does not fill holds a byte that no UTF-8 text has, and is left
out at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
"""One line a row, or one part of each line."""

_BLANK = 0xFF
_GROUP = 10_000
"""Numbers are written four digits at a time."""


def integers(values: npt.NDArray[np.int64]) -> list[Bytes]:
    """Return integers in decimal, as parts that stand one after the other."""
    rest = np.abs(values)
    count = -(-len(str(int(rest.max()))) // 4)
    digits = np.empty((values.size, count), dtype=np.uint32)
    for place in range(count - 1, -1, -1):
        higher = rest // _GROUP
        digits[:, place] = _tables(place == count - 1).take(rest - higher * _GROUP + (higher > 0) * _GROUP)
        rest = higher
    parts: list[Bytes] = [digits.view(np.uint8)]
    negative = values < 0
    if negative.any():
        parts.insert(0, np.where(negative, ord("-"), _BLANK).astype(np.uint8)[:, None])
    return parts


@cache
def _tables(last: bool) -> npt.NDArray[np.uint32]:
    """Return the digits of 0 to 9999 as four bytes each: first without leading zeros, then with them.

    The last four digits of a number that has no others are never left out whole: 0 is "0".
    """
    powers = np.array([1000, 100, 10, 1])
    numbers = np.arange(_GROUP)[:, None]
    whole = (numbers // powers % 10 + ord("0")).astype(np.uint8)
    short = np.where(numbers < powers, _BLANK, whole).astype(np.uint8)
    if last:
        short[0, -1] = ord("0")
    return np.concatenate([short, whole]).view(np.uint32).ravel()


def choices(texts: Sequence[str], which: npt.NDArray[np.int64]) -> Bytes:
    """Return of each line the one of a few texts that it holds."""
    encoded = [text.encode() for text in texts]
    width = max(map(len, encoded))
    table = np.array([list(text.ljust(width, bytes([_BLANK]))) for text in encoded], dtype=np.uint8)
    return table.reshape(len(texts), width)[which]


def side_by_side(count: int, parts: Sequence[str | Bytes]) -> Bytes:
    """Return `count` lines made of parts that follow one another; a text is the same in all of them."""
    pieces = [np.frombuffer(part.encode(), np.uint8)[None] if isinstance(part, str) else part for part in parts]
    ends = np.cumsum([piece.shape[1] for piece in pieces]).tolist()
    template = np.concatenate([piece[0] for piece in pieces])
    lines: Bytes = np.repeat(template[None], count, axis=0)
    for piece, end in zip(pieces, ends, strict=True):
        if len(piece) > 1:
            lines[:, end - piece.shape[1] : end] = piece
    return lines


def in_order(count: int, groups: Sequence[tuple[npt.NDArray[np.intp], Bytes]]) -> bytes:
    """Return `count` lines as text, from groups of them: which lines these are, and the lines."""
    if len(groups) == 1:
        return _text(groups[0][1])
    lines = np.full((count, max(group.shape[1] for _, group in groups)), _BLANK, dtype=np.uint8)
    for where, group in groups:
        lines[where, : group.shape[1]] = group
    return _text(lines)


def _text(lines: Bytes) -> bytes:
    return lines.tobytes().replace(bytes([_BLANK]), b"")
