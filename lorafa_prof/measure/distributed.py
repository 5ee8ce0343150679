"""Measuring in processes that torchrun has started: each is a rank, and rank 0 gathers what all have observed.

Ranks that take a step together wait for each other, and one that fails would leave the others waiting. So they leave
word with the store through which they have found each other: how each ended, and whether one ended badly. A thread of
each looks for that word, and sees that its rank does not wait in vain. Only rank 0 answers: the other processes end
with exit code 0, whatever has happened to them, for torchrun ends all others when one does not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from lorafa_prof.errors import BadInputError, DeviceError, LorafaProfError
from lorafa_prof.measure import harness
from lorafa_prof.measure.endings import outcome_of, said
from lorafa_prof.measure.harness import Options, Report
from lorafa_prof.measure.stop import Stop
from lorafa_prof.results import Measurement, Outcome
from lorafa_prof.specs import RunSpec
from lorafa_prof.workload.parallel import Group
from lorafa_prof.workload.step import refuse_unbuilt

#: Seconds that a rank waits in a collective for one that does not come: building a large model takes some ranks longer.
COLLECTIVE_S = 1800.0
#: Seconds that a rank has to come to its end when another has failed, and that rank 0 waits for its word.
GRACE_S = 3.0
ANSWER_S = 60.0
_LOOK_S = 0.3

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: Of the groups that this process has been in, one after the other.
_NUMBERS = itertools.count()

Cause = str
"""Why all ranks come to their end: "stop", "timeout", or the number of the first that failed."""


def measure_in_group(
    run: RunSpec,
    options: Options,
    report: Report = lambda measurement: None,
    *,
    timeout_s: float | None = None,
) -> list[Measurement] | None:
    """Measure `run` in this process and those that were started with it.

    Args:
        run: the configuration; its batch is that of one rank.
        options: how to measure. The device is "cpu", or "cuda" for the card of this rank's number.
        report: is told this rank's measurement as far as it has come.
        timeout_s: seconds after which all ranks end.

    Returns:
        On rank 0 the measurements of all ranks, in their order; None elsewhere.

    Raises:
        LorafaProfError: on rank 0 alone, what cannot be measured; see `harness.measure`.
    """
    member = _Member.of(os.environ)
    try:
        own = replace(options, device=member.device(options.device))
        refuse_unbuilt(run, member.group)
        with member.joined(own.device) as mailbox:
            return _Rank(run, own, member.group, mailbox, report).measure(timeout_s)
    except LorafaProfError:
        if member.group.rank == 0:
            raise
        return None


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What torchrun tells a process."""

    group: Group
    local_rank: int
    address: str
    port: int
    attempt: str = "0"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> _Member:
        missing = [name for name in _NAMES if name not in environment]
        try:
            if missing:
                raise ValueError(f"{', '.join(missing)} missing")
            rank, world_size, local_rank, port = (int(environment[name]) for name in _NAMES if name != "MASTER_ADDR")
        except ValueError as error:
            raise BadInputError(
                f"RANK and WORLD_SIZE are in the environment, but not all that torchrun sets there ({error}); start "
                "with torchrun, or unset them"
            ) from None
        return cls(
            group=Group(rank=rank, world_size=world_size), local_rank=local_rank, address=environment["MASTER_ADDR"],
            port=port, attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )  # fmt: skip

    def device(self, asked: str) -> str:
        """Return this rank's own device.

        Raises:
            BadInputError: one card is asked for, which several ranks would share.
            DeviceError: there is no card.
        """
        if asked != "cuda":
            if asked.startswith("cuda"):
                raise BadInputError(f"each rank takes the card of its own number: --device cuda, not {asked[:40]}")
            return asked
        if not torch.cuda.is_available():
            raise DeviceError("torch finds no CUDA device; --device cpu measures on the processor")
        return f"cuda:{self.local_rank}"

    @contextlib.contextmanager
    def joined(self, device: str) -> Iterator[_Mailbox]:
        """Be in the default process group: nccl between cards, gloo on the CPU.

        A group in which something has failed is left as it is: to take it apart would wait for those that are gone.
        """
        timeout, number = timedelta(seconds=COLLECTIVE_S), next(_NUMBERS)
        store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(
            backend, store=PrefixStore(f"group {number}", store), rank=rank, world_size=size, timeout=timeout
        )
        # A connection of its own: in another thread's wait the first one would be taken.
        own = TCPStore(self.address, self.port, is_master=False, timeout=timedelta(seconds=ANSWER_S))
        mailbox = _Mailbox(PrefixStore(f"lorafa-prof/{self.attempt}/{number}", own))
        yield mailbox
        if mailbox.failure() is None:
            dist.destroy_process_group()


