"""The record of what the CPU's allocator does, out of torch's profiler.

There is one profiler in a process, and what is told of it here holds for whoever uses it: a block counts from its
beginning on; the end of one that began before the profiler did is not told.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lorafa_prof.measure.trace import NO_DEPARTURES, BaseBlock, Event, Levels, Mark, Reading, StepTrace
from lorafa_prof.workload.conditions import without_garbage_collection

_MARK = "lorafa-prof: "
_SEPARATOR = "\x1f"
#: In the place of a phase: all before it only tells what was there.
_RESTART = "\x1e"


class CpuTracer:
    """Records what the allocator does from now on; see `Tracer`.

    Args:
        storages: bytes of what is there now, by address.
        host_too: whether to keep what would be on the host if the model were on a device.
    """

    def __init__(self, storages: Mapping[int, int], *, host_too: bool = False) -> None:
        self._storages, self._host_too = storages, host_too
        self._open = contextlib.ExitStack()
        self._open.enter_context(without_garbage_collection())
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._open.enter_context(self._profile)
        self._open.enter_context(_closing_ranges())

    def restart(self, storages: Mapping[int, int]) -> None:
        """Begin anew, with these storages and with what is there of all that was made since the beginning."""
        gc.collect()
        self.tell(_RESTART, "")
        self._storages = storages

    def tell(self, phase: str, module: str) -> None:
        """Put a mark into the profile: a range of no length."""
        with record_function(f"{_MARK}{phase}{_SEPARATOR}{module}"):
            pass

    def finish(self, departures: Mapping[int, Sequence[int]] = NO_DEPARTURES) -> StepTrace:
        """End the record, and return it; see `Tracer`."""
        self._open.close()
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        found = sorted(_tree(results.experimental_event_tree()), key=lambda item: item.time)
        reader = _Reader(self._storages, departures, self._host_too)
        for item in found:
            reader.read(item)
        return reader.trace()

    def abandon(self) -> None:
        """End the record without a result."""
        self._open.close()


@contextlib.contextmanager
def _closing_ranges() -> Iterator[None]:
    """Close the ranges that have been opened meanwhile (`record_function`) and are still open, the innermost first.

    torch writes into a profile when a range closes that was opened under it, whether or not that profile is still
    there: without this, a profiler that begins within such a range corrupts the memory of the process.
    """
    enter, leave = record_function.__enter__, record_function.__exit__
    ranges: list[record_function] = []

    def opened(self: record_function) -> record_function:
        entered: record_function = enter(self)  # type: ignore[no-untyped-call]
        ranges.append(self)
        return entered

    def closed(self: record_function, *details: Any) -> None:
        if self in ranges:
            ranges.remove(self)
        leave(self, *details)

    with (
        mock.patch.object(record_function, "__enter__", opened),
        mock.patch.object(record_function, "__exit__", closed),
    ):
        yield
        while ranges:
            torch.ops.profiler._record_function_exit._RecordFunction(ranges.pop().record)


@dataclass(frozen=True, slots=True)
class _Found:
    """An allocation or a mark in the profile."""

    time: int
    event: Any
    around: tuple[str, ...]
    """Names of the ranges around it, outermost first: operators, nodes of the graph."""
    operator: str
    """The outermost operator around it that is not made of others alone: what a kernel is written for."""
    call: int
    """Which call of it."""


@functools.cache
def _has_kernel(name: str) -> bool:
    """Return whether an operator has a kernel of its own; `linear` and `matmul` are made of others before autograd."""
    if not name.startswith("aten::"):
        return "::" in name and not name.startswith(("autograd::", "FSDP::"))  # FSDP2 names stretches of a step so
    overloads = getattr(torch.ops.aten, name.removeprefix("aten::")).overloads()
    names = [name if overload == "default" else f"{name}.{overload}" for overload in overloads]
    dispatched = filter(torch._C._dispatch_has_kernel, names)  # TorchScript has overloads of its own
    implicit = "CompositeImplicitAutograd"
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(full, implicit) for full in dispatched)


def _tree(roots: Any) -> Iterator[_Found]:
    """Yield allocations and marks of the profiler's tree, unsorted."""
    kinds = torch._C._profiler._EventType
    waiting: list[tuple[Any, tuple[str, ...], str, int]] = [(root, (), "", 0) for root in roots]
    calls = itertools.count(1)
    while waiting:
        event, around, operator, call = waiting.pop()
        a_range = event.tag == kinds.TorchOp
        if event.tag == kinds.Allocation or (a_range and event.name.startswith(_MARK)):
            yield _Found(event.start_time_ns, event, around, operator, call)
        if a_range:
            around = (*around, event.name)
            if not call and _has_kernel(event.name):
                operator, call = event.name.removeprefix("aten::"), next(calls)
        waiting.extend((child, around, operator, call) for child in event.children)


