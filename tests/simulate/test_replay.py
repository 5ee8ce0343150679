"""Replays of births and deaths, and the reading of recorded traces."""

from __future__ import annotations

from typing import Any

import pytest

from lorafa_prof.allocator.replay import Peak, replay
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.errors import BadInputError
from lorafa_prof.simulate.snapshots.recorded_trace import SegmentEvent, from_snapshot_trace
from lorafa_prof.units import MIB

M = MIB


def test_peaks_and_end_of_a_short_life() -> None:
    """15 MiB get a segment of 16, whole; 6 MiB one of 20; 1 byte one of 2: event 2 brings every peak. When the first is
    dead, 12 MiB fit best into the 14 that are free of the 20: 2 MiB remain there, and the segment of 16 is wholly free.
    """
    done = replay([0, 1, 2, ~0, 3], [15 * M, 6 * M, 1, 12 * M])
    assert done.requested == Peak(size=21 * M + 1, position=2)
    assert done.allocated == done.active == Peak(size=22 * M + 512, position=2)
    assert done.reserved == Peak(size=38 * M, position=2)
    assert done.fragmentation.unallocated == done.fragmentation.inactive_split == 16 * M - 512
    assert (done.end.requested, done.end.allocated) == (18 * M + 1, 18 * M + 512)
    assert (done.end.reserved, done.end.segments, done.end.inactive_split) == (38 * M, 3, 4 * M - 512)
    assert (done.oom, done.oom_position, done.num_alloc_retries) == (None, None, 0)


def test_nothing_happens_to_nothing() -> None:
    """No events, and storages of 0 bytes, take no memory; the latter may die."""
    done = replay([], [])
    assert (done.reserved, done.marks) == (Peak(size=0, position=0), ())
    assert replay([0, ~0], [0]).end == done.end


def test_a_storage_may_be_born_again() -> None:
    """Its number stands for its size and stream only."""
    done = replay([0, ~0, 0], [5 * M])
    assert (done.end.allocated, done.end.reserved) == (5 * M, 20 * M)


def test_streams_keep_their_blocks() -> None:
    """The second storage cannot have the first one's block: two segments."""
    assert replay([0, ~0, 1], [12 * M, 12 * M]).end.reserved == 12 * M
    assert replay([0, ~0, 1], [12 * M, 12 * M], streams=[1, 2]).end.reserved == 24 * M


