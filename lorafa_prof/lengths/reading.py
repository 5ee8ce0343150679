"""The lengths of a data set's sequences from a file that somebody else wrote: bounded, and with the line of a mistake.

    one integer a line               a plain list
    CSV with a column `length`       as a spreadsheet or pandas writes it
    a JSON list                      of integers, or of objects with `length` or `input_ids`
    JSON Lines                       one such object, or integer, a line

Which of them it is, is seen by how the text begins, whatever the file is called. Large files are read line by line: of
a line of token ids only their number is kept.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lorafa_prof.catalog.json_files import kind_of, one_line
from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import LARGEST_SEQUENCE

Integers = npt.NDArray[np.int64]

#: Bytes of the largest file, and of the largest one that has to be read whole (a JSON list).
LARGEST_FILE, LARGEST_LIST = 2**31, 2**27
#: Characters of the longest line: a million token ids, six characters each, and more.
LONGEST_LINE = 2**24
#: Sequences of the largest data set.
MOST_SEQUENCES = 10_000_000

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
#: What holds a sequence's length, and what has it.
LENGTH, IDS = "length", "input_ids"


def read_lengths(path: str) -> Integers:
    """Return the lengths of all sequences in the file at `path`, in its order: (sequences,), tokens.

    Raises:
        BadInputError: not a readable regular file within the bounds, not UTF-8, none of the formats, a length that is
            no integer from 1 to 2**30, or no length at all; the text names the file and the line.
    """
    where = one_line(path)
    try:
        with _open(where, path) as file:
            found = _parsed(where, file)
    except OSError as error:
        raise BadInputError(f"{where}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{where}: not valid UTF-8 ({error.reason})") from None
    except ValueError as error:  # a NUL in the path
        raise BadInputError(f"{where}: not a usable path") from error
    if not found.size:
        raise BadInputError(f"{where}: holds no lengths")
    return found


def _open(where: str, path: str) -> Any:
    info = os.stat(path)  # looked at before it is opened: a FIFO waits for a writer, and a device may never end
    if not stat.S_ISREG(info.st_mode):
        raise BadInputError(f"{where}: not a regular file")
    if info.st_size > LARGEST_FILE:
        raise BadInputError(f"{where}: {info.st_size:,} bytes is too large for a file of lengths")
    return open(path, encoding="utf-8-sig", newline="")


def _parsed(where: str, file: Any) -> Integers:
    lines = _lines(where, file)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return np.empty(0, dtype=np.int64)
    start = first[1].strip()
    if start.startswith("["):
        return _gathered(where, _of_list(where, file))
    if start.startswith("{") or _INTEGER.fullmatch(start):
        return _gathered(where, _of_lines(where, first, lines))
    return _gathered(where, _of_csv(where, first, lines))


def _lines(where: str, file: Any) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise BadInputError(f"{where}: line {number} is longer than {LONGEST_LINE:,} characters")
        yield number, line


def _gathered(where: str, lengths: Iterable[int]) -> Integers:
    """Return the lengths as an array, of no more sequences than there may be."""

    def bounded() -> Iterator[int]:
        for count, length in enumerate(lengths):
            if count >= MOST_SEQUENCES:
                raise BadInputError(f"{where}: more than {MOST_SEQUENCES:,} sequences")
            yield length

    return np.fromiter(bounded(), dtype=np.int64)


# -- the formats -----------------------------------------------------------------------------------------------------


def _of_lines(where: str, first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[int]:
    for number, line in _with(first, rest):
        text = line.strip()
        if not text:
            continue
        at = f"{where}: line {number}"
        if _INTEGER.fullmatch(text):
            yield _length(at, int(text))
        else:
            yield _length_of(at, _json(at, text))


def _of_csv(where: str, first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[int]:
    number = first[0]

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in _with(first, rest):  # noqa: B007 - read by the loop below
            yield line

    try:
        rows = csv.reader(texts(), strict=True)
        header = [name.strip() for name in next(rows)]
        if header.count(LENGTH) != 1:
            raise BadInputError(
                f"{where}: line {number}: neither an integer, nor JSON, nor a CSV header with a column {LENGTH!r}: "
                f"{one_line(first[1].strip(), 60)!r}"
            )
        column = header.index(LENGTH)
        for row in rows:
            if not row:
                continue
            at = f"{where}: line {number}"
            if len(row) != len(header):
                raise BadInputError(f"{at} has {len(row)} fields where the header has {len(header)}")
            text = row[column].strip()
            if not _INTEGER.fullmatch(text):
                raise BadInputError(f"{at}: {one_line(text, 60)!r} is no integer")
            yield _length(at, int(text))
    except csv.Error as error:
        raise BadInputError(f"{where}: line {number}: no CSV: {error}") from None


def _of_list(where: str, file: Any) -> Iterator[int]:
    if os.fstat(file.fileno()).st_size > LARGEST_LIST:
        raise BadInputError(
            f"{where}: a JSON list of more than {LARGEST_LIST:,} bytes; write one object a line (JSON Lines)"
        )
    file.seek(0)
    parsed = _json(where, file.read(LARGEST_LIST + 1))
    assert isinstance(parsed, list), "it begins with a bracket"
    for number, value in enumerate(parsed, start=1):
        yield _length_of(f"{where}: element {number}", value)


def _with(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


# -- values ----------------------------------------------------------------------------------------------------------


def _json(at: str, text: str) -> Any:
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError:
        raise BadInputError(f"{at}: nested too deeply to be a sequence") from None
    except ValueError as error:
        raise BadInputError(f"{at}: not valid JSON: {one_line(str(error))}") from None


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= 40 else text


def _length_of(at: str, value: Any) -> int:
    """Return the length that an integer is, or that an object has."""
    if not isinstance(value, dict):
        return _length(at, value)
    said = _length(f"{at}: {LENGTH}", value[LENGTH]) if LENGTH in value else None
    if IDS not in value:
        if said is None:
            raise BadInputError(f"{at} has neither {LENGTH!r} nor {IDS!r}")
        return said
    ids = value[IDS]
    if not isinstance(ids, list):
        raise BadInputError(f"{at}: {IDS} must be a list, not {kind_of(ids)}")
    counted = _length(f"{at}: the number of {IDS}", len(ids))
    if said is not None and said != counted:
        raise BadInputError(f"{at}: {LENGTH} is {said} but there are {counted} {IDS}")
    return counted


def _length(at: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        shown = f"{one_line(value, 60)!r}" if isinstance(value, str) else kind_of(value)
        raise BadInputError(f"{at}: {shown} is no integer")
    if not 1 <= value <= LARGEST_SEQUENCE:
        raise BadInputError(f"{at}: a length must be between 1 and {LARGEST_SEQUENCE}, not {one_line(str(value), 60)}")
    return value
