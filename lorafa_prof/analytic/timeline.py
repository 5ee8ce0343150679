"""From the record of a few traced layers to the whole step: live memory over time, as polynomials.

The traced layers are the first two and the last two. In the steady state every further layer leaves behind the same
storages as the third traced one. So between the second and the third a block of "n layers more" is inserted, in the
forward and again in the backward: n copies of each storage that the third layer leaves behind. They die where the
original dies, or all together in the backward's block where that is in the backward of the last two layers. Live memory
is affine in the layer between those points, hence its maximum over the inserted layers is at one of the ends, which are
traced.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from lorafa_prof.analytic.arithmetic import Arithmetic
from lorafa_prof.analytic.builder import TRACED_LAYERS
from lorafa_prof.analytic.sizes import Shape, Size, size_of
from lorafa_prof.analytic.tape import Tape
from lorafa_prof.analytic.tensors import ACTIVATIONS, GRADIENTS, TEMPORARIES

_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@cache
def generic(name: str) -> str:
    """Return a module's name with a star for the layer's number."""
    return _LAYER_NUMBER.sub("*", name)


class Kind(NamedTuple):
    """Storages that are the same tensor of different layers."""

    module: str
    name: str
    shape: Shape
    dtype: str
    category: str
    size: Size
    saved: bool = False
    """Autograd keeps it for backward."""


class Place(NamedTuple):
    """Where in the step an event happened."""

    phase: str
    module: str

    @property
    def moment(self) -> str:
        """The place in words."""
        phase = "loss backward" if self.phase == "backward" and self.module == "loss" else self.phase
        return f"{phase}: {self.module}" if self.module else phase


class Repeat(NamedTuple):
    """A layer's events, and those that stand for as many further layers: positions in the timeline's events."""

    first: int
    end: int
    """The layer's events are those from `first` to before `end`."""
    block_first: int
    block_end: int
    """What the further layers leave behind, and what they take with them, all at once."""
    times: int
    """How many further layers."""


@dataclass(frozen=True)
class Timeline:
    """Births (+) and deaths (-) of storages by kind, in order."""

    kinds: list[Kind]
    events: list[tuple[int, int, int]]
    """(kind, how many more or fewer are alive, place)."""
    places: list[Place]
    end_of_forward: int
    """Position in `events` where the forward and the loss are done."""
    repeats: tuple[Repeat, ...] = ()
    """Where layers were not traced, in order."""

    def live_at(self, position: int) -> dict[int, int]:
        """Return how many storages of each kind are alive after the event at `position` (-1: before the first)."""
        live: dict[int, int] = {}
        for kind, change, _ in self.events[: position + 1]:
            live[kind] = live.get(kind, 0) + change
        return live

    def with_phases(self, names: Mapping[str, str]) -> Timeline:
        """Return the timeline with other names for some of its phases."""
        places = [Place(names.get(place.phase, place.phase), place.module) for place in self.places]
        return replace(self, places=places)

    def cleared(self, survives: Callable[[Kind], bool]) -> Timeline:
        """Return the timeline with the deaths, at its end, of all that does not survive it."""
        live = self.live_at(len(self.events) - 1)
        last = self.events[-1][2]
        deaths = [(number, -n, last) for number, n in live.items() if n and not survives(self.kinds[number])]
        return replace(self, events=[*self.events, *deaths])

    def then(self, later: Timeline, born: Sequence[tuple[Kind, int]]) -> Timeline:
        """Return the timeline with another one after it, whose forward is the one that is meant.

        Args:
            later: begins when this one ends.
            born: what is there throughout it, (kind, how many).
        """
        kinds, places = len(self.kinds), len(self.places)
        begins = [(kinds + i, count, places) for i, (_, count) in enumerate(born)]
        kinds += len(born)
        events = [(kind + kinds, change, place + places) for kind, change, place in later.events]
        return Timeline(
            [*self.kinds, *(kind for kind, _ in born), *later.kinds], [*self.events, *begins, *events],
            [*self.places, *later.places], len(self.events) + len(begins) + later.end_of_forward,
        )  # fmt: skip

    def followed_by(self, tape: Tape, phase: str) -> Timeline:
        """Return the timeline with what a tape has recorded after it, all of it in one phase."""
        later = _Kinds(tape)
        born = [(event, 1) if event >= 0 else (~event, -1) for event in tape.events]
        events = [(len(self.kinds) + later.of_item[item], change, len(self.places)) for item, change in born]
        return Timeline(
            [*self.kinds, *later.kinds], [*self.events, *events], [*self.places, Place(phase, "")],
            self.end_of_forward, self.repeats,
        )  # fmt: skip


