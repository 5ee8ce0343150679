"""What holds for every list of requests, whatever the settings."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from lorafa_prof.allocator.caching_allocator import CachingAllocator
from lorafa_prof.allocator.out_of_memory import CudaOutOfMemoryError
from lorafa_prof.allocator.replay import replay
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.allocator.sizes import round_size
from lorafa_prof.simulate.snapshots.recorded_trace import from_snapshot_trace
from lorafa_prof.units import GIB, KIB, MIB
from tests.support.reference_allocator import ReferenceAllocator, RefusedError

#: Around the boundaries of the allocator, and between them.
EDGES = [512, SMALL := MIB, 2 * MIB, 10 * MIB, 20 * MIB, 22 * MIB, 24 * MIB, 40 * MIB]
SIZES = st.one_of(
    st.builds(
        lambda edge, offset: max(1, edge + offset), st.sampled_from(EDGES), st.sampled_from([-513, -1, 0, 1, 512])
    ),
    st.integers(1, 4 * KIB),
    st.integers(1, SMALL),
    st.integers(SMALL, 30 * MIB),
    st.integers(1, 16).map(lambda n: n * MIB * 5 // 2),
)
#: A request of some size on one of two streams; the death of one of the living, chosen by number; or empty_cache.
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("malloc"), SIZES, st.sampled_from([0, 0, 0, 7])),
        st.tuples(st.just("malloc"), SIZES, st.sampled_from([0, 0, 0, 7])),
        st.tuples(st.just("free"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    max_size=60,
)
SETTINGS = st.builds(
    AllocatorSettings,
    expandable_segments=st.booleans(),
    max_split_size_mb=st.sampled_from([None, None, 22, 24, 40]),
    max_non_split_rounding_mb=st.sampled_from([None, 22]),
    roundup_power2_divisions=st.sampled_from([0, 0, 4, (1,) * 4 + (8,) * 12]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.5]),
    per_process_memory_fraction=st.sampled_from([1.0, 0.75]),
    large_segment_size_mb=st.sampled_from([20, 20, 12]),
)
CAPACITIES = st.sampled_from([64 * MIB, 150 * MIB, 10 * GIB])


def apply(allocator: Any, operations: list[tuple[str, int, int]]) -> Any:
    """Do the operations, yielding after each the blocks in use as address -> requested bytes."""
    live: dict[int, int] = {}
    for action, number, stream in operations:
        if action == "malloc":
            with contextlib.suppress(CudaOutOfMemoryError, RefusedError):
                live[allocator.malloc(number, stream)] = number
        elif action == "empty":
            allocator.empty_cache()
        elif live:
            address = sorted(live)[number % len(live)]
            del live[address]
            allocator.free(address)
        yield live


@given(SETTINGS, CAPACITIES, OPERATIONS)
@hypothesis_settings(max_examples=300)
def test_the_model_does_what_linked_blocks_do(
    settings: AllocatorSettings, capacity: int, operations: list[tuple[str, int, int]]
) -> None:
    """The same trace and the same counters after every step as the plain arrangement of PyTorch's source."""
    model = CachingAllocator(settings, capacity=capacity, outside=3 * MIB, history=[])
    reference = ReferenceAllocator(settings, capacity=capacity, outside=3 * MIB)
    for _ in zip(apply(model, operations), apply(reference, operations), strict=True):
        assert model.history == reference.history
        statistics = model.statistics()
        for name in ("requested", "allocated", "reserved", "inactive_split", "num_alloc_retries", "num_ooms"):
            assert getattr(statistics, name) == getattr(reference, name), name
        assert statistics.segments == reference.segment_count


#: Settings that matter only on a full device, each alone and with others.
TIGHT = [
    AllocatorSettings(),
    AllocatorSettings(expandable_segments=True),
    AllocatorSettings(max_split_size_mb=24),
    AllocatorSettings(max_split_size_mb=24, expandable_segments=True),
    AllocatorSettings(max_split_size_mb=40, max_non_split_rounding_mb=30),
    AllocatorSettings(garbage_collection_threshold=0.5, per_process_memory_fraction=0.9),
    AllocatorSettings(garbage_collection_threshold=0.7, per_process_memory_fraction=0.9, max_split_size_mb=30),
    AllocatorSettings(garbage_collection_threshold=0.4, per_process_memory_fraction=0.8, expandable_segments=True),
]


