"""How far a sweep is, on stderr: one line that changes on a terminal, else a line at the beginning and end of each."""

from __future__ import annotations

import contextlib
import os
import sys

from lorafa_prof.cli.program import PROGRAM
from lorafa_prof.specs import RunSpec


class Progress:
    """Tells of `total` configurations; a stderr that is closed is no reason to stop measuring.

    Args:
        total: how many there are; None: not known, as in a search.
        doing: what is done with each.
    """

    def __init__(self, total: int | None, doing: str = "measuring") -> None:
        self._total, self._doing = total, doing
        self._number = 0
        self._name = ""
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._width = _terminal_width() if self._is_terminal else 0
        self._shown = 0

    def begin(self, name: str) -> None:
        """Say that it is the next configuration's turn."""
        self._number, self._name = self._number + 1, name
        if self._is_terminal:
            self._draw("start")
        else:
            self._line(self._doing)

    def stage(self, text: str) -> None:
        """Say how far it is."""
        if self._is_terminal:
            self._draw(text)

    def end(self, text: str) -> None:
        """Say how it ended."""
        self._line(text)

    def skip(self, name: str, text: str) -> None:
        """Say that the next configuration need not be measured, and why."""
        self._number, self._name = self._number + 1, name
        self._line(text)

    def clear(self) -> None:
        """Take the changing line away."""
        self._write(self._wiped())

    def say(self, text: str) -> None:
        """Say something about the whole."""
        self._write(f"{self._wiped()}{PROGRAM}: {_clean(text)}\n")

    def _line(self, text: str) -> None:
        self.say(self._of_this(text))

    def _draw(self, text: str) -> None:
        line = f"{PROGRAM}: {_clean(self._of_this(text))}"[: self._width - 1]
        before = self._wiped()
        self._shown = len(line)
        self._write(before + line)

    def _of_this(self, text: str) -> str:
        number = f"trial {self._number}" if self._total is None else f"{self._number}/{self._total}"
        return f"{number} {self._name}: {text}"

    def _wiped(self) -> str:
        """Return what takes the changing line away."""
        width, self._shown = self._shown, 0
        return "\r" + " " * width + "\r" if width else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def describe(run: RunSpec) -> str:
    """Return a configuration in a few words."""
    rank = "" if run.method.name == "full" else f", rank {run.method.rank}"
    return f"{run.method.name}, batch {run.bs} x {run.seq}{rank}"
