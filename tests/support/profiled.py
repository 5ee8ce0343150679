"""What the CPU's allocator does during real computation, as PyTorch's profiler hears it from the allocator itself.

Nothing here sees tensors: the events are the allocator's own reports, independent of all that a dispatch mode observes,
and they hold the buffers inside kernels too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Allocation:
    """One report of the allocator."""

    delta: int
    """Bytes requested, negative where they are given back."""
    live: int
    """Bytes in use after it, beyond those in use before the first report."""
    pointer: int
    stack: tuple[str, ...]
    """Names of the profiler's ranges around it, outermost first: operators, nodes of the graph, `record_function`."""

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators around it, outermost first: ("aten::linear", "aten::addmm"); empty outside of any."""
        return tuple(name for name in self.stack if "::" in name and not name.startswith("autograd::"))


def allocations(program: Callable[[], Any]) -> list[Allocation]:
    """Everything that the CPU's allocator reports while `program` runs, in order, its own results' end included.

    Raises:
        RuntimeError: the reports have a gap, or a running total that does not follow from them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as prof:
        program()
    results: Any = prof.profiler.kineto_results
    found: list[tuple[int, Any, tuple[str, ...]]] = []
    for root in results.experimental_event_tree():
        found += _reports(root, ())
    found.sort(key=lambda report: report[0])
    return _checked(found)


def _reports(event: Any, stack: tuple[str, ...]) -> Iterator[tuple[int, Any, tuple[str, ...]]]:
    kind = event.tag
    if kind == torch._C._profiler._EventType.Allocation:
        yield event.start_time_ns, event.extra_fields, stack
    inside = (*stack, event.name) if kind == torch._C._profiler._EventType.TorchOp else stack
    for child in event.children:
        yield from _reports(child, inside)


def _checked(reports: list[tuple[int, Any, tuple[str, ...]]]) -> list[Allocation]:
    start = reports[0][1].total_allocated - reports[0][1].alloc_size if reports else 0
    live = 0
    events = []
    for _, report, stack in reports:
        live += report.alloc_size
        if report.total_allocated - start != live:
            raise RuntimeError(f"the allocator counts {report.total_allocated - start} bytes where {live} are in use")
        events.append(Allocation(report.alloc_size, live, report.ptr, stack))
    return events