def test_marks_show_the_state_so_far_and_the_peaks_since_the_last() -> None:
    """After 2 of 4 events 24 MiB are allocated; then one dies, and the stage's peak is what it began with."""
    done = replay([0, 1, ~0, ~1], [12 * M, 12 * M], marks=[0, 2, 3])
    assert [m.allocated // M for m in done.marks] == [0, 24, 12]
    assert [m.allocated_peak // M for m in done.marks] == [0, 24, 24]
    assert (done.end.allocated, done.end.allocated_peak) == (0, 12 * M)
    assert done.allocated == Peak(size=24 * M, position=1)


def test_a_replay_ends_where_memory_runs_out() -> None:
    """30 MiB, of which 2 outside: 12 and 12 MiB fit, 12 more do not. Marks beyond are missing."""
    events = [0, 1, 2, ~0]
    done = replay(events, [12 * M] * 3, capacity=30 * M, outside=2 * M, marks=[1, 3])
    assert done.oom is not None
    assert (done.oom_position, done.oom.tried, done.oom.free, done.oom.in_use) == (2, 12 * M, 4 * M, 26 * M)
    assert (len(done.marks), done.end.allocated, done.end.num_ooms) == (1, 24 * M, 1)


def test_settings_reach_the_allocator() -> None:
    """With expandable segments 11 MiB are allocated as 11, on a page of 20."""
    done = replay([0], [11 * M], settings=AllocatorSettings(expandable_segments=True))
    assert (done.end.allocated, done.end.reserved, done.end.segments) == (11 * M, 20 * M, 0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([0, 0], "event 1: storage 0 is born but is alive"),
        ([0, ~1], "event 1: storage 1 dies but is not alive"),
        ([0, ~0, ~0], "event 2: storage 0 dies but is not alive"),
        ([2], "an event names storage 2, but there are 2"),
        ([0, ~5], "an event names storage 5, but there are 2"),
    ],
)
def test_lives_that_cannot_be_are_refused(events: list[int], message: str) -> None:
    """The error names the event and the storage."""
    with pytest.raises(BadInputError, match=message):
        replay(events, [1, 1])


def test_arguments_that_do_not_fit_are_refused() -> None:
    """Marks out of order or beyond the end, streams of other storages, a size below 0."""
    for marks in ([2, 1], [3], [-1]):
        with pytest.raises(BadInputError, match="marks must ascend, from 0 to the number of events"):
            replay([0, ~0], [1], marks=marks)
    with pytest.raises(BadInputError, match="1 storages have sizes but 2 have streams"):
        replay([0], [1], streams=[0, 0])
    with pytest.raises(BadInputError, match="at least 1 byte, not -1"):
        replay([0], [-1])


RECORDED: list[dict[str, Any]] = [
    # A block from before the recording.
    {"action": "free_requested", "addr": 0x100, "size": 10, "stream": 0, "frames": []},
    {"action": "free_completed", "addr": 0x100, "size": 10, "stream": 0, "frames": []},
    {"action": "segment_alloc", "addr": 0x2000, "size": 2 * M, "stream": 7, "frames": []},
    {"action": "alloc", "addr": 0x2000, "size": 1000, "stream": 7, "frames": []},
    # Freed while another stream still uses it: dead only when the free is completed.
    {"action": "free_requested", "addr": 0x2000, "size": 1000, "stream": 7, "frames": []},
    {"action": "alloc", "addr": 0x2400, "size": 5, "stream": 7, "frames": []},
    {"action": "free_completed", "addr": 0x2000, "size": 1000, "stream": 7, "frames": []},
    {"action": "alloc", "addr": 0x2000, "size": 600, "stream": 7, "frames": []},
    {"action": "oom", "device_free": 1 * M, "size": 90 * M, "stream": 0, "frames": []},
    {"action": "snapshot", "addr": 0, "size": 605, "stream": 0, "frames": []},
    {"action": "segment_free", "addr": 0x9000, "size": 20 * M, "stream": 0, "frames": []},
]


def test_a_recorded_trace_becomes_events() -> None:
    """Three storages, of which one dies; a block of which only the end was recorded is counted and left out."""
    trace = from_snapshot_trace(RECORDED)
    assert (trace.events, trace.sizes, trace.streams) == ([0, 1, ~0, 2], [1000, 5, 600], [7, 7, 7])
    assert trace.segment_events == (
        SegmentEvent(position=0, action="segment_alloc", size=2 * M, stream=7),
        SegmentEvent(position=4, action="segment_free", size=20 * M, stream=0),
    )
    assert (trace.unknown_frees, trace.ooms) == (1, 1)


def test_a_trace_may_be_lists() -> None:
    """Without names, as a history of the model is."""
    listed = [[e["action"], e.get("addr", 0), e["size"], e["stream"]] for e in RECORDED]
    assert from_snapshot_trace(listed) == from_snapshot_trace(RECORDED)


def test_a_replayed_trace_brings_the_recorded_segments() -> None:
    """What was recorded from an empty allocator is replayed to the same segment events."""
    recorded: list[TraceEntry] = []
    replay([0, 1, ~0, 2, 3], [30 * M, 6 * M, 28 * M, 1], history=recorded)
    trace = from_snapshot_trace(recorded)
    assert [(e.position, e.action, e.size) for e in trace.segment_events] == [
        (0, "segment_alloc", 30 * M), (1, "segment_alloc", 20 * M), (4, "segment_alloc", 2 * M),
    ]  # fmt: skip
    again: list[TraceEntry] = []
    replay(trace.events, trace.sizes, streams=trace.streams, history=again)
    assert from_snapshot_trace(again).segment_events == trace.segment_events


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"action": "allocate", "addr": 1, "size": 1, "stream": 0}, "trace entry 0: unknown action 'allocate'"),
        ({"addr": 1}, "trace entry 0: not an allocator's action"),
        (["alloc", 1], "trace entry 0: not an allocator's action"),
        (["alloc", "here", 1, 0], "trace entry 0: not an allocator's action"),
    ],
)
def test_what_is_no_trace_is_refused(entry: Any, message: str) -> None:
    """The error names the entry."""
    with pytest.raises(BadInputError, match=message):
        from_snapshot_trace([entry])


def test_two_blocks_at_one_address_are_no_trace() -> None:
    """Traces of two devices in one, for example."""
    with pytest.raises(BadInputError, match="entry 1: alloc at 0x10, where a block is alive"):
        from_snapshot_trace([("alloc", 16, 1, 0), ("alloc", 16, 1, 0)])
