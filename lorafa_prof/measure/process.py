"""A child process from its start to its end: what it says is kept, and nothing of it stays behind.

The child leads a session of its own, so that Ctrl-C reaches this process alone, which then ends the child and all that
it has started. Threads wait for its words and its end; what they learn comes to the main thread in one queue, into
which a signal handler may put as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Literal

from lorafa_prof.measure.frames import Frame, read_frame
from lorafa_prof.measure.stop import Stop

#: Seconds that a process is given to end: when it has said all, when it is asked to, and when it is killed.
GRACE_S = 3.0
#: Where waiting cannot be interrupted by a signal (Windows), signals are looked at this often, seconds.
_POLL_S = 0.5
#: Bytes that are kept of the end of what the child writes to stderr.
_LAST_BYTES = 4096

EndedBy = Literal["itself", "timeout", "stop"]


@dataclass
class Heard:
    """What a child has said, and how it ended."""

    stage: str = ""
    """How far it said to be."""
    measurement: Frame | None = None
    """The last measurement that it reported whole."""
    steps: list[Frame] = field(default_factory=list)
    """Further steps of it."""
    answer: Frame | None = None
    """Its last word: "done", "place", "refused" or "failed"."""
    ended_by: EndedBy = "itself"
    exit_code: int | None = None
    """Negative for a signal; None where it could not even be killed."""
    last_words: str = ""
    """The end of what it wrote to stderr."""


def converse(
    module: str,
    request: object,
    *,
    timeout_s: float | None = None,
    stop: Stop,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Heard:
    """Run `module` in a fresh interpreter, ask it `request` and listen until it has ended.

    Args:
        module: run as `python -m` would, with this process's own import path.
        request: plain data.
        timeout_s: seconds after which it is ended.
        stop: ends it when requested.
        on_stage: is told how far it has come.

    Raises:
        OSError: no process can be started.
    """
    process = _start(module)
    try:
        events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        conversation = _Conversation(process, events, on_stage)
        with stop.waking(lambda: events.put(b"")):
            # In a thread: a request is longer than a pipe holds, and the child may never read it.
            threading.Thread(target=_ask, args=(process, request), daemon=True).start()
            return conversation.listen(timeout_s, stop)
    finally:
        _signal_group(process, _KILL)
        with contextlib.suppress(OSError):
            _stdin(process).close()


def _start(module: str) -> subprocess.Popen[bytes]:
    # Not -m: that would look for modules in the current folder first, where this process may not have looked.
    code = f"import sys; sys.path[:] = {sys.path!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    # Leading a group of its own, it can be ended with all that it starts, and Ctrl-C does not reach it.
    return subprocess.Popen(  # noqa: S603 - this interpreter, with code of our own
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _ask(process: subprocess.Popen[bytes], request: object) -> None:
    # stdin stays open until the child has ended: its end is what tells a child that this process is gone.
    with contextlib.suppress(OSError):  # the child has ended already, which the listener finds out
        _stdin(process).write(json.dumps(request).encode() + b"\n")
        _stdin(process).flush()


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


class _Conversation:
    """Listens to a child."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        events: queue.SimpleQueue[bytes | None],
        on_stage: Callable[[str], None],
    ) -> None:
        self.process, self.events, self.on_stage = process, events, on_stage
        self.heard = Heard()
        self._tail = b""
        self._readers = [self._thread(self._read_frames), self._thread(self._read_errors)]
        self._thread(self._bury)

    def listen(self, timeout_s: float | None, stop: Stop) -> Heard:
        """Return when the process has ended: by itself, or because time is over or its end is requested.

        It is first asked to end, then killed; what cannot be killed (it hangs in a driver) is left behind.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        means = [_TERMINATE, _KILL]
        while self._hear(deadline):
            now = time.monotonic()
            if self.heard.ended_by == "itself" and stop.requested:
                self.heard.ended_by, deadline = "stop", now
            elif self.heard.ended_by == "itself" and self.heard.answer is not None:
                deadline = min(now + GRACE_S, deadline or now + GRACE_S)
            if deadline is None or now < deadline:
                continue
            if self.heard.ended_by == "itself":
                self.heard.ended_by = "timeout"
            if not means:
                break
            _signal_group(self.process, means.pop(0))
            deadline = now + GRACE_S
        self._finish()
        return self.heard

    def _hear(self, deadline: float | None) -> bool:
        """Take one event, or none where none comes in time; return whether the process is still there."""
        left = _POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic()))
        try:
            line = self.events.get(timeout=left)
        except queue.Empty:
            return True
        if line is None:
            return False
        self._take(line)
        return True

    def _take(self, line: bytes) -> None:
        frame = read_frame(line)
        if frame is None:
            return
        if frame.kind == "measurement":
            self.heard.measurement, self.heard.steps = frame, []
        elif frame.kind == "steps":
            self.heard.steps.append(frame)
        elif frame.kind == "stage":
            with contextlib.suppress(ValueError):
                self.heard.stage = str(frame.body())
                self.on_stage(self.heard.stage)
        else:
            self.heard.answer = frame

    def _finish(self) -> None:
        """Take what the pipes still hold."""
        for reader in self._readers:
            # A process of another session may hold the pipe open for ever.
            reader.join(GRACE_S)
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self.events.get_nowait() or b"")
        self.heard.exit_code = self.process.returncode
        self.heard.last_words = self._tail.decode("utf-8", "replace").strip()

    # -- the threads -------------------------------------------------------------------------------------------------

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _read_frames(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.events.put(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while part := os.read(stream.fileno(), 65536):
                self._tail = (self._tail + part)[-_LAST_BYTES:]

    def _bury(self) -> None:
        if hasattr(os, "waitid"):
            # Not reaped before its group is gone: until then its number cannot be another's.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            _signal_group(self.process, _KILL)
        self.process.wait()
        self.events.put(None)


_TERMINATE = signal.SIGTERM
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process and to all that it has started; do nothing when it is gone."""
    if process.returncode is not None:
        return
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.terminate()