class _Mailbox:
    """Where ranks leave word for each other."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def fail(self, cause: Cause) -> Cause:
        """Say that all must come to their end, and why; return the first cause that was given."""
        first: bytes = self._store.compare_set("failure", "", cause)
        return first.decode()

    def failure(self) -> Cause | None:
        """Return why all must come to their end, if they must."""
        return self._store.get("failure").decode() if self._store.check(["failure"]) else None

    def post(self, seen: Measurement) -> None:
        """Leave a measurement."""
        self._store.set(f"rank {seen.rank}", zlib.compress(json.dumps(seen.to_json()).encode()))

    def take(self, rank: int, until: float) -> Measurement | None:
        """Wait for the measurement of a rank; None where it does not come in time."""
        key = f"rank {rank}"
        while not self._store.check([key]):
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return Measurement.from_json(json.loads(zlib.decompress(self._store.get(key))))

    def close(self) -> None:
        """Say that rank 0 has all that it will take."""
        self._store.set("closed", "")

    def wait_closed(self) -> None:
        """Wait until rank 0 has all, or for as long as it may take it."""
        with contextlib.suppress(RuntimeError):
            self._store.wait(["closed"], timedelta(seconds=ANSWER_S))


class _Ended(Exception):
    """Raised in a rank that must come to its end for no fault of its own."""


class _Rank:
    """Measures in one process of the group."""

    def __init__(self, run: RunSpec, options: Options, group: Group, mailbox: _Mailbox, report: Report) -> None:
        self._run, self._options, self._group, self._mailbox, self._report = run, options, group, mailbox, report
        self._known = Measurement(
            outcome="ok", run=run, versions={}, environment={}, rank=group.rank, world_size=group.world_size
        )
        self._complete = False

    def measure(self, timeout_s: float | None) -> list[Measurement] | None:
        with Stop(), _Watch(self._mailbox, timeout_s, self._leave) as watch:
            try:
                self._known = harness.measure(self._run, self._options, self._keeper(watch), self._group)
                self._complete = True
                dist.barrier()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
                refusal = error if isinstance(error, LorafaProfError) else None
                self._end(error)
            else:
                refusal = None
        if self._group.rank != 0:
            self._mailbox.post(self._known)
            if self._known.outcome == "ok":
                self._mailbox.wait_closed()
            return None
        seen = [self._known, *self._others()]
        self._mailbox.close()
        if refusal is not None:
            raise refusal
        return seen

    def _keeper(self, watch: _Watch) -> Report:
        def keep(seen: Measurement) -> None:
            self._known = seen
            self._report(seen)
            if watch.cause is not None:
                raise _Ended

        return keep

    def _end(self, error: Exception) -> None:
        """Take down how this rank has ended by an exception, and let the others know."""
        first = self._mailbox.fail(str(self._group.rank))
        if self._complete:  # another has failed when all was done
            return
        if first == str(self._group.rank):
            self._known = replace(self._known, outcome=outcome_of(error), error=said(error))
        else:
            self._known = _stopped(self._known, first)

    def _leave(self, cause: Cause) -> None:
        """Leave a collective in which this rank waits in vain, by leaving the process; rank 0 hears of it there."""
        if self._group.rank != 0:
            self._mailbox.post(self._known if self._complete else _stopped(self._known, cause))
            os._exit(0)

    def _others(self) -> Iterator[Measurement]:
        failed = self._mailbox.failure() is not None
        until = time.monotonic() + (2 * GRACE_S if failed else ANSWER_S)
        for rank in range(1, self._group.world_size):
            seen = self._mailbox.take(rank, until)
            yield seen or replace(
                self._bare(), rank=rank, outcome="killed",
                error=f"rank {rank} has left no word: it was killed, or hangs; see its own output",
            )  # fmt: skip

    def _bare(self) -> Measurement:
        return Measurement(
            outcome="ok", run=self._run, versions=self._known.versions, environment={},
            world_size=self._group.world_size,
        )  # fmt: skip


def _stopped(known: Measurement, cause: Cause) -> Measurement:
    """Return a measurement that was not completed for no fault of its own."""
    ends: dict[Cause, tuple[Outcome, str]] = {
        "stop": ("interrupted", "interrupted"), "timeout": ("timeout", "not done within the time that was given")
    }  # fmt: skip
    outcome, text = ends.get(cause, ("error", f"stopped: rank {cause} has failed"))
    return replace(known, outcome=outcome, error=text)


class _Watch:
    """Looks out for a failure of any rank, for signals and for the time, while the rank measures.

    Signals are read where Python's own handler leaves them at once: its other half runs in the main thread, which may
    wait in a collective.

    Args:
        mailbox: where failures are told.
        timeout_s: seconds after which all ranks end.
        leave: is called with the cause when the rank has not come to its end in time.
    """

    def __init__(self, mailbox: _Mailbox, timeout_s: float | None, leave: Callable[[Cause], None]) -> None:
        self.cause: Cause | None = None
        self._mailbox, self._leave = mailbox, leave
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._signals, self._handlers = socket.socketpair()
        self._signals.setblocking(False)
        self._handlers.setblocking(False)
        self._before = -1
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._handlers.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._before)
        self._signals.close()
        self._handlers.close()

    def _look(self) -> None:
        while not self._done.wait(_LOOK_S):
            if self._signalled():
                self._mailbox.fail("stop")
            elif self._deadline is not None and time.monotonic() > self._deadline:
                self._mailbox.fail("timeout")
            self.cause = self._mailbox.failure()
            if self.cause is not None:
                break
        if self.cause is None:
            return
        _abort_nccl()
        if not self._done.wait(GRACE_S):
            self._leave(self.cause)

    def _signalled(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(self._signals.recv(64))
        return False


def _abort_nccl() -> None:
    """Let collectives between cards fail that wait for a rank; those of gloo fail when its process is gone."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        with contextlib.suppress(Exception):
            dist.distributed_c10d._abort_process_group()
