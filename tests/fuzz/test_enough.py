"""How much is fed in one run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.feeding import Escaped, fuzz, nothing_outside

ENOUGH = 10_000


def fuzz_tests() -> Iterator[Callable[..., None]]:
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.fuzz.{file.stem}")
        yield from (
            value for name, value in vars(module).items() if name.startswith("test_") and hasattr(value, "inputs")
        )


def test_a_run_feeds_ten_thousand_inputs() -> None:
    """The tests of this folder, each of which fails by itself where it is given fewer than it says."""
    assert sum(test.inputs for test in fuzz_tests()) >= ENOUGH  # type: ignore[attr-defined]


def test_what_is_written_elsewhere_is_seen(tmp_path: Path) -> None:
    """The watch over the folder does see a write, a link and a process; what is read it lets pass."""
    inside = tmp_path / "inside"
    inside.mkdir()

    def leave() -> None:
        (tmp_path / "other").write_text("x")

    with nothing_outside(inside):
        (inside / "a").write_text("x")
        Path(__file__).read_text("utf-8")
        with pytest.raises(Escaped, match="open"):
            leave()
        with pytest.raises(Escaped, match=r"os\.rename"):
            (inside / "a").rename(tmp_path / "b")
        with pytest.raises(Escaped, match=r"os\.mkdir"):
            (tmp_path / "c").mkdir()
    leave()


def test_a_test_that_is_fed_too_little_fails(tmp_path: Path) -> None:
    """Of two booleans there are four."""

    @fuzz(100, one=st.booleans(), other=st.booleans())
    def few(folder: Path, one: bool, other: bool) -> None:
        """Nothing can be wrong with these."""

    with pytest.raises(AssertionError):
        few(tmp_path)
