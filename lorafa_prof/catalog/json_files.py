"""Reading of JSON that somebody else wrote: bounded, strict, and with one clear line for whatever is wrong.

Left alone, a device file would be read for ever, deep nesting would end the stack, and NaN, infinities,
duplicate keys and numbers of thousands of digits would surface later as a traceback far from their cause.
"""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

from lorafa_prof.errors import BadInputError

#: Bytes of the largest file that is read. Published configurations stay below 100 kB, those with thousands
#: of class labels below 1 MB.
LARGEST_FILE = 4 * 2**20

#: Objects and lists inside each other; published configurations have four.
DEEPEST_NESTING = 32

#: Digits of the longest integer. Python refuses to parse more than 4300, and no size needs twenty.
LONGEST_INTEGER = 40


class _Unusable:
    """Stands for a number that must not get further, until it is known which key holds it."""

    def __init__(self, what: str) -> None:
        self.what = what


def one_line(text: str, limit: int = 200) -> str:
    """Return `text` fit for a one-line message: the unprintable escaped, the middle cut out."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def read_json_object(path: str, *, largest: int = LARGEST_FILE, what: str = "a configuration") -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Args:
        path: the file.
        largest: bytes of the largest file that is read.
        what: what the file should hold, for messages.

    Raises:
        BadInputError: not a readable regular file of at most `largest` bytes, not UTF-8, a byte order
            mark, not JSON, not an object, a key given twice, a number that is not finite or too long, or
            nested too deeply.
    """
    where = one_line(path)
    text = _decode(where, _read(where, path, largest, what))
    if not text.strip():
        raise BadInputError(f"{where}: the file is empty: not valid JSON")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise BadInputError(f"{where}: key {one_line(key, 60)!r} is there twice")
            found[key] = value
        return found

    try:
        parsed = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_Unusable,
        )
    except RecursionError:
        raise BadInputError(f"{where}: nested too deeply to be {what}") from None
    except ValueError as error:
        raise BadInputError(f"{where}: not valid JSON: {one_line(str(error))}") from None
    if not isinstance(parsed, dict):
        raise BadInputError(f"{where}: must hold a JSON object, not {kind_of(parsed)}")
    check_values(where, parsed, what)
    return parsed


def read_text(path: str, *, largest: int = LARGEST_FILE, what: str = "a text") -> str:
    """Return the text in the file at `path`.

    Raises:
        BadInputError: not a readable regular file of at most `largest` bytes, not UTF-8, or a byte order mark.
    """
    where = one_line(path)
    return _decode(where, _read(where, path, largest, what))


def kind_of(value: object) -> str:
    """Return in words what JSON would call `value`, for a message that must not print a whole list."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    return f"a {type(value).__name__}"


_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((dict,), "an object"),
    ((list, tuple), "a list"),
    ((str,), "a string"),
    ((int, float), "a number"),
)


def _read(where: str, path: str, largest: int, what: str) -> bytes:
    try:
        # Looked at before it is opened: a FIFO waits for a writer, and a device may never end.
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(f"{where}: not a regular file")
        if info.st_size > largest:
            raise BadInputError(f"{where}: {info.st_size} bytes is too large for {what}")
        with open(path, "rb") as file:
            data = file.read(largest + 1)  # files under /proc claim no size at all
    except OSError as error:
        raise BadInputError(f"{where}: {error.strerror or 'cannot be read'}") from None
    except ValueError:  # a NUL in the path
        raise BadInputError(f"{where}: not a usable path") from None
    if len(data) > largest:
        raise BadInputError(f"{where}: too large for {what}")
    return data


def _decode(where: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{where}: not valid UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):  # transformers cannot read such a file either
        raise BadInputError(f"{where}: starts with a byte order mark; save it as UTF-8 without one")
    return text


def _parse_integer(text: str) -> int | _Unusable:
    return int(text) if len(text) <= LONGEST_INTEGER else _Unusable(f"a number of {len(text)} digits")


def _parse_float(text: str) -> float | _Unusable:
    value = float(text)
    return value if math.isfinite(value) else _Unusable(f"{one_line(text, 40)}, which is not finite")


def check_values(where: str, parsed: dict[str, Any], what: str) -> None:
    """Walk without recursion over everything in `parsed`, carrying the outermost key for the message."""
    waiting: list[tuple[str, int, Any]] = [(key, 1, value) for key, value in parsed.items()]
    while waiting:
        key, depth, value = waiting.pop()
        if isinstance(value, _Unusable):
            raise BadInputError(f"{where}: {one_line(key, 60)} holds {value.what}")
        if not isinstance(value, (dict, list)):
            continue
        if depth >= DEEPEST_NESTING:
            raise BadInputError(f"{where}: {one_line(key, 60)} is nested too deeply to be {what}")
        inner = value.values() if isinstance(value, dict) else value
        waiting.extend((key, depth + 1, each) for each in inner)
