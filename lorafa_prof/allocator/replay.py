"""Storages that are born and die, replayed through the model of the caching allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lorafa_prof.allocator.caching_allocator import CachingAllocator
from lorafa_prof.allocator.free_blocks import Block
from lorafa_prof.allocator.out_of_memory import CudaOutOfMemoryError, OutOfMemory
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.allocator.statistics import Fragmentation, Statistics
from lorafa_prof.errors import BadInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The largest value of one figure."""

    size: int
    """Bytes."""
    position: int
    """Index of the event that first brought it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What the allocator did with a list of events."""

    requested: Peak
    allocated: Peak
    reserved: Peak
    fragmentation: Fragmentation
    """State right after the event that brought the peak of reserved bytes."""
    end: Statistics
    """State after the last event, or when memory ran out; peaks are those since the last mark."""
    marks: tuple[Statistics, ...]
    """State at each mark, peaks being those since the mark before; marks that a replay that ran out of memory did not
    reach are missing."""
    oom: OutOfMemory | None
    oom_position: int | None
    """Index of the event that could not be done, and with which the replay ended."""

    @property
    def active(self) -> Peak:
        """Peak of active bytes: that of allocated bytes, since no block waits for another stream here."""
        return self.allocated

    @property
    def num_alloc_retries(self) -> int:
        """How often all cached memory had to be returned to the driver before a request could be met."""
        return self.end.num_alloc_retries


def replay(
    events: Sequence[int],
    sizes: Sequence[int],
    *,
    settings: AllocatorSettings | None = None,
    capacity: int | None = None,
    outside: int = 0,
    streams: Sequence[int] | None = None,
    marks: Sequence[int] = (),
    history: list[TraceEntry] | None = None,
) -> Replay:
    """Replay births and deaths of storages; what is still alive after the last event stays alive.

    Args:
        events: i >= 0: storage i is born; ~i (negative): it dies. A storage that died may be born again.
        sizes: requested bytes of each storage; one of 0 bytes takes nothing.
        settings: of the allocator; None: PyTorch's defaults.
        capacity: bytes of the device, or None: never full.
        outside: bytes of the device that the allocator cannot have (CUDA context).
        streams: CUDA stream of each storage, as an integer; None: all on one.
        marks: ascending numbers of events: after so many of them the state is wanted.
        history: gets the allocator's trace, as `CachingAllocator` has it.

    Raises:
        BadInputError: an event names no storage, a birth of what is alive, a death of what is not, a size below 0, a
            mark out of order.
    """
    allocator = CachingAllocator(settings, capacity=capacity, outside=outside, history=history)
    bounds = [0, *marks, len(events)]
    if streams is not None and len(streams) != len(sizes):
        raise BadInputError(f"{len(sizes)} storages have sizes but {len(streams)} have streams")
    if any(start > stop for start, stop in pairwise(bounds)):
        raise BadInputError("marks must ascend, from 0 to the number of events")

    blocks: list[Block | None] = [None] * len(sizes)
    stages: list[Statistics] = []
    peaks = [Peak(size=0, position=0)] * 3
    fragmentation = allocator.at_reserved_peak
    oom: OutOfMemory | None = None
    for start, stop in pairwise(bounds):
        try:
            allocator.run(events[start:stop], sizes, blocks, first=start, streams=streams)
        except CudaOutOfMemoryError as error:
            oom = error.figures
        except IndexError:
            event = events[allocator.position]
            named = event if event >= 0 else ~event
            raise BadInputError(f"an event names storage {named}, but there are {len(sizes)}") from None
        stages.append(allocator.statistics())
        if allocator.reserved_peak > peaks[2].size:
            fragmentation = allocator.at_reserved_peak
        peaks = [max(pair, key=lambda peak: peak.size) for pair in zip(peaks, _peaks(allocator), strict=True)]
        if oom is not None:
            break
        allocator.reset_peaks()
    return Replay(
        requested=peaks[0], allocated=peaks[1], reserved=peaks[2], fragmentation=fragmentation, end=stages[-1],
        marks=tuple(stages[:-1]), oom=oom, oom_position=None if oom is None else allocator.position,
    )  # fmt: skip


def _peaks(allocator: CachingAllocator) -> list[Peak]:
    """Return the peaks of requested, allocated and reserved bytes since the last reset."""
    return [
        Peak(size=allocator.requested_peak, position=allocator.requested_peak_at),
        Peak(size=allocator.allocated_peak, position=allocator.allocated_peak_at),
        Peak(size=allocator.reserved_peak, position=allocator.reserved_peak_at),
    ]
