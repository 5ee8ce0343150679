"""What a step's tensors take of the caching allocator's blocks beyond their own size.

PyTorch counts blocks as allocated. A block of at most 1 MiB is as large as its tensor, rounded up to 512 B. A larger
one is taken from a free block, and what would remain of that is split off only if it is more than 1 MiB: up to 1 MiB
beyond the tensor stays with it. How much depends on what was free, and so on the order in which tensors come and go.
The plan knows that order, so the tensors above 1 MiB are given to the model of the allocator: first what is there from
step to step, as it was made, then the step up to its peak, each layer in turn.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from lorafa_prof.allocator.sizes import SMALL_SIZE
from lorafa_prof.analytic.sizes import product_of, rounded, symbol_values
from lorafa_prof.analytic.step_plan import StepPlan
from lorafa_prof.analytic.timeline import Kind, Repeat, Timeline

if TYPE_CHECKING:
    from lorafa_prof.allocator.caching_allocator import CachingAllocator

#: Up to a layer's number, which a star stands for.
_LAYER = re.compile(r"[^*]*\*")
#: What is there before the first step.
_LOADED = ("weights", "adapters")


class NotAliveError(LookupError):
    """A tensor goes that has not come: layers that were not traced are not as the one that stands for them."""


def beyond_tensors(plan: StepPlan, bs: int, seq: int, position: int, workspaces: Sequence[int] = ()) -> int | None:
    """Return the bytes of blocks beyond their tensors' after an event of a timeline; it is asked as `replayed` is.

    None where the record does not add up layer by layer: no figure is better than one of another step.
    """
    try:
        allocator = replayed(plan, bs, seq, position, workspaces)
    except NotAliveError:
        return None
    return allocator.allocated - allocator.requested


def most_beyond_tensors(plan: StepPlan, bs: int, seq: int, position: int, workspaces: Sequence[int] = ()) -> int:
    """Return what `beyond_tensors` is at most, whatever comes and goes in which order."""
    values = symbol_values(bs, seq)
    alive = plan.alive(position)
    large = sum(n for kind, n in alive if kind.size[0] * product_of(kind.size[1], values) > SMALL_SIZE)
    return (large + len(workspaces)) * SMALL_SIZE


def replayed(plan: StepPlan, bs: int, seq: int, position: int, workspaces: Sequence[int] = ()) -> CachingAllocator:
    """Return an allocator that has what is above 1 MiB after the event at `position` of the plan's timeline.

    Args:
        plan: of the step.
        bs: batch size.
        seq: sequence length.
        position: -1 for before the first event, the number of events for the optimizer's step.
        workspaces: bytes of each buffer that libraries take in the first forward and backward, and keep.

    Raises:
        NotAliveError: the record does not add up layer by layer.
    """
    values = symbol_values(bs, seq)

    def size_of(kind: Kind) -> int:
        size = int(rounded(kind.size[0] * product_of(kind.size[1], values)))
        return size if size > SMALL_SIZE else 0

    replay = _Replay()
    static = [(kind, count) for kind, count in plan.static if size_of(kind)]
    for is_loaded, size in ((True, 0), *((None, size) for size in workspaces), (False, 0)):
        if is_loaded is None:
            replay.born(size)
        for kind in _in_order((k, n) for k, n in static if (k.category in _LOADED) is is_loaded):
            replay.born(size_of(kind))
    sizes = [size_of(kind) for kind in plan.timeline.kinds]
    replay.step(plan.timeline, sizes, position)
    if position >= len(plan.timeline.events):
        for kind in _in_order((k, n) for k, n in plan.step_temporaries if size_of(k)):
            replay.born(size_of(kind))
    return replay.done()


class _Replay:
    """Births and deaths of tensors, in order."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.events: list[int] = []

    def born(self, size: int) -> int:
        """Let a tensor come; return its number."""
        number = len(self.sizes)
        self.sizes.append(size)
        self.events.append(number)
        return number

    def step(self, timeline: Timeline, sizes: Sequence[int], position: int) -> None:
        """Let the step's tensors come and go up to the event at `position`.

        Of alike tensors the one that autograd keeps goes first that came last, for the backward takes layers in the
        reverse order; of others the one that came first.
        """
        alive: list[deque[int]] = [deque() for _ in timeline.kinds]
        for kind, change in _unrolled(timeline, sizes, position):
            if change > 0:
                alive[kind].append(self.born(sizes[kind]))
            else:
                if not alive[kind]:
                    raise NotAliveError(timeline.kinds[kind].name)
                gone = alive[kind].pop() if timeline.kinds[kind].saved else alive[kind].popleft()
                self.events.append(~gone)

    def done(self) -> CachingAllocator:
        """Return an allocator that has done all of this."""
        from lorafa_prof.allocator.caching_allocator import CachingAllocator  # a start has no time for it

        allocator = CachingAllocator()
        allocator.run(self.events, self.sizes, [None] * len(self.sizes))
        return allocator


def _unrolled(timeline: Timeline, sizes: Sequence[int], position: int) -> Iterator[tuple[int, int]]:
    """Yield (kind, 1 or -1) of the large tensors' births and deaths up to the event at `position`, layer by layer."""
    events = [(kind, change) if sizes[kind] else None for kind, change, _ in timeline.events[: position + 1]]
    inside = {i for repeat in timeline.repeats for i in range(repeat.first, repeat.end)}
    blocks = {repeat.block_first: repeat for repeat in timeline.repeats}
    number = 0
    while number < len(events):
        repeat = blocks.get(number)
        if repeat is not None and repeat.block_end > number:
            yield from _layer(timeline, sizes, repeat) * repeat.times
            number = repeat.block_end
            continue
        event = events[number]
        if event is not None:
            kind, change = event
            sign = 1 if change > 0 else -1
            for _ in range(1 if number in inside else abs(change)):
                yield kind, sign
        number += 1


def _layer(timeline: Timeline, sizes: Sequence[int], repeat: Repeat) -> list[tuple[int, int]]:
    """Return (kind, 1 or -1) of the large tensors of one layer that was not traced.

    These are the events of the layer that stands for it, but for what only that one has: the timeline says what the
    further layers leave behind and take with them, all at once, or together with the layer's own.
    """
    events = [(kind, change) for kind, change, _ in timeline.events[repeat.first : repeat.end] if sizes[kind]]
    too_much: Counter[int] = Counter()
    for kind, change in events:
        too_much[kind] += (change > 0) - (change == -1)  # one that dies for all layers is told of
    for kind, change, _ in timeline.events[repeat.block_first : repeat.block_end]:
        too_much[kind] -= change // repeat.times
    kept = []
    for kind, change in reversed(events):
        sign = 1 if change > 0 else -1
        if too_much[kind] * sign > 0:
            too_much[kind] -= sign
        else:
            kept.append((kind, sign))
    kept.reverse()
    return kept


def _in_order(tensors: Iterable[tuple[Kind, int]]) -> Iterator[Kind]:
    """Yield each tensor, layer after layer: of what all layers have one of, each layer's in turn."""
    for is_layered, alike in groupby(tensors, key=lambda tensor: _layers_of(tensor[0])):
        group = list(alike)
        layers = 1 if is_layered is None else Counter(count for _, count in group).most_common(1)[0][0]
        for layer in range(layers):
            for kind, count in group:
                for _ in range(count // layers + (layer < count % layers)):
                    yield kind


def _layers_of(kind: Kind) -> str | None:
    found = _LAYER.match(kind.module)
    return found and found.group()
