"""Ctrl-C and its like, taken as a request: what is under way is ended in order, and what is known is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

#: Ctrl-C, `kill` and a terminal that is closed; the last does not exist everywhere.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stop:
    """While it is entered, signals that would end this process are noted instead.

    An exception raised by a signal may come between the end of a measurement and the moment in which it is kept; a note
    is read where nothing can be lost. What the process was started to ignore (nohup) it goes on ignoring. Outside the
    main thread, where no handlers can be set, signals are what they were.
    """

    def __init__(self) -> None:
        self.requested = False
        self._wake: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
            heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def request(self) -> None:
        """Ask for the end, as a signal does."""
        self.requested = True
        self._wake()

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` at a request as long as this is entered; it runs in a signal handler."""
        self._wake = wake
        try:
            yield
        finally:
            self._wake = lambda: None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.request()
