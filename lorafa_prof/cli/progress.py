"""How far a sweep is, on stderr: one line that changes on a terminal, else a line at the beginning and end of each."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable

from lorafa_prof.cli.program import PROGRAM, is_quiet
from lorafa_prof.specs import RunSpec

REDRAW_S = 0.1
BAR_WIDTH = 16


class _Stderr:
    """Lines on stderr, and on a terminal one below them that changes; a stderr that is closed is no reason to stop."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._width = _terminal_width() if self._is_terminal else 0
        self._shown = 0

    def say(self, text: str) -> None:
        """Say something about the whole."""
        self._write(f"{self._wiped()}{PROGRAM}: {_clean(text)}\n")

    def _draw(self, text: str) -> None:
        """Change the line that changes."""
        line = f"{PROGRAM}: {_clean(text)}"[: self._width - 1]
        before = self._wiped()
        self._shown = len(line)
        self._write(before + line)

    def _wiped(self) -> str:
        """Return what takes the changing line away."""
        width, self._shown = self._shown, 0
        return "\r" + " " * width + "\r" if width else ""

    def _write(self, text: str) -> None:
        if is_quiet():
            return
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


class Progress(_Stderr):
    """Tells of configurations that are worked on one after the other.

    Args:
        total: how many there are; None: not known, as in a search.
        doing: what is done with each.
    """

    def __init__(self, total: int | None, doing: str = "measuring") -> None:
        super().__init__()
        self._total, self._doing = total, doing
        self._number = 0
        self._name = ""

    def begin(self, name: str) -> None:
        """Say that it is the next configuration's turn."""
        self._number, self._name = self._number + 1, name
        self.stage("start") if self._is_terminal else self.end(self._doing)

    def stage(self, text: str) -> None:
        """Say how far it is."""
        if self._is_terminal:
            self._draw(self._of_this(text))

    def end(self, text: str) -> None:
        """Say how it ended."""
        self.say(self._of_this(text))

    def skip(self, name: str, text: str) -> None:
        """Say that the next configuration need not be measured, and why."""
        self._number, self._name = self._number + 1, name
        self.end(text)

    def clear(self) -> None:
        """Take the changing line away."""
        self._write(self._wiped())

    def _of_this(self, text: str) -> str:
        number = f"trial {self._number}" if self._total is None else f"{self._number}/{self._total}"
        return f"{number} {self._name}: {text}"


class Stages(_Stderr):
    """Tells what is being done, one stage after the other."""

    def tell(self, text: str) -> None:
        """Say which stage begins."""
        self._draw(text) if self._is_terminal else self.say(text)


class Bar(_Stderr):
    """Tells how many of `total` rows are done, of which `there` were when it began; on a terminal alone.

    Args:
        clock: seconds, of which differences count.
    """

    def __init__(self, total: int, there: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._total, self._there, self._clock = total, there, clock
        self._began = clock()
        self._next = self._began

    def show(self, done: int) -> None:
        """Show how far it is, some ten times a second at most."""
        now = self._clock()
        if not self._is_terminal or now < self._next:
            return
        self._next = now + REDRAW_S
        share = done / self._total
        filled = int(share * BAR_WIDTH)
        text = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done:,} of {self._total:,} rows"
        rate = (done - self._there) / max(now - self._began, 1e-9)
        if done > self._there:
            text += f", {rate:,.0f}/s" if rate >= 10 else f", {60 * rate:,.0f}/min"
            text += f", {_duration((self._total - done) / rate)} left"
        self._draw(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


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
