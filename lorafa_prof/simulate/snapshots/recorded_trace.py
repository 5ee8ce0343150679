"""A trace that PyTorch recorded on a device, as events that the model can replay and be compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafa_prof.errors import BadInputError

_SEGMENT_ACTIONS = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
#: What else a trace holds: marks of the program and of the recorder, and the first half of each free, which is
#: completed only when all streams are done with the block.
_PASSED_OVER = ("free_requested", "snapshot", "user_defined")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentEvent:
    """Memory that the allocator took from the driver or gave back."""

    position: int
    """How many events came before it."""
    action: str
    """segment_alloc, segment_free, segment_map or segment_unmap."""
    size: int
    """Bytes."""
    stream: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedTrace:
    """A trace in the terms of `lorafa_prof.allocator.replay.replay`.

    A replay brings the recorded segment events if the recording began with an empty allocator (`unknown_frees` 0), and
    until the program called `torch.cuda.empty_cache`, which leaves no mark in a trace but its segment_free entries.
    """

    events: list[int]
    sizes: list[int]
    """Requested bytes: what PyTorch records of a block is not its rounded size."""
    streams: list[int]
    segment_events: tuple[SegmentEvent, ...]
    unknown_frees: int
    """Frees of blocks that were born before the recording began; they are not among the events."""
    ooms: int
    """Requests that failed; they are not among the events."""


def from_snapshot_trace(entries: Iterable[Mapping[str, Any] | Sequence[Any]]) -> RecordedTrace:
    """Read one device's trace.

    Args:
        entries: `torch.cuda.memory._snapshot()["device_traces"][0]`, or the same as (action, addr, size, stream), as
            the model's own history has it. A storage is born at its alloc and dies at its free_completed.

    Raises:
        BadInputError: an entry that is neither, an unknown action, or an alloc where a block is alive.
    """
    events: list[int] = []
    sizes: list[int] = []
    streams: list[int] = []
    segment_events: list[SegmentEvent] = []
    alive: dict[int, int] = {}
    unknown_frees = ooms = 0
    for number, entry in enumerate(entries):
        action, address, size, stream = _fields(number, entry)
        if action == "alloc":
            if address in alive:
                raise BadInputError(f"trace entry {number}: alloc at {address:#x}, where a block is alive")
            alive[address] = len(sizes)
            events.append(len(sizes))
            sizes.append(size)
            streams.append(stream)
        elif action == "free_completed":
            storage = alive.pop(address, None)
            if storage is None:
                unknown_frees += 1
            else:
                events.append(~storage)
        elif action in _SEGMENT_ACTIONS:
            segment_events.append(SegmentEvent(position=len(events), action=action, size=size, stream=stream))
        elif action == "oom":
            ooms += 1
        elif action not in _PASSED_OVER:
            raise BadInputError(f"trace entry {number}: unknown action {action[:40]!r}")
    return RecordedTrace(
        events=events, sizes=sizes, streams=streams, segment_events=tuple(segment_events),
        unknown_frees=unknown_frees, ooms=ooms,
    )  # fmt: skip


def _fields(number: int, entry: Mapping[str, Any] | Sequence[Any]) -> tuple[str, int, int, int]:
    """Return action, address, size and stream; an oom entry of PyTorch has no address but `device_free`."""
    try:
        if isinstance(entry, Mapping):
            address = entry.get("addr", entry.get("device_free", 0))
            action, size, stream = entry["action"], entry.get("size", 0), entry.get("stream", 0)
        else:
            action, address, size, stream = entry[:4]
        return str(action), int(address), int(size), int(stream)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"trace entry {number}: not an allocator's action: {str(entry)[:80]}") from error