class _Kinds:
    """Numbers the kinds as they turn up."""

    def __init__(self, tape: Tape) -> None:
        self.of_item: list[int] = []
        """The kind of each storage of the tape."""
        self.kinds: list[Kind] = []
        number: dict[tuple[object, ...], int] = {}
        known = number.get
        for item in tape.items:
            category, saved = item.category, item.saved
            name = generic(item.name) if category == GRADIENTS else item.name
            if saved and category == TEMPORARIES:  # what is kept for backward is an activation
                category = ACTIVATIONS
            described = (generic(item.module), name, item.shape, item.dtype, category, saved)
            kind = known(described)
            if kind is None:
                kind = number[described] = len(self.kinds)
                module, _, shape, dtype, _, _ = described
                self.kinds.append(Kind(module, name, shape, dtype, category, size_of(shape, dtype), saved))
            self.of_item.append(kind)


def build_timeline(tape: Tape, end_of_forward: int, stop: int) -> Timeline:
    """Return the timeline of all layers from the tape of the traced ones, up to event `stop`."""
    kinds = _Kinds(tape)
    places, moves = _places(tape, stop)
    blocks: dict[int, list[tuple[int, int]]] = {}
    deaths = dict.fromkeys(range(len(tape.items)), -1)
    shortened = [_copies(tape, stack, extra, stop) for stack, extra in _shortened(tape)]
    for copies in shortened:
        copies.insert(blocks, kinds)
        for storage in copies.die_with_original:
            deaths[storage] -= copies.times
    events: list[tuple[int, int, int]] = []
    end = place = 0
    of_item = kinds.of_item
    bounds = {bound for found in shortened for bound in found.bounds}
    at: dict[int, tuple[int, int]] = {}
    special = (0, *moves, *blocks, *bounds, end_of_forward)
    cuts = sorted({position for position in special if position < stop})
    for position, following in zip(cuts, (*cuts[1:], stop), strict=True):
        place = moves.get(position, place)
        began = len(events)
        if position in blocks:
            events.extend((kind, change, place) for kind, change in blocks[position])
        if position in bounds:
            at[position] = began, len(events)
        if position == end_of_forward:
            end = len(events)
        events += [
            (of_item[event], 1, place) if event >= 0 else (of_item[~event], deaths[~event], place)
            for event in tape.events[position:following]
        ]
    repeated = sorted(repeat for copies in shortened for repeat in copies.repeats(at))
    return Timeline(kinds.kinds, events, places, end or len(events), tuple(repeated))


