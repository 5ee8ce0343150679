"""The tasks of a sweep, worked off in order: here, or by several processes at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from lorafa_prof.cli.sweep_grid import Figures
from lorafa_prof.cli.sweep_rows import Rows, SimulatedRows, Task, failed_rows
from lorafa_prof.engines import simulating_on_cards

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: Tasks that are begun before the rows of the first are done, for each process: what a slow task does not hold up.
AHEAD = 4
#: Seconds between two looks at whether the end was requested.
LOOK_S = 0.1
#: Seconds in which a process that is told to end does.
PATIENCE_S = 5.0


def rows_of(engine: str, asked: Figures) -> Rows:
    """Return what makes the rows of an engine.

    Raises:
        MissingComponentError: the engine is not installed; the text holds the command.
    """
    if engine == "analytic":
        from lorafa_prof.cli.sweep_closed_forms import AnalyticRows

        return AnalyticRows(asked)
    predict = partial(simulating_on_cards(asked.profile, asked.link), largest_batch=asked.max_bs, timed=asked.timed)
    return SimulatedRows(predict, asked)


def here(tasks: Iterable[Task], rows: Rows, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the lines of each task in order, computed in this process, until the end is requested."""
    for task in tasks:
        if stopped():
            return
        yield rows(task)


class Workers:
    """Processes that work tasks off. When this is left none of them is there any more.

    They do not heed Ctrl-C, which a terminal sends to all of them: this process does, and ends them. Should this
    process die, they find the line to it cut, and end after the task at hand.

    Args:
        jobs: how many.
        engine: what makes the rows.
        asked: what rows have.
    """

    def __init__(self, jobs: int, engine: str, asked: Figures) -> None:
        self._jobs, self._engine, self._asked = jobs, engine, asked
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, int, Task]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._idle, *(worker for worker, _, _ in self._busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()

    def lines(self, tasks: Iterable[Task], stopped: Callable[[], bool]) -> Iterator[bytes]:
        """Yield the lines of each task in order, until the end is requested."""
        waiting, left = iter(tasks), True
        done: dict[int, bytes] = {}
        begun = given = 0
        while left or self._busy or done:
            while left and len(self._busy) < self._jobs and begun - given < self._jobs * AHEAD:
                task = next(waiting, None)
                if task is None:
                    left = False
                    break
                self._give(begun, task)
                begun += 1
            for connection in wait(list(self._busy), LOOK_S):
                assert isinstance(connection, Connection), "these are what was waited for"
                number, text = self._take(connection)
                done[number] = text
            while given in done:
                if stopped():
                    return
                yield done.pop(given)
                given += 1
            if stopped():
                return

    def _give(self, number: int, task: Task) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._engine, self._asked)
        self._busy[worker.line] = worker, number, task
        # It has died in the meantime where this fails, which is seen when its answer is waited for.
        with contextlib.suppress(OSError):
            worker.line.send(task)

    def _take(self, connection: Connection) -> tuple[int, bytes]:
        worker, number, task = self._busy.pop(connection)
        try:
            answer: bytes = connection.recv()
        except (EOFError, OSError):
            worker.end()
            text = f"the process that worked on this {_end_of(worker.process)}"
            return number, failed_rows(task, text, self._asked)
        self._idle.append(worker)
        return number, answer


class _Worker:
    """One process and the line to it."""

    def __init__(self, engine: str, asked: Figures) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self.line, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, engine, asked), daemon=True)
        with _interrupts_held_back():
            self.process.start()
        theirs.close()

    def end(self) -> None:
        """See that the process ends."""
        self.line.close()
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(line: Connection, engine: str, asked: Figures) -> None:
    """Answer tasks with lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rows = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = line.recv()
            rows = rows or rows_of(engine, asked)
            line.send(rows(task))


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a process that does not hear Ctrl-C, as it begins with the signals that are held back here."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when it is started with a process, it lets go what is held back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
