"""A table of functions by name: in order, each name once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorafa_prof.registry import Registry


def test_an_entry_is_found_under_each_of_its_names() -> None:
    """As it was decorated, in the order of registration."""
    table: Registry[Callable[[int], int]] = Registry("rule")

    @table.register("double", "twice")
    def double(n: int) -> int:
        return 2 * n

    @table.register("again")
    def same(n: int) -> int:
        return n

    assert list(table) == ["double", "twice", "again"]
    assert (table["double"], table["twice"], table["again"]) == (double, double, same)
    assert double(2) == 4  # and can still be called
    assert table.get("thrice") is None
    assert len(table) == 3


def test_a_name_is_taken_once() -> None:
    """The first entry stays; the error says which table and which name."""
    table: Registry[str] = Registry("rule")
    table.register("a")("first")
    with pytest.raises(ValueError, match=r"^rule a is registered already$"):
        table.register("b", "a")("second")
    assert table["a"] == "first"


def test_tables_are_apart() -> None:
    """One name in two tables is two entries."""
    one, other = Registry[str]("rule"), Registry[str]("rule")
    one.register("a")("of one")
    other.register("a")("of the other")
    assert (one["a"], other["a"]) == ("of one", "of the other")