class _Reader:
    """Makes a trace of allocations and marks, in the order of time.

    Args:
        storages: bytes of what is there at the beginning, or at the restart where there is one, by address.
        departures: see `Tracer.finish`.
        host_too: whether to keep what would be on the host if the model were on a device.
    """

    def __init__(self, storages: Mapping[int, int], departures: Mapping[int, Sequence[int]], host_too: bool) -> None:
        self._storages, self._departures, self._host_too = storages, departures, host_too
        self._outside: set[int] = set()
        self._begin(storages)

    def _begin(self, base: Mapping[int, int]) -> None:
        self._base, self._live, self._inside = base, dict(base), set(base)
        self._older = set(base)
        self._events: list[Event] = []
        self._marks: list[Mark] = []

    def read(self, item: _Found) -> None:
        """Take in the next one."""
        if item.event.tag != torch._C._profiler._EventType.Allocation:
            self._read_mark(*item.event.name.removeprefix(_MARK).split(_SEPARATOR))
            return
        report = item.event.extra_fields
        self._older.discard(report.ptr)
        if report.alloc_size > 0 and report.ptr in self._live:
            # freed in a thread that the profiler does not hear, as that of gloo is between two collectives
            self._events.append(Event(-self._live.pop(report.ptr), report.ptr))
        if self._is_kept(report, item.around):
            self._events.append(Event(report.alloc_size, report.ptr, item.operator, item.call))
            if report.alloc_size > 0:
                self._live[report.ptr] = report.alloc_size
            else:
                self._live.pop(report.ptr, None)

    def _read_mark(self, phase: str, module: str) -> None:
        if phase == _RESTART:
            known = {address: nbytes for address, nbytes in self._live.items() if address not in self._older}
            self._begin({**known, **self._storages})
            self._older -= set(known)
            return
        for address in self._older.intersection(self._departures.get(len(self._marks), ())):
            self._events.append(Event(-self._live.pop(address), address))
            self._older.remove(address)
        self._marks.append(Mark(len(self._events), phase, module))

    def trace(self) -> StepTrace:
        """Return what has been read."""
        base = {address: BaseBlock(nbytes, nbytes) for address, nbytes in self._base.items()}
        readings = _readings(self._events, self._marks, sum(self._base.values()))
        return StepTrace(base, self._events, self._marks, readings)

    def _is_kept(self, report: Any, around: tuple[str, ...]) -> bool:
        """Return whether a report is of a block that counts: with `host_too` any, else what would be on a device.

        What PyTorch allocates outside of any operator stays on the host: numbers that Python arithmetic wraps into
        tensors (8 bytes each), and the states of the random number generator that checkpointing keeps (5056 bytes a
        segment).
        Gloo copies what it gathers and reduces, in operators of its own; NCCL does not.
        What is freed and was neither there before nor allocated since was born under an earlier profile.
        """
        if report.alloc_size > 0:
            by_operator = any("::" in name and not name.startswith("autograd::") for name in around)
            by_gloo = any(name.startswith(("gloo:", "c10d::")) for name in around)
            kept = (by_operator or self._host_too) and not by_gloo
            (self._inside if kept else self._outside).add(report.ptr)
            (self._outside if kept else self._inside).discard(report.ptr)
            return kept
        if report.ptr in self._outside:
            self._outside.remove(report.ptr)
            return False
        if report.ptr in self._inside:
            self._inside.remove(report.ptr)
            return True
        return False


def _readings(events: list[Event], marks: list[Mark], base: int) -> list[Reading]:
    readings = []
    live = base
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        between = events[mark.position : None if following is None else following.position]
        levels = list(itertools.accumulate((event.nbytes for event in between), initial=live))
        live = levels[-1]
        made = [level for level, event in zip(levels[1:], between, strict=True) if event.nbytes > 0]
        peak = max(made, default=levels[0])
        readings.append(Reading(Levels(peak, peak), Levels(live, live)))
    return readings
