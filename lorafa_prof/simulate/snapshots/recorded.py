"""A recorded run of anybody's, replayed: what the allocator did, and what it would have done with other settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafa_prof.allocator.replay import Replay, replay
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.snapshots.reader import check_snapshot, history_of, read_snapshot, read_trace
from lorafa_prof.simulate.snapshots.recorded_trace import RecordedTrace, SegmentEvent, from_snapshot_trace
from lorafa_prof.simulate.snapshots.writer import Event


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """The allocator's trace of one device, and what it held when the recording ended."""

    trace: RecordedTrace
    reserved_bytes: int
    """Bytes of all segments at the end, as recorded."""

    @classmethod
    def read(cls, path: str, device: int = 0) -> RecordedRun:
        """Read a pickled `torch.cuda.memory._snapshot()`, or a trace as compressed JSON (.json.gz).

        Raises:
            BadInputError: the file cannot be read, is neither, or holds no trace of `device`.
        """
        if path.endswith(".gz"):
            file = read_trace(path)
            return cls._of(path, file.events, sum(size for _, size, _ in file.segments))
        data = read_snapshot(path)
        check_snapshot(data)
        own = (s for s in data["segments"] if s.get("device", device) == device)
        return cls._of(path, history_of(data, device), sum(segment["total_size"] for segment in own))

    @classmethod
    def _of(cls, path: str, events: Sequence[Event], reserved: int) -> RecordedRun:
        if not events:
            raise BadInputError(
                f"{Path(path).name}: no trace in it; record one with torch.cuda.memory._record_memory_history()"
            )
        return cls(trace=from_snapshot_trace(events), reserved_bytes=reserved)

    def replay(self, settings: AllocatorSettings, capacity: int | None = None) -> Replay:
        """Replay the run with these settings, on a card of `capacity` bytes (None: never full)."""
        trace = self.trace
        return replay(trace.events, trace.sizes, settings=settings, capacity=capacity, streams=trace.streams)

    def is_reproduced(self, settings: AllocatorSettings) -> bool | None:
        """Say whether a replay takes and returns the same segments at the same moments as the device did.

        None where that cannot be told: the recording began when blocks were alive already.
        """
        if self.trace.unknown_frees:
            return None
        history: list[TraceEntry] = []
        trace = self.trace
        replay(trace.events, trace.sizes, settings=settings, streams=trace.streams, history=history)
        return _sizes(from_snapshot_trace(history).segment_events) == _sizes(trace.segment_events)


def _sizes(events: Sequence[SegmentEvent]) -> list[tuple[int, str, int, int]]:
    return [(event.position, event.action, event.size, event.stream) for event in events]
