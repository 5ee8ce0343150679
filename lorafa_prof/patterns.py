"""Regular expressions of module names that somebody else wrote: as `re.fullmatch` has them, but never for long.

Python's own matcher goes back over what it has tried, and (a+)+b has it busy for years. Here a pattern that Python has
parsed is followed along a name with the set of places that it can have reached, so that what is tried twice is tried
once. Whether a whole name matches is all that is asked, which greedy and lazy repeats answer alike.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

from lorafa_prof.errors import BadInputError, UnsupportedError

#: Characters that no list of names has. A dot is in many: layers.0.self_attn.q_proj is a name.
_SIGNS = frozenset("^$*+?()|\\[")
#: Characters of the longest pattern that is read; those that people write have 100, and the longest ones 400.
LONGEST = 1000
#: Places that may be looked at for all names of a model together, which takes seconds. `.*\.(q|v)_proj` looks at some
#: hundred for a name, and a model has a few thousand names. Only repeats within repeats, many deep, look at more.
MOST_STEPS = 4_000_000
_Places = frozenset[int]


def is_pattern(text: str) -> bool:
    """Say whether a text is a regular expression, and no name of a module or list of them."""
    return not _SIGNS.isdisjoint(text)


class Pattern:
    """A regular expression that whole names are held against.

    Args:
        text: what it is.

    Raises:
        BadInputError: not one, or longer than `LONGEST`.
        UnsupportedError: what needs more than a set of places: references to groups, flags, a look behind.
    """

    def __init__(self, text: str) -> None:
        self.text = text if len(text) <= 80 else f"{text[:77]}..."
        if len(text) > LONGEST:
            raise BadInputError(f"the pattern {self.text!r} has {len(text):,} characters; up to {LONGEST:,} are read")
        self._left = MOST_STEPS
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parsed = _parser().parse(text)
        except (re.error, OverflowError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise BadInputError(f"{self.text!r} is no regular expression: {why}") from None
        if parsed.state.flags & ~int(re.UNICODE):
            raise self._not_read("flags")
        self._items: Sequence[Any] = parsed

    def matches(self, name: str) -> bool:
        """Return whether the whole of a name matches, as `re.fullmatch` would say.

        Raises:
            UnsupportedError: too much would have to be looked at, or a part of the pattern is not read.
        """
        try:
            return len(name) in self._ends(self._items, frozenset([0]), name)
        except RecursionError:
            raise self._not_read("groups so deep") from None

    def _not_read(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the pattern {self.text!r}: {what} are not read; name modules with --targets")

    def _ends(self, items: Iterable[Any], places: _Places, name: str) -> _Places:
        """Return where the items, one after the other, can have come to from any of the places."""
        for code, value in items:
            if not places:
                break
            self._left -= len(places)
            if self._left < 0:
                raise self._not_read("repeats within repeats that take so many steps")
            places = self._after(str(code), value, places, name)
        return places

    def _after(self, code: str, value: Any, places: _Places, name: str) -> _Places:
        if code in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return frozenset(at + 1 for at in places if at < len(name) and _takes(code, value, name[at]))
        if code == "AT":
            return frozenset(at for at in places if self._is_at(str(value), at, name))
        if code == "BRANCH":
            return frozenset().union(*(self._ends(branch, places, name) for branch in value[1]))
        if code == "SUBPATTERN":
            if value[1] or value[2]:
                raise self._not_read("flags")
            return self._ends(value[3], places, name)
        if code in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, items = value
            return self._repeated(int(least), int(most), items, places, name)
        if code in ("ASSERT", "ASSERT_NOT") and value[0] > 0:
            wanted = code == "ASSERT"
            return frozenset(at for at in places if bool(self._ends(value[1], frozenset([at]), name)) == wanted)
        raise self._not_read("references to groups, looks behind and the like")

    def _repeated(self, least: int, most: int, items: Any, places: _Places, name: str) -> _Places:
        """Return the places after `least` to `most` repeats.

        Each repeat comes further, or has come as far as it will: no more are made than the name has characters.
        """
        for _ in range(min(least, len(name) + 1)):
            before, places = places, self._ends(items, places, name)
            if not places or places == before:
                break
        found, new = places, places
        for _ in range(min(most - least, len(name) + 1)):
            new = self._ends(items, new, name) - found
            if not new:
                break
            found |= new
        return found

    def _is_at(self, where: str, at: int, name: str) -> bool:
        if where.startswith("AT_BEGINNING"):
            return at == 0
        if where.startswith("AT_END"):
            return at == len(name)
        around = [_is_of_word(name[place]) for place in (at - 1, at) if 0 <= place < len(name)]
        if where not in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            raise self._not_read("such places")
        return (sum(around) == 1) == (where == "AT_BOUNDARY")


def _parser() -> Any:
    """Return Python's own parser of regular expressions, whose module has had two names."""
    try:
        from re import _parser as parser  # type: ignore[attr-defined, unused-ignore]
    except ImportError:  # Python 3.10
        import sre_parse as parser  # type: ignore[no-redef, unused-ignore]
    return parser


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _takes(code: str, value: Any, character: str) -> bool:
    """Say whether an item that stands for one character stands for this one."""
    if code == "ANY":
        return character != "\n"
    if code == "IN":
        items = [(str(kind), inner) for kind, inner in value]
        denied = items[0][0] == "NEGATE"
        return denied != any(_is_among(kind, inner, character) for kind, inner in items if kind != "NEGATE")
    return bool(ord(character) == value) == (code == "LITERAL")


_CATEGORIES: dict[str, Callable[[str], bool]] = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": _is_of_word}


def _is_among(kind: str, inner: Any, character: str) -> bool:
    if kind == "LITERAL":
        return bool(ord(character) == inner)
    if kind == "RANGE":
        return bool(inner[0] <= ord(character) <= inner[1])
    name = str(inner).removeprefix("CATEGORY_")
    return _CATEGORIES[name.removeprefix("NOT_")](character) != name.startswith("NOT_")


def matching(pattern: Pattern, names: Iterable[str]) -> Set[str]:
    """Return those of the names that a pattern matches."""
    return {name for name in names if pattern.matches(name)}