@pytest.mark.parametrize("settings", TIGHT)
@pytest.mark.parametrize("seed", range(6))
def test_the_model_does_what_linked_blocks_do_on_a_full_device(settings: AllocatorSettings, seed: int) -> None:
    """800 requests and frees of whole MiB and of odd sizes, some 12 blocks in use, on 280 MiB that are often full."""
    chance = random.Random(seed)
    model = CachingAllocator(settings, capacity=280 * MIB, outside=MIB, history=[])
    reference = ReferenceAllocator(settings, capacity=280 * MIB, outside=MIB)
    operations: list[tuple[str, int, int]] = []
    alive = 0
    for _ in range(800):
        if alive < 12 and chance.random() < 0.55:
            whole = chance.choice([1, 2, 5, 10, 11, 19, 20, 22, 24, 27, 30, 38, 40, 44, 60, 90]) * MIB
            size = whole if chance.random() < 0.8 else chance.randrange(1, whole)
            operations.append(("malloc", size, chance.choice([0, 0, 0, 9])))
            alive += 1
        else:
            operations.append(("free", chance.randrange(100), 0))
            alive = max(0, alive - 1)
    for _ in zip(apply(model, operations), apply(reference, operations), strict=True):
        assert (model.allocated, model.reserved) == (reference.allocated, reference.reserved)
        assert model.statistics().inactive_split == reference.inactive_split
    assert model.history == reference.history
    assert model.num_alloc_retries == reference.num_alloc_retries


@given(SETTINGS, CAPACITIES, OPERATIONS)
def test_blocks_cover_segments_without_overlap(
    settings: AllocatorSettings, capacity: int, operations: list[tuple[str, int, int]]
) -> None:
    """Blocks lie side by side and fill their segment, each is at least its rounded request, and the segments' sums are
    the statistics; nothing exceeds the device.
    """
    allocator = CachingAllocator(settings, capacity=capacity)
    for live in apply(allocator, operations):
        segments = allocator.segments()
        statistics = allocator.statistics()
        assert statistics.requested == sum(live.values())
        assert statistics.allocated == statistics.active == sum(s["allocated_size"] for s in segments)
        assert statistics.reserved == sum(s["total_size"] for s in segments)
        assert statistics.requested <= statistics.allocated <= statistics.reserved <= capacity
        seen: dict[int, int] = {}
        for segment in segments:
            end = segment["address"]
            for block in segment["blocks"]:
                assert block["address"] == end
                end += block["size"]
                if block["state"] == "active_allocated":
                    seen[block["address"]] = block["requested_size"]
                    assert block["size"] >= round_size(block["requested_size"], settings.divisions)
            assert end == segment["address"] + segment["total_size"]
        assert seen == live


@given(SETTINGS, CAPACITIES, OPERATIONS)
def test_free_neighbours_are_one_block(
    settings: AllocatorSettings, capacity: int, operations: list[tuple[str, int, int]]
) -> None:
    """In no segment two free blocks stand next to each other."""
    allocator = CachingAllocator(settings, capacity=capacity)
    for _ in apply(allocator, operations):
        for segment in allocator.segments():
            states = [block["state"] for block in segment["blocks"]]
            assert ("inactive", "inactive") not in itertools.pairwise(states)


