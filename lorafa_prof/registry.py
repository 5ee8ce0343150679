"""A table that the modules of its entries fill, one decorated function at a time; a name can be taken once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """What is registered, by name, in the order in which it was.

    Args:
        what: what a name stands for, in the words of an error: "method".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._entries: dict[str, Entry] = {}

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers what it decorates under each of the names, and leaves it as it is.

        Raises:
            ValueError: a name is taken; two entries under one name would be one of them in silence.
        """

        def add(entry: Entry) -> Entry:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self._what} {name} is registered already")
                self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> Entry:
        """Return what is registered under a name; KeyError where nothing is."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order of registration."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return how many names are taken."""
        return len(self._entries)