@dataclass(frozen=True)
class _Copies:
    """Which storages the layers that are not traced leave behind, how often, and where these come and go."""

    times: int
    forward_block: int
    """Where the third layer's forward begins."""
    forward_end: int
    backward_first: int
    backward_block: int
    """Where the third layer's backward is over."""
    born_in_forward: list[int]
    born_in_backward: list[int]
    die_in_block: list[int]
    die_with_original: set[int]

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Where the third layer begins and ends."""
        return self.forward_block, self.forward_end, self.backward_first, self.backward_block

    def repeats(self, at: Mapping[int, tuple[int, int]]) -> Iterator[Repeat]:
        """Yield the repeats, given the events before and after what is inserted at a position of the tape."""
        (block, first), (end, _) = at[self.forward_block], at[self.forward_end]
        yield Repeat(first, end, block, first, self.times)
        if self.backward_first in at and self.backward_block in at:
            (_, first), (end, block_end) = at[self.backward_first], at[self.backward_block]
            yield Repeat(first, end, end, block_end, self.times)

    def insert(self, blocks: dict[int, list[tuple[int, int]]], kinds: _Kinds) -> None:
        """Add the (kind, change) that happen at once before the event at a position: first what goes."""
        for position, storages, times in (
            (self.forward_block, self.born_in_forward, self.times),
            (self.backward_block, self.die_in_block, -self.times),
            (self.backward_block, self.born_in_backward, self.times),
        ):
            counts = Counter(kinds.of_item[storage] for storage in storages)
            blocks.setdefault(position, []).extend((kind, count * times) for kind, count in counts.items())


def _shortened(tape: Tape) -> list[tuple[int, int]]:
    """Return (stack, layers not traced) of each stack of which only the ends were traced."""
    traced = TRACED_LAYERS
    return [
        (stack, number - traced)
        for stack, number in enumerate(tape.stacks)
        if number > traced and ("forward", stack, traced + 1) not in tape.boundaries
    ]


def _copies(tape: Tape, stack: int, extra: int, stop: int) -> _Copies:
    at = {(way, layer): position for (way, of, layer), position in tape.boundaries.items() if of == stack}
    born: dict[int, int] = {}
    died: dict[int, int] = {}
    for position, event in enumerate(tape.events[:stop]):
        if event >= 0:
            born[event] = position
        else:
            died[~event] = position
    never = len(tape.events)
    first, second, third = at["forward", 2], at["forward", 3], at["forward", 4]
    forward = [i for i, p in born.items() if first <= p < second and not second > died.get(i, never)]
    # what the layer hands to the next one in the forward goes with that one, whichever it is
    forward = [i for i in forward if not second <= died.get(i, never) < third]
    start, end, after = (at.get(("backward", k), never) for k in (3, 2, 1))
    backward = [i for i, p in born.items() if start <= p < end and died.get(i, never) >= max(after, end)]
    in_block = [i for i in forward if third <= died.get(i, never) < after and died[i] >= at.get(("backward", 4), never)]
    return _Copies(
        extra, first, second, start, end, forward, backward, in_block, (set(forward) | set(backward)) - set(in_block)
    )


def repeats(tape: Tape) -> list[tuple[int, int, int]]:
    """Return the ranges of events of the layers that stand for those not traced, and how many each stands for."""
    ranges, at = [], tape.boundaries
    for stack, extra in _shortened(tape):
        ranges.append((at["forward", stack, 2], at["forward", stack, 3], extra))
        if ("backward", stack, 2) in at:
            ranges.append((at["backward", stack, 3], at["backward", stack, 2], extra))
    return ranges


def _places(tape: Tape, stop: int) -> tuple[list[Place], dict[int, int]]:
    """Return the distinct places of a tape up to event `stop`, and by position where it becomes which of them."""
    number = {Place("forward", ""): 0}
    moves = {
        position: number.setdefault(Place(phase, module), len(number))
        for position, phase, module in tape.marks
        if position < stop
    }
    return list(number), moves


def repeated_flops(
    flops: Sequence[Arithmetic], ranges: Sequence[tuple[int, int, int]]
) -> Iterable[tuple[str, str, Size]]:
    """Yield (pass, kind, number) of a tape's floating-point operations, those in its `repeats` as often as it says."""
    for position, where, kind, (coefficient, symbols), *_ in flops:
        factor = 1 + sum(times for start, stop, times in ranges if start < position <= stop)
        yield where, kind, (coefficient * factor, symbols)


def state_kind(module: str, name: str, shape: Shape, dtype: str, category: str) -> Kind:
    """Return the kind of a tensor that is not on the tape: a weight, a state, an optimizer's temporary."""
    return Kind(generic(module), name, shape, dtype, category, size_of(shape, dtype))
