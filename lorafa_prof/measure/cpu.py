"""The CPU as a device to measure: its allocator's reports come from torch's profiler.

The CPU's allocator keeps no account of its own. While it profiles, torch hears of every block that comes and goes; of
what was there before it hears nothing, so that the storages of model, optimizer and batch are counted by themselves.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lorafa_prof.measure.trace import BaseBlock, Event, Levels, Mark, Reading, StepTrace, Tell
from lorafa_prof.workload.conditions import without_garbage_collection, without_onednn

_MARK = "lorafa-prof: "
_SEPARATOR = "\x1f"


class CpuDevice:
    """Measures on the CPU.

    Args:
        cap_bytes: memory of the device that is emulated. The CPU's allocator cannot be refused any, so that a step is
            held against it when it is over.
    """

    type = "cpu"
    torch_name = "cpu"
    #: Sizes are counted as they are requested.
    granule = 1

    def __init__(self, cap_bytes: int | None = None) -> None:
        self.name = _processor()
        self.cap_bytes = cap_bytes

    def environment(self) -> dict[str, Any]:
        """Return what decides the figures beside the libraries' versions."""
        return {
            "device": self.name,
            "device_type": "cpu",
            "total_bytes": _physical_bytes(),
            "cap_bytes": self.cap_bytes,
            "threads": torch.get_num_threads(),
            "onednn_in_trace": False,
        }

    def tracing_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Run PyTorch's own kernels: the scratch memory of oneDNN differs from processor to processor."""
        return without_onednn()

    def trace(self, step: Callable[[Tell], None], storages: Mapping[int, int]) -> StepTrace:
        """Run a step that tells of phases and modules, and return what the allocator did.

        Args:
            step: runs one step; it is given the function to tell.
            storages: bytes of what is there before it, by address.
        """
        with without_garbage_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            step(_mark)
        results: Any = prof.profiler.kineto_results
        return _traced(list(_tree(results.experimental_event_tree())), storages)

    def clock(self) -> CpuClock:
        """Return a clock for the phases of a step."""
        return CpuClock()

    def restart_peaks(self) -> None:
        """The CPU's allocator keeps no account."""

    def levels(self) -> Reading | None:
        """The CPU's allocator keeps no account."""
        return None

    def counters(self) -> tuple[int | None, int | None]:
        """Nothing is retried here."""
        return None, None

    def context_bytes(self) -> int | None:
        """There is no context."""
        return None


def _mark(phase: str, module: str) -> None:
    """Put a mark into the profile: a range of no length."""
    with record_function(f"{_MARK}{phase}{_SEPARATOR}{module}"):
        pass


class CpuClock:
    """Notes the time at the beginning of each phase."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        """Note the time."""
        self._times.append(time.perf_counter())

    def ready(self) -> bool:
        """See `Clock.ready`."""
        return True

    def seconds(self) -> list[float]:
        """Return the time between each two ticks."""
        return [after - before for before, after in zip(self._times, self._times[1:], strict=False)]


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


def _traced(found: list[_Found], storages: Mapping[int, int]) -> StepTrace:
    found.sort(key=lambda item: item.time)
    events: list[Event] = []
    marks: list[Mark] = []
    inside, outside = set(storages), set[int]()
    live = dict(storages)
    for item in found:
        if item.event.tag != torch._C._profiler._EventType.Allocation:
            phase, _, module = item.event.name.removeprefix(_MARK).partition(_SEPARATOR)
            marks.append(Mark(len(events), phase, module))
            continue
        report = item.event.extra_fields
        if report.alloc_size > 0 and report.ptr in live:
            # freed in a thread that the profiler does not hear, as that of gloo is between two collectives
            events.append(Event(-live.pop(report.ptr), report.ptr))
        if _on_a_device_too(report, item.around, inside, outside):
            events.append(Event(report.alloc_size, report.ptr, item.operator, item.call))
            if report.alloc_size > 0:
                live[report.ptr] = report.alloc_size
            else:
                live.pop(report.ptr, None)
    base = {address: BaseBlock(nbytes, nbytes) for address, nbytes in storages.items()}
    return StepTrace(base, events, marks, _readings(events, marks, sum(storages.values())))


def _on_a_device_too(report: Any, around: tuple[str, ...], inside: set[int], outside: set[int]) -> bool:
    """Return whether a report is of a block that would be on the device if the model were on one.

    What PyTorch allocates outside of any operator stays on the host: numbers that Python arithmetic wraps into tensors
    (8 bytes each), and the states of the random number generator that checkpointing keeps (5056 bytes a segment).
    Gloo copies what it gathers and reduces, in operators of its own; NCCL does not.
    What is freed and was neither there before nor allocated since was born under an earlier profile.
    """
    if report.alloc_size > 0:
        by_operator = any("::" in name and not name.startswith("autograd::") for name in around)
        by_gloo = any(name.startswith(("gloo:", "c10d::")) for name in around)
        kept = by_operator and not by_gloo
        (inside if kept else outside).add(report.ptr)
        (outside if kept else inside).discard(report.ptr)
        return kept
    if report.ptr in outside:
        outside.remove(report.ptr)
        return False
    if report.ptr in inside:
        inside.remove(report.ptr)
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


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _physical_bytes() -> int | None:
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="utf-8") as lines:
        facts: Mapping[str, str] = dict(line.split(":", 1) for line in lines)
        return int(facts["MemTotal"].split()[0]) * 1024
    return None
