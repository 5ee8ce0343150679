"""Values of a parsed JSON file together with their place, so that whatever is wrong with one names file and key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorafa_prof.catalog.json_files import kind_of, one_line
from lorafa_prof.errors import BadInputError
from lorafa_prof.specs import require_number

#: Longest text taken from a file, characters; a source may cite several reports.
LONGEST_TEXT = 4096
#: Longest text that has to fit a line, characters.
LONGEST_LINE = 80


@dataclass(frozen=True)
class Node:
    """A value of a parsed file together with its place, so that whatever is wrong with it names file and key."""

    file: str
    key: str
    value: object

    def __str__(self) -> str:
        return f"{self.file}: {self.key}" if self.key else self.file

    def wrong(self, expected: str) -> BadInputError:
        """Return the error that says what should be here and what is."""
        return BadInputError(f"{self} must be {expected}, not {kind_of(self.value)}")

    def members(self, keys: tuple[str, ...]) -> dict[str, Node]:
        """Return the object's members, which must be exactly `keys`: a misspelt key would pass for a missing one."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        for key in keys:
            if key not in self.value:
                raise BadInputError(f"{self._child(key)} is missing")
        for key in self.value:
            if key not in keys:
                raise BadInputError(f"{self._child(one_line(key, 60))} is not a key that is known here")
        return {key: Node(self.file, self._path(key), self.value[key]) for key in keys}

    def some_of(self, keys: tuple[str, ...]) -> dict[str, Node]:
        """Return those members of `keys` that are there; any other is refused."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.members(tuple(key for key in keys if key in self.value))

    def items(self) -> Iterator[Node]:
        """Yield the members of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, value in enumerate(self.value):
            yield Node(self.file, f"{self.key}[{index}]", value)

    def text(self) -> str:
        """Return a string that says something."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        if not self.value.strip() or len(self.value) > LONGEST_TEXT:
            raise BadInputError(f"{self} must have between 1 and {LONGEST_TEXT} characters")
        return self.value

    def line(self) -> str:
        """Return a text of one short line."""
        text = self.text()
        if len(text) > LONGEST_LINE or not text.isprintable():
            raise BadInputError(f"{self} must be one line of at most {LONGEST_LINE} characters")
        return text

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def number(self, limits: tuple[float, float]) -> float:
        """Return a finite number within `limits`."""
        return require_number(str(self), self.value, *limits)

    def _path(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key else key

    def _child(self, key: str) -> Node:
        return Node(self.file, self._path(key), None)
