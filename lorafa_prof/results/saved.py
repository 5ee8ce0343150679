"""A file of measurements read back: whole, or as far as it goes where it was cut off."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafa_prof.errors import BadInputError
from lorafa_prof.results.measurement import Measurement

_BEGINNING = '{"measurements":['
_HEAD = re.compile(r'\s*\{\s*"measurements"\s*:\s*\[')
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file of measurements holds."""

    entries: tuple[dict[str, Any], ...]
    """Each a `Measurement` in JSON, as it stands in the file."""
    is_whole: bool
    """False: the file ends, or goes wrong, after these."""


def read_saved(text: str) -> Saved:
    """Read what `measurements_to_json` describes, written as JSON; of a file that was cut off, all that is whole.

    Raises:
        BadInputError: something else than measurements.
    """
    text = text.removeprefix("\ufeff")
    try:
        document = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return Saved(entries=tuple(_up_to_a_stranger(_checked(_whole_entries(text)))), is_whole=False)
    if not isinstance(document, Mapping) or set(document) != {"measurements"}:
        raise BadInputError("not a file of measurements")
    entries = document["measurements"]
    if not isinstance(entries, list):
        raise BadInputError("not a list of measurements")
    return Saved(entries=tuple(_checked(iter(entries))), is_whole=True)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # NaN, Infinity, 1e999: what could not be written again as JSON
        raise ValueError(f"{text[:20]} is no number of JSON")
    return number


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


def _whole_entries(text: str) -> Iterator[Any]:
    """Return the elements of the list one by one, up to the first that is not there as a whole."""
    head = _HEAD.match(text)
    if head is None:
        if not _BEGINNING.startswith("".join(text.split())):
            raise BadInputError("not a file of measurements")
        return
    position = head.end()
    while True:
        position = _after_space(text, position)
        try:
            entry, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        yield entry
        position = _after_space(text, position)
        if text[position : position + 1] != ",":
            return
        position += 1


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return position if space is None else space.end()


def _up_to_a_stranger(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return what comes before an element that is no measurement; it is an error where nothing does."""
    known = False
    try:
        for entry in entries:
            known = True
            yield entry
    except BadInputError:
        if not known:
            raise


def _checked(entries: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadInputError("not a measurement among the measurements")
        seen = Measurement.from_json(entry)
        if not isinstance(seen.environment, Mapping) or not isinstance(seen.versions, Mapping):
            raise BadInputError("a measurement without an environment or versions")
        yield entry