@given(SETTINGS, CAPACITIES, OPERATIONS)
def test_nothing_is_left_after_everything_was_freed(
    settings: AllocatorSettings, capacity: int, operations: list[tuple[str, int, int]]
) -> None:
    """With all blocks freed and the cache emptied, every figure but the peaks is 0 and the device is free."""
    allocator = CachingAllocator(settings, capacity=capacity)
    live: dict[int, int] = {}
    for live in apply(allocator, operations):  # noqa: B007 - the last one is what is left
        pass
    for address in list(live):
        allocator.free(address)
    allocator.empty_cache()
    assert allocator.segments() == []
    statistics = allocator.statistics()
    assert (statistics.requested, statistics.allocated, statistics.reserved, statistics.inactive_split) == (0, 0, 0, 0)
    assert (statistics.segments, allocator.driver.free_bytes) == (0, capacity)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Draw events, sizes and streams of some storages, of which some die."""
    sizes = draw(st.lists(st.one_of(st.just(0), SIZES), min_size=1, max_size=40))
    streams = draw(st.lists(st.sampled_from([0, 0, 5]), min_size=len(sizes), max_size=len(sizes)))
    events: list[int] = []
    alive: list[int] = []
    for storage in range(len(sizes)):
        events.append(storage)
        alive.append(storage)
        while alive and draw(st.booleans()):
            events.append(~alive.pop(draw(st.integers(0, len(alive) - 1))))
    return events, sizes, streams


@given(lives(), SETTINGS, CAPACITIES)
def test_a_replay_is_repeatable_and_its_trace_brings_it_about_again(
    case: tuple[list[int], list[int], list[int]], settings: AllocatorSettings, capacity: int
) -> None:
    """The same events give the same result; the trace of a replay, read as a recorded one, gives the same segment
    events at the same places.
    """
    events, sizes, streams = case
    first: list[TraceEntry] = []
    done = replay(events, sizes, settings=settings, capacity=capacity, streams=streams, history=first)
    assert replay(events, sizes, settings=settings, capacity=capacity, streams=streams) == done
    trace = from_snapshot_trace(first)
    assert trace.unknown_frees == 0
    if done.oom is not None:
        assert trace.ooms == 1
        return
    again: list[TraceEntry] = []
    repeated = replay(
        trace.events, trace.sizes, settings=settings, capacity=capacity, streams=trace.streams, history=again
    )
    assert again == first
    assert from_snapshot_trace(again) == trace
    assert repeated.end == done.end


@given(lives(), SETTINGS, st.data())
def test_marks_change_nothing_but_the_peaks_between_them(
    case: tuple[list[int], list[int], list[int]], settings: AllocatorSettings, data: st.DataObject
) -> None:
    """Peaks of the stages have the peak of the whole as their largest; a mark's state is that of the shorter list."""
    events, sizes, streams = case
    marks = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    whole = replay(events, sizes, settings=settings, capacity=10 * GIB, streams=streams)
    staged = replay(events, sizes, settings=settings, capacity=10 * GIB, streams=streams, marks=marks)
    assert (staged.requested, staged.allocated, staged.reserved) == (whole.requested, whole.allocated, whole.reserved)
    assert staged.fragmentation == whole.fragmentation
    assert max(s.reserved_peak for s in [*staged.marks, staged.end]) == whole.reserved.size
    for mark, state in zip(marks, staged.marks, strict=True):
        shorter = replay(events[:mark], sizes, settings=settings, capacity=10 * GIB, streams=streams).end
        for name in ("requested", "allocated", "reserved", "inactive_split", "segments"):
            assert getattr(state, name) == getattr(shorter, name)


@given(lives(), SETTINGS)
def test_the_peaks_are_those_of_the_curve(
    case: tuple[list[int], list[int], list[int]], settings: AllocatorSettings
) -> None:
    """Each peak is the maximum over the states after each event, at the first event that brings it, and the
    fragmentation is the state after the event of the reserved peak.
    """
    events, sizes, streams = case
    done = replay(events, sizes, settings=settings, capacity=10 * GIB, streams=streams)
    marks = list(range(1, len(events)))
    states = replay(events, sizes, settings=settings, capacity=10 * GIB, streams=streams, marks=marks)
    curve = [*states.marks, states.end]
    for name in ("requested", "allocated", "reserved"):
        values = [getattr(state, name) for state in curve]
        peak = getattr(done, name)
        assert peak.size == max(values)
        assert peak.position == (values.index(max(values)) if max(values) else 0)
    if done.reserved.size:
        state = curve[done.reserved.position]
        assert done.fragmentation.allocated == state.allocated
        assert done.fragmentation.inactive_split == state.inactive_split
        assert done.fragmentation.unallocated == state.reserved - state.allocated
