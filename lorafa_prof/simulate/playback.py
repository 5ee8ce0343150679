"""A trace played to the allocator event by event, where more is wanted of it than `replay` keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorafa_prof.allocator.caching_allocator import CachingAllocator
from lorafa_prof.allocator.segments import TraceEntry
from lorafa_prof.allocator.settings import AllocatorSettings
from lorafa_prof.simulate.snapshots.writer import Label, snapshot_bytes
from lorafa_prof.simulate.trace import Block, Trace


def play(trace: Trace, allocator: CachingAllocator, addresses: dict[int, int]) -> Iterator[int]:
    """Give the events of `trace` to `allocator` one by one, and yield each when it is done.

    Args:
        trace: births and deaths.
        allocator: an empty one.
        addresses: has, at any time, the address of each block that is alive; blocks of 0 bytes have none.
    """
    sizes = trace.sizes
    for event in trace.events:
        if event >= 0:
            if sizes[event]:
                addresses[event] = allocator.malloc(sizes[event], trace.blocks[event].stream)
        elif sizes[~event]:
            allocator.free(addresses.pop(~event))
        yield event


def blocks_alive_at(trace: Trace, position: int, settings: AllocatorSettings | None = None) -> dict[int, int]:
    """Return what is alive after the event at `position`: block -> bytes that the allocator counts as allocated for it.

    These are the rounded request, and what was left of a larger free block where that was too little to be split off.
    """
    allocator, addresses = CachingAllocator(settings), dict[int, int]()
    for number, _ in enumerate(play(trace, allocator, addresses)):
        if number == position:
            break
    return {block: allocator.block_size(address) for block, address in addresses.items()}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events in a row that belong to one module at work."""

    phase: str
    module: str
    allocated_bytes: int
    """The most that was allocated in it."""
    end_allocated_bytes: int
    reserved_bytes: int


def timeline(trace: Trace, settings: AllocatorSettings | None = None, *, since: int = 0) -> list[Stretch]:
    """Return how memory rises and falls from event `since` on: a stretch each time another module comes to work."""
    allocator = CachingAllocator(settings)
    stretches: list[Stretch] = []
    place: tuple[str, str] | None = None
    top = before = 0
    for number, event in enumerate(play(trace, allocator, {})):
        if number < since:
            continue
        block = trace.blocks[event if event >= 0 else ~event]
        if event >= 0 and (block.phase, block.module) != place:
            if place is not None:
                stretches.append(Stretch(*place, top, before, allocator.reserved))
            place, top = (block.phase, block.module), 0
        before = allocator.allocated
        top = max(top, before)
    if place is not None:
        stretches.append(Stretch(*place, top, allocator.allocated, allocator.reserved))
    return stretches


def memory_snapshot(trace: Trace, settings: AllocatorSettings | None = None) -> bytes:
    """Return the run as a memory snapshot that PyTorch's viewer opens, each block labelled by what made it."""
    history: list[TraceEntry] = []
    allocator = CachingAllocator(settings, history=history)
    numbers: dict[Label, int] = {}
    labels: list[int] = []
    for event in play(trace, allocator, {}):
        label = _label(trace.blocks[event if event >= 0 else ~event])
        number = numbers.setdefault(label, len(numbers))
        labels.extend([number] * (len(history) - len(labels)))
    shown = {"expandable_segments": allocator.settings.expandable_segments}
    return snapshot_bytes(history, labels, list(numbers), allocator.segments(), shown)


def _label(block: Block) -> Label:
    shape = f"[{', '.join(map(str, block.shape))}]"
    op, module = (f"{block.op}: {block.name}", block.owner) if block.name else (block.op, block.module)
    return Label(
        op=op, module=module, category=block.category.value, phase=block.phase, shape=shape,
        dtype=block.dtype,
    )  # fmt: skip
