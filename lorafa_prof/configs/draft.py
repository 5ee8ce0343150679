"""The keys of one file, taken one by one, and the reading that they make.

A reader takes every key that it knows; `finish` lists what nobody has taken, so that nothing is passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lorafa_prof.catalog.json_files import kind_of, one_line
from lorafa_prof.configs.reading import OPTIONS, Reading, Setting, Unused, Value
from lorafa_prof.errors import BadInputError, UnsupportedError

#: Why a key is not used that no reader has heard of.
NOT_KNOWN = "not known here"
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Draft:
    """One file while it is read.

    Args:
        file: its name, for messages.
        tool: whose format it is.
        data: what it holds. A key without a value (YAML `key:`, JSON null) says nothing, and is not there.
    """

    def __init__(self, file: str, tool: str, data: Mapping[str, Any]) -> None:
        self.file, self.tool = file, tool
        self._data = {key: value for key, value in data.items() if value is not None}
        self._nulls = data.keys() - self._data.keys()
        self._taken: set[str] = set()
        self._settings: dict[str, Setting] = {}
        self._refused: dict[str, str] = {}
        self._unused: list[Unused] = []
        self._notes: list[str] = []
        self._unmodelled: list[str] = []

    # -- taking keys ---------------------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """Return whether the file says something under a key, without taking it."""
        return key in self._data

    def is_null(self, key: str) -> bool:
        """Return whether the file has a key without a value, where a tool's default is one."""
        return key in self._nulls

    def take(self, key: str) -> Any:
        """Return what is under a key, of whatever type; None where it is not there."""
        self._taken.add(key)
        return self._data.get(key)

    def integer(self, key: str) -> int | None:
        """Return an integer; 2.0 and "2" are one.

        Raises:
            BadInputError: something else is there.
        """
        number = self.number(key)
        if number is None:
            return None
        if number != int(number):
            self.refuse_value(key, "an integer")
        return int(number)

    def number(self, key: str) -> float | None:
        """Return a finite number, also one that YAML 1.1 takes for a text (1e-4).

        Raises:
            BadInputError: something else is there.
        """
        value = self.take(key)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.refuse_value(key, "a number")
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if not isinstance(value, float) or not math.isfinite(value):
            self.refuse_value(key, "a number")
        return value

    def switch(self, key: str) -> bool | None:
        """Return a yes or no.

        Raises:
            BadInputError: something else is there.
        """
        value = self.take(key)
        text = str(value).lower() if isinstance(value, (str, int)) else ""
        if value is None or isinstance(value, bool):
            return value
        if text not in (*_TRUE, *_FALSE):
            self.refuse_value(key, "true or false")
        return text in _TRUE

    def text(self, key: str) -> str | None:
        """Return a text; one without a character says nothing.

        Raises:
            BadInputError: something else is there.
        """
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            self.refuse_value(key, "a text")
        return (value or "").strip() or None

    def words(self, key: str) -> list[str] | None:
        """Return a list of texts, given as a list or with commas.

        Raises:
            BadInputError: something else is there.
        """
        value = self.take(key)
        if value is None:
            return None
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) and part.strip() for part in parts):
            self.refuse_value(key, "a list of names")
        return [part.strip() for part in parts] or None

    def section(self, key: str) -> Draft | None:
        """Return the mapping under a key as a draft of its own, to be given to `absorb` when it is read.

        Raises:
            BadInputError: something else is there.
        """
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse_value(key, "a mapping")
        return Draft(self.file, self.tool, {f"{key}.{name}": inner for name, inner in value.items()})

    @property
    def options(self) -> Mapping[str, Setting]:
        """What is set so far."""
        return self._settings

    @property
    def refusals(self) -> Mapping[str, str]:
        """What is left to the command line so far."""
        return self._refused

    def refuse_value(self, key: str, wanted: str) -> NoReturn:
        """Say that what is under a key cannot be used.

        Raises:
            BadInputError: always.
        """
        value = self._data.get(key)
        raise BadInputError(f"{self.file}: {one_line(key, 60)} must be {wanted}, not {kind_or_text(value)}")

    # -- saying what they mean -----------------------------------------------------------------------------------

    def set(self, option: str, value: Value, key: str, *, explicit: bool = True) -> None:
        """Set a run option.

        Args:
            option: one of `OPTIONS`.
            value: its value.
            key: the key that says so.
            explicit: False: the file leaves it out, and this is the tool's default.
        """
        assert option in OPTIONS, option
        self._settings[option] = Setting(value=value, source=f"{self.file}: {key}", explicit=explicit)

    def refuse(self, option: str, key: str, reason: str) -> None:
        """Leave a run option to the command line, with the reason why what the file says cannot be taken.

        What an earlier key has said of it is taken back.
        """
        self._settings.pop(option, None)
        self._refused[option] = f"{self.file}: {one_line(key, 60)}: {reason}"

    def give_up(self, key: str, reason: str) -> NoReturn:
        """Refuse the file for what no option could mend.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(f"{self.file}: {one_line(key, 60)} is not modelled: {reason}")

    def unused(self, key: str, reason: str) -> None:
        """List a key as not used, and why."""
        self._taken.add(key)
        self._unused.append(Unused(file=self.file, key=one_line(key, 60), reason=reason))

    def unused_if(self, keys: Iterable[str], reason: str) -> None:
        """List those of the keys that are there as not used, and why."""
        for key in keys:
            if self.has(key):
                self.unused(key, reason)

    def ignore(self, keys: Iterable[str]) -> None:
        """List those of the keys that are there as without effect on memory."""
        wanted = set(keys) - self._taken
        for key in self._data:
            if key in wanted:
                self.unused(key, "")

    def note(self, text: str) -> None:
        """Say how something was understood."""
        self._notes.append(f"{self.file}: {text}")

    def uncounted(self, key: str, reason: str) -> None:
        """Say that a key takes or saves memory that no engine counts."""
        self._taken.add(key)
        self._unmodelled.append(f"{self.file}: {one_line(key, 60)}: {reason}")

    def absorb(self, section: Draft) -> None:
        """Take over what a section of this file, or a format within this one, says."""
        reading = section.finish()
        self._settings |= {n: s for n, s in reading.settings.items() if s.explicit or n not in self._settings}
        for option in reading.refused:
            self._settings.pop(option, None)
        self._refused |= reading.refused
        self._unused += reading.unused
        self._notes += reading.notes
        self._unmodelled += reading.unmodelled

    def finish(self) -> Reading:
        """Return the reading; keys that were not taken are listed as not used."""
        for key in sorted(set(self._data) - self._taken):
            self.unused(key, NOT_KNOWN)
        return Reading(
            formats={self.file: self.tool}, settings=dict(self._settings), refused=dict(self._refused),
            unused=tuple(self._unused), notes=tuple(self._notes), unmodelled=tuple(self._unmodelled),
        )  # fmt: skip


def kind_or_number(value: object) -> str:
    """Return a number as it is, and in words what anything else is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge number"
    return kind_of(value)


def kind_or_text(value: object) -> str:
    """Return a short text as it is, and in words what anything else is."""
    return repr(one_line(value, 40)) if isinstance(value, str) else one_line(kind_or_number(value), 40)
